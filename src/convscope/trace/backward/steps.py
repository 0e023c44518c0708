"""Backward steps of windowed projections: what each node of autograd's graph sends down.

A step is read off the graph that a forward pass leaves behind, and keeps what is the same for all
pictures. What it needs of each picture is kept apart, a byte for each place of a pool and a bit for
each of a rectifier: so a forward pass can be forgotten, and the way down can still be gone. Below a
node that is not known here (`STEPS`) whole maps are sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from convscope.lens.torch_private import max_unpooled
from convscope.trace.backward.windows import Frame, Pair, Signal, TransposedConvolution
from convscope.trace.backward_rule import LastWins, PassedBy, Rectify
from convscope.trace.folding import scale_of
from convscope.trace.operations import below, name_of_node, on_the_way
from convscope.trace.receptive_field import Affine

Sent = Iterator[tuple[int, Signal]]
"""To which steps what is sent."""
_BITS = torch.arange(8, dtype=torch.uint8)
SWITCH = 16
"""A switch is one byte: its row in the pooling window · 16 + its column."""


class Seen(NamedTuple):
    """Which picture each neuron belongs to, and what is kept of all pictures."""

    pictures: Int64[np.ndarray, "n"]
    kept: Mapping[int, Shaped[Tensor, "pictures h w c"]]
    rule: str
    """By which rectifiers send."""

    def shown(self, number: int, frame: Frame) -> Shaped[Tensor, "n c h w"]:
        """What the windows show of what a step keeps. Beyond the border it is repeated."""
        maps = self.kept[number]
        rows, columns = (
            np.clip(frame.corners(axis)[:, None] + np.arange(frame.side[axis]), 0, size - 1)
            for axis, size in enumerate(maps.shape[1:3])
        )
        height, width = maps.shape[1:3]
        places = (self.pictures[:, None] * height + rows)[:, :, None] * width + columns[:, None]
        index = torch.from_numpy(places.ravel()).to(maps.device)
        shown = maps.flatten(0, 2).index_select(0, index)
        return shown.view(*places.shape, -1).permute(0, 3, 1, 2)


class Step:
    """One node of a graph. By itself it hands on what it is given."""

    looks = False
    """Does it need something of each picture, under some rule?"""

    def __init__(self, node: Any, number: int, targets: Sequence[int], size: Pair) -> None:
        """number: its place in the order of all steps. size: of the maps that it sends to."""
        self.number, self.targets, self.size = number, tuple(targets), size
        self.maps = int(node._input_metadata[0].shape[1])
        """How many it is given signals of."""
        self.effort = self.maps
        """Multiplications, roughly, for each place of a window."""
        self.window: tuple[Pair, Pair, Pair] = ((1, 1), (1, 1), (0, 0))
        """How many places below each of its own reads, their stride and padding."""
        self.how: tuple[object, ...] = ()
        """What tells it from others of its kind."""
        self.read(node)

    def read(self, node: Any) -> None:
        """Take from the node what is the same for all pictures."""

    def looks_under(self, rule: str) -> bool:  # noqa: ARG002
        """Does it need something of each picture, where rectifiers send by this rule?"""
        return self.looks

    def same(self) -> tuple[object, ...]:
        """By which it is known again in the graph of another pass."""
        return (type(self).__name__, self.targets, self.size, *self.how)

    @classmethod
    def holds(cls, node: Any) -> bool:  # noqa: ARG003
        """Is the node of a kind that can be read?"""
        return True

    def kept(self, node: Any) -> Shaped[Tensor, "b h w c"]:
        """What it needs of each picture."""
        raise NotImplementedError

    def down(self, signal: Signal, seen: Seen) -> Sent:  # noqa: ARG002
        for place, target in enumerate(self.targets):
            own = signal.values.clone() if place else signal.values
            yield target, replace(signal, values=own)

    def below(self, span: Affine, axis: int) -> Affine:
        """Where the windows lie that it sends, along one axis, if its own lie at `span`."""
        reach, stride, padding = self.window
        return Affine(reach[axis], stride[axis], -padding[axis]).after(span)


class Sum(Step):
    """An addition of maps of one size."""

    @classmethod
    def holds(cls, node: Any) -> bool:
        targets = [target for target, _ in node.next_functions if target is not None]
        shapes = {tuple(each._input_metadata[0].shape) for each in (node, *targets)}
        return len(shapes) == 1 and bool(node._saved_alpha == 1)


class Stack(Step):
    """Maps of several origins, one after the other."""

    def read(self, node: Any) -> None:
        given = [target for target, _ in node.next_functions if target is not None]
        self.counts = [int(target._input_metadata[0].shape[1]) for target in given]

    @classmethod
    def holds(cls, node: Any) -> bool:
        return bool(node._saved_dim == 1) and all(target for target, _ in node.next_functions)

    def down(self, signal: Signal, seen: Seen) -> Sent:  # noqa: ARG002
        parts = torch.split(signal.values, self.counts, dim=1)
        for target, values in zip(self.targets, parts, strict=True):
            yield target, replace(signal, values=values, alone=None)


class Convolution(Step):
    """By its transposed filters."""

    def read(self, node: Any) -> None:
        how = (tuple(node._saved_stride), tuple(node._saved_dilation), node._saved_groups)
        self.transposed = one = TransposedConvolution(node._saved_weight, *how)
        self.effort = one.effort
        self.window = (one.reach, one.stride, tuple(node._saved_padding))
        self.how = (*how, *self.window, one.weight.data_ptr(), one.weight.shape)

    @classmethod
    def holds(cls, node: Any) -> bool:
        return bool(not node._saved_transposed)

    def down(self, signal: Signal, seen: Seen) -> Sent:  # noqa: ARG002
        one = self.transposed
        frame = signal.frame.below(*self.window)
        if signal.alone is not None and one.is_plain and signal.frame.side == (1, 1):
            value = signal.values[:, :, 0, 0].gather(1, signal.alone[:, None])[:, 0]
            grown = Signal(one.filters(signal.alone, value), frame)
        else:
            cuts = frame.overhang(self.size)
            grown = Signal(one(signal.values, cuts), frame.cropped(cuts))
        yield self.targets[0], grown


class Padded(Step):
    """Zeros around maps, as where a network pads unevenly before a stride."""

    def read(self, node: Any) -> None:
        left, _, top, _ = [*node._saved_pad, 0, 0][:4]
        self.window = ((1, 1), (1, 1), (int(top), int(left)))
        self.how = self.window

    @classmethod
    def holds(cls, node: Any) -> bool:
        return len(node._saved_pad) <= 4 and max(node._saved_pad) < 1 << 31  # none is negative

    def down(self, signal: Signal, seen: Seen) -> Sent:  # noqa: ARG002
        frame = signal.frame.below(*self.window)
        yield self.targets[0], replace(signal, frame=frame, is_inside=False)


class MaxPool(Step):
    """To where the maxima of the picture were."""

    looks = True

    def read(self, node: Any) -> None:
        self.side, self.dilation = tuple(node._saved_kernel_size), tuple(node._saved_dilation)
        self.stride = tuple(node._saved_stride) or self.side
        rows, columns = ((k - 1) * d + 1 for k, d in zip(self.side, self.dilation, strict=True))
        self.window = ((rows, columns), self.stride, tuple(node._saved_padding))
        self.effort = 50 * self.maps  # measured
        self.how = (self.side, self.dilation, *self.window)

    @classmethod
    def holds(cls, node: Any) -> bool:
        return bool(max(node._saved_kernel_size) <= SWITCH)

    def kept(self, node: Any) -> Shaped[Tensor, "b h w c"]:
        place: Tensor = node._saved_result1.int()
        height, width = place.shape[2:]
        rows = place.div(self.size[1], rounding_mode="floor")
        columns = place - rows * self.size[1]
        for at, steps, axis in ((rows, height, 0), (columns, width, 1)):
            first = torch.arange(steps, device=at.device, dtype=at.dtype) * self.stride[axis]
            first -= self.window[2][axis]
            at -= first if axis else first[:, None]
            at.div_(self.dilation[axis], rounding_mode="floor")
        return (rows * SWITCH + columns).to(torch.uint8).permute(0, 2, 3, 1)

    def down(self, signal: Signal, seen: Seen) -> Sent:
        frame = signal.frame.below(*self.window)
        values = signal.values.contiguous(memory_format=torch.channels_last)
        like = values.new_empty((len(values), *frame.side, values.shape[1])).permute(0, 3, 1, 2)
        switches = self._places(seen.shown(self.number, signal.frame), frame.side[1])
        spread = max_unpooled(values, like, switches, (self.side, self.stride, self.dilation))
        yield self.targets[0], Signal(spread, frame, signal.alone)

    def _places(self, switches: Shaped[Tensor, "n c h w"], width: int) -> Int64[Tensor, "n c h w"]:
        """Places of the maxima in windows of this width."""
        down, across = self.dilation
        rows, columns = (
            torch.arange(count, device=switches.device, dtype=torch.int32) * step
            for count, step in zip(switches.shape[2:], self.stride, strict=True)
        )
        places = (switches >> SWITCH.bit_length() - 1).int()
        places *= down * width - SWITCH * across
        places += switches if across == 1 else switches.int() * across
        places += rows[:, None] * width + columns
        return places.long()


class Scaled(Step):
    """Batch normalisation by its running statistics."""

    def read(self, node: Any) -> None:
        scale = scale_of(node._saved_running_var, node._saved_weight, node._saved_eps)
        self._scale = scale.detach()
        self.how = tuple(self._scale.tolist())

    @classmethod
    def holds(cls, node: Any) -> bool:
        return bool(not node._saved_training)

    def down(self, signal: Signal, seen: Seen) -> Sent:  # noqa: ARG002
        values = signal.values * self._scale[:, None, None].to(signal.values.dtype)
        yield self.targets[0], replace(signal, values=values)


class Rectified(Step):
    """By the backward rule."""

    def read(self, node: Any) -> None:
        self.looks = node.ruled.rule != "deconvnet"
        self.how = (self.looks,)

    def looks_under(self, rule: str) -> bool:
        return rule != "deconvnet"

    def kept(self, node: Any) -> Shaped[Tensor, "b h w bytes"]:
        closed: Tensor = node.saved_tensors[0]
        return packed(closed.permute(0, 2, 3, 1))

    def down(self, signal: Signal, seen: Seen) -> Sent:
        values = signal.values.relu_()
        if self.looks_under(seen.rule):
            shown = seen.shown(self.number, signal.frame).permute(0, 2, 3, 1)
            closed = unpacked(shown, self.maps).permute(0, 3, 1, 2)
            values = values.masked_fill_(closed, 0)
        yield self.targets[0], replace(signal, values=values)


def packed(marks: Bool[Tensor, "*places c"]) -> UInt8[Tensor, "*places bytes"]:
    """Eight marks a byte."""
    padded = F.pad(marks.to(torch.uint8), (0, -marks.shape[-1] % 8))
    eights = padded.view(*padded.shape[:-1], -1, 8)
    return (eights << _BITS.to(marks.device)).sum(-1, dtype=torch.uint8)


def unpacked(marks: UInt8[Tensor, "*places bytes"], count: int) -> Bool[Tensor, "*places count"]:
    """The first so many of `packed`."""
    eights = marks[..., None] >> _BITS.to(marks.device) & 1
    bits: Tensor = eights.flatten(-2)[..., :count].bool()
    return bits


class Last(Step):
    """Only from pooling windows that are the last of those that share a maximum."""

    looks = True

    def kept(self, node: Any) -> Shaped[Tensor, "b h w c"]:
        kept: Tensor = node.saved_tensors[0]
        return ~kept.permute(0, 2, 3, 1)

    def down(self, signal: Signal, seen: Seen) -> Sent:
        values = signal.values.masked_fill_(seen.shown(self.number, signal.frame), 0)
        yield self.targets[0], replace(signal, values=values)


STEPS: Mapping[str, type[Step]] = {
    "Convolution": Convolution,
    "MaxPool2DWithIndices": MaxPool,
    "NativeBatchNorm": Scaled,
    "Cat": Stack,
    "Add": Sum,
    "Clone": Step,
    "ConstantPadNd": Padded,
    Rectify.__name__: Rectified,
    PassedBy.__name__: Step,
    LastWins.__name__: Last,
}
"""Name of a node of the graph → the step down from it."""
BRANCHING = (Stack, Sum)


class BackwardGraph:
    """The steps below some layers, highest first.

    Two passes that take the same steps share one graph; what differs between their pictures is
    read apart (`kept`).
    """

    def __init__(self, maps: Mapping[str, Tensor], pixels: Float[Tensor, "b 3 h w"]) -> None:
        end = torch.autograd.graph.get_gradient_edge(pixels).node
        roots = [each.grad_fn for each in maps.values() if each.grad_fn is not None]
        order = below(roots)
        way = on_the_way(order, {end})
        self._nodes = [node for node in reversed(order) if node in way and node is not end]
        numbers = {node: number for number, node in enumerate(self._nodes)}
        numbers[end] = len(self._nodes)
        self.end = len(self._nodes)
        """The number of the pixels, where a step would have one."""
        self.size: Pair = _size(end)
        self.steps = [_step(node, numbers) for node in self._nodes]
        self.layers = {
            layer: numbers[each.grad_fn] for layer, each in maps.items() if each.grad_fn in numbers
        }
        """The number of each layer's first step."""

    def below(self, start: int) -> list[Step] | None:
        """The steps from one on, in order; None if one of them is not known."""
        reached = {start}
        steps = []
        for number, step in enumerate(self.steps):
            if number in reached:
                if step is None:
                    return None
                steps.append(step)
                reached.update(step.targets)
        return steps or None

    def same(self) -> tuple[object, ...]:
        """Two passes of which this is equal take the same steps."""
        steps = (None if step is None else step.same() for step in self.steps)
        return (self.size, tuple(self.layers.items()), *steps)

    def kept(self, rules: Mapping[str, Sequence[str]]) -> dict[int, Shaped[Tensor, "b h w c"]]:
        """What the steps need of each picture of this pass, if signals of layers go down by these
        rules."""
        return {
            step.number: step.kept(self._nodes[step.number]).contiguous()
            for step in {
                step.number: step
                for layer, start in self.layers.items()
                for step in self.below(start) or ()
                if any(step.looks_under(rule) for rule in rules[layer])
            }.values()
        }

    def forget(self) -> None:
        """Let the pass go, and with it its maps."""
        self._nodes = []


def _step(node: Any, numbers: Mapping[Any, int]) -> Step | None:
    """The step of a node between maps, from the first of its inputs or from all."""
    kind = STEPS.get(_name(node))
    if kind is None or not kind.holds(node):
        return None
    taken = [edge for edge in node.next_functions if edge[0] in numbers]
    expected = node.next_functions if kind in BRANCHING else node.next_functions[:1]
    maps = [node, *(target for target, _ in taken)]
    known = (
        taken == [edge for edge in expected if edge[0] is not None]
        and all(number == 0 for _, number in taken)
        and all(len(each._input_metadata[0].shape) == 4 for each in maps)
    )
    if not known:
        return None
    targets = [target for target, _ in taken]
    return kind(node, numbers[node], [numbers[each] for each in targets], _size(targets[0]))


def _name(node: Any) -> str:
    function = getattr(node, "_forward_cls", None)
    if function is not None:
        return str(function.__name__) if function in (Rectify, PassedBy, LastWins) else ""
    return name_of_node(node)


def _size(node: Any) -> Pair:
    """Height and width of the maps whose signals a node takes."""
    height, width = node._input_metadata[0].shape[2:]
    return int(height), int(width)
