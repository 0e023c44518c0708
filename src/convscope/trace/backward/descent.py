"""Windowed projections: signals of single neurons from any layer sent back to the pixels.

A neuron's signal stays inside its receptive field. So only a window of each map is worked on: step
by step down the graph, for many neurons of many pictures at once, whose windows are alike but for
their corners. Until the first step that looks at the picture, what comes down from one map is the
same for all pictures but for its strength, and is worked out once. What hangs over the border is
cut off where it is the same for all neurons that are sent down together; so neurons in like places
are: as many groups as are worth the time that each of them costs. What arrives is what autograd
would send, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError
from convscope.lens.lens import Lens, gradients_of
from convscope.lens.twin import bare, refuse_scripted
from convscope.trace.backward.steps import BackwardGraph, Rectified, Seen, Stack, Step
from convscope.trace.backward.windows import Frame, Pair, Signal
from convscope.trace.backward_rule import BackwardRule
from convscope.trace.receptive_field import Affine

NUMBERS = 4_000_000
"""Numbers of windows of one map that are worked on at once: 16 MB, beyond which memory gets
slow."""
HELD = 16_000_000
"""Numbers of what is the same for several pictures that are kept at once."""
Kept = Mapping[int, Shaped[Tensor, "pictures h w c"]]
Arrived = tuple[Int64[np.ndarray, "m"], Signal]
"""Some of the neurons, by number, and what arrives of them at the pixels."""
EACH = 4.0
"""What a group costs besides its windows: as much as so many whole windows (measured)."""
UNBOUNDED = (1 << 40, 1 << 40)
Spans = tuple[Affine, Affine]


@dataclass(frozen=True)
class Reach:
    """The windows of neurons on the map that one step is given signals of."""

    number: int
    """Of the step."""
    spans: Spans
    """Along rows and columns, over the border, too."""
    size: Pair
    maps: int
    effort: float
    """Multiplications for each place of a window."""

    def overhang(self, axis: int, places: Int64[np.ndarray, "p"]) -> Int64[np.ndarray, "2 p"]:
        """How far the windows of these places hang over, before and after."""
        span = self.spans[axis]
        first = span.start + places * span.stride
        over: np.ndarray = np.stack((-first, first + span.size - self.size[axis]))
        return over.clip(min=0)

    def sides(self, axis: int, places: Int64[np.ndarray, "p"]) -> Int64[np.ndarray, "p p"]:
        """Lengths of windows that hold what is on the map from place i on to place j, both of
        `places`, which ascend."""
        before, after = self.overhang(axis, places)
        sides: np.ndarray = self.spans[axis].size - before[None, :] - after[:, None]
        return sides.clip(1, self.size[axis])

    def numbers(self, bounds: tuple[Pair, Pair]) -> int:
        """In a window that holds what is on the map of all places within bounds."""
        first, second = (int(self.sides(axis, np.array(bounds[axis]))[0, 1]) for axis in (0, 1))
        return self.maps * first * second


def reaches(steps: Sequence[Step], end: int, size: Pair) -> list[Reach]:
    """At every step, and at the pixels, of neurons where the first of these steps begins."""
    spans: dict[int, Spans] = {steps[0].number: (Affine(1, 1, 0), Affine(1, 1, 0))}
    sizes = {steps[0].number: UNBOUNDED}
    result = []
    for step in steps:
        here = spans[step.number]
        result.append(Reach(step.number, here, sizes[step.number], step.maps, step.effort))
        sent = (step.below(here[0], 0), step.below(here[1], 1))
        for target in step.targets:
            spans[target] = _hull(spans.get(target, sent), sent, step.size)
            sizes[target] = step.size
    return [*result, Reach(end, spans[end], size, 3, 0)]


def _hull(one: Spans, two: Spans, size: Pair) -> Spans:
    """Of windows that meet on a map. Where they have come by other strides it is all of it."""
    rows, columns = (Affine.union(pair) for pair in zip(one, two, strict=True))
    return rows or Affine(size[0], 0, 0), columns or Affine(size[1], 0, 0)


def alike(places: Int64[np.ndarray, "n 2"], known: Sequence[Reach]) -> list[Int64[np.ndarray, "m"]]:
    """Neurons by number, in groups of like places."""
    groups = []
    for rows in _split(places[:, 0], known, 0, 2 * EACH):
        groups += [rows[each] for each in _split(places[rows, 1], known, 1, EACH)]
    return groups


def _split(
    places: Int64[np.ndarray, "n"], known: Sequence[Reach], axis: int, each: float
) -> list[Int64[np.ndarray, "m"]]:
    """In groups of neighbours along one axis, such that the sum of what they cost is least."""
    there, counts = np.unique(places, return_counts=True)
    cost = _costs(there, known, axis)
    until = np.cumsum(counts)
    many = until[None, :] - (until - counts)[:, None]
    cost = cost * many + each * cost[0, -1]
    best, begin = np.zeros(len(there) + 1), np.zeros(len(there), int)
    for last in range(len(there)):
        choices = best[: last + 1] + cost[: last + 1, last]
        begin[last] = int(choices.argmin())
        best[last + 1] = choices[begin[last]]
    groups, last = [], len(there) - 1
    while last >= 0:
        inside = (places >= there[begin[last]]) & (places <= there[last])
        groups.append(np.flatnonzero(inside))
        last = int(begin[last]) - 1
    return groups


def _costs(
    there: Int64[np.ndarray, "p"], known: Sequence[Reach], axis: int
) -> Float[np.ndarray, "p p"]:
    """Of one window that holds what is on the map from place i on to place j."""
    total = np.zeros((len(there), len(there)))
    for reach in known:
        across = min(reach.spans[1 - axis].size, reach.size[1 - axis])
        total += reach.effort * across * reach.sides(axis, there)
    return total


class Neurons(NamedTuple):
    """Of one layer; arrays of one length."""

    pictures: Int64[np.ndarray, "n"]
    channels: Int64[np.ndarray, "n"]
    places: Int64[np.ndarray, "n 2"]
    values: Float[Tensor, "n"]
    """What is sent from each."""

    @classmethod
    def of_each(cls, places: Sequence[Sequence[int]], values: Float[Tensor, "n"]) -> Neurons:
        """From picture, channel, row and column of each."""
        table = np.array(places, dtype=np.int64).reshape(-1, 4)
        return cls(table[:, 0], table[:, 1], table[:, 2:], values)

    def of(self, numbers: Int64[np.ndarray, "m"]) -> Neurons:
        chosen = torch.from_numpy(numbers).to(self.values.device)
        rest = (self.pictures[numbers], self.channels[numbers], self.places[numbers])
        return Neurons(*rest, self.values[chosen])


class WindowedBackward:
    """The way down from one layer to the pixels."""

    def __init__(self, graph: BackwardGraph, layer: str, rule: str) -> None:
        """rule: by which rectifiers send, of those that the pass up was made for."""
        self._graph, self._rule = graph, rule
        self._start = graph.layers.get(layer, graph.end)
        self._paths: dict[int, _Path] = {}
        self.is_known = graph.below(self._start) is not None
        """Can all its steps be taken here?"""

    @torch.no_grad()
    def down(self, neurons: Neurons, kept: Kept) -> Iterator[Arrived]:
        """What arrives at the pixels from each neuron: some at a time, in any order."""
        everyone = np.arange(len(neurons.channels))
        if not len(everyone):
            return
        for start, some, members in self._branches(self._start, neurons, everyone):
            if start not in self._paths:
                self._paths[start] = _Path(self._graph, start, self._rule)
            for numbers, signal in self._paths[start].down(some, kept):
                yield members[numbers], signal

    def _branches(
        self, start: int, neurons: Neurons, members: Int64[np.ndarray, "n"]
    ) -> Iterator[tuple[int, Neurons, Int64[np.ndarray, "m"]]]:
        """Where maps are stacked, each neuron goes its own way from there."""
        stack, rectified = self._stack(start)
        if stack is None:
            yield start, neurons, members
            return
        values = neurons.values.clamp(min=0) if rectified else neurons.values
        first = 0
        for target, count in zip(stack.targets, stack.counts, strict=True):
            inside = (neurons.channels >= first) & (neurons.channels < first + count)
            if inside.any():
                some = neurons._replace(channels=neurons.channels - first, values=values)
                numbers = np.flatnonzero(inside)
                yield from self._branches(target, some.of(numbers), members[numbers])
            first += count

    def _stack(self, number: int) -> tuple[Stack | None, bool]:
        """The step, if it is the first to change anything, that stacks maps; whether there are
        rectifiers before it."""
        rectified = False
        while number < self._graph.end:
            step = self._graph.steps[number]
            if isinstance(step, Stack):
                return step, rectified
            if step is None or not (type(step) is Step or self._rectifies(step)):
                break
            rectified |= isinstance(step, Rectified)
            number = step.targets[0]
        return None, False

    def _rectifies(self, step: Step) -> bool:
        """Whatever the picture."""
        return isinstance(step, Rectified) and not step.looks_under(self._rule)


class _Path:
    """The way down from where all neurons take the same steps."""

    def __init__(self, graph: BackwardGraph, start: int, rule: str) -> None:
        steps = graph.below(start)
        assert steps is not None
        looking = next((n for n, step in enumerate(steps) if step.looks_under(rule)), len(steps))
        self._rule = rule
        self._start, self._end = steps[0], graph.end
        self._shared, self._own = steps[:looking], steps[looking:]
        self._reaches = reaches(steps, graph.end, graph.size)
        self._sizes = {reach.number: reach.size for reach in self._reaches}

    def down(self, neurons: Neurons, kept: Kept) -> Iterator[Arrived]:
        for group in alike(neurons.places, self._reaches):
            for numbers, signal in self._group(neurons.of(group), kept):
                yield group[numbers], signal

    def _group(self, neurons: Neurons, kept: Kept) -> Iterator[Arrived]:
        """Of neurons whose windows are cut off alike."""
        bounds = Frame.at(neurons.places).bounds
        first, template = self._templates(neurons)
        looking = len(self._shared)
        few = _fitting(self._reaches[:looking], bounds, NUMBERS)
        many = _fitting(self._reaches[looking:], bounds, NUMBERS)
        held = _fitting(self._reaches[looking : looking + 1], bounds, HELD)
        for begin in range(0, len(first), held):
            chosen = first[begin : begin + held]
            parts = [
                self._beginning(neurons.of(chosen[at : at + few]), bounds)
                for at in range(0, len(chosen), few)
            ]
            common = {number: _joined([part[number] for part in parts]) for number in parts[0]}
            members = np.flatnonzero((template >= begin) & (template < begin + held))
            members = members[np.argsort(template[members], kind="stable")]
            for at in range(0, len(members), many):
                numbers = members[at : at + many]
                some = neurons.of(numbers)
                signals = {
                    number: _repeated(signal, template[numbers] - begin, some)
                    for number, signal in common.items()
                }
                seen = Seen(some.pictures, kept, self._rule)
                yield numbers, self._sent(self._own, signals, seen)[self._end]

    def _templates(
        self, neurons: Neurons
    ) -> tuple[Int64[np.ndarray, "templates"], Int64[np.ndarray, "n"]]:
        """Neurons of which the same comes down until a step looks at the picture, but for its
        strength: the first of each kind, and each neuron's kind."""
        negative = (neurons.values < 0).cpu().numpy()
        marks = [neurons.channels[None], negative[None]]
        for reach in self._reaches[: len(self._shared)]:
            marks += [reach.overhang(axis, neurons.places[:, axis]) for axis in (0, 1)]
        _, first, kind = np.unique(
            np.concatenate(marks), axis=1, return_index=True, return_inverse=True
        )
        return first, kind.reshape(-1)

    def _beginning(self, neurons: Neurons, bounds: tuple[Pair, Pair]) -> dict[int, Signal]:
        """What comes of neurons of strength 1 or -1 before a step looks at the picture."""
        alone = torch.from_numpy(neurons.channels).to(neurons.values.device)
        values = neurons.values.new_zeros(len(alone), self._start.maps, 1, 1)
        sign = torch.where(neurons.values < 0, -1, 1).to(values)
        values.scatter_(1, alone[:, None, None, None], sign[:, None, None, None])
        start = Signal(values, Frame(neurons.places, bounds), alone)
        seen = Seen(neurons.pictures, {}, self._rule)
        return self._sent(self._shared, {self._start.number: start}, seen)

    def _sent(
        self, steps: Sequence[Step], arrived: dict[int, Signal], seen: Seen
    ) -> dict[int, Signal]:
        """What has arrived where after these steps."""
        for step in steps:
            signal = arrived.pop(step.number).inside(self._sizes[step.number])
            for target, sent in step.down(signal, seen):
                met = arrived.get(target)
                arrived[target] = sent if met is None else sent.plus(met, step.size)
        return arrived


def _fitting(reaches: Sequence[Reach], bounds: tuple[Pair, Pair], numbers: int) -> int:
    """Windows of which no more than so many numbers stand on one map."""
    largest = max((reach.numbers(bounds) for reach in reaches), default=1)
    return max(1, numbers // largest)


def _joined(signals: Sequence[Signal]) -> Signal:
    """One signal of several, in windows that are cut off alike."""
    one = signals[0]
    values = torch.cat([each.values for each in signals])
    known = [each.alone for each in signals if each.alone is not None]
    alone = torch.cat(known) if len(known) == len(signals) else None
    places = np.concatenate([each.frame.places for each in signals])
    return Signal(
        values.contiguous(memory_format=torch.channels_last),
        replace(one.frame, places=places),
        alone,
    )


def _repeated(signal: Signal, kinds: Int64[np.ndarray, "n"], neurons: Neurons) -> Signal:
    """The signal of each neuron, of those of its kind."""
    index = torch.from_numpy(kinds).to(signal.values.device)
    rows = signal.values.permute(0, 2, 3, 1).index_select(0, index)
    rows *= neurons.values.abs()[:, None, None, None]
    alone = None if signal.alone is None else signal.alone[index]
    return Signal(rows.permute(0, 3, 1, 2), replace(signal.frame, places=neurons.places), alone)


class Neuron(NamedTuple):
    """One place of one feature map of one picture."""

    picture: int
    channel: int
    row: int
    column: int


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass, to which any number of ways down belong."""

    pixels: Float[Tensor, "b c h w"]
    output: Any
    """What the network put out; None if only its layers were asked for."""
    lens: Lens
    rule: BackwardRule

    def maps(self, layer: str) -> Float[Tensor, "b c h w"]:
        """A layer's feature maps; the units of a fully connected layer are maps of one place.

        Raises ModelError M506 if the layer has neither.
        """
        output = self.lens[layer]
        if output.dim() == 2:
            return output[:, :, None, None]
        if output.dim() != 4:
            shape = " × ".join(str(side) for side in output.shape)
            raise ModelError("M506", layer, f"puts out {shape}, which are no feature maps")
        return output

    def down(
        self, start: Float[Tensor, "*shape"], signal: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "b c h w"]:
        """What arrives at the pixels. Raises ModelError M540 if there is no way down, M532 if the
        network computes parts of it anew."""
        arrived = None
        if start.requires_grad:
            # A product, as torch imports sympy (seconds) when it is given a signal to start from.
            total = (start * signal).sum()
            with self.rule:
                (arrived,) = gradients_of(total, [self.pixels], again=True)
        if arrived is None:
            what = "no signal can reach the pixels: the way is cut by no_grad, detach or rounding"
            raise ModelError("M540", "the network", what)
        return arrived

    def down_each(
        self, layer: str, neurons: Sequence[Neuron], values: Float[Tensor, "n"]
    ) -> Float[Tensor, "n c h w"]:
        """What arrives at the pixels of each neuron's picture when its value is sent down alone.

        Windows of maps are sent where `WindowedBackward` knows the way, whole maps elsewhere, and
        under the gradient rule, which is to be autograd's own.
        """
        maps = self.maps(layer)
        self.rule.look([maps], [self.pixels])
        graph = BackwardGraph({layer: maps}, self.pixels)
        backward = WindowedBackward(graph, layer, self.rule.rule)
        if not backward.is_known or self.rule.rule == "gradient":
            return self._down_whole(maps, neurons, values)
        arrived = self.pixels.new_zeros(len(neurons), *self.pixels.shape[1:])
        kept = graph.kept({layer: [self.rule.rule]})
        for numbers, signal in backward.down(Neurons.of_each(neurons, values), kept):
            parts = zip(numbers, signal.clipped(graph.size), strict=True)
            for number, (top, left, part) in parts:
                height, width = part.shape[1:]
                arrived[number, :, top : top + height, left : left + width] = part
        return arrived

    def _down_whole(self, maps: Tensor, neurons: Sequence[Neuron], values: Tensor) -> Tensor:
        """Pictures do not mix, so one pass serves a neuron of each."""
        arrived = self.pixels.new_zeros(len(neurons), *self.pixels.shape[1:])
        waiting = list(range(len(neurons)))
        while waiting:
            turn = {neurons[number].picture: number for number in reversed(waiting)}
            signal = torch.zeros_like(maps)
            for number in turn.values():
                signal[neurons[number]] = values[number]
            whole = self.down(maps, signal)
            for picture, number in turn.items():
                arrived[number] = whole[picture]
            waiting = [number for number in waiting if number not in turn.values()]
        return arrived


def require_tensor(images: object) -> None:
    """Raises UsageError U520 for a picture that was not made ready for a network."""
    if not isinstance(images, Tensor):
        made = "network.preprocess.batch([network.preprocess.framing(picture)])"
        raise UsageError(
            "U520",
            "pictures",
            f"a {type(images).__name__} is no preprocessed tensor",
            next_step=f"for a Pillow picture: {made}",
        )


def require_pictures(images: Tensor) -> None:
    """Raises UsageError U520 for anything but preprocessed pictures."""
    require_tensor(images)
    if images.dim() != 4 or 0 in images.shape:
        shape = " × ".join(str(side) for side in images.shape)
        what = f"{shape} is not (pictures, channels, height, width)"
        raise UsageError("U520", "pictures", what, next_step="one picture is picture[None]")


@contextmanager
def forward_pass(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    layers: Sequence[str],
    rule: BackwardRule,
    *,
    to_the_end: bool = False,
    in_rows: bool = False,
) -> Iterator[ForwardPass]:
    """Run the network, as far as the layers or to the end; signals go down inside the block.

    images: preprocessed; they go to the weights' device and precision. It works under a caller's
    `no_grad` and `inference_mode`, and leaves no gradient anywhere. in_rows: with the numbers of a
    place side by side in memory, which is faster and rounds otherwise. Raises as Lens does, and
    UsageError U520 for pictures of another shape.
    """
    model = bare(model)
    require_pictures(images)
    for name, module in model.named_modules():
        refuse_scripted(name, module)
    weight = next((p for p in model.parameters() if p.is_floating_point()), images)
    with torch.inference_mode(False), torch.enable_grad(), Lens(model, layers) as lens:
        pixels = images.detach().to(weight.device, weight.dtype).clone().requires_grad_()
        layout = torch.channels_last if in_rows else torch.preserve_format
        entering = pixels.clone(
            memory_format=layout
        )  # a network may work in place on what it is given
        output = None
        with rule:
            if to_the_end:
                output = lens(entering)
            elif layers:
                lens.reach(entering)
        yield ForwardPass(pixels, output, lens, rule)
