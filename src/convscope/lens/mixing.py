"""Where are feature maps first mixed after a layer, and what comes out there without one of them?

Until a convolution or a linear layer mixes them, the maps go their own ways (rectifier, pool,
normalisation, flatten). So all results of the mixing step with one map set to zero cost no more
than the step itself: mixing is linear, and without map k it gives what it gave less what map k
brought.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves

from convscope.lens.step import BY_MAP, BY_OWN_MAP, Slot, Step, allows
from convscope.lens.tail import Tail

CONVOLUTION, LINEAR = "conv2d", "linear"
FLAT = {"flatten", "view", "reshape", "squeeze"}


@dataclass(frozen=True)
class Mixing:
    """The mixing step of a tail, and what it is given."""

    tail: Tail
    number: int
    """Which step mixes."""
    change: Float[Tensor, "maps per_map"]
    """What each map brings to the mixing step, less what it would bring if it were taken away."""
    shape: tuple[int, ...]
    """Of what is mixed."""
    result: Float[Tensor, "1 ..."]
    """Of the mixing step, all maps there. (Later steps may have overwritten the recorded one.)"""
    stop: int | None = None
    row: int | None = None
    """If set: only this row of the mixing matters, and the scores are ready before step `stop`."""

    @classmethod
    def of(cls, tail: Tail, rest: Tensor | None = None) -> Mixing | None:
        """The mixing step, if all steps before it are known to keep the maps apart.

        rest: what the maps put out when they are taken away, in the shape of the layer's output
        (zeros).
        """
        if tail.activation.dim() not in (2, 4):
            return None
        rest = torch.zeros_like(tail.activation) if rest is None else rest
        for number, step in enumerate(tail.steps):
            if step.name in (CONVOLUTION, LINEAR):
                return cls._at(tail, number, rest) if _mixes(tail, step) else None
            if not (allows(BY_OWN_MAP, step) or _averages(step) or _flattens(tail, step)):
                return None
        return None

    @classmethod
    def _at(cls, tail: Tail, number: int, rest: Tensor) -> Mixing | None:
        if not _is_chain(tail.steps, number):
            return None
        step = tail.steps[number]
        with torch.no_grad():
            silent = tail.before(rest.clone(), number)
            there = tail.before(tail.activation.detach().clone(), number)
            change = (there - silent).reshape(rest.shape[1], -1)
            (result,) = step.run({step.takes[0]: there})
        change = change if change.dtype == torch.float64 else change.float()
        return cls(tail, number, change, tuple(there.shape), result, *_only_row(tail, number))

    @property
    def step(self) -> Step:
        return self.tail.steps[self.number]

    @property
    def floats(self) -> int:
        """Numbers in one result of the mixing step, as far as it matters."""
        return self._wanted().numel()

    def scores(self, maps: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The score, or scores, with each one of these maps (ascending) taken away."""
        result = self._wanted()
        brought = self._convolved(maps) if self.step.name == CONVOLUTION else self._summed(maps)
        values = result - brought.reshape(-1, *result.shape[1:]).to(result.dtype)
        shape = self.tail.score.shape[1:]
        return self.tail.again(values, self.number + 1, self.stop).reshape(len(maps), *shape)

    def _wanted(self) -> Tensor:
        return self.result if self.row is None else self.result[:, self.row : self.row + 1]

    def _weight(self) -> Tensor:
        weight: Tensor = self.step.option(1, "weight").detach()
        weight = weight if self.row is None else weight[self.row : self.row + 1]
        return weight.to(self.change.dtype)

    def _summed(self, maps: Tensor) -> Float[Tensor, "n outputs"]:
        """What each map brings to a linear layer: its own block of columns."""
        near = slice(int(maps[0]), int(maps[-1]) + 1)  # a view: the weights may be 400 MB
        blocks = self._weight().reshape(-1, *self.change.shape)[:, near].transpose(0, 1)
        brought: Tensor = blocks @ self.change[near, :, None]
        return brought[maps - near.start, :, 0]

    def _convolved(self, maps: Tensor) -> Float[Tensor, "n outputs positions"]:
        """What each map brings to a convolution: its windows times its own slice of the filters."""
        weight = self._weight()[:, maps].transpose(0, 1).flatten(2)
        images = self.change[maps].reshape(len(maps), 1, *self.shape[2:])
        size = self.step.option(1, "weight").shape[2:]
        stride, padding, dilation = (
            self.step.option(place, name, default)
            for place, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
        )
        return weight @ F.unfold(images, size, dilation, padding, stride)


def _mixes(tail: Tail, step: Step) -> bool:
    """Whether this is a plain convolution of maps, or a linear layer on flattened maps."""
    if not (step.takes and isinstance(step.args[0], Slot) and len(step.takes) == 1):
        return False
    given = tail.outputs[step.args[0].number]
    if step.name == LINEAR:
        return given.dim() == 2 and given.shape[1] % tail.activation.shape[1] == 0
    plain = step.option(6, "groups", 1) == 1 and not isinstance(step.option(4, "padding", 0), str)
    return bool(plain and given.dim() == 4 and given.shape[1] == tail.activation.shape[1])


def _averages(step: Step) -> bool:
    """Whether this is the mean or sum over the positions of each map."""
    if step.name not in ("mean", "sum") or len(step.takes) != 1:
        return False
    dims: Any = step.option(1, "dim")
    return isinstance(dims, (list, tuple)) and {dim % 4 for dim in dims} == {2, 3}


def _flattens(tail: Tail, step: Step) -> bool:
    """Whether this lays out (1, maps, h, w) as (1, maps·h·w), map after map."""
    if step.name not in FLAT or len(step.takes) != 1:
        return False
    before, after = (tail.outputs[n or 0] for n in (step.takes[0], step.gives[0]))
    return after.dim() == 2 and after.numel() == after.shape[1] == before.numel()


def _is_chain(steps: list[Step], number: int) -> bool:
    """Whether each step up to this one works on the result of the one before, and nothing later
    goes back behind it."""
    last: int | None = 0
    for step in steps[: number + 1]:
        if step.takes != [last]:
            return False
        last = step.gives[0]
    given = {slot for step in steps[number:] for slot in step.gives}
    return all(slot in given for step in steps[number + 1 :] for slot in step.takes)


def _only_row(tail: Tail, number: int) -> tuple[int | None, int | None]:
    """Where the score is one map's own: the choosing step, and which row of the mixing it wants.

    As in SqueezeNet, whose last convolution has one map per class, rectified and averaged.
    """
    rest = tail.steps[number + 1 :]
    if not rest or rest[-1].name != "__getitem__" or not _is_chain(tail.steps, len(tail.steps) - 1):
        return None, None
    *between, choose = rest
    alike = all(
        allows(BY_MAP, step) or _averages(step) or _squeezes(tail, step) for step in between
    )
    index = choose.args[1]
    row = index[1] if isinstance(index, tuple) and index[:1] == (slice(None),) else None
    return (len(tail.steps) - 1, row) if alike and isinstance(row, int) else (None, None)


def _squeezes(tail: Tail, step: Step) -> bool:
    """A flatten that works for any number of maps, each of one position."""
    if not _flattens(tail, step):
        return False
    before = tail.outputs[step.takes[0]]
    free = step.name == "flatten" or -1 in tree_leaves(step.args[1:])
    return free and before.shape[1:].numel() == before.shape[1]
