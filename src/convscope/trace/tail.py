"""What follows a layer, run again for other outputs of it; and its scores without single maps.

    tail = record(model, lambda network: network(picture), "conv5", score)
    tail.again(changed)    # scores for other outputs of conv5

Every call that depends on the layer's output is recorded with its arguments; what does not depend
on it is kept as it was. So the part before the layer never runs again, whatever the rest looks
like (branches, skip paths, functional spellings). Where that cannot be done exactly, the tail says
why and does nothing.

Until a convolution or a linear layer mixes them, feature maps go their own ways (rectifier, pool,
normalisation, flatten). So all results of the mixing call with one map set to zero cost no more
than the call itself: mixing is linear, and without map k it gives what it gave less what map k
brought (`Mixing`). `Without` takes the quickest of the exact ways to unit ablation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from convscope.lens.lens import Lens
from convscope.lens.torch_private import tree_leaves
from convscope.trace.recorder import PICTURE, Call, Slot, Trace, once

BYTES = 24e6
"""What one batch of changed outputs may take: more and the system pages (measured)."""
MOST, MOST_WHOLE = 256, 8
"""Maps at a time; where the whole network runs."""
CONVOLUTION, LINEAR = "conv2d", "linear"
FLAT = {"flatten", "view", "reshape", "squeeze"}


class Tail(Trace):
    """The calls after a layer, for one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = False
        self.activation: Tensor
        """The layer's output (1, …), where the score's gradient begins."""
        self.score: Tensor

    def begin(self, output: Tensor) -> Tensor:
        """The layer's output has come; it may come again (then the last time counts)."""
        torch.set_grad_enabled(True)  # undone where the run ends; the part before needs no graph
        self.is_open = False
        obstacle = self.obstacle
        self.reset()
        self.obstacle = obstacle
        self.activation = output.detach().requires_grad_()
        first = self.activation.clone()
        self.place(first)
        self._autocast = _autocast(first)
        self.is_open = True
        return first

    def note(self, call: Call, made: Any, result: Any) -> None:
        super().note(call, made, result)
        if _autocast(self.activation) != self._autocast:
            self.refuse("the precision changes on the way")

    def finish(self, score: Tensor) -> None:
        """The run has ended with this score (1,)."""
        slot = self._marks.get(score)
        if slot is None:
            self.refuse("the score does not depend on the layer")
        self.end()
        self.score, self._score_slot = score, slot
        self._marks = {}

    def again(
        self, values: Float[Tensor, "n ..."], first: int = 0, stop: int | None = None
    ) -> Float[Tensor, "n ..."]:
        """Scores (n,) for other outputs of the layer, each without the batch axis.

        values: not to be used afterwards, the calls may overwrite them. first, stop: begin with
        other outputs of call `first - 1`; give the result of the last call before `stop`.
        """
        assert not self.obstacle, self.obstacle
        with torch.no_grad():
            if any(call.is_one_by_one for call in self.calls[first:stop]):
                return self._each(values, first, stop)
            many = torch.vmap(lambda one: self._once(one[None], first, stop)[0])
            try:
                scores: Tensor = many(values.clone())
            except (RuntimeError, ValueError, UserWarning):
                # In place on something shared, or a warning of vmap where warnings are errors.
                scores = self._each(values, first, stop)
            return scores

    def before(self, value: Tensor, number: int) -> Tensor:
        """What call `number` would be given if the layer put out `value` (1, …)."""
        return self._once(value, 0, number) if number else value

    def _each(self, values: Tensor, first: int, stop: int | None) -> Tensor:
        return torch.cat([self._once(one[None], first, stop) for one in values])

    def _once(self, value: Tensor, first: int, stop: int | None) -> Tensor:
        last = (self.calls[first - 1].gives[0] or PICTURE) if first else PICTURE
        held: dict[int, Any] = {last: value}
        for call in self.calls[first:stop]:
            for slot, leaf in zip(call.gives, call.run(held), strict=True):
                if slot is not None:
                    held[slot] = leaf
                    last = slot
        result: Tensor = held[last if stop is not None else self._score_slot]
        return result


Network = Callable[[Tensor], Any]


def record(
    model: nn.Module, run: Callable[[Network], Any], layer: str, score: Callable[[Any], Tensor]
) -> Tail:
    """Run the network once and record what follows the layer up to `score(output)` (1,).

    run: calls the network that it is given on one picture; if it has to call again, the last
    call counts. Raises ModelError M503 where the layer runs several times in one pass.
    """
    tail = Tail()
    calls: list[int] = []

    def begin(output: Tensor) -> Tensor:
        calls.append(1)
        return tail.begin(output)

    with torch.enable_grad():  # so that weights made under inference mode are copied
        watching = Lens(model, (), {layer: begin})
    with torch.inference_mode(False), torch.no_grad(), watching as lens:

        def network(picture: Tensor) -> Any:
            calls.clear()
            return lens(picture)

        with tail:
            output = run(network)
            with torch.enable_grad():
                result = score(output)
        if calls:
            tail.finish(result)
    once(layer, len(calls))
    return tail


def _autocast(tensor: Tensor) -> tuple[bool, torch.dtype]:
    kind = tensor.device.type
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


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
        for number, step in enumerate(tail.calls):
            if step.name in (CONVOLUTION, LINEAR):
                return cls._at(tail, number, rest) if _mixes(tail, step) else None
            if not (step.keeps_maps_apart or _averages(step) or _flattens(tail, step)):
                return None
        return None

    @classmethod
    def _at(cls, tail: Tail, number: int, rest: Tensor) -> Mixing | None:
        if not _is_chain(tail.calls, number):
            return None
        step = tail.calls[number]
        with torch.no_grad():
            silent = tail.before(rest.clone(), number)
            there = tail.before(tail.activation.detach().clone(), number)
            change = (there - silent).reshape(rest.shape[1], -1)
            (result,) = step.run({step.takes[0]: there})
        change = change if change.dtype == torch.float64 else change.float()
        return cls(tail, number, change, tuple(there.shape), result, *_only_row(tail, number))

    @property
    def step(self) -> Call:
        return self.tail.calls[self.number]

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


def _mixes(tail: Tail, step: Call) -> bool:
    """Whether this is a plain convolution of maps, or a linear layer on flattened maps."""
    if not (step.takes and isinstance(step.args[0], Slot) and len(step.takes) == 1):
        return False
    given = tail.outputs[step.args[0].number]
    if step.name == LINEAR:
        return given.dim() == 2 and given.shape[1] % tail.activation.shape[1] == 0
    plain = step.option(6, "groups", 1) == 1 and not isinstance(step.option(4, "padding", 0), str)
    return bool(plain and given.dim() == 4 and given.shape[1] == tail.activation.shape[1])


def _averages(step: Call) -> bool:
    """Whether this is the mean or sum over the positions of each map."""
    if step.name not in ("mean", "sum") or len(step.takes) != 1:
        return False
    dims: Any = step.option(1, "dim")
    return isinstance(dims, (list, tuple)) and {dim % 4 for dim in dims} == {2, 3}


def _flattens(tail: Tail, step: Call) -> bool:
    """Whether this lays out (1, maps, h, w) as (1, maps·h·w), map after map."""
    if step.name not in FLAT or len(step.takes) != 1:
        return False
    before, after = (tail.outputs[n or 0] for n in (step.takes[0], step.gives[0]))
    return after.dim() == 2 and after.numel() == after.shape[1] == before.numel()


def _is_chain(steps: list[Call], number: int) -> bool:
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
    rest = tail.calls[number + 1 :]
    if not rest or rest[-1].name != "__getitem__" or not _is_chain(tail.calls, len(tail.calls) - 1):
        return None, None
    *between, choose = rest
    alike = all(
        step.treats_maps_alike or _averages(step) or _squeezes(tail, step) for step in between
    )
    index = choose.args[1]
    row = index[1] if isinstance(index, tuple) and index[:1] == (slice(None),) else None
    return (len(tail.calls) - 1, row) if alike and isinstance(row, int) else (None, None)


def _squeezes(tail: Tail, step: Call) -> bool:
    """A flatten that works for any number of maps, each of one position."""
    if not _flattens(tail, step):
        return False
    before = tail.outputs[step.takes[0]]
    free = step.name == "flatten" or -1 in tree_leaves(step.args[1:])
    return free and before.shape[1:].numel() == before.shape[1]


@dataclass(frozen=True)
class Without:
    """One layer in one pass of one picture."""

    tail: Tail
    places: Int[Tensor, "maps at"]
    """Where in the layer's output, laid out flat, each map's numbers are."""
    rest: Float[Tensor, "..."]
    """What the maps put out when they are taken away, in the shape of the layer's output."""
    mixing: Mixing | None
    """Made with the same `rest`; None where the maps are not mixed in one step."""
    whole: Callable[[Float[Tensor, "n ..."]], Float[Tensor, "n ..."]]
    """Runs the whole network with these outputs of the layer."""

    def scores(self, maps: Int[Tensor, "n"]) -> Float[Tensor, "n ..."]:
        """The score without each one of these maps (ascending), or the scores, as recorded."""
        if self.mixing is not None:
            return self.mixing.scores(maps)
        output, places = self.tail.activation.detach(), self.places[maps]
        outputs = output.flatten().repeat(len(maps), 1)
        outputs = outputs.scatter_(1, places, self.rest.flatten()[places])
        outputs = outputs.reshape(len(maps), *output.shape[1:])
        return self.whole(outputs) if self.tail.obstacle else self.tail.again(outputs)

    def parts(self, maps: Int[Tensor, "n"]) -> Iterator[Int[Tensor, "part"]]:
        """Batches in which no tensor is too large."""
        steps = self.tail.calls[0 if self.mixing is None else self.mixing.number + 1 :]
        sizes = [self.tail.outputs[slot].numel() for s in steps for slot in s.gives if slot]
        sizes.append(self.rest.numel() if self.mixing is None else self.mixing.floats)
        few = max(1, min(MOST, int(BYTES / 4 // max(sizes))))
        room = MOST_WHOLE if self.tail.obstacle else few
        return iter(torch.split(maps, room)) if len(maps) else iter(())
