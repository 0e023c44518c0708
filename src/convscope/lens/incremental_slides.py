"""Which calls make windows of larger windows, or one number of a whole map?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.lens.incremental_node import Node, Shape, Table, again, alone, same
from convscope.lens.incremental_packed import Convolution
from convscope.lens.step import Step
from convscope.lens.windows import Window, window_of


def convolution(weight: Tensor, bias: Tensor | None, *how: object) -> Node:
    """how: stride, padding, dilation, groups, as conv2d takes them."""
    made = Convolution(weight, bias, how)
    return Node("slide", made, bare=made.bare, weight=made.weight, bias=bias, how=how)


def _conv2d(step: Step, given: Sequence[Shape], _: Shape) -> Node | None:
    weight, bias = step.option(1, "weight"), step.option(2, "bias")
    if not alone(step, given) or not isinstance(weight, Tensor):
        return None
    how = [step.option(3 + n, name, value) for n, (name, value) in enumerate(OPTIONS)]
    return replace(convolution(weight, bias, *how), windows=_windows("conv2d", step, given[0]))


OPTIONS = (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1))


def _windows(name: str, step: Step, shape: Shape) -> tuple[Window, Window]:
    """Of a call whose first argument is a map of this shape."""
    args = (torch.empty(shape, device="meta"), *step.args[1:])
    down, across = (window_of(name, args, step.kwargs, axis) for axis in (0, 1))
    assert down is not None
    assert across is not None
    return down, across


def _max_pool2d(step: Step, given: Sequence[Shape], _: Shape) -> Node | None:
    if not alone(step, given):  # with its indices the call has two results
        return None
    down, across = _windows("max_pool2d", step, given[0])

    def bare(x: Tensor) -> Tensor:
        size, stride = (down.kernel, across.kernel), (down.stride, across.stride)
        return F.max_pool2d(x, size, stride, 0, (down.dilation, across.dilation))

    return Node("slide", again(step), bare=bare, windows=(down, across), outside=float("-inf"))


def _avg_pool2d(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    if not alone(step, given) or step.option(6, "divisor_override") is not None:
        return None
    down, across = _windows("avg_pool2d", step, given[0])
    counted = bool(step.option(5, "count_include_pad", True))
    rows, columns = _share(down, shape[-2], counted), _share(across, shape[-1], counted)
    even = bool((rows == 1).all() and (columns == 1).all())

    def bare(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, (down.kernel, across.kernel), (down.stride, across.stride))

    share = None if even else (rows, columns)
    return Node("slide", again(step), bare=bare, windows=(down, across), share=share)


def _share(window: Window, places: int, counted: bool) -> Float[Tensor, "places"]:
    """For each window of an average pool: its places over those by which the sum is divided.

    counted: whether padding counts; what `ceil_mode` adds beyond the padding never does.
    """
    starts = torch.arange(places) * window.stride - window.padding
    edge = window.padding if counted else 0
    ends = (starts + window.kernel).clamp(max=window.size + edge)
    return window.kernel / (ends - starts.clamp(min=-edge)).double()


def _pad(step: Step, given: Sequence[Shape], _: Shape) -> Node | None:
    sides, value = list(step.option(1, "pad")), step.option(3, "value") or 0.0
    if not alone(step, given) or step.option(2, "mode", "constant") != "constant":
        return None
    if len(sides) != 4 or min(sides) < 0 or value not in (0.0, float("-inf")):
        return None
    down = Window(given[0][-2], 1, 1, sides[2], 1)
    across = Window(given[0][-1], 1, 1, sides[0], 1)
    return Node("slide", again(step), bare=same, windows=(down, across), outside=value)


SLIDES: Table = {
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "pad": _pad,
}


def _mean(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    axes = step.option(1, "dim")
    if not alone(step, given) or not isinstance(axes, (list, tuple)) or "dtype" in step.kwargs:
        return None
    kept = len(shape) == 4
    if sorted(axis % 4 for axis in axes) != [2, 3]:
        return None
    return Node("mean", lambda x: x.mean((2, 3), keepdim=kept))


def _adaptive(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    if not alone(step, given):
        return None
    if shape[-2:] == (1, 1):
        return Node("mean", lambda x: x.mean((2, 3), keepdim=True))
    return Node("point", same) if shape == given[0] else None


MEANS: Table = {"mean": _mean, "adaptive_avg_pool2d": _adaptive}
"""Of whole maps."""
