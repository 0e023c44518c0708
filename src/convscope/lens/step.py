"""One call that a network made: what does it take, and is it affine, or about each map alone?

Both questions are answered by name, from lists of calls that are known to be so; what is not
listed is not. So an unknown call costs speed and never exactness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Slot:
    """Stands in a call's arguments for a tensor that depends on the layer's output."""

    number: int


@dataclass(frozen=True)
class Step:
    """One call: slots in the place of what depends on the layer, and where its results go."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    gives: tuple[int | None, ...]
    """Slots of the results; None for a result that is no tensor."""

    @property
    def name(self) -> str:
        return str(getattr(self.call, "__name__", self.call))

    @property
    def takes(self) -> list[int]:
        """Slots among the arguments, at any depth."""
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return [leaf.number for leaf in leaves if isinstance(leaf, Slot)]

    def option(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def run(self, held: Mapping[int, Any]) -> list[Any]:
        """Make the call with these tensors in the slots; its results one after the other."""
        args = tree_map_only(Slot, lambda slot: held[slot.number], self.args)
        kwargs = tree_map_only(Slot, lambda slot: held[slot.number], dict(self.kwargs))
        if self.name in DENSE:
            args = (args[0].contiguous(), *args[1:])
        return tree_leaves(self.call(*args, **kwargs))


DENSE = {"adaptive_avg_pool2d"}
"""Calls that torch.vmap (2.15) knows only for inputs that lie channel by channel in memory."""

Test = Callable[[Step], bool]


def _first(step: Step) -> bool:
    """Only the first argument depends on the layer."""
    return bool(step.args) and isinstance(step.args[0], Slot) and len(step.takes) == 1


def _one(step: Step) -> bool:
    return len(step.takes) == 1


def _any(_: Step) -> bool:
    return True


def _first_and_off(place: int) -> Test:
    """Only the first argument depends on the layer, and the call is not in training mode."""
    return lambda step: _first(step) and not step.option(place, "training", True)


def _calls(names: str, test: Test) -> dict[str, Test]:
    return dict.fromkeys(names.split(), test)


OFF = {
    "dropout": _first_and_off(2),
    "dropout2d": _first_and_off(2),
    "alpha_dropout": _first_and_off(2),
    "feature_dropout": _first_and_off(2),
}
"""Dropout, where it does nothing."""
NORM = {"batch_norm": _first_and_off(5)}
"""Batch normalisation by its running statistics."""

AFFINE: Mapping[str, Test] = {
    **_calls(
        "conv1d conv2d conv3d conv_transpose2d linear avg_pool1d avg_pool2d avg_pool3d mean sum "
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d div div_ __truediv__ "
        "__itruediv__ true_divide __getitem__",
        _first,
    ),
    **_calls(
        "flatten view reshape squeeze unsqueeze permute transpose contiguous clone expand neg "
        "__neg__ select narrow chunk split unbind add add_ __add__ __radd__ __iadd__ sub sub_ "
        "__sub__ __rsub__ __isub__ cat stack",
        _any,
    ),
    **_calls("mul mul_ __mul__ __rmul__ __imul__ multiply matmul __matmul__", _one),
    **OFF,
    **NORM,
}
"""Calls whose result is an affine function of what depends on the layer."""

BY_MAP: Mapping[str, Test] = {
    **_calls(
        "relu relu_ relu6 hardtanh hardtanh_ leaky_relu leaky_relu_ elu elu_ selu gelu silu mish "
        "hardswish hardsigmoid sigmoid tanh softplus abs clamp clamp_ clamp_min clamp_min_ "
        "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d clone contiguous",
        lambda step: _first(step) and not _tensors(step) and len(step.gives) == 1,
    ),
    **OFF,
}
"""Calls on (b, maps, h, w) that treat each feature map alone, and all maps alike."""

BY_OWN_MAP: Mapping[str, Test] = {**BY_MAP, **NORM}
"""Calls that treat each feature map alone, each perhaps in its own manner."""


def _tensors(step: Step) -> bool:
    leaves = tree_leaves((step.args, dict(step.kwargs)))
    return any(isinstance(leaf, Tensor) for leaf in leaves)


def allows(table: Mapping[str, Test], step: Step) -> bool:
    """Whether the step is one of the table's calls, made in the manner that the table means."""
    return step.name in table and len(step.gives) > 0 and table[step.name](step)
