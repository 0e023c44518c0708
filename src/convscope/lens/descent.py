"""How are the signals of single neurons sent down without moving whole maps for each of them?

A neuron's signal stays inside its receptive field. So only a window of each map is worked on:
step by step down the recorded graph, for many neurons at once, whose windows are alike but for
their corners. What arrives is what autograd would send, to rounding. A graph with a step that is
not known here is left to autograd.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.lens.coverage import below, on_the_way
from convscope.lens.pools import LastWins
from convscope.lens.rectify import RULES, PassedBy, Rectify
from convscope.lens.signal import Pair, Signal

Sent = Iterator[tuple[Any, Signal]]
"""To which nodes of the graph what is sent."""


class Descent:
    """The way down from one layer of an ascent to its pixels."""

    def __init__(self, start: Tensor, pixels: Float[Tensor, "b 3 h w"]) -> None:
        self._end = torch.autograd.graph.get_gradient_edge(pixels).node
        order = below([start.grad_fn])
        way = on_the_way(order, {self._end})
        self._steps = [node for node in reversed(order) if node in way and node is not self._end]
        self._switches: dict[tuple[Any, int], Tensor] = {}
        self.is_known = bool(self._steps) and all(_is_known(node, way) for node in self._steps)
        """Can all its steps be taken here?"""
        self.largest = 0
        """The most cells that a neuron's window has had on any map."""

    @torch.no_grad()
    def down(
        self, pictures: Sequence[int], places: Sequence[Pair], start: Float[Tensor, "n c"]
    ) -> Float[Tensor, "n 3 h w"]:
        """What arrives at the pixels when `start` is sent down from these places of pictures."""
        arrived = {self._steps[0]: Signal(start[:, :, None, None], tuple(places))}
        for node in self._steps:
            way = Way(node, tuple(pictures), self._switches)
            for target, sent in STEPS[_name(node)].down(way, arrived.pop(node)):
                self.largest = max(self.largest, sent.values[:1].numel())
                arrived[target] = sent.plus(arrived.get(target), _size(target))
        return arrived[self._end].whole(_size(self._end))


class Way(NamedTuple):
    """One step: a node of the graph, and which neuron belongs to which picture."""

    node: Any
    pictures: tuple[int, ...]
    known: dict[tuple[Any, int], Tensor]
    """Switches as they were worked out before."""

    @property
    def target(self) -> Any:
        return self.node.next_functions[0][0]

    def shown(self, maps: Tensor, signal: Signal) -> Tensor:
        """What the windows of a signal show of other maps of the same size; 0 outside."""
        found = maps.new_zeros(len(self.pictures), maps.shape[1], signal.side(0), signal.side(1))
        cuts = zip(*(signal.cuts(axis, maps.shape[2 + axis]) for axis in (0, 1)), strict=True)
        for (number, rows, down), (_, columns, across) in cuts:
            found[number, :, rows, columns] = maps[self.pictures[number], :, down, across]
        return found

    def switches(self, columns: int) -> Tensor:
        """Of every pooled cell the place of its maximum, as if maps had so many columns."""
        if (self.node, columns) not in self.known:
            place, there = self.node._saved_result1, _size(self.target)[1]
            row = place.div(there, rounding_mode="floor")
            self.known[self.node, columns] = row * columns + place - row * there
        return self.known[self.node, columns]


def _filtered(way: Way, signal: Signal) -> Sent:
    node = way.node
    stride, dilation, groups = node._saved_stride, node._saved_dilation, node._saved_groups
    values = F.conv_transpose2d(
        signal.values, node._saved_weight, stride=stride, groups=groups, dilation=dilation
    )
    larger = signal.stretched(values, stride, node._saved_padding)
    yield way.target, larger.inside(_size(way.target))


def _unpooled(way: Way, signal: Signal) -> Sent:
    node = way.node
    side, dilation = node._saved_kernel_size, node._saved_dilation
    stride = node._saved_stride or side
    height, width = (
        (signal.side(axis) - 1) * stride[axis] + dilation[axis] * (side[axis] - 1) + 1
        for axis in (0, 1)
    )
    values = signal.values.new_zeros(*signal.values.shape[:2], height, width)
    larger = signal.stretched(values, stride, node._saved_padding)
    # Cells outside the map show switch 0 and have no signal to send there.
    place = way.shown(way.switches(width), signal)
    for number in range(len(place)):
        place[number] -= larger.corner(number, 0) * width + larger.corner(number, 1)
    place.clamp_(0, height * width - 1)
    values.flatten(2).scatter_add_(2, place.flatten(2), signal.values.flatten(2))
    yield way.target, larger.inside(_size(way.target))


def _rectified(way: Way, signal: Signal) -> Sent:
    send_back = RULES[way.node.rule]
    assert send_back is not None
    closed = (way.shown(mask, signal) for mask in way.node.saved_tensors)
    yield way.target, replace(signal, values=send_back(signal.values, *closed))


def _last_wins(way: Way, signal: Signal) -> Sent:
    lost = ~way.shown(way.node.saved_tensors[0], signal)
    yield way.target, replace(signal, values=signal.values.masked_fill(lost, 0))


def _scaled(way: Way, signal: Signal) -> Sent:
    node = way.node
    scale = (node._saved_running_var + node._saved_eps).rsqrt()
    if node._saved_weight is not None:
        scale = scale * node._saved_weight
    values = signal.values * scale[:, None, None].to(signal.values.dtype)
    yield way.target, replace(signal, values=values)


def _split(way: Way, signal: Signal) -> Sent:
    first = 0
    for target, _number in way.node.next_functions:
        channels = int(target._input_metadata[0].shape[1])
        yield target, replace(signal, values=signal.values[:, first : first + channels])
        first += channels


def _passed(way: Way, signal: Signal) -> Sent:
    for target, _number in way.node.next_functions:
        if target is not None:
            yield target, signal


class Step(NamedTuple):
    """How a signal takes one step, and of which nodes of that name this is true."""

    down: Callable[[Way, Signal], Sent]
    holds: Callable[[Any], bool] = lambda _: True


def _same_shape(node: Any) -> bool:
    targets = [target for target, _ in node.next_functions if target is not None]
    shapes = {tuple(each._input_metadata[0].shape) for each in (node, *targets)}
    return len(shapes) == 1 and node._saved_alpha == 1


STEPS: Mapping[str, Step] = {
    "Convolution": Step(_filtered, lambda node: not node._saved_transposed),
    "MaxPool2DWithIndices": Step(_unpooled),
    "NativeBatchNorm": Step(_scaled, lambda node: not node._saved_training),
    "Cat": Step(_split, lambda node: node._saved_dim == 1),
    "Add": Step(_passed, _same_shape),
    "Clone": Step(_passed),
    Rectify.__name__: Step(_rectified),
    PassedBy.__name__: Step(_passed),
    LastWins.__name__: Step(_last_wins),
}
"""Name of a node of the graph → the step down from it."""
BRANCHING = ("Cat", "Add")


def _name(node: Any) -> str:
    function = getattr(node, "_forward_cls", None)
    if function is not None:
        return str(function.__name__) if function in (Rectify, PassedBy, LastWins) else ""
    return re.sub(r"Backward\d*$", "", node.name())


def _is_known(node: Any, way: set[Any]) -> bool:
    """Is it a step between maps that we can take, and from the first of its inputs or from all?"""
    name = _name(node)
    if name not in STEPS or not STEPS[name].holds(node):
        return False
    taken = [edge for edge in node.next_functions if edge[0] in way]
    expected = node.next_functions if name in BRANCHING else node.next_functions[:1]
    maps = [node, *(target for target, _ in taken)]
    return (
        taken == [edge for edge in expected if edge[0] is not None]
        and all(number == 0 for _, number in taken)
        and all(len(each._input_metadata[0].shape) == 4 for each in maps)
    )


def _size(node: Any) -> Pair:
    """Height and width of the maps whose signals a node takes."""
    height, width = node._input_metadata[0].shape[2:]
    return int(height), int(width)
