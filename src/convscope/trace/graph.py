"""The graph of what a network computes, and its nodes: a slide, a point or a whole.

A slide makes windows of larger windows (convolutions, pools), a point works place by place, a mean
sums a map up; whatever else there is needs the whole of what it takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.trace.folding import fold
from convscope.trace.operations import OPERATIONS, in_place
from convscope.trace.receptive_field import Window, window_of
from convscope.trace.recorder import PICTURE, Call, Recording, Slot

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


@dataclass(frozen=True)
class Result:
    """One result of a recorded call, with the shapes of what the call takes."""

    call: Call
    part: int
    """Which of the call's results."""
    given: Sequence[Shape]
    shape: Shape

    @property
    def takes_one_map(self) -> bool:
        """Does the call take one map (1, c, h, w) as its first argument, and constants?"""
        first = bool(self.call.args) and isinstance(self.call.args[0], Slot)
        one = len(self.given) == 1 and len(self.given[0]) == 4
        return first and one and len(self.call.gives) == 1

    @property
    def keeps_places(self) -> bool:
        """Has everything that the call takes the result's rows and columns?"""
        places = {shape[-2:] for shape in self.given} == {self.shape[-2:]}
        return places and all(shape[:1] == (1,) for shape in self.given)

    @property
    def is_batched(self) -> bool:
        """Has everything the axis of pictures first, and is it the call's only result?"""
        first = all(shape[:1] == (1,) for shape in (self.shape, *self.given))
        return first and len(self.call.gives) == 1

    @property
    def constants(self) -> list[Tensor]:
        return [leaf for leaf in self.call.leaves if isinstance(leaf, Tensor)]

    def again(self, *values: Tensor) -> Tensor:
        """By the very call, with other values; what it overwrites is a copy."""
        call, held = self.call, dict(zip(self.call.takes, values, strict=True))
        # It may work in place, by its name or by a flag among its arguments.
        flagged = any(leaf is True for leaf in call.leaves)
        if call.args and (flagged or in_place(call.function, call.kwargs)):
            first = call.args[0]
            if isinstance(first, Slot):
                held[first.number] = held[first.number].clone()
        result: Tensor = call.run(held)[self.part]
        return result

    def each(self, *values: Tensor) -> Tensor:
        """The same, mapped over the pictures as if each came alone."""
        batches = [
            value.unsqueeze(1) if shape[:1] == (1,) else value
            for value, shape in zip(values, self.given, strict=True)
        ]
        many = torch.vmap(self.again)(*batches)
        return many.squeeze(1) if self.shape[:1] == (1,) else many

    def node(self, mapped: bool) -> Node:
        """mapped: do all that the call takes have rows and columns?"""
        name, call, node = self.call.operation.name, self.call, None
        if mapped:
            node = MAPS[name](self) if name in MAPS else None
            node = node or (_point(self) if len(self.shape) >= 3 else None)
        node = node or _whole(self)
        if len(call.gives) > 1:
            node = replace(node, run=self.again if node.kind == "point" else self.each)
        return replace(node, name=name, takes=tuple(call.takes), shape=self.shape)


def same(x: Tensor) -> Tensor:
    """Of calls that do nothing here; such nodes are left out of the graph."""
    return x


def convolution(weight: Tensor, bias: Tensor | None, *how: object) -> Node:
    """how: stride, padding, dilation, groups, as conv2d takes them."""
    stride, padding, dilation, groups = how
    # Not in oneDNN's order: which it wants depends on the maps' sizes, and bringing weights from
    # one of its orders into another takes up to six times the convolution.
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    conv2d: Callable[..., Tensor] = partial(
        torch.conv2d, weight=weight, bias=bias, stride=stride, dilation=dilation, groups=groups
    )
    run, bare = partial(conv2d, padding=padding), partial(conv2d, padding=0)
    return Node("slide", run, bare=bare, weight=weight, bias=bias, how=how)


def _conv2d(one: Result) -> Node | None:
    weight, bias = one.call.option(1, "weight"), one.call.option(2, "bias")
    if not one.takes_one_map or not isinstance(weight, Tensor):
        return None
    how = [one.call.option(3 + n, name, value) for n, (name, value) in enumerate(OPTIONS)]
    return replace(convolution(weight, bias, *how), windows=_windows(one))


OPTIONS = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))


def _windows(one: Result) -> tuple[Window, Window]:
    """Of a call whose first argument is a map."""
    like = torch.empty(one.given[0], device="meta")
    call = replace(one.call, args=(like, *one.call.args[1:]))
    down, across = (window_of(call, axis) for axis in (0, 1))
    assert down is not None
    assert across is not None
    return down, across


def _max_pool2d(one: Result) -> Node | None:
    if not one.takes_one_map:  # with its indices the call has two results
        return None
    down, across = _windows(one)

    def bare(x: Tensor) -> Tensor:
        size, stride = (down.kernel, across.kernel), (down.stride, across.stride)
        return F.max_pool2d(x, size, stride, 0, (down.dilation, across.dilation))

    return Node("slide", one.again, bare=bare, windows=(down, across), outside=float("-inf"))


def _avg_pool2d(one: Result) -> Node | None:
    if not one.takes_one_map or one.call.option(6, "divisor_override") is not None:
        return None
    down, across = _windows(one)
    counted = bool(one.call.option(5, "count_include_pad", True))
    rows, columns = _share(down, one.shape[-2], counted), _share(across, one.shape[-1], counted)
    even = bool((rows == 1).all() and (columns == 1).all())

    def bare(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, (down.kernel, across.kernel), (down.stride, across.stride))

    share = None if even else (rows, columns)
    return Node("slide", one.again, bare=bare, windows=(down, across), share=share)


def _share(window: Window, places: int, counted: bool) -> Float[Tensor, "places"]:
    """For each window of an average pool: its places over those by which the sum is divided.

    counted: whether padding counts; what `ceil_mode` adds beyond the padding never does.
    """
    starts = torch.arange(places) * window.stride - window.padding
    edge = window.padding if counted else 0
    ends = (starts + window.kernel).clamp(max=window.size + edge)
    return window.kernel / (ends - starts.clamp(min=-edge)).double()


def _pad(one: Result) -> Node | None:
    call = one.call
    sides, value = list(call.option(1, "pad")), call.option(3, "value") or 0.0
    if not one.takes_one_map or call.option(2, "mode", "constant") != "constant":
        return None
    if len(sides) != 4 or min(sides) < 0 or value not in (0.0, float("-inf")):
        return None
    return Node("slide", one.again, bare=same, windows=_windows(one), outside=value)


def _mean(one: Result) -> Node | None:
    """Of whole maps."""
    axes = one.call.option(1, "dim")
    if not one.takes_one_map or not isinstance(axes, (list, tuple)) or "dtype" in one.call.kwargs:
        return None
    kept = len(one.shape) == 4
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        return None
    return Node("mean", lambda x: x.mean((2, 3), keepdim=kept))


def _adaptive(one: Result) -> Node | None:
    if not one.takes_one_map:
        return None
    if one.shape[-2:] == (1, 1):
        return Node("mean", lambda x: x.mean((2, 3), keepdim=True))
    return Node("point", same) if one.shape == one.given[0] else None


MAPS: Mapping[str, Callable[[Result], Node | None]] = {
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "pad": _pad,
    "mean": _mean,
    "adaptive_avg_pool2d": _adaptive,
}
"""Operations that make windows of larger windows, or one number of a whole map."""
PLACEWISE = {
    name for name, operation in OPERATIONS.items() if operation.places in ("number", "place")
}
"""Operations of which each row and column of the result reads its own row and column only."""
FAST: Mapping[str, tuple[Callable[..., Tensor], Callable[..., object]]] = {
    "relu": (torch.relu, partial(torch.clamp, min=0)),
    "add": (torch.add, torch.add),
}
"""The same under any spelling, where nothing but values on the way is given; and with `out`."""


def _point(one: Result) -> Node | None:
    """The node of a call that works place by place; None if this one does not."""
    call, operation, shape = one.call, one.call.operation, one.shape
    if operation.name not in PLACEWISE:
        return _point_of_channels(one)
    if len(call.gives) != 1 or not one.keeps_places:
        return None
    if not all(_is_even(constant, len(shape)) for constant in one.constants):
        return None
    if operation.idle:
        return Node("point", same) if list(one.given) == [shape] else None
    simple = all(isinstance(arg, Slot) for arg in call.args) and set(call.kwargs) <= {"inplace"}
    run, into = FAST.get(operation.name, (None, None))
    return Node("point", run, into=into) if run and simple else Node("point", one.again)


def _is_even(constant: Tensor, axes: int) -> bool:
    """Is it the same for every row and column?"""
    flat = constant.dim() in (axes, axes - 1) and constant.shape[-2:] == (1, 1)
    return constant.numel() == 1 or flat


def _point_of_channels(one: Result) -> Node | None:
    """Of a call that moves or changes channels and leaves rows and columns where they are."""
    call, given, axes = one.call, one.given[0], len(one.shape)
    middle = one.shape[1:-2]
    match call.operation.name:
        case "batch_norm":
            fits = len(one.given) == 1 and len(given) == 4
            return Node("point", one.again) if fits else None
        case "transpose":
            both = [axis % axes for axis in call.args[1:3]]
            fits = len(both) == 2 and min(both) > 0 and max(both) < axes - 2
            return Node("point", one.again) if fits else None
        case _ if not one.keeps_places:
            return None
        case "cat":
            slots = all(isinstance(leaf, Slot) for leaf in call.args[0])
            fits = call.option(1, "dim", 0) % axes == 1 and slots
            return Node("point", _joined, into=_joined) if fits else None
        case "chunk" | "split":
            fits = call.option(2, "dim", 0) % len(given) == 1
        case "unsqueeze":
            fits = call.option(1, "dim") % axes == 1
        case "getitem":  # x[:, 2] and x[:, 1:3]
            which = call.args[1]
            pair = isinstance(which, tuple) and len(which) == 2 and which[0] == slice(None)
            fits = pair and isinstance(which[1], (int, slice)) and len(given) == 4
        case "reshape" | "view":  # that only regroups channels, as channel_shuffle does
            regroups = len(one.given) == 1 and prod(middle) == prod(given[1:-2])
            fits = regroups and one.shape[0] == 1
            grouped = partial(_regrouped, channels=middle)
            return Node("point", grouped) if fits else None
        case _:
            return None
    return Node("point", one.again) if fits else None


def _joined(*parts: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.cat(parts, 1, out=out)


def _regrouped(x: Tensor, channels: Shape) -> Tensor:
    return x.reshape(x.shape[0], *channels, *x.shape[-2:])


def _whole(one: Result) -> Node:
    """Of any other call. Some take many pictures at once as they take one, each for itself."""
    call, name, shape, axes = one.call, one.call.operation.name, one.shape, len(one.given[0])
    alone = one.is_batched and len(one.given) == 1
    fits = False
    if name in PLACEWISE:
        spread = all(leaf.dim() < len(shape) or leaf.shape[0] == 1 for leaf in one.constants)
        fits = one.is_batched and spread and all(len(each) == len(shape) for each in one.given)
    elif name == "conv2d" and (node := _conv2d(one)) is not None:
        return replace(node, kind="whole")
    elif name == "linear":
        weight = call.option(1, "weight")
        if alone and len(shape) == 2 and isinstance(weight, Tensor):
            linear = partial(F.linear, weight=weight.detach(), bias=call.option(2, "bias"))
            return Node("whole", linear)
        fits = alone and not (len(shape) == 2 and isinstance(weight, Tensor))
    elif name in ("reshape", "view") and alone:
        return Node("whole", lambda x: x.reshape(x.shape[0], *shape[1:]))
    elif name == "cat":
        values = len(one.given) == len(call.leaves) - len(call.args[1:]) - len(call.kwargs)
        fits = one.is_batched and values and call.option(1, "dim", 0) % len(shape) > 0
    elif name == "flatten":
        start, end = call.option(1, "start_dim", 0), call.option(2, "end_dim", -1)
        fits = alone and start % axes == 1 and end % axes == axes - 1
    elif name == "permute":
        order = call.option(1, "dims")
        fits = alone and (order if isinstance(order, (tuple, list)) else call.args[1:])[0] == 0
    elif name == "mean":
        over = call.option(1, "dim")
        over = over if isinstance(over, (tuple, list)) else [over]
        fits = alone and all(isinstance(axis, int) and axis % axes > 0 for axis in over)
    else:
        fits = alone and call.operation.each_alone
    return Node("whole", one.again if fits else one.each)


@dataclass
class Graph:
    """The nodes that scores and watched layers need, by their slots, in the order of the calls."""

    nodes: dict[int, Node]
    output: int
    layers: dict[str, int]

    @property
    def users(self) -> Counter[int]:
        """How often each value is taken, also by those who ask."""
        taken = Counter(slot for node in self.nodes.values() for slot in node.takes)
        return taken + Counter([self.output, *self.layers.values()])

    @property
    def mapped(self) -> dict[int, Node]:
        """The nodes whose values are kept as windows."""
        return {slot: node for slot, node in self.nodes.items() if node.mapped}

    def wholes(self) -> list[Node]:
        """Nodes that compute whole maps for others that do, too."""
        below = {s for node in self.nodes.values() if len(node.shape) > 2 for s in node.takes}
        return [
            node
            for slot, node in self.nodes.items()
            if node.kind == "whole" and slot in below and max(node.shape[-2:], default=1) > 1
        ]


def graph_of(recording: Recording) -> Graph:
    """What was recorded, ready to be run for windows."""
    nodes = {PICTURE: Node("picture", same, shape=recording.shapes[PICTURE])}
    alias: dict[int, int] = {}
    makers: dict[int, Call] = {}
    for call in recording.calls:
        mapped = all(nodes[alias.get(s, s)].mapped for s in call.takes)
        shapes = [recording.shapes[slot] for slot in call.takes]
        for part, slot in enumerate(call.gives):
            if slot is None:
                continue
            makers[slot] = call
            node = Result(call, part, shapes, recording.shapes[slot]).node(mapped)
            takes = tuple(alias.get(s, s) for s in node.takes)
            nodes[slot] = replace(node, takes=takes)
            if node.run is same:
                alias[slot] = takes[0]
    layers = {layer: alias.get(slot, slot) for layer, slot in recording.layers.items()}
    graph = Graph(nodes, alias.get(recording.output, recording.output), layers)
    _prune(graph)
    _fold(graph, makers)
    _prune(graph)
    return graph


def _prune(graph: Graph) -> None:
    """Leave out what nobody needs."""
    needed = {PICTURE, graph.output, *graph.layers.values()}
    for slot, node in reversed(graph.nodes.items()):
        if slot in needed:
            needed |= set(node.takes)
    graph.nodes = {slot: node for slot, node in graph.nodes.items() if slot in needed}


def _fold(graph: Graph, makers: Mapping[int, Call]) -> None:
    """Give batch normalisation that follows a convolution to that convolution's weights."""
    users = graph.users
    for slot, node in list(graph.nodes.items()):
        if node.name != "batch_norm" or len(node.takes) != 1:
            continue
        before = graph.nodes[node.takes[0]]
        if before.weight is None or users[node.takes[0]] != 1:
            continue
        norm = makers[slot]
        names = ("running_mean", "running_var", "weight", "bias")
        numbers = [norm.option(1 + place, name) for place, name in enumerate(names)]
        weight, bias = fold(before.weight, before.bias, numbers, norm.option(7, "eps", 1e-5))
        made = convolution(weight, bias, *before.how)
        graph.nodes[slot] = replace(
            before, run=made.run, bare=made.bare, weight=made.weight, bias=made.bias
        )


def plain_pass(
    graph: Graph,
    picture: Float[Tensor, "n c h w"],
    keep: Callable[[int, Tensor], None] = lambda *_: None,
) -> Tensor:
    """The network's output for whole pictures; `keep` is shown every value."""
    left = graph.users
    held: dict[int, Tensor] = {}
    for slot, node in graph.nodes.items():
        taken = [held[s] for s in node.takes]
        held[slot] = picture if slot == PICTURE else node.run(*taken)
        keep(slot, held[slot])
        for s in node.takes:
            left[s] -= 1
            if not left[s]:
                del held[s]
    return held[graph.output]
