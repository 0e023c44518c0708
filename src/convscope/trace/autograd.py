"""Walks the graph that autograd recorded: which operations lie between a layer and the pixels?

Read off the graph itself, so that nothing a network's code does can hide from it. `coverage` says
how far a backward rule reached. `reductions` says what makes maps smaller on the way: pools with
switches, which say where in this picture a signal goes on, or strides, which do not: on the way
down a filter is laid down every so many places, whatever the picture, and where its taps do not
divide evenly among these places, the sums that overlap are uneven and a grid shows.
Sources: Springenberg et al. 2015, "Striving for Simplicity", §3.4; Odena et al. 2016,
"Deconvolution and Checkerboard Artifacts".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from convscope.trace.operations import NODES

Pair = tuple[int, int]

LEAVES = {"AccumulateGrad"}
"""Nodes at which gradients end."""
HARMLESS = {"BackwardHookFunction"}
"""Functions written in Python that change nothing: torch's own, under a module's backward hook."""


class Coverage(NamedTuple):
    """What was met between pixels and a unit."""

    rewritten: int
    """Rectifiers that follow the rule …"""
    rectifiers: int
    """… of this many activations met."""
    unruled: tuple[str, ...]
    """Activations that a rule for rectifiers does not define, e.g. GELU."""
    hidden: tuple[str, ...]
    """Rectifiers and code out of the rule's sight, e.g. in a scripted function."""
    plain: tuple[str, ...]
    """Other operations that are not linear and pass the plain gradient, e.g. NativeGroupNorm."""
    skipped: int
    """Contrast normalisations that are passed by on the way down."""


def coverage(outputs: Iterable[Tensor], inputs: Iterable[Tensor] = ()) -> Coverage:
    """Look at all operations between `inputs` (pixels) and `outputs`; without inputs, at all
    operations below the outputs."""
    order = below([output.grad_fn for output in outputs])
    ends = {torch.autograd.graph.get_gradient_edge(value).node for value in inputs}
    way = on_the_way(order, ends) if ends else set(order)
    met = Counter[str]()
    names: dict[str, list[str]] = {"unruled": [], "hidden": [], "plain": []}
    for node in order:
        if node in way and node not in ends:
            kind, name = _kind(node, way)
            met[kind] += 1
            if kind in names:
                names[kind].append(name)
    return Coverage(
        rewritten=met["rewritten"],
        rectifiers=met["rewritten"] + met["unruled"] + met["hidden"],
        skipped=met["skipped"],
        **{kind: tuple(dict.fromkeys(named)) for kind, named in names.items()},
    )


def below(roots: Sequence[Any]) -> list[Any]:
    """All nodes below the roots, each after those below it. (No recursion: graphs are deep.)"""
    done: dict[Any, None] = {}
    stack = [(root, False) for root in roots if root is not None]
    while stack:
        node, left = stack.pop()
        if left:
            done[node] = None
        elif node not in done:
            stack.append((node, True))
            stack += [(below, False) for below, _ in node.next_functions if below is not None]
    return list(done)


def on_the_way(order: Sequence[Any], ends: set[Any]) -> set[Any]:
    """The nodes from which an end can be reached: not those of weights."""
    way = set(ends)
    for node in order:
        if any(below in way for below, _ in node.next_functions):
            way.add(node)
    return way


def name_of_node(node: Any) -> str:
    """`Relu` for a ReluBackward0."""
    return re.sub(r"Backward\d*$", "", node.name())


def _kind(node: Any, way: set[Any]) -> tuple[str, str]:
    """One of rewritten, skipped, unruled, hidden, plain and linear; and the operation's name."""
    if isinstance(node, BackwardCFunction):
        function: type = node._forward_cls  # type: ignore[attr-defined]
        kind = "linear" if function.__name__ in HARMLESS else "hidden"
        return getattr(function, "convscope_kind", kind), f"the function {function.__name__}"
    if "jit" in node.name():
        return "hidden", "scripted code"
    name = name_of_node(node)
    if name not in NODES:
        return ("linear" if name in LEAVES else "plain"), name
    operations = NODES[name]
    one = operations[0]
    if one.rectifies and _floor(node) == 0:
        return "hidden", "ReLU" if one.name == "relu" else one.name
    if one.title:
        return "unruled", " or ".join(each.title for each in operations)
    if one.linear in ("weights", "factors"):
        factors = sum(below in way for below, _ in node.next_functions)
        return ("linear" if factors < 2 else "plain"), name
    of_this_batch = getattr(node, "_saved_training", False)
    linear = (one.linear or one.switches) and not of_this_batch
    return ("linear" if linear else "plain"), name


def _floor(node: Any) -> float | None:
    """Below what does this node cut off? None if it does not or by a map."""
    for name in ("_saved_threshold", "_saved_min_val", "_saved_min"):
        if hasattr(node, name):
            value = getattr(node, name)
            return float(value) if isinstance(value, int | float) else None
    return 0.0 if node.name().startswith("Relu") else None


SWITCHES = {node for node, (one, *_) in NODES.items() if one.switches and "Pool" in node}
"""Nodes of the graph that put a signal back to where the picture's maximum was."""
STRIDES = {
    node for node, (one, *_) in NODES.items() if one.places == "window" and one.name != "pad"
} - SWITCHES
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
    result = {}
    for layer, values in maps.items():
        start = values.grad_fn
        if start is None or start not in way:
            result[layer] = Reductions(False, ())
            continue
        met = set(_next_reductions(start, end, way))
        past = _past_own([start], way)
        under = [node for node in reversed(below(past)) if node in steps and node in way]
        strides = [_stride(node, steps[node], names) for node in under if _strides_over(node)]
        result[layer] = Reductions(met == {"switches"}, tuple(strides))
    return result


def _next_reductions(start: Any, end: Any, way: set[Any]) -> Iterator[str]:
    """On each way down, what is met first: switches, or a stride. Nothing of ways without."""
    done: set[tuple[Any, bool]] = set()
    waiting = [(start, True)]
    while waiting:
        node, is_own = waiting.pop()
        if (node, is_own) in done or node is end:
            continue
        done.add((node, is_own))
        kind = name_of_node(node)
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
    done, past, waiting = set[Any](), list[Any](), list(starts)
    while waiting:
        node = waiting.pop()
        if node in done:
            continue
        done.add(node)
        following = [each for each, _ in node.next_functions if each in way]
        (past if name_of_node(node) == "Convolution" else waiting).extend(following)
    return past


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
    if name_of_node(node) not in SWITCHES | STRIDES:
        return 1, 1
    stride = getattr(node, "_saved_stride", ()) or getattr(node, "_saved_kernel_size", ()) or (1,)
    return int(stride[0]), int(stride[-1])


def _strides_over(node: Any) -> bool:
    is_transposed = getattr(node, "_saved_transposed", False)
    return name_of_node(node) in STRIDES and not is_transposed and max(_step(node)) > 1


def _stride(node: Any, period: Pair, names: Mapping[int, str]) -> Stride:
    kernel, dilation, name = tuple(getattr(node, "_saved_kernel_size", ())), (1,), ""
    if name_of_node(node) == "Convolution":
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
