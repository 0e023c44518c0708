"""Receptive fields: which pixels a unit sees; sliding windows of convolutions and pools.

They are found on the network itself: one run keeps account of what every tensor reads, a few more
runs with a NaN pixel check that nothing is read from elsewhere. Source: receptive fields as in
Zeiler and Fergus 2014, §2.1 and Fig. 2 (the patches).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError, nearest, shown
from convscope.core.units import Box
from convscope.lens.lens import call_of, layer_name, run_with_hooks, tensors_in
from convscope.lens.torch_private import tree_map_only
from convscope.lens.twin import ShadowModel
from convscope.trace.recorder import Call, Recorder, tensors_of


@dataclass(frozen=True)
class Affine:
    """Place i reads `size` places from start + i · stride on, borders left aside."""

    size: int
    stride: int
    start: int

    def after(self, local: Affine) -> Affine:
        """What a place reads of the picture if it reads `local` of what reads `self`."""
        return Affine(
            self.size + (local.size - 1) * self.stride,
            self.stride * local.stride,
            self.start + local.start * self.stride,
        )

    @staticmethod
    def union(several: Iterable[Affine | None]) -> Affine | None:
        """The hull; None unless all are regular with one stride."""
        known = list(several)
        if any(one is None for one in known):
            return None
        regular = [one for one in known if one is not None]
        if len({one.stride for one in regular}) != 1:
            return None
        start = min(one.start for one in regular)
        end = max(one.start + one.size for one in regular)
        return Affine(end - start, regular[0].stride, start)


@dataclass(frozen=True)
class Window:
    """A window along one axis: it reads kernel places, `dilation` apart, of `size` there are."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    def reads(self, places: int) -> tuple[Bool[np.ndarray, "places size"], Affine]:
        """Which of the `size` places each of the `places` results reads, and their rule."""
        starts = np.arange(places) * self.stride - self.padding
        read = starts[:, None] + np.arange(self.kernel) * self.dilation
        table = np.zeros((places, self.size), dtype=bool)
        row, _ = np.nonzero((read >= 0) & (read < self.size))
        table[row, read[(read >= 0) & (read < self.size)]] = True
        reach = (self.kernel - 1) * self.dilation + 1
        return table, Affine(reach, self.stride, -self.padding)


ARGUMENTS = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation"),
    "max_pool2d_with_indices": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding"),
    "pad": ("input", "pad", "mode", "value"),
}
"""Operations on windows, and their first arguments."""


def window_of(call: Call, axis: int) -> Window | None:
    """The window of a call along rows (axis 0) or columns (1); None for other operations."""
    operation = call.operation
    if operation.name not in ARGUMENTS:
        return None
    given = dict(zip(ARGUMENTS[operation.name], call.args, strict=False)) | dict(call.kwargs)
    size = given["input"].shape[axis - 2]
    if operation.name == "pad":
        return _padded(given, axis, size)
    if operation.weighed:
        kernel = given["weight"].shape[axis - 2]
        stride = _of(given.get("stride", 1), axis)
    else:
        kernel = _of(given["kernel_size"], axis)
        stride = _of(given.get("stride") or given["kernel_size"], axis)
    dilation = _of(given.get("dilation", 1), axis)
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        before = dilation * (kernel - 1) // 2 if padding == "same" else 0
    else:
        before = _of(padding, axis)
    return Window(size, kernel, stride, before, dilation)


def _padded(given: Mapping[str, Any], axis: int, size: int) -> Window | None:
    """Constant borders: each place reads itself, those that are added read nothing."""
    if given.get("mode", "constant") != "constant":
        return None
    pairs = list(given["pad"])  # of the last axis first
    before = pairs[2 * (1 - axis)] if len(pairs) > 2 * (1 - axis) else 0
    return Window(size, 1, 1, before, 1)


def local_affine(table: Bool[np.ndarray, "places size"]) -> Affine | None:
    """The regular rule that a measured table follows away from its borders, if there is one."""
    places, size = table.shape
    rows = np.flatnonzero(table.any(axis=1))
    if len(rows) == 0:
        return None
    low, high = table.argmax(axis=1)[rows], size - table[:, ::-1].argmax(axis=1)[rows]
    inner = (low > 0) & (high < size)
    if len(rows) == places == size and (high - low == 1).all():
        inner = np.ones(len(rows), dtype=bool)
    if inner.sum() < 2:
        return None
    at, low, high = rows[inner], low[inner], high[inner]
    stride, rest = divmod(int(low[-1] - low[0]), int(at[-1] - at[0]))
    rule = Affine(int(high[0] - low[0]), stride, int(low[0] - at[0] * stride))
    follows = rest == 0 and (low == rule.start + at * stride).all() and stride > 0
    return rule if follows and (high - low == rule.size).all() else None


def _of(value: Any, axis: int) -> int:
    """One number of what may be given once for both axes."""
    if isinstance(value, (tuple, list)):
        return int(value[axis] if len(value) > 1 else value[0])
    return int(value)


Interval = tuple[int, int]


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of a layer's neurons, in input pixels (height or down first)."""

    size: tuple[int, int]
    """Height and width of a field that no border cuts."""
    stride: tuple[int, int]
    """Pixels from one neuron to the next; 0 where the fields are not evenly spaced."""
    start: tuple[int, int]
    """Top and left of the field of neuron (0, 0); negative where padding is read."""
    shape: tuple[int, ...]
    """The layer's output without the batch axis."""
    picture: tuple[int, int]
    whole: bool
    """Does every neuron see the whole picture (or can we not tell that it does not)?"""
    rows: tuple[Interval, ...]
    """For each row of neurons the first row of pixels and one past the last; may reach outside."""
    columns: tuple[Interval, ...]

    def box(self, row: int, column: int) -> Box:
        """The field of one neuron; nothing outside it can change the neuron, bit for bit."""
        if self.whole and not self.rows:
            return Box(0, 0, *self.picture)
        (top, bottom), (left, right) = self.rows[row], self.columns[column]
        return Box(top, left, bottom, right)


def fields(
    model: nn.Module, size: tuple[int, int, int], layers: Any = None
) -> dict[str, ReceptiveField]:
    """The receptive field of each layer, in the order in which they run.

    size: channels, height, width of the input. layers: one or several, names as for a
    Lens (`relu#2` is the second call of a module) or the modules; by default every module that
    runs and puts out one tensor.

    The model is not touched. Raises ModelError M500 (unknown layer), M502 (it does not run), M503
    (it runs several times and no call is named), M522 (the network does not take such a picture),
    UsageError U380 (no such layers, or no size).
    """
    numbers = isinstance(size, Sequence) and all(type(one) is int and one > 0 for one in size)
    if not numbers or len(size) != 3:
        step = "give (channels, height, width)"
        raise UsageError("U380", "size", f"{shown(size)} is no size of an input", next_step=step)
    if layers is not None:
        several = list(layers) if isinstance(layers, list | tuple) else [layers]
        layers = [layer_name(model, one) for one in several]
    shadow = ShadowModel(model)
    for layer in layers or ():
        if call_of(layer)[0] not in shadow.modules:
            known = nearest(layer, shadow.names)
            raise ModelError("M500", layer, f"no such layer in the model; {known}")
    known_fields = _checked(shadow, size, _traced(shadow, size))
    return known_fields if layers is None else _chosen(shadow, known_fields, layers)


def _traced(shadow: ShadowModel, size: tuple[int, int, int]) -> dict[str, ReceptiveField]:
    picture = _blank(shadow.model, size)
    mode = Reading(picture, tensors_of(shadow.model))
    with mode:
        calls, _ = run_with_hooks(
            shadow, picture, lambda _, output: _field(output, *mode.spans(output), size[1:])
        )
    return dict(calls)


def _chosen(
    shadow: ShadowModel, every: dict[str, ReceptiveField], layers: Sequence[str]
) -> dict[str, ReceptiveField]:
    """Of these layers, which may be named by any name that a module has."""
    names = {module: name for name, module in reversed(list(shadow.model.named_modules()))}
    chosen: dict[str, str] = {}
    for layer in layers:
        own, number = call_of(layer)
        name = names.get(shadow.modules[own], own)  # inside scripted ones there is no shadow
        calls = sum(call_of(each)[0] == name for each in every)
        if number is None and calls > 1:
            choice = f"name one of its calls: {layer}#1 … {layer}#{calls}"
            raise ModelError("M503", layer, f"runs {calls} times", next_step=choice)
        chosen[layer] = name if calls == 1 and number in (None, 1) else f"{name}#{number}"
        if chosen[layer] not in every:
            raise ModelError("M502", layer, "puts out no tensor when a picture passes")
    order = list(every)
    return {
        one: every[chosen[one]] for one in sorted(chosen, key=lambda one: order.index(chosen[one]))
    }


def _field(
    output: Tensor, rows: Span | None, columns: Span | None, picture: tuple[int, ...]
) -> ReceptiveField:
    shape, (height, width) = tuple(output.shape[1:]), picture
    if len(shape) != 3 or rows is None or columns is None or (rows.dim, columns.dim) != (-2, -1):
        return _whole(shape, (height, width))
    axes = [_axis(rows, height), _axis(columns, width)]
    (down, of_rows), (across, of_columns) = axes
    size, stride = (down.size, across.size), (down.stride, across.stride)
    start = (down.start, across.start)
    return ReceptiveField(size, stride, start, shape, (height, width), False, of_rows, of_columns)


def _whole(shape: tuple[int, ...], picture: tuple[int, int]) -> ReceptiveField:
    rows, columns = shape[1:] if len(shape) == 3 else (0, 0)
    everywhere = [((0, extent),) * n for n, extent in zip((rows, columns), picture, strict=True)]
    return ReceptiveField(
        picture, (0, 0), (0, 0), shape, picture, True, everywhere[0], everywhere[1]
    )


def _axis(span: Span, extent: int) -> tuple[Affine, tuple[Interval, ...]]:
    """What a layer reads along one axis: the rule, and each neuron's first and one past last."""
    table: list[Interval] = []
    for place, (low, high) in enumerate(zip(span.low.tolist(), span.high.tolist(), strict=True)):
        if span.nominal is not None and low < high:
            # Where the border cuts a window, it is shown as it reaches into the padding.
            first = span.nominal.start + place * span.nominal.stride
            low = min(low, first) if low == 0 else low
            high = max(high, first + span.nominal.size) if high == extent else high
        table.append((low, high) if low < high else (0, 0))
    irregular = Affine(max(high - low for low, high in table), 0, table[0][0])
    return span.nominal or irregular, tuple(table)


def _checked(
    shadow: ShadowModel, size: tuple[int, int, int], known: dict[str, ReceptiveField]
) -> dict[str, ReceptiveField]:
    """Make a few pixels NaN: a layer where that shows outside our claim sees the whole picture."""
    height, width = size[1:]
    for down, across in ((0.5, 0.5), (0.0, 0.26), (0.37, 1.0), (1.0, 0.71)):
        row, column = round(down * (height - 1)), round(across * (width - 1))
        picture = _blank(shadow.model, size)
        picture[:, :, row, column] = float("nan")
        fields = iter(known.values())

        def compare(_: nn.Module, output: Tensor, at: Interval = (row, column)) -> ReceptiveField:
            field = next(fields)  # noqa: B023
            surprise = not field.whole and _surprises(field, output, *at)
            return _whole(field.shape, field.picture) if surprise else field

        # cuDNN may choose an algorithm (Winograd, FFT) that lets a NaN seep into its neighbours.
        with torch.backends.cudnn.flags(enabled=False):
            known = dict(run_with_hooks(shadow, picture, compare)[0])
    return known


def _surprises(field: ReceptiveField, output: Tensor, row: int, column: int) -> bool:
    """Is there a NaN where the NaN pixel should not be seen?"""
    hit = output[0].isnan().any(dim=0).cpu().numpy()
    rows = np.array([low <= row < high for low, high in field.rows])
    columns = np.array([low <= column < high for low, high in field.columns])
    return hit.shape != (len(rows), len(columns)) or bool((hit & ~np.outer(rows, columns)).any())


def _blank(model: nn.Module, size: tuple[int, int, int]) -> Tensor:
    like = next(model.parameters(), torch.empty(0))
    return torch.full((1, *size), 0.5, dtype=like.dtype, device=like.device)


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


MOST_PLACES = 512
"""Longer axes (a flattened picture) are not measured: that would take as many runs."""


class Reading(Recorder[Spans]):
    """A context (of this thread only) in which tensors know what they read of `picture`.

    Convolutions and pools are reckoned from their windows, point-wise operations hand on what they
    get, and any other operation is measured: one row or column of its input is made NaN, then
    changed, and we look where it shows.
    """

    def __init__(self, picture: Tensor, constants: Iterable[Tensor]) -> None:
        """picture: (1, channels, rows, columns). constants: tensors that read nothing of it."""
        super().__init__(constants)
        self.mark(picture, (_pixels(picture, -2), _pixels(picture, -1)))

    def unknown(self, tensor: Tensor) -> Spans:  # noqa: ARG002
        """All of the picture, as we cannot tell."""
        return WHOLE

    def spans(self, tensor: Tensor) -> Spans:
        """What a tensor reads; all of the picture where we cannot tell."""
        return self.mark_of(tensor) or WHOLE

    def follow(self, call: Call, marks: Sequence[Spans | None], result: Any) -> None:
        if call.operation.name == "setitem":
            self.mark(call.args[0], WHOLE)
        outputs = list(tensors_in(result))
        if outputs:
            read = _Read(call, marks).spans(outputs)
            for output, spans in zip(outputs, read, strict=True):
                self.mark(output, spans)


@dataclass(frozen=True)
class _Read:
    """A call that was just made, with what its tensor arguments read."""

    call: Call
    before: Sequence[Spans | None]
    """One for each tensor among the arguments, in order."""

    def spans(self, outputs: list[Tensor]) -> list[Spans | None]:
        if all(spans is None for spans in self.before):
            return [None for _ in outputs]
        return list(zip(*(self._axis(axis, outputs) for axis in (0, 1)), strict=True))

    def _axis(self, axis: int, outputs: list[Tensor]) -> list[Span | None]:
        if any(spans is not None and spans[axis] is None for spans in self.before):
            return [None for _ in outputs]
        inputs = [None if spans is None else spans[axis] for spans in self.before]
        read = {span.dim for span in inputs if span is not None}
        if self._is_pointwise(read):
            return [_union(inputs, output.shape) for output in outputs]
        window = window_of(self.call, axis)
        if window and inputs[0] and inputs[0].dim == axis - 2 and not any(inputs[1:]):
            return [inputs[0].through(*window.reads(out.shape[axis - 2])) for out in outputs]
        return self._measured(inputs, outputs)

    def _is_pointwise(self, read: set[int]) -> bool:
        """Does place i of the result read place i of every argument, along these axes?"""
        call, operation = self.call, self.call.operation
        match operation.name:
            case "batch_norm":
                return not call.option(5, "training", False)
            case "linear":
                return -1 not in read
            case "layer_norm":
                return min(read) >= 0 or max(read) < -len(call.option(1, "normalized_shape", ()))
            case "cat":
                rank = call.option(0, "tensors", ())[0].ndim
                return call.option(1, "dim", 0) % rank - rank not in read
        made = operation.places in ("number", "place")
        return made and operation.reads != "blank"

    def _measured(self, inputs: list[Span | None], outputs: list[Tensor]) -> list[Span | None]:
        """Find out from the operation itself, run again on altered arguments."""
        reading = [(which, span) for which, span in enumerate(inputs) if span is not None]
        moves = self.call.operation.places == "moved"
        if not moves and (
            not all(output.is_floating_point() for output in outputs)
            or any(len(span.low) > MOST_PLACES for _, span in reading)
            or any(self._shows_everywhere(which, span) for which, span in reading)
        ):
            return [None for _ in outputs]
        read: list[list[Span | None]] = [[] for _ in outputs]
        for which, span in reading:
            everywhere = range(len(span.low))
            tables = (
                self._labelled(which, span) if moves else self._noticed(which, span, everywhere)
            )
            for store, axes in zip(read, tables, strict=True):
                store.append(_most_telling(span, axes))
        return [None if None in spans else _union(spans, None) for spans in read]

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
        return list(tensors_in((self.call.args, self.call.kwargs)))

    def _again(self, tensors: list[Tensor]) -> list[Tensor]:
        supply = iter([tensor.clone() for tensor in tensors])
        args, kwargs = tree_map_only(
            Tensor, lambda _: next(supply), (self.call.args, self.call.kwargs)
        )
        return list(tensors_in(self.call.function(*args, **kwargs)))


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
