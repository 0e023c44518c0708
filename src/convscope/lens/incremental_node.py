"""What is one call of a network to the engine that computes windows?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.lens.step import Slot, Step
from convscope.lens.windows import Window

Kind = Literal["picture", "slide", "point", "mean", "whole"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One result of a call. Values have an axis of pictures first: one when recorded, then many.

    A slide makes windows from larger windows (convolutions, pools); a point works place by place;
    a mean sums a map up; anything else needs the whole of what it takes.
    """

    kind: Kind
    run: Callable[..., Tensor]
    """From the values that it takes, for any number of pictures, whole."""
    name: str = ""
    takes: tuple[int, ...] = ()
    shape: Shape = ()
    """Of the result for one picture."""
    into: Callable[..., object] | None = None
    """The same, with the result written into a tensor that is given as `out`."""
    bare: Callable[[Tensor], Tensor] | None = None
    """Of a slide: the same without padding, on windows that bring their own surroundings."""
    windows: tuple[Window, Window] | None = None
    outside: float = 0.0
    """Of a slide: what lies outside the map."""
    share: tuple[Tensor, Tensor] | None = None
    """Of an average pool: by what to multiply rows and columns, where not all places count."""
    weight: Float[Tensor, "out in k l"] | None = None
    bias: Float[Tensor, "out"] | None = None
    how: tuple[Any, ...] = ()
    """Of a convolution: stride, padding, dilation, groups."""

    @property
    def mapped(self) -> bool:
        """Are the last two axes the picture's rows and columns, place by place?"""
        return self.kind in ("picture", "slide", "point")

    @property
    def in_place(self) -> bool:
        """Is it a slide of which each place reads the same place only (a 1 × 1 convolution)?"""
        read = self.windows or ()
        return self.weight is not None and all(
            window.kernel == window.stride == 1 and window.padding == 0 for window in read
        )

    @property
    def work(self) -> float:
        """Multiplications (or at least movements) for one place of the result."""
        channels = prod(self.shape[1:-2])
        each = 1 if self.weight is None else self.weight[0].numel()
        return float(channels * each)


Lower = Callable[[Step, Sequence[Shape], Shape], Node | None]
"""From a call, the shapes of what it takes and of its first result; None: it is another thing."""
Table = Mapping[str, Lower]


def plain_name(step: Step) -> str:
    """`relu` for relu_, `add` for __iadd__ and add_."""
    name = step.name.removeprefix("_") if step.name == "_threshold" else step.name
    if name.startswith("__") and name not in ("__getitem__", "__get__"):
        name = name.strip("_")
        return name[1:] if name in ("iadd", "isub", "imul", "itruediv", "radd", "rmul") else name
    return name if name.startswith("__") else name.rstrip("_")


def leaves(step: Step) -> list[Any]:
    """All arguments, at any depth."""
    found: list[Any] = torch.utils._pytree.tree_leaves((step.args, dict(step.kwargs)))
    return found


def results(step: Step, held: Mapping[int, Tensor]) -> list[Tensor]:
    """The call's tensors; what it overwrites is a copy."""
    if overwrites(step) and isinstance(step.args[0], Slot):
        first = step.args[0].number
        held = {**held, first: held[first].clone()}
    return [leaf for leaf in step.run(held) if isinstance(leaf, Tensor)]


def overwrites(step: Step) -> bool:
    """May the call work in place, by its name or by a flag among its arguments?"""
    private = step.name.startswith("__")
    spelled = step.name.startswith("__i") if private else step.name.endswith("_")
    return bool(step.args) and (spelled or any(leaf is True for leaf in leaves(step)))


def again(step: Step, part: int = 0) -> Callable[..., Tensor]:
    """The very call with other values."""

    def run(*values: Tensor) -> Tensor:
        return results(step, dict(zip(step.takes, values, strict=True)))[part]

    return run


def same(x: Tensor) -> Tensor:
    """Of calls that do nothing here; such nodes are left out of the graph."""
    return x


def alone(step: Step, given: Sequence[Shape]) -> bool:
    """Does the call take one map (1, c, h, w) as its first argument, and constants?"""
    first = bool(step.args) and isinstance(step.args[0], Slot)
    return first and len(given) == 1 and len(given[0]) == 4 and len(step.gives) == 1
