"""What makes maps smaller between a layer and the pixels: pools with switches, or strides?

Switches say where in this picture a signal goes on. A stride does not: on the way down a filter is
laid down every so many places, whatever the picture, and where its taps do not divide evenly among
these places, the sums that overlap are uneven and a grid shows.
Sources: Springenberg et al. 2015, "Striving for Simplicity", §3.4; Odena et al. 2016,
"Deconvolution and Checkerboard Artifacts".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.lens.coverage import below, on_the_way
from convscope.lens.signal import Pair

SWITCHES = {"MaxPool2DWithIndices", "AdaptiveMaxPool2D", "FractionalMaxPool2D"}
"""Nodes of the graph that put a signal back to where the picture's maximum was."""
STRIDES = {"Convolution", "AvgPool2D"}
"""Nodes that may pass places over or average them; no switch says which they were."""


class Stride(NamedTuple):
    """A convolution between a layer and the pixels that does not stop at every place."""

    layer: str
    """Its name; empty where its filters are no parameter of the network."""
    kernel: Pair
    stride: Pair
    period: Pair
    """Pixels, down and across, from one stop to the next."""
    is_even: bool
    """Do its taps divide evenly among the places between two stops?"""


class Reductions(NamedTuple):
    """Of one layer."""

    has_switches: bool
    """Is what next makes maps smaller, on every way down, a pool with switches? The layer's own
    convolution does not count, as a single neuron goes through it."""
    strides: tuple[Stride, ...]
    """From the layer down, without its own convolution."""


def reductions(
    model: nn.Module, maps: Mapping[str, Tensor], pixels: Float[Tensor, "b c h w"]
) -> dict[str, Reductions]:
    """Read off the graph of a pass up, of each layer's maps."""
    end = torch.autograd.graph.get_gradient_edge(pixels).node
    order = below([each.grad_fn for each in maps.values()])
    way = on_the_way(order, {end})
    steps = _periods([node for node in order if node in way], end)
    names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
    found = {}
    for layer, values in maps.items():
        start = values.grad_fn
        if start is None or start not in way:
            found[layer] = Reductions(False, ())
            continue
        met = set(_next_reductions(start, end, way))
        past = _past_own([start], way)
        under = [node for node in reversed(below(past)) if node in steps and node in way]
        strides = [_stride(node, steps[node], names) for node in under if _strides_over(node)]
        found[layer] = Reductions(met == {"switches"}, tuple(strides))
    return found


def _next_reductions(start: Any, end: Any, way: set[Any]) -> Iterator[str]:
    """On each way down, what is met first: switches, or a stride. Nothing of ways without."""
    done: set[tuple[Any, bool]] = set()
    waiting = [(start, True)]
    while waiting:
        node, is_own = waiting.pop()
        if (node, is_own) in done or node is end:
            continue
        done.add((node, is_own))
        kind = _kind(node)
        if kind in SWITCHES:
            yield "switches"
        elif _strides_over(node) and not (is_own and kind == "Convolution"):
            yield "stride"
        else:
            waiting += [
                (each, is_own and kind != "Convolution")
                for each, _ in node.next_functions
                if each in way
            ]


def _past_own(starts: Sequence[Any], way: set[Any]) -> list[Any]:
    """The nodes right below the first convolutions on the ways down."""
    done, found, waiting = set[Any](), list[Any](), list(starts)
    while waiting:
        node = waiting.pop()
        if node in done:
            continue
        done.add(node)
        following = [each for each, _ in node.next_functions if each in way]
        (found if _kind(node) == "Convolution" else waiting).extend(following)
    return found


def _periods(order: Sequence[Any], end: Any) -> dict[Any, Pair]:
    """Of each node the pixels from one place of its output to the next."""
    periods: dict[Any, Pair] = {end: (1, 1)}
    for node in order:
        given = [periods[each] for each, _ in node.next_functions if each in periods]
        if given:
            down, across = (max(of_axis) for of_axis in zip(*given, strict=True))
            rows, columns = _step(node)
            if getattr(node, "_saved_transposed", False):
                periods[node] = (max(1, down // rows), max(1, across // columns))
            else:
                periods[node] = (down * rows, across * columns)
    return periods


def _step(node: Any) -> Pair:
    """Places of its input from one place of its output to the next."""
    if _kind(node) not in SWITCHES | STRIDES:
        return 1, 1
    stride = getattr(node, "_saved_stride", ()) or getattr(node, "_saved_kernel_size", ()) or (1,)
    return int(stride[0]), int(stride[-1])


def _strides_over(node: Any) -> bool:
    is_transposed = getattr(node, "_saved_transposed", False)
    return _kind(node) in STRIDES and not is_transposed and max(_step(node)) > 1


def _stride(node: Any, period: Pair, names: Mapping[int, str]) -> Stride:
    kernel, dilation, name = tuple(getattr(node, "_saved_kernel_size", ())), (1,), ""
    if _kind(node) == "Convolution":
        weight = node._saved_weight
        kernel, dilation = tuple(weight.shape[2:]), tuple(node._saved_dilation)
        name = names.get(weight.data_ptr(), "").rpartition(".")[0]
    step = _step(node)
    even = all(is_even(kernel[a], step[a], dilation[a]) for a in (0, -1))
    return Stride(name, (int(kernel[0]), int(kernel[-1])), step, period, even)


def is_even(kernel: int, stride: int, dilation: int = 1) -> bool:
    """Does each of the places between two stops get equally many of the kernel's taps? Without
    dilation: is the kernel a multiple of the stride?"""
    taps = Counter(tap * dilation % stride for tap in range(kernel))
    return len(taps) == stride and len(set(taps.values())) == 1


def _kind(node: Any) -> str:
    return re.sub(r"Backward\d*$", "", node.name())
