"""Which input rows and columns can each row and column of a tensor depend on?

Every operation that runs under a `SpanMode` hands on, for the rows and for the columns of the
picture, from which one to which one each place of its result reads. Convolutions and pools are
reckoned from their windows, point-wise operations hand on what they get, and any other operation
is measured: one row or column of its input is made NaN, then changed, and we look where it shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from convscope.lens.windows import Affine, local_affine, window_of

Table = Bool[np.ndarray, "places size"]


@dataclass(frozen=True, eq=False)
class Span:
    """One axis of the picture (rows, or columns) as it is spread along one axis of a tensor."""

    dim: int
    """Axis of the tensor, counted from the last: -1, -2, …"""
    low: Int64[np.ndarray, "n"]
    """First row of the picture that place i reads."""
    high: Int64[np.ndarray, "n"]
    """One past the last; a place that reads nothing has low above every row and high 0."""
    nominal: Affine | None
    """The same as if the picture had no borders, where it is regular."""

    def through(self, reads: Table, local: Affine | None, dim: int | None = None) -> Span:
        """The span of a result whose place i reads our places reads[i]; `local` is their rule."""
        low = np.where(reads, self.low, np.iinfo(np.int64).max).min(axis=1)
        high = np.where(reads, self.high, 0).max(axis=1)
        nominal = self.nominal.after(local) if self.nominal and local else None
        return Span(self.dim if dim is None else dim, low, high, nominal)


Spans = tuple[Span | None, Span | None]
"""For rows and columns; None: every place may read the whole height (or width)."""
WHOLE: Spans = (None, None)
CONSTANT: Spans | None = None


def _spellings(*names: str) -> set[str]:
    forms = ("{}", "{}_", "__{}__", "__r{}__", "__i{}__")
    return {form.format(name) for name in names for form in forms}


POINTWISE = _spellings(
    *("abs", "add", "clamp", "clamp_max", "clamp_min", "clip", "div", "eq", "erf", "exp", "ge"),
    *("gt", "le", "lerp", "log", "log1p", "lt", "maximum", "minimum", "mul", "nan_to_num", "ne"),
    *("neg", "pow", "reciprocal", "rsqrt", "sigmoid", "sign", "sqrt", "square", "sub", "tanh"),
    *("truediv", "true_divide", "where", "clone", "contiguous", "detach", "to", "float", "half"),
    *("bfloat16", "double", "type_as", "positive", "identity"),
    *("celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu"),
    *("logsigmoid", "mish", "prelu", "relu", "relu6", "rrelu", "selu", "silu", "softplus"),
    *("softshrink", "softsign", "tanhshrink", "threshold"),
    *("alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *("feature_alpha_dropout", "local_response_norm", "masked_fill"),
)
"""Operations of which place i reads place i only, whatever other axes they work along."""

MOVES = _spellings(
    *("cat", "channel_shuffle", "chunk", "concat", "expand", "flatten", "flip", "getitem"),
    *("movedim", "narrow", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "reshape"),
    *("roll", "select", "split", "squeeze", "stack", "swapaxes", "transpose", "unbind"),
    *("unflatten", "unsqueeze", "view"),
)
"""Operations that only move numbers about."""

MOST_PLACES = 512
"""Longer axes (a flattened picture) are not measured: that would take as many runs."""


class SpanMode(TorchFunctionMode):
    """A context (of this thread only) in which tensors know what they read of `picture`."""

    def __init__(self, picture: Tensor, constants: Iterable[Tensor]) -> None:
        """picture: (1, channels, rows, columns). constants: tensors that read nothing of it."""
        super().__init__()
        self._known = WeakIdKeyDictionary()
        for constant in constants:
            self._known[constant] = CONSTANT
        self._known[picture] = (_pixels(picture, -2), _pixels(picture, -1))

    def spans(self, tensor: Tensor) -> Spans:
        """What a tensor reads; all of the picture where we cannot tell."""
        return self._reads(tensor) or WHOLE

    def _reads(self, tensor: Tensor) -> Spans | None:
        known: Spans | None = self._known.get(tensor, WHOLE)  # type: ignore[no-untyped-call]
        return known

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        before = [self._reads(tensor) for tensor in tensors_in((args, kwargs))]
        result = func(*args, **kwargs)
        if func.__name__ == "__setitem__":
            self._known[args[0]] = WHOLE
        outputs = tensors_in(result)
        if outputs:
            call = Call(func, args, dict(kwargs), before)
            for output, spans in zip(outputs, call.spans(outputs), strict=True):
                self._known[output] = spans
        return result


@dataclass(frozen=True)
class Call:
    """An operation that has just run, with what its tensor arguments read."""

    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    before: list[Spans | None]
    """One for each tensor among the arguments, in order."""

    def spans(self, outputs: list[Tensor]) -> list[Spans | None]:
        if all(spans is None for spans in self.before):
            return [CONSTANT for _ in outputs]
        return list(zip(*(self._axis(axis, outputs) for axis in (0, 1)), strict=True))

    def _axis(self, axis: int, outputs: list[Tensor]) -> list[Span | None]:
        if any(spans is not None and spans[axis] is None for spans in self.before):
            return [None for _ in outputs]
        inputs = [None if spans is None else spans[axis] for spans in self.before]
        read = {span.dim for span in inputs if span is not None}
        if self._is_pointwise(read):
            return [_union(inputs, output.shape) for output in outputs]
        window = window_of(self.func.__name__, self.args, self.kwargs, axis)
        if window and inputs[0] and inputs[0].dim == axis - 2 and not any(inputs[1:]):
            return [inputs[0].through(*window.reads(out.shape[axis - 2])) for out in outputs]
        return self._measured(inputs, outputs)

    def _is_pointwise(self, read: set[int]) -> bool:
        """Does place i of the result read place i of every argument, along these axes?"""
        name = self.func.__name__
        if name == "batch_norm":
            return not self._argument(5, "training", False)
        if name == "linear":
            return -1 not in read
        if name == "layer_norm":
            return min(read) >= 0 or max(read) < -len(self._argument(1, "normalized_shape", ()))
        if name in ("cat", "concat", "concatenate"):
            rank = self._argument(0, "tensors", ())[0].ndim
            return self._argument(1, "dim", 0) % rank - rank not in read
        return name in POINTWISE

    def _argument(self, place: int, name: str, otherwise: Any) -> Any:
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, otherwise)

    def _measured(self, inputs: list[Span | None], outputs: list[Tensor]) -> list[Span | None]:
        """Find out from the operation itself, run again on altered arguments."""
        reading = [(which, span) for which, span in enumerate(inputs) if span is not None]
        moves = self.func.__name__ in MOVES
        if not moves and (
            not all(output.is_floating_point() for output in outputs)
            or any(len(span.low) > MOST_PLACES for _, span in reading)
            or any(self._shows_everywhere(which, span) for which, span in reading)
        ):
            return [None for _ in outputs]
        found: list[list[Span | None]] = [[] for _ in outputs]
        for which, span in reading:
            everywhere = range(len(span.low))
            tables = (
                self._labelled(which, span) if moves else self._noticed(which, span, everywhere)
            )
            for store, axes in zip(found, tables, strict=True):
                store.append(_most_telling(span, axes))
        return [None if None in spans else _union(spans, None) for spans in found]

    def _shows_everywhere(self, which: int, span: Span) -> bool:
        """Does one place in the middle show in all of the result? So, we take it, do all others."""
        middle = len(span.low) // 2
        tables = self._noticed(which, span, [middle])
        return all(table[:, middle].all() for axes in tables for table in axes)

    def _labelled(self, which: int, span: Span) -> list[list[Table]]:
        """For an operation that only moves numbers: move the numbers of the places instead."""
        tensors = [torch.full_like(tensor, -1) for tensor in self._tensors()]
        labels = torch.arange(len(span.low)).to(tensors[which])
        tensors[which].copy_(labels.view(-1, *[1] * (-span.dim - 1)))
        moved = [output.long().cpu().numpy() for output in self._again(tensors)]
        return [_tables(output, len(span.low)) for output in moved]

    def _noticed(self, which: int, span: Span, places: Iterable[int]) -> list[list[Table]]:
        """Change an argument place by place and see where the outputs notice."""
        originals = self._tensors()
        base, size = self._again(originals), len(span.low)
        tables = [[np.zeros((n, size), dtype=bool) for n in output.shape] for output in base]
        for place, value in itertools.product(places, (float("nan"), 1e3)):
            tensors = list(originals)
            tensors[which] = tensors[which].clone()
            tensors[which].select(span.dim, place).fill_(value)
            for axes, old, new in zip(tables, base, self._again(tensors), strict=True):
                changed = old != new
                for axis, table in enumerate(axes):
                    table[:, place] |= _along(changed, axis).cpu().numpy()
        return tables

    def _tensors(self) -> list[Tensor]:
        return tensors_in((self.args, self.kwargs))

    def _again(self, tensors: list[Tensor]) -> list[Tensor]:
        supply = iter([tensor.clone() for tensor in tensors])
        args, kwargs = _replaced((self.args, self.kwargs), supply)
        return tensors_in(self.func(*args, **kwargs))


def _pixels(picture: Tensor, dim: int) -> Span:
    size = picture.shape[dim]
    return Span(dim, np.arange(size), np.arange(1, size + 1), Affine(1, 1, 0))


def _union(spans: list[Span | None], shape: Sequence[int] | None) -> Span | None:
    """What a point-wise function of several tensors reads (None: of no picture at all)."""
    present = [span for span in spans if span is not None]
    sizes = {len(span.low) for span in present}
    if len({span.dim for span in present}) != 1:
        return None
    dim, size = present[0].dim, max(sizes)
    if shape is not None and (-dim > len(shape) or shape[dim] != size):
        return None
    low = np.min([np.broadcast_to(span.low, size) for span in present], axis=0)
    high = np.max([np.broadcast_to(span.high, size) for span in present], axis=0)
    nominal = Affine.union(span.nominal for span in present) if len(sizes) == 1 else None
    return Span(dim, low, high, nominal)


def _tables(moved: Int64[np.ndarray, "..."], size: int) -> list[Table]:
    """For each axis: which labels (-1 is none) have come to which of its places."""
    tables = [np.zeros((places, size), dtype=bool) for places in moved.shape]
    for table, place in zip(tables, np.nonzero(moved >= 0), strict=True):
        table[place, moved[moved >= 0]] = True
    return tables


def _along(mask: Tensor, axis: int) -> Tensor:
    others = [other for other in range(mask.ndim) if other != axis]
    return mask.any(dim=others) if others else mask


def _most_telling(span: Span, tables: list[Table]) -> Span | None:
    """Any axis of the output gives a safe answer; take the one whose places read least."""
    shares = [float(table.mean()) for table in tables]
    if not shares or min(shares) == 1:
        return None
    axis = int(np.argmin(shares))
    return span.through(tables[axis], local_affine(tables[axis]), axis - len(tables))


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = tree.values()
    elif not isinstance(tree, (tuple, list)):
        return []
    return [tensor for item in tree for tensor in tensors_in(item)]


def _replaced(tree: Any, supply: Any) -> Any:
    if isinstance(tree, Tensor):
        return next(supply)
    if isinstance(tree, Mapping):
        return {name: _replaced(item, supply) for name, item in tree.items()}
    if isinstance(tree, (tuple, list)):
        items = [_replaced(item, supply) for item in tree]
        return tuple(items) if isinstance(tree, tuple) else items
    return tree
