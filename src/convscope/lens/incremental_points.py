"""Of which calls does each row and column of the result read its own row and column only?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from convscope.lens.incremental_node import Node, Shape, Table, again, leaves, plain_name, same
from convscope.lens.spans import POINTWISE
from convscope.lens.step import Slot, Step

PLACEWISE = POINTWISE | {"full_like", "ones_like", "zeros_like"}
SILENT = {
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
    *("feature_alpha_dropout", "contiguous", "identity", "detach", "clone"),
}
"""What does nothing here: dropout is off, or the recording has refused."""
FAST: Mapping[str, tuple[Callable[..., Tensor], Callable[..., object]]] = {
    "relu": (torch.relu, partial(torch.clamp, min=0)),
    "add": (torch.add, torch.add),
}
"""The same under any spelling, where nothing but values on the way is given; and with `out`."""


def point(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    """The node of a call that works place by place; None if this one does not."""
    name = plain_name(step)
    if name in CHANNELS:
        return CHANNELS[name](step, given, shape)
    if not {name, step.name} & PLACEWISE or len(step.gives) != 1 or not _alike(given, shape):
        return None
    if not all(_spread(leaf, shape) for leaf in leaves(step) if isinstance(leaf, Tensor)):
        return None
    if name in SILENT:
        return Node("point", same) if len(given) == 1 and given[0] == shape else None
    if name not in FAST or not _simple(step):
        return Node("point", again(step))
    run, into = FAST[name]
    return Node("point", run, into=into)


def _alike(given: Sequence[Shape], shape: Shape) -> bool:
    return {one[-2:] for one in given} == {shape[-2:]} and all(one[:1] == (1,) for one in given)


def _spread(constant: Tensor, shape: Shape) -> bool:
    """Is the constant the same for every row and column?"""
    flat = constant.dim() in (len(shape), len(shape) - 1) and constant.shape[-2:] == (1, 1)
    return constant.numel() == 1 or flat


def _simple(step: Step) -> bool:
    return all(isinstance(arg, Slot) for arg in step.args) and set(step.kwargs) <= {"inplace"}


def _batch_norm(step: Step, given: Sequence[Shape], _: Shape) -> Node | None:
    return Node("point", again(step)) if len(given) == 1 and len(given[0]) == 4 else None


def _cat(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    along = step.option(1, "dim", 0) % len(shape) == 1
    if not along or not all(isinstance(leaf, Slot) for leaf in step.args[0]):
        return None
    return Node("point", _joined, into=_joined) if _alike(given, shape) else None


def _joined(*parts: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.cat(parts, 1, out=out)


def _take(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    """x[:, 2] and x[:, 1:3]."""
    which = step.args[1]
    if not isinstance(which, tuple) or len(which) != 2 or which[0] != slice(None):
        return None
    plain = isinstance(which[1], (int, slice)) and len(given[0]) == 4
    return Node("point", again(step)) if plain and _alike(given, shape) else None


def _unsqueeze(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    first = step.option(1, "dim") % len(shape) == 1
    return Node("point", again(step)) if first and _alike(given, shape) else None


def _split(step: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
    first = step.option(2, "dim", 0) % len(given[0]) == 1
    return Node("point", again(step)) if first and _alike(given, shape) else None


def _swap(step: Step, _: Sequence[Shape], shape: Shape) -> Node | None:
    axes = sorted(axis % len(shape) for axis in step.args[1:3])
    fits = len(axes) == 2 and axes[0] > 0 and axes[1] < len(shape) - 2
    return Node("point", again(step)) if fits else None


def _regroup(_: Step, given: Sequence[Shape], shape: Shape) -> Node | None:
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
    "concat": _cat,
    "chunk": _split,
    "split": _split,
    "reshape": _regroup,
    "transpose": _swap,
    "unsqueeze": _unsqueeze,
    "view": _regroup,
    "__getitem__": _take,
}
"""Calls that move or change channels and leave rows and columns where they are."""
