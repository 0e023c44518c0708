"""Which pixels of the picture can a unit see, and where does its window start?

Found out on the network itself: one run keeps account of what every tensor reads (spans.py), a
few more runs with a NaN pixel check that nothing is read from elsewhere.
Source: receptive fields as in Zeiler and Fergus 2014, §2.1 and Fig. 2 (the patches).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convscope.errors import ModelError, UsageError, nearest, shown
from convscope.lens.lens import HOOK, layer_name
from convscope.lens.spans import Span, SpanMode, tensors_in
from convscope.lens.taps import call_of
from convscope.lens.twin import Twin, is_scripted
from convscope.lens.windows import Affine
from convscope.units import Box

Interval = tuple[int, int]


@dataclass(frozen=True)
class Field:
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


def fields(model: nn.Module, size: tuple[int, int, int], layers: Any = None) -> dict[str, Field]:
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
    twin = Twin(model)
    if layers is not None:
        several = list(layers) if isinstance(layers, list | tuple) else [layers]
        layers = [layer_name(model, one) for one in several]
    for layer in layers or ():
        if call_of(layer)[0] not in twin.modules:
            known = nearest(layer, twin.names)
            raise ModelError("M500", layer, f"no such layer in the model; {known}")
    with torch.no_grad():
        calls = _traced(twin, size)
        _check(twin, size, calls)
    return _named(twin, calls, layers)


@dataclass
class _Watched:
    """One call of a module, and its field as far as we know."""

    module: nn.Module
    field: Field


def _traced(twin: Twin, size: tuple[int, int, int]) -> list[_Watched]:
    picture = _blank(twin.model, size)
    own = [tensor for module in twin.model.modules() for tensor in tensors_in(vars(module))]
    mode = SpanMode(picture, [*twin.model.parameters(), *twin.model.buffers(), *own])
    calls: list[_Watched] = []

    def note(module: nn.Module, output: Tensor) -> None:
        calls.append(_Watched(module, _field(output, *mode.spans(output), (size[1], size[2]))))

    with mode:
        _run(twin, picture, note)
    return calls


def _run(twin: Twin, picture: Tensor, note: Callable[[nn.Module, Tensor], None]) -> None:
    """Run the network and tell `note` of every module that puts out a tensor."""

    def see(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            note(module, output)

    for module in twin.model.modules():
        if not is_scripted(module):
            module._forward_hooks[HOOK] = see
    twin.run(picture)


def _named(twin: Twin, calls: list[_Watched], layers: Sequence[str] | None) -> dict[str, Field]:
    names = {module: name for name, module in reversed(list(twin.model.named_modules()))}
    times, so_far = Counter(call.module for call in calls), Counter[nn.Module]()
    found: dict[tuple[nn.Module, int], Field] = {}
    everything: dict[str, Field] = {}
    for call in calls:
        so_far[call.module] += 1
        number = so_far[call.module]
        found[call.module, number] = call.field
        suffix = f"#{number}" if times[call.module] > 1 else ""
        everything[names[call.module] + suffix] = call.field
    if layers is None:
        everything.pop("", None)
        return everything
    wanted = {}
    for layer in layers:
        name, chosen = call_of(layer)
        module = twin.modules[name]
        if chosen is None and times[module] > 1:
            choice = f"name one of its calls: {layer}#1 … {layer}#{times[module]}"
            raise ModelError("M503", layer, f"runs {times[module]} times", next_step=choice)
        if (module, chosen or 1) not in found:
            raise ModelError("M502", layer, "puts out no tensor when a picture passes")
        wanted[layer] = found[module, chosen or 1]
    order = {id(field): place for place, field in enumerate(found.values())}
    return dict(sorted(wanted.items(), key=lambda item: order[id(item[1])]))


def _field(
    output: Tensor, rows: Span | None, columns: Span | None, picture: tuple[int, int]
) -> Field:
    shape = tuple(output.shape[1:])
    if len(shape) != 3 or rows is None or columns is None or (rows.dim, columns.dim) != (-2, -1):
        return _whole(shape, picture)
    axes = [_axis(span, extent) for span, extent in zip((rows, columns), picture, strict=True)]
    (down, row_table), (across, column_table) = axes
    return Field(
        (down.size, across.size),
        (down.stride, across.stride),
        (down.start, across.start),
        shape,
        picture,
        False,
        row_table,
        column_table,
    )


def _whole(shape: tuple[int, ...], picture: tuple[int, int]) -> Field:
    rows, columns = shape[1:] if len(shape) == 3 else (0, 0)
    everywhere = [((0, extent),) * n for n, extent in zip((rows, columns), picture, strict=True)]
    return Field(picture, (0, 0), (0, 0), shape, picture, True, everywhere[0], everywhere[1])


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


def _check(twin: Twin, size: tuple[int, int, int], calls: list[_Watched]) -> None:
    """Make a few pixels NaN: a layer where that shows outside our claim sees the whole picture."""
    height, width = size[1:]
    for down, across in ((0.5, 0.5), (0.0, 0.26), (0.37, 1.0), (1.0, 0.71)):
        row, column = round(down * (height - 1)), round(across * (width - 1))
        picture = _blank(twin.model, size)
        picture[:, :, row, column] = float("nan")
        order = iter(calls)

        def compare(_: nn.Module, output: Tensor, at: Interval = (row, column)) -> None:
            call = next(order)  # noqa: B023
            if not call.field.whole and _surprises(call.field, output, *at):
                call.field = _whole(call.field.shape, call.field.picture)

        # cuDNN may choose an algorithm (Winograd, FFT) that lets a NaN seep into its neighbours.
        with torch.backends.cudnn.flags(enabled=False):
            _run(twin, picture, compare)


def _surprises(field: Field, output: Tensor, row: int, column: int) -> bool:
    """Is there a NaN where the NaN pixel should not be seen?"""
    hit = output[0].isnan().any(dim=0).cpu().numpy()
    rows = np.array([low <= row < high for low, high in field.rows])
    columns = np.array([low <= column < high for low, high in field.columns])
    return hit.shape != (len(rows), len(columns)) or bool((hit & ~np.outer(rows, columns)).any())


def _blank(model: nn.Module, size: tuple[int, int, int]) -> Tensor:
    like = next(model.parameters(), torch.empty(0))
    return torch.full((1, *size), 0.5, dtype=like.dtype, device=like.device)
