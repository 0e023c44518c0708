"""Deconvnet projections of many neurons of many pictures, for whole atlases.

The deconvnet of `deconvnet.py`, to rounding, in another order of work: one pass up for each
picture, of which only what its way down needs is kept (the switches of its pools, a byte each,
and under the guided rule a bit for each place of a rectifier);
then layer after layer, all its neurons of all pictures together, each in the window that it can
see. Networks with a step that windows do not know take whole maps, picture by picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError, nearest, shown
from convscope.core.run import PLAIN, Run
from convscope.lens.lens import layer_name
from convscope.lens.twin import bare
from convscope.network.arguments import Given, Model, several_or_read, taking
from convscope.network.network import Network
from convscope.representations.deconvnet import require_place
from convscope.trace.backward.descent import (
    ForwardPass,
    Neuron,
    Neurons,
    WindowedBackward,
    forward_pass,
)
from convscope.trace.backward.steps import BackwardGraph
from convscope.trace.backward_rule import BackwardRule, Other, Overlap, Rule
from convscope.trace.operations import Stride, reductions

Choice = Literal["auto", "deconvnet", "guided", "both", "gradient"]


class BackwardPath(NamedTuple):
    """From one layer down to the pixels."""

    rules: tuple[Rule, ...]
    """By which signals go down, the one that fits the layer first."""
    has_switches: bool
    """Is the pool or stride that comes first on the way a max pool?"""
    strides: tuple[Stride, ...]
    """Convolutions that do not stop at every place, without the layer's own."""
    rectifiers: int
    normalisations: int
    """Contrast normalisations, which the deconvnet passes by and guided backpropagation does
    not: their passes up differ."""


def backward_paths(
    model: nn.Module | Network,
    image: Float[Tensor, "1 c h w"],
    layers: Sequence[str],
    *,
    rule: Choice = "auto",
    other: Other = "refuse",
) -> dict[str, BackwardPath]:
    """Look at the way from each layer to the pixels in one pass up.

    rule: "auto" takes the deconvnet's where switches say where a signal goes on, at the first step
    below the layer's own convolution that makes maps smaller, and guided backpropagation where
    that is a stride or there is none; below all rectifiers both are the same, and the deconvnet's
    is taken. "both" takes the other one as well.

    Raises UsageError U512 for a rule that is none, and what `deconvnet` raises.
    """
    require_choice(rule)
    up: Rule = "deconvnet" if rule == "auto" or rule == "both" else rule
    backward = BackwardRule(up, other=other)
    result = {}
    with forward_pass(bare(model), image, layers, backward) as way:
        maps = {layer: way.maps(layer) for layer in layers}
        reduced = reductions(bare(model), maps, way.pixels)
        for layer, (switches, strides) in reduced.items():
            backward.look([maps[layer]], [way.pixels])
            fits: Rule = "deconvnet" if switches or not backward.rectifiers else "guided"
            rules: dict[str, tuple[Rule, ...]] = {"auto": (fits,), "both": (fits, _beside(fits))}
            chosen = rules.get(rule, (up,))
            met = (backward.rectifiers, backward.skipped)
            result[layer] = BackwardPath(chosen, switches, strides, *met)
    return result


def passes_up(ways: Mapping[str, BackwardPath]) -> list[tuple[Rule, dict[str, tuple[Rule, ...]]]]:
    """The rules under which pictures have to be passed up, each with the layers and the rules that
    it serves. A pass under "guided" serves the deconvnet too, unless a normalisation is met."""
    rules = {rule for way in ways.values() for rule in way.rules}
    is_shared = "guided" in rules and not any(way.normalisations for way in ways.values())
    result: dict[Rule, dict[str, tuple[Rule, ...]]] = defaultdict(dict)
    for layer, way in ways.items():
        if is_shared:
            result["guided"][layer] = way.rules
        else:
            for rule in way.rules:
                result[rule][layer] = (rule,)
    return list(result.items())


def require_choice(rule: str) -> None:
    """Raises UsageError U512."""
    if rule not in get_args(Choice):
        raise UsageError("U512", str(rule), f"is no rule; {nearest(str(rule), get_args(Choice))}")


def _beside(rule: Rule) -> Rule:
    return "guided" if rule == "deconvnet" else "deconvnet"


class Kept:
    """What is kept of pictures from whose layers one graph leads down."""

    def __init__(self, graph: BackwardGraph, like: Tensor) -> None:
        self.graph = graph
        self.rows: dict[int, int] = {}
        """Number of a picture → where it stands among these."""
        self.like = like.new_empty(0)
        """Of which kind signals are, and on which device."""
        self._maps: dict[int, list[Shaped[Tensor, "b h w c"]]] = {}

    def add(self, numbers: Sequence[int], maps: Mapping[int, Tensor]) -> None:
        for number in numbers:
            self.rows[number] = len(self.rows)
        for step, values in maps.items():
            self._maps.setdefault(step, []).append(values)

    def maps(self) -> dict[int, Shaped[Tensor, "pictures h w c"]]:
        for step, parts in self._maps.items():
            self._maps[step] = [torch.cat(parts)] if len(parts) > 1 else parts
        return {step: parts[0] for step, parts in self._maps.items()}


class Block:
    """Some pictures that have been passed up."""

    def __init__(self, rule: Rule, rules: Mapping[str, Sequence[Rule]]) -> None:
        """rule: that they were passed up under. rules: layer → by which its signals go down."""
        self.rule, self.rules = rule, rules
        self.bytes = 0
        self.count = 0
        self.kept: dict[tuple[object, ...], Kept] = {}
        self.coverage: dict[str, tuple[int, int]] = {}
        self.activations: dict[tuple[str, int], float] = {}
        """By layer and number of the neuron."""

    def add(
        self, way: ForwardPass, numbers: Sequence[int], wanted: Mapping[str, Sequence[Neuron]]
    ) -> None:
        maps = {layer: way.maps(layer) for layer in wanted}
        for layer, values in maps.items():
            if layer not in self.coverage:
                way.rule.look([values], [way.pixels])
                self.coverage[layer] = (way.rule.rewritten, way.rule.rectifiers)
            self._note(layer, values.detach(), numbers, wanted[layer])
        graph = BackwardGraph(maps, way.pixels)
        kept = graph.kept(self.rules)
        graph.forget()
        self.kept.setdefault(graph.same(), Kept(graph, way.pixels.detach())).add(numbers, kept)
        self.bytes += sum(values.nbytes for values in kept.values())
        self.count += len(numbers)

    def starts(
        self, kept: Kept, layer: str, neurons: Sequence[Neuron]
    ) -> tuple[list[int], Neurons]:
        """The neurons of those pictures, by number, and as they are sent down."""
        numbers = [n for n, neuron in enumerate(neurons) if neuron.picture in kept.rows]
        places = [(kept.rows[neurons[n].picture], *neurons[n][1:]) for n in numbers]
        values = torch.tensor([self.activations[layer, n] for n in numbers], dtype=torch.float64)
        return numbers, Neurons.of_each(places, values.to(kept.like).clamp_(min=0))

    def _note(
        self, layer: str, maps: Tensor, numbers: Sequence[int], neurons: Sequence[Neuron]
    ) -> None:
        rows = {number: row for row, number in enumerate(numbers)}
        chosen = [n for n, neuron in enumerate(neurons) if neuron.picture in rows]
        for number in chosen:
            _, channel, *at = neurons[number]
            require_place(layer, maps, channel, (at[0], at[1]))
        places = torch.tensor([[rows[neurons[n].picture], *neurons[n][1:]] for n in chosen])
        values = maps[tuple(places.to(maps.device).T)].tolist() if chosen else []
        for number, value in zip(chosen, values, strict=True):
            if not np.isfinite(value):
                raise ModelError("M514", layer, "has a NaN or an infinity in a picture")
            self.activations[layer, number] = value


AT_ONCE = 4
"""Pictures in one pass: what is quickest for networks of 224 pixels (measured)."""
MEMORY = 512 << 20
Pictures = Callable[[Sequence[int]], Iterable[tuple[int, Float[Tensor, "c h w"]]]]
"""From numbers to each picture's number and what the network takes of it, in that order."""
Arrived = tuple[Rule, int, int, int, Float[Tensor, "c h w"]]
"""By which rule, which neuron, row and column of its window's corner, the window."""


class Projected(NamedTuple):
    """What arrived at the pixels from one neuron."""

    layer: str
    number: int
    """Of the neuron among those of its layer."""
    activation: float
    top: int
    left: int
    """Where in the picture the window's corner lies."""
    pixels: Float[Tensor, "c h w"]
    """In the window; outside nothing arrived."""
    rewritten: int
    rectifiers: int
    """Rectifiers that follow the rule, of this many."""
    rule: Rule
    """By which it was sent down."""


def neurons_of(network: Any, given: Any) -> dict[str, list[Neuron]]:
    """Neurons by their layer's name. Raises UsageError U380 for anything else."""
    step = 'give {"conv1": [Neuron(picture, channel, row, column), …]}'
    if not isinstance(given, Mapping):
        what = f"{shown(given)} is no table of neurons by layer"
        raise UsageError("U380", "wanted", what, next_step=step)
    result: dict[str, list[Neuron]] = {}
    for layer, neurons in given.items():
        for one in neurons if isinstance(neurons, Iterable) else [None]:
            if not isinstance(one, tuple | list) or len(one) != 4:
                what = f"{shown(one)} is no neuron"
                raise UsageError("U380", str(layer), what, next_step=step)
            result.setdefault(layer_name(network, layer), []).append(Neuron(*one))
    return result


@taking(pictures=several_or_read, wanted=neurons_of)
def projections(
    model: Model,
    pictures: Given,
    wanted: Mapping[str, Sequence[Neuron]],
    *,
    rule: Choice = "auto",
    overlap: Overlap = "add",
    other: Other = "refuse",
    run: Run = PLAIN,
) -> Iterator[Projected]:
    """Project neurons back to pixels: layer after layer in the order given, within a layer in any
    order.

    pictures: preprocessed, of one size, all of them or read as they are asked for. wanted: layer →
    neurons (picture, channel, row, column); each starts from its own activation, as in
    `deconvnet`. rule: see `backward_paths`; "both" gives each neuron twice, from one pass up. run:
    its memory is for what is kept of pictures; where that is too little for all of them, each layer
    makes passes of its own; its progress is neurons done, and all.

    A picture that is not given when it is asked for is left out. The model is not touched. Raises
    as `deconvnet` does, and UsageError U512 for a rule that is none.
    """
    wanted = {layer: list(neurons) for layer, neurons in wanted.items() if len(neurons)}
    read: Pictures = pictures
    if isinstance(pictures, Tensor):
        read = lambda numbers: ((number, pictures[number]) for number in numbers)  # noqa: E731
    passes = _Passes(bare(model), read, (rule, overlap, other), run.room(MEMORY))
    total, done = sum(map(len, wanted.values())) * (2 if rule == "both" else 1), 0
    together = passes.together(wanted)
    for layer, neurons in wanted.items():
        every = passes.blocks({layer: neurons}) if together is None else [together]
        for blocks in every:
            for projected in passes.down(blocks, layer, neurons):
                yield projected
                done += 1
                run.tick(done, total)


class _Passes:
    """Passes up of a network."""

    def __init__(
        self, model: nn.Module, read: Pictures, how: tuple[Choice, Overlap, Other], memory: float
    ) -> None:
        self._model, self._read, self._how, self._memory = model, read, how, memory
        rule = how[0]
        require_choice(rule)
        self._backward("guided" if rule == "auto" or rule == "both" else rule)  # refuses wrong ones
        self._ways: dict[str, BackwardPath] = {}

    def together(self, wanted: Mapping[str, Sequence[Neuron]]) -> list[Block] | None:
        """All pictures; None if they would take too much memory."""
        blocks, numbers = list[Block](), _numbers(wanted)
        for some, images in self._batches(numbers):
            blocks = self._added(blocks, some, images, wanted)
            if _bytes(blocks) * len(numbers) > self._memory * blocks[0].count:
                return None
        return blocks

    def blocks(self, wanted: Mapping[str, Sequence[Neuron]]) -> Iterator[list[Block]]:
        """As many at a time as memory holds."""
        blocks = list[Block]()
        for some, images in self._batches(_numbers(wanted)):
            blocks = self._added(blocks, some, images, wanted)
            if _bytes(blocks) > self._memory:
                yield blocks
                blocks = []
        yield blocks

    def down(
        self, blocks: Sequence[Block], layer: str, neurons: Sequence[Neuron]
    ) -> Iterator[Projected]:
        """All neurons of a layer in the blocks' pictures."""
        for block in blocks:
            rules = block.rules.get(layer, ())
            for kept in block.kept.values():
                numbers, starts = block.starts(kept, layer, neurons)
                ways = {rule: WindowedBackward(kept.graph, layer, rule) for rule in rules}
                if all(way.is_known for way in ways.values()) and block.rule != "gradient":
                    arrived = _windows(ways, kept, starts)
                else:
                    arrived = self._whole(block.rule, rules, layer, [neurons[n] for n in numbers])
                for rule, at, top, left, pixels in arrived:
                    value = block.activations[layer, numbers[at]]
                    result = (layer, numbers[at], value, top, left, pixels)
                    yield Projected(*result, *block.coverage[layer], rule)

    def _whole(
        self, up: Rule, rules: Sequence[Rule], layer: str, neurons: Sequence[Neuron]
    ) -> Iterator[Arrived]:
        """Where windows cannot go: each picture is passed up again."""
        for some, images in self._batches(_numbers({layer: neurons})):
            chosen = [n for n, neuron in enumerate(neurons) if neuron.picture in some]
            with forward_pass(self._model, images, [layer], self._backward(up)) as way:
                local = [
                    neurons[n]._replace(picture=some.index(neurons[n].picture)) for n in chosen
                ]
                maps = way.maps(layer).detach()
                values = torch.stack([maps[neuron] for neuron in local])
                values = values if up == "gradient" else values.clamp(min=0)
                for rule in rules:
                    with way.rule.going_down(rule):
                        arrived = way.down_each(layer, local, values)
                    for number, pixels in zip(chosen, arrived, strict=True):
                        yield rule, number, 0, 0, pixels

    def _added(
        self,
        blocks: list[Block],
        numbers: Sequence[int],
        images: Tensor,
        wanted: Mapping[str, Sequence[Neuron]],
    ) -> list[Block]:
        """The blocks, or new ones, with these pictures; each is a pass up."""
        ways = self._paths(images[:1], list(wanted))
        blocks = blocks or [Block(up, rules) for up, rules in passes_up(ways)]
        for block in blocks:
            some = {layer: wanted[layer] for layer in block.rules if layer in wanted}
            rule = self._backward(block.rule)
            with forward_pass(self._model, images, list(some), rule, in_rows=True) as way:
                block.add(way, numbers, some)
        return blocks

    def _paths(
        self, image: Float[Tensor, "1 c h w"], layers: Sequence[str]
    ) -> dict[str, BackwardPath]:
        choice, _, other = self._how
        new = [layer for layer in layers if layer not in self._ways]
        if new:
            self._ways |= backward_paths(self._model, image, new, rule=choice, other=other)
        return {layer: self._ways[layer] for layer in layers}

    def _backward(self, rule: Rule) -> BackwardRule:
        _, overlap, other = self._how
        return BackwardRule(rule, overlap=overlap, other=other)

    def _batches(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        read = iter(self._read(numbers))
        while some := list(islice(read, AT_ONCE)):
            sizes = list(dict.fromkeys(str(tuple(image.shape)) for _, image in some))
            if len(sizes) > 1:
                what = f"are of different sizes: {' and '.join(sizes[:2])}"
                raise UsageError("U520", "pictures", what)
            yield [number for number, _ in some], torch.stack([image for _, image in some])


def _windows(
    ways: Mapping[Rule, WindowedBackward], kept: Kept, starts: Neurons
) -> Iterator[Arrived]:
    for rule, descent in ways.items():
        for numbers, signal in descent.down(starts, kept.maps()):
            parts = zip(numbers.tolist(), signal.clipped(kept.graph.size), strict=True)
            for number, (top, left, pixels) in parts:
                yield rule, number, top, left, pixels


def _bytes(blocks: Sequence[Block]) -> int:
    return sum(block.bytes for block in blocks)


def _numbers(wanted: Mapping[str, Sequence[Neuron]]) -> list[int]:
    """Of all pictures that are needed."""
    return sorted({neuron.picture for neurons in wanted.values() for neuron in neurons})
