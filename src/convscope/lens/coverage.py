"""What lies on the way of a signal down to the pixels, and did the backward rule reach it?

Read off the recorded graph itself, so that nothing a network's code does can hide from it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

RECTIFIERS = {"Relu": "ReLU", "Threshold": "threshold", "Hardtanh": "hardtanh", "Clamp": "clamp"}
"""Nodes of the graph that are rectifiers, provided that they cut off at zero."""
ACTIVATIONS = {
    "Abs": "abs",
    "Celu": "CELU",
    "Elu": "ELU or SELU",
    "Gelu": "GELU",
    "Glu": "GLU",
    "Hardshrink": "Hardshrink",
    "Hardsigmoid": "Hardsigmoid",
    "Hardswish": "Hardswish",
    "Hardtanh": "Hardtanh",
    "LeakyRelu": "LeakyReLU",
    "LogSigmoid": "LogSigmoid",
    "LogSoftmax": "LogSoftmax",
    "Mish": "Mish",
    "PreluKernel": "PReLU",
    "RreluWithNoise": "RReLU",
    "Sigmoid": "Sigmoid",
    "Silu": "SiLU",
    "Softmax": "Softmax",
    "Softplus": "Softplus",
    "Softshrink": "Softshrink",
    "Tanh": "Tanh",
    "Threshold": "Threshold",
}
"""Nodes that are activations for which a rule for rectifiers says nothing."""
LINEAR_NODES = """
AccumulateGrad AdaptiveAvgPool2D AdaptiveMaxPool2D Add Alias Amax AsStrided AvgPool2D Cat Clone
ConstantPadNd Copy CopyBackwards CopySlices CudnnBatchNorm Expand FractionalMaxPool2D Flip Gather
Im2Col Index IndexSelect Max MaxPool2DWithIndices Mean MiopenBatchNorm NativeBatchNorm
NativeDropout Neg Permute PixelShuffle PixelUnshuffle ReflectionPad2D Repeat ReplicationPad2D
ReshapeAlias Roll Rsub Select Slice Split SplitWithSizes Squeeze Stack Sub Sum T ToCopy Transpose
Unbind UnsafeSplit UnsafeView Unsqueeze UpsampleBicubic2D UpsampleBilinear2D UpsampleNearest2D View
"""
LINEAR = frozenset(LINEAR_NODES.split())
"""Nodes whose gradient is the one way to send a signal back, with the switches of this picture."""
PRODUCT_NODES = """
Addmm Addmv Baddbmm Bmm Convolution ConvolutionOverrideable CudnnConvolution Div Linear
MiopenConvolution MkldnnConvolution MkldnnLinear Mm Mul Mv SlowConv2D
"""
PRODUCTS = frozenset(PRODUCT_NODES.split())
"""Linear while only one of the factors comes from the pixels."""
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
        **{kind: tuple(dict.fromkeys(found)) for kind, found in names.items()},
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


def _kind(node: Any, way: set[Any]) -> tuple[str, str]:
    """One of rewritten, skipped, unruled, hidden, plain and linear; and the operation's name."""
    if isinstance(node, BackwardCFunction):
        function: type = node._forward_cls  # type: ignore[attr-defined]
        kind = "linear" if function.__name__ in HARMLESS else "hidden"
        return getattr(function, "convscope_kind", kind), f"the function {function.__name__}"
    if "jit" in node.name():
        return "hidden", "scripted code"
    name = re.sub(r"Backward\d*$", "", node.name())
    if name in RECTIFIERS or name == "ClampMin":
        if _floor(node) == 0:
            return "hidden", RECTIFIERS.get(name, "clamp")
        return ("unruled", ACTIVATIONS[name]) if name in ACTIVATIONS else ("plain", name)
    if name in ACTIVATIONS:
        return "unruled", ACTIVATIONS[name]
    if name in PRODUCTS:
        factors = sum(below in way for below, _ in node.next_functions)
        return ("linear" if factors < 2 else "plain"), name
    of_this_batch = getattr(node, "_saved_training", False)
    return ("linear" if name in LINEAR and not of_this_batch else "plain"), name


def _floor(node: Any) -> float | None:
    """Below what does this node cut off? None if it does not or by a map."""
    for name in ("_saved_threshold", "_saved_min_val", "_saved_min"):
        if hasattr(node, name):
            value = getattr(node, name)
            return float(value) if isinstance(value, int | float) else None
    return 0.0 if node.name().startswith("Relu") else None
