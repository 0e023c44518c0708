"""What in many pictures excited many neurons, for whole atlases?

The deconvnet of `deconvnet.py`, to rounding, in another order of work: one pass up for each
picture, of which only what its way down needs is kept (the switches of its pools, a byte each);
then layer after layer, all its neurons of all pictures together, each in the window that it can
see. Networks with a step that windows do not know take whole maps, picture by picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import UsageError
from convscope.lens.ascent import Neuron, ascent
from convscope.lens.backward import BackwardRule, Other, Overlap, Rule
from convscope.lens.descent import Descent, Neurons
from convscope.lens.twin import bare
from convscope.methods.projected_pictures import Block, Kept
from convscope.models.network import Network

AT_ONCE = 4
"""Pictures in one pass: what is quickest for networks of 224 pixels (measured)."""
MEMORY = 512 << 20
Pictures = Callable[[Sequence[int]], Iterable[tuple[int, Float[Tensor, "c h w"]]]]
"""From numbers to each picture's number and what the network takes of it, in that order."""
Progress = Callable[[int, int], None]
Arrived = tuple[int, int, int, Float[Tensor, "c h w"]]
"""Which neuron, row and column of its window's corner, the window."""


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


def projections(
    model: nn.Module | Network,
    pictures: Pictures | Float[Tensor, "b c h w"],
    wanted: Mapping[str, Sequence[Neuron]],
    *,
    rule: Rule = "deconvnet",
    overlap: Overlap = "add",
    other: Other = "refuse",
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Iterator[Projected]:
    """Project neurons back to pixels: layer after layer in the order given, within a layer in any
    order.

    pictures: preprocessed, of one size, all of them or read as they are asked for. wanted: layer →
    neurons (picture, channel, row, column); each starts from its own activation, as in
    `deconvnet`. memory: bytes for what is kept of pictures; where that is too little for all of
    them, each layer makes passes of its own. progress: neurons done, and all.

    A picture that is not given when it is asked for is left out. The model is not touched. Raises
    as `deconvnet` does.
    """
    wanted = {layer: list(neurons) for layer, neurons in wanted.items() if len(neurons)}
    passes = _Passes(bare(model), _reader(pictures), (rule, overlap, other), memory)
    total, done = sum(map(len, wanted.values())), 0
    together = passes.together(wanted)
    for layer, neurons in wanted.items():
        blocks = passes.blocks({layer: neurons}) if together is None else [together]
        for block in blocks:
            for projected in passes.down(block, layer, neurons):
                yield projected
                done += 1
                if progress is not None:
                    progress(done, total)


def _reader(pictures: Pictures | Float[Tensor, "b c h w"]) -> Pictures:
    if not isinstance(pictures, Tensor):
        return pictures
    images = pictures
    return lambda numbers: ((number, images[number]) for number in numbers)


class _Passes:
    """Passes up of a network."""

    def __init__(
        self, model: nn.Module, read: Pictures, how: tuple[Rule, Overlap, Other], memory: int
    ) -> None:
        self._model, self._read, self._how, self._memory = model, read, how, memory
        self._rule()  # refuses what is no rule before anything is read

    def together(self, wanted: Mapping[str, Sequence[Neuron]]) -> Block | None:
        """All pictures; None if they would take too much memory."""
        block, numbers = Block(), _numbers(wanted)
        for some, images in self._batches(numbers):
            self._add(block, some, images, wanted)
            if block.bytes * len(numbers) > self._memory * block.count:
                return None
        return block

    def blocks(self, wanted: Mapping[str, Sequence[Neuron]]) -> Iterator[Block]:
        """As many at a time as memory holds."""
        block = Block()
        for some, images in self._batches(_numbers(wanted)):
            self._add(block, some, images, wanted)
            if block.bytes > self._memory:
                yield block
                block = Block()
        yield block

    def down(self, block: Block, layer: str, neurons: Sequence[Neuron]) -> Iterator[Projected]:
        """All neurons of a layer in the block's pictures."""
        for kept in block.kept.values():
            descent = Descent(kept.road, layer)
            numbers, starts = block.starts(kept, layer, neurons)
            if descent.is_known and self._how[0] != "gradient":
                arrived = _windows(descent, kept, starts)
            else:
                arrived = self._whole(layer, [neurons[number] for number in numbers])
            for at, top, left, pixels in arrived:
                value = block.activations[layer, numbers[at]]
                found = (layer, numbers[at], value, top, left, pixels)
                yield Projected(*found, *block.coverage[layer])

    def _whole(self, layer: str, neurons: Sequence[Neuron]) -> Iterator[Arrived]:
        """Where windows cannot go: each picture is passed up again."""
        for some, images in self._batches(_numbers({layer: neurons})):
            chosen = [n for n, neuron in enumerate(neurons) if neuron.picture in some]
            with ascent(self._model, images, [layer], self._rule()) as way:
                local = [
                    neurons[n]._replace(picture=some.index(neurons[n].picture)) for n in chosen
                ]
                maps = way.maps(layer).detach()
                values = torch.stack([maps[neuron] for neuron in local])
                values = values if self._how[0] == "gradient" else values.clamp(min=0)
                for number, pixels in zip(chosen, way.down_each(layer, local, values), strict=True):
                    yield number, 0, 0, pixels

    def _add(
        self,
        block: Block,
        numbers: Sequence[int],
        images: Tensor,
        wanted: Mapping[str, Sequence[Neuron]],
    ) -> None:
        with ascent(self._model, images, list(wanted), self._rule(), in_rows=True) as way:
            block.add(way, numbers, wanted)

    def _rule(self) -> BackwardRule:
        rule, overlap, other = self._how
        return BackwardRule(rule, overlap=overlap, other=other)

    def _batches(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        some: list[tuple[int, Tensor]] = []
        for number, image in self._read(numbers):
            if some and image.shape != some[0][1].shape:
                sizes = " and ".join(str(tuple(each.shape)) for each in (some[0][1], image))
                raise UsageError("U520", "pictures", f"are of different sizes: {sizes}")
            some.append((number, image))
            if len(some) == AT_ONCE:
                yield [number for number, _ in some], torch.stack([each for _, each in some])
                some = []
        if some:
            yield [number for number, _ in some], torch.stack([each for _, each in some])


def _windows(descent: Descent, kept: Kept, starts: Neurons) -> Iterator[Arrived]:
    for numbers, signal in descent.down(starts, kept.maps()):
        parts = zip(numbers.tolist(), signal.clipped(kept.road.size), strict=True)
        for number, (top, left, pixels) in parts:
            yield number, top, left, pixels


def _numbers(wanted: Mapping[str, Sequence[Neuron]]) -> list[int]:
    """Of all pictures that are needed."""
    return sorted({neuron.picture for neurons in wanted.values() for neuron in neurons})
