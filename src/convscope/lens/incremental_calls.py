"""How is each call of a recording made again, for windows or for many pictures at once?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from convscope.lens.incremental_node import (
    Node,
    Shape,
    Table,
    again,
    leaves,
    plain_name,
    results,
)
from convscope.lens.incremental_packed import Product
from convscope.lens.incremental_points import point
from convscope.lens.incremental_slides import MEANS, SLIDES
from convscope.lens.spans import POINTWISE
from convscope.lens.step import Step


def lowered(step: Step, part: int, shapes: Mapping[int, Shape], mapped: bool) -> Node:
    """The node of one of a call's results. mapped: do all that it takes have rows and columns?"""
    takes, given = tuple(step.takes), [shapes[slot] for slot in step.takes]
    number = step.gives[part]
    assert number is not None
    shape, name = shapes[number], plain_name(step)
    node = None
    if mapped:
        maps = {**SLIDES, **MEANS}
        node = maps[name](step, given, shape) if name in maps else None
        node = node or (point(step, given, shape) if len(shape) >= 3 else None)
    if node is None and name in NATIVE:
        node = NATIVE[name](step, given, shape)
    if node is None or (len(step.gives) > 1 and node.kind != "point"):
        node = _each(step, part, given, shape)
    elif len(step.gives) > 1:
        node = replace(node, run=again(step, part))
    return replace(node, name=name, takes=takes, shape=shape)


def _ready(given: Sequence[Shape], shape: Shape) -> bool:
    """Has everything the axis of pictures first?"""
    return shape[:1] == (1,) and all(one[:1] == (1,) for one in given)


def _as_is(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    fits = _ready(given, shape) and len(step.gives) == 1 and len(given) == 1
    return Node("whole", again(step)) if fits else None


def _conv2d(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    node = SLIDES["conv2d"](step, given, shape)
    return None if node is None else replace(node, kind="whole")


def _broadcast(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    """Place by place on whole values."""
    axes = len(shape)
    values = _ready(given, shape) and all(len(one) == axes for one in given)
    constants = [leaf for leaf in leaves(step) if isinstance(leaf, Tensor)]
    spread = all(leaf.dim() < axes or leaf.shape[0] == 1 for leaf in constants)
    return Node("whole", again(step)) if values and spread and len(step.gives) == 1 else None


def _linear(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    weight, bias = step.option(1, "weight"), step.option(2, "bias")
    if len(shape) != 2 or not isinstance(weight, Tensor):
        return _as_is(step, given, shape)
    fits = _ready(given, shape) and len(given) == 1
    return Node("whole", Product(weight, bias)) if fits else None


def _flatten(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    axes = len(given[0])
    start, end = step.option(1, "start_dim", 0), step.option(2, "end_dim", -1)
    fits = _ready(given, shape) and start % axes == 1 and end % axes == axes - 1
    return Node("whole", lambda x: x.flatten(1)) if fits else None


def _shaped(_: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    fits = _ready(given, shape) and len(given) == 1
    return Node("whole", lambda x: x.reshape(x.shape[0], *shape[1:])) if fits else None


def _permute(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    axes = step.option(1, "dims")
    axes = axes if isinstance(axes, (tuple, list)) else step.args[1:]
    return _as_is(step, given, shape) if axes[0] == 0 else None


def _mean(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    axes = step.option(1, "dim")
    axes = axes if isinstance(axes, (tuple, list)) else [axes]
    away = all(isinstance(axis, int) and axis % len(given[0]) > 0 for axis in axes)
    return _as_is(step, given, shape) if away else None


def _cat(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    away = step.option(1, "dim", 0) % len(shape) > 0
    values = len(given) == len(leaves(step)) - len(step.args[1:]) - len(step.kwargs)
    fits = away and values and _ready(given, shape)
    return Node("whole", again(step)) if fits else None


AS_THEY_ARE = (
    *("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "batch_norm"),
    *("layer_norm", "group_norm", "local_response_norm"),
)
NATIVE: Table = {
    **dict.fromkeys(POINTWISE, _broadcast),
    **dict.fromkeys(AS_THEY_ARE, _as_is),
    "cat": _cat,
    "conv2d": _conv2d,
    "flatten": _flatten,
    "linear": _linear,
    "mean": _mean,
    "permute": _permute,
    "reshape": _shaped,
    "view": _shaped,
}
"""Calls that take many pictures at once as they take one, each for itself."""


def _each(step: Step, part: int, given: Sequence[Shape], shape: Shape) -> Node:
    """Any other call: mapped over the pictures, as if each came alone."""

    def one(*values: Tensor) -> Tensor:
        return results(step, dict(zip(step.takes, values, strict=True)))[part]

    def run(*values: Tensor) -> Tensor:
        batches = [
            value.unsqueeze(1) if had[:1] == (1,) else value
            for value, had in zip(values, given, strict=True)
        ]
        many = torch.vmap(one)(*batches)
        return many.squeeze(1) if shape[:1] == (1,) else many

    return Node("whole", run)
