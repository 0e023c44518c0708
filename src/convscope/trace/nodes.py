"""What one call of a network is to the engine that computes windows: a slide, a point or a whole.

A slide makes windows of larger windows (convolutions, pools), a point works place by place, a mean
sums a map up; whatever else there is needs the whole of what it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.lens.incremental_packed import Convolution, Product
from convscope.trace.operations import OPERATIONS, in_place
from convscope.trace.recorder import Call, Slot
from convscope.trace.windows import Window, window_of

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


Lower = Callable[[Call, Sequence[Shape], Shape], Node | None]
"""From a call, the shapes of what it takes and of its first result; None: it is another thing."""
Table = Mapping[str, Lower]


def results(call: Call, held: Mapping[int, Tensor]) -> list[Any]:
    """What the call gives; what it overwrites is a copy."""
    if overwrites(call) and isinstance(call.args[0], Slot):
        first = call.args[0].number
        held = {**held, first: held[first].clone()}
    return call.run(held)


def overwrites(call: Call) -> bool:
    """May the call work in place, by its name or by a flag among its arguments?"""
    spelled = in_place(call.function, call.kwargs)
    return bool(call.args) and (spelled or any(leaf is True for leaf in call.leaves))


def again(call: Call, part: int = 0) -> Callable[..., Tensor]:
    """The very call with other values."""

    def run(*values: Tensor) -> Tensor:
        result: Tensor = results(call, dict(zip(call.takes, values, strict=True)))[part]
        return result

    return run


def same(x: Tensor) -> Tensor:
    """Of calls that do nothing here; such nodes are left out of the graph."""
    return x


def alone(call: Call, given: Sequence[Shape]) -> bool:
    """Does the call take one map (1, c, h, w) as its first argument, and constants?"""
    first = bool(call.args) and isinstance(call.args[0], Slot)
    return first and len(given) == 1 and len(given[0]) == 4 and len(call.gives) == 1


# slides and means: windows of larger windows, one number of a whole map


def convolution(weight: Tensor, bias: Tensor | None, *how: object) -> Node:
    """how: stride, padding, dilation, groups, as conv2d takes them."""
    made = Convolution(weight, bias, how)
    return Node("slide", made, bare=made.bare, weight=made.weight, bias=bias, how=how)


def _conv2d(call: Call, given: Sequence[Shape], _: Shape) -> Node | None:
    weight, bias = call.option(1, "weight"), call.option(2, "bias")
    if not alone(call, given) or not isinstance(weight, Tensor):
        return None
    how = [call.option(3 + n, name, value) for n, (name, value) in enumerate(OPTIONS)]
    return replace(convolution(weight, bias, *how), windows=_windows(call, given[0]))


OPTIONS = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))


def _windows(call: Call, shape: Shape) -> tuple[Window, Window]:
    """Of a call whose first argument is a map of this shape."""
    of_map = replace(call, args=(torch.empty(shape, device="meta"), *call.args[1:]))
    down, across = (window_of(of_map, axis) for axis in (0, 1))
    assert down is not None
    assert across is not None
    return down, across


def _max_pool2d(call: Call, given: Sequence[Shape], _: Shape) -> Node | None:
    if not alone(call, given):  # with its indices the call has two results
        return None
    down, across = _windows(call, given[0])

    def bare(x: Tensor) -> Tensor:
        size, stride = (down.kernel, across.kernel), (down.stride, across.stride)
        return F.max_pool2d(x, size, stride, 0, (down.dilation, across.dilation))

    return Node("slide", again(call), bare=bare, windows=(down, across), outside=float("-inf"))


def _avg_pool2d(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    if not alone(call, given) or call.option(6, "divisor_override") is not None:
        return None
    down, across = _windows(call, given[0])
    counted = bool(call.option(5, "count_include_pad", True))
    rows, columns = _share(down, shape[-2], counted), _share(across, shape[-1], counted)
    even = bool((rows == 1).all() and (columns == 1).all())

    def bare(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, (down.kernel, across.kernel), (down.stride, across.stride))

    share = None if even else (rows, columns)
    return Node("slide", again(call), bare=bare, windows=(down, across), share=share)


def _share(window: Window, places: int, counted: bool) -> Float[Tensor, "places"]:
    """For each window of an average pool: its places over those by which the sum is divided.

    counted: whether padding counts; what `ceil_mode` adds beyond the padding never does.
    """
    starts = torch.arange(places) * window.stride - window.padding
    edge = window.padding if counted else 0
    ends = (starts + window.kernel).clamp(max=window.size + edge)
    return window.kernel / (ends - starts.clamp(min=-edge)).double()


def _pad(call: Call, given: Sequence[Shape], _: Shape) -> Node | None:
    sides, value = list(call.option(1, "pad")), call.option(3, "value") or 0.0
    if not alone(call, given) or call.option(2, "mode", "constant") != "constant":
        return None
    if len(sides) != 4 or min(sides) < 0 or value not in (0.0, float("-inf")):
        return None
    down = Window(given[0][-2], 1, 1, sides[2], 1)
    across = Window(given[0][-1], 1, 1, sides[0], 1)
    return Node("slide", again(call), bare=same, windows=(down, across), outside=value)


SLIDES: Table = {
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "pad": _pad,
}


def _mean(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    axes = call.option(1, "dim")
    if not alone(call, given) or not isinstance(axes, (list, tuple)) or "dtype" in call.kwargs:
        return None
    kept = len(shape) == 4
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        return None
    return Node("mean", lambda x: x.mean((2, 3), keepdim=kept))


def _adaptive(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    if not alone(call, given):
        return None
    if shape[-2:] == (1, 1):
        return Node("mean", lambda x: x.mean((2, 3), keepdim=True))
    return Node("point", same) if shape == given[0] else None


MEANS: Table = {"mean": _mean, "adaptive_avg_pool2d": _adaptive}
"""Of whole maps."""


# points: place by place

PLACEWISE = {
    name for name, operation in OPERATIONS.items() if operation.places in ("number", "place")
}
"""Operations of which each row and column of the result reads its own row and column only."""
FAST: Mapping[str, tuple[Callable[..., Tensor], Callable[..., object]]] = {
    "relu": (torch.relu, partial(torch.clamp, min=0)),
    "add": (torch.add, torch.add),
}
"""The same under any spelling, where nothing but values on the way is given; and with `out`."""


def point(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    """The node of a call that works place by place; None if this one does not."""
    name = call.operation.name
    if name in CHANNELS:
        return CHANNELS[name](call, given, shape)
    if name not in PLACEWISE or len(call.gives) != 1 or not _alike(given, shape):
        return None
    if not all(_spread(leaf, shape) for leaf in call.leaves if isinstance(leaf, Tensor)):
        return None
    if call.operation.idle:
        return Node("point", same) if len(given) == 1 and given[0] == shape else None
    if name not in FAST or not _simple(call):
        return Node("point", again(call))
    run, into = FAST[name]
    return Node("point", run, into=into)


def _alike(given: Sequence[Shape], shape: Shape) -> bool:
    return {one[-2:] for one in given} == {shape[-2:]} and all(one[:1] == (1,) for one in given)


def _spread(constant: Tensor, shape: Shape) -> bool:
    """Is the constant the same for every row and column?"""
    flat = constant.dim() in (len(shape), len(shape) - 1) and constant.shape[-2:] == (1, 1)
    return constant.numel() == 1 or flat


def _simple(call: Call) -> bool:
    return all(isinstance(arg, Slot) for arg in call.args) and set(call.kwargs) <= {"inplace"}


def _batch_norm(call: Call, given: Sequence[Shape], _: Shape) -> Node | None:
    return Node("point", again(call)) if len(given) == 1 and len(given[0]) == 4 else None


def _cat(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    along = call.option(1, "dim", 0) % len(shape) == 1
    if not along or not all(isinstance(leaf, Slot) for leaf in call.args[0]):
        return None
    return Node("point", _joined, into=_joined) if _alike(given, shape) else None


def _joined(*parts: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.cat(parts, 1, out=out)


def _take(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    """x[:, 2] and x[:, 1:3]."""
    which = call.args[1]
    if not isinstance(which, tuple) or len(which) != 2 or which[0] != slice(None):
        return None
    plain = isinstance(which[1], (int, slice)) and len(given[0]) == 4
    return Node("point", again(call)) if plain and _alike(given, shape) else None


def _unsqueeze(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    first = call.option(1, "dim") % len(shape) == 1
    return Node("point", again(call)) if first and _alike(given, shape) else None


def _split(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    first = call.option(2, "dim", 0) % len(given[0]) == 1
    return Node("point", again(call)) if first and _alike(given, shape) else None


def _swap(call: Call, _: Sequence[Shape], shape: Shape) -> Node | None:
    axes = sorted(axis % len(shape) for axis in call.args[1:3])
    fits = len(axes) == 2 and axes[0] > 0 and axes[1] < len(shape) - 2
    return Node("point", again(call)) if fits else None


def _regroup(_: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    """A view that only regroups channels, as channel_shuffle does."""
    if len(given) != 1 or not _alike(given, shape) or shape[0] != 1:
        return None
    if prod(shape[1:-2]) != prod(given[0][1:-2]):
        return None
    middle = shape[1:-2]
    return Node("point", lambda x: x.reshape(x.shape[0], *middle, *x.shape[-2:]))


CHANNELS: Table = {
    "batch_norm": _batch_norm,
    "cat": _cat,
    "chunk": _split,
    "split": _split,
    "reshape": _regroup,
    "transpose": _swap,
    "unsqueeze": _unsqueeze,
    "view": _regroup,
    "getitem": _take,
}
"""Calls that move or change channels and leave rows and columns where they are."""


# any call


def lowered(call: Call, part: int, shapes: Mapping[int, Shape], mapped: bool) -> Node:
    """The node of one of a call's results. mapped: do all that it takes have rows and columns?"""
    takes, given = tuple(call.takes), [shapes[slot] for slot in call.takes]
    number = call.gives[part]
    assert number is not None
    shape, name = shapes[number], call.operation.name
    node = None
    if mapped:
        maps = {**SLIDES, **MEANS}
        node = maps[name](call, given, shape) if name in maps else None
        node = node or (point(call, given, shape) if len(shape) >= 3 else None)
    if node is None and name in NATIVE:
        node = NATIVE[name](call, given, shape)
    if node is None or (len(call.gives) > 1 and node.kind != "point"):
        node = _each(call, part, given, shape)
    elif len(call.gives) > 1:
        node = replace(node, run=again(call, part))
    return replace(node, name=name, takes=takes, shape=shape)


def _ready(given: Sequence[Shape], shape: Shape) -> bool:
    """Has everything the axis of pictures first?"""
    return shape[:1] == (1,) and all(one[:1] == (1,) for one in given)


def _as_is(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    fits = _ready(given, shape) and len(call.gives) == 1 and len(given) == 1
    return Node("whole", again(call)) if fits else None


def _whole_conv2d(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    node = SLIDES["conv2d"](call, given, shape)
    return None if node is None else replace(node, kind="whole")


def _broadcast(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    """Place by place on whole values."""
    axes = len(shape)
    values = _ready(given, shape) and all(len(one) == axes for one in given)
    constants = [leaf for leaf in call.leaves if isinstance(leaf, Tensor)]
    spread = all(leaf.dim() < axes or leaf.shape[0] == 1 for leaf in constants)
    return Node("whole", again(call)) if values and spread and len(call.gives) == 1 else None


def _linear(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    weight, bias = call.option(1, "weight"), call.option(2, "bias")
    if len(shape) != 2 or not isinstance(weight, Tensor):
        return _as_is(call, given, shape)
    fits = _ready(given, shape) and len(given) == 1
    return Node("whole", Product(weight, bias)) if fits else None


def _flatten(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    axes = len(given[0])
    start, end = call.option(1, "start_dim", 0), call.option(2, "end_dim", -1)
    fits = _ready(given, shape) and start % axes == 1 and end % axes == axes - 1
    return Node("whole", lambda x: x.flatten(1)) if fits else None


def _shaped(_: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    fits = _ready(given, shape) and len(given) == 1
    return Node("whole", lambda x: x.reshape(x.shape[0], *shape[1:])) if fits else None


def _permute(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    axes = call.option(1, "dims")
    axes = axes if isinstance(axes, (tuple, list)) else call.args[1:]
    return _as_is(call, given, shape) if axes[0] == 0 else None


def _whole_mean(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    axes = call.option(1, "dim")
    axes = axes if isinstance(axes, (tuple, list)) else [axes]
    away = all(isinstance(axis, int) and axis % len(given[0]) > 0 for axis in axes)
    return _as_is(call, given, shape) if away else None


def _whole_cat(call: Call, given: Sequence[Shape], shape: Shape) -> Node | None:
    away = call.option(1, "dim", 0) % len(shape) > 0
    values = len(given) == len(call.leaves) - len(call.args[1:]) - len(call.kwargs)
    fits = away and values and _ready(given, shape)
    return Node("whole", again(call)) if fits else None


NATIVE: Table = {
    **dict.fromkeys(PLACEWISE, _broadcast),
    **{name: _as_is for name, operation in OPERATIONS.items() if operation.each_alone},
    "cat": _whole_cat,
    "conv2d": _whole_conv2d,
    "flatten": _flatten,
    "linear": _linear,
    "mean": _whole_mean,
    "permute": _permute,
    "reshape": _shaped,
    "view": _shaped,
}
"""Calls that take many pictures at once as they take one, each for itself."""


def _each(call: Call, part: int, given: Sequence[Shape], shape: Shape) -> Node:
    """Any other call: mapped over the pictures, as if each came alone."""

    one = again(call, part)

    def run(*values: Tensor) -> Tensor:
        batches = [
            value.unsqueeze(1) if had[:1] == (1,) else value
            for value, had in zip(values, given, strict=True)
        ]
        many = torch.vmap(one)(*batches)
        return many.squeeze(1) if shape[:1] == (1,) else many

    return Node("whole", run)
