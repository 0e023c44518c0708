"""First filters drawn and what they hear (figure 6 of the paper); what they amount to in tables.

A column a network: its filters on one common scale (so that one that drowns the others shows, and
dead ones are grey), the same clipped if that was asked for, its answer to gratings, and how many
filters are low, middle and high.
Source: Zeiler and Fergus 2014, figure 6: 96 filters in rows of 11.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from convscope.core.errors import printable
from convscope.core.text import Part, Table
from convscope.drawing.tiles import INK, SOFT, dress, shortened
from convscope.studies.base import Shown
from convscope.studies.filters import Options
from convscope.studies.filters.record import Filters

FOLDED, WASTED, FEW, DROWNS = 0.05, 0.1, 0.1, 5.0
"""Our limits, above (or below) which a line of advice is given: energy folded on pictures, share
of maps, share of middle filters, RMS over the median."""
ENOUGH = 1000
"""Pictures; of as many classes as ImageNet has, that is one each."""


def advice(record: Filters) -> list[str]:
    """One line for each number that is bad, and what to do."""
    return [*_of_filters(record), *_of_strides(record), *_of_maps(record)]


def filters_table(records: Sequence[Filters]) -> list[Part]:
    """A column a network; advice below, and on how many pictures it rests."""
    names = [printable(record.network) for record in records]
    columns = [list(_numbers(record)) for record in records]
    rows = [
        [label, *(column[place][1] for column in columns)]
        for place, (label, _) in enumerate(columns[0])
    ]
    parts: list[Part] = [Table.of(["", *names], rows)]
    for record in records:
        parts += [*_strides(record), *_maps(record)]
        told = advice(record)
        said = "" if told else "no number is bad."
        parts += ["", f"{printable(record.network)}: {said}".rstrip()]
        parts += [f"- {line}" for line in told]
        parts += _few(record)
    return parts


def _few(record: Filters) -> list[str]:
    """A map that none of a few pictures excites may be alive all the same."""
    if not record.layers or record.pictures >= ENOUGH:
        return []
    count = f"{record.pictures:,} picture{'' if record.pictures == 1 else 's'}"
    return [
        f"What is said of maps and of folding on pictures rests on {count} only: a map that is "
        f"still in these may answer to others. Give {ENOUGH:,} or more."
    ]


def _numbers(record: Filters) -> Iterator[tuple[str, str]]:
    """Rows of the table about the first layer."""
    maps = len(record.rms)
    low, middle, high = record.coverage
    size = "×".join(map(str, record.weights.shape[2:]))
    yield "first layer", f"{printable(record.layer)}, {size}, stride {record.stride[0]}"
    yield "filters", str(maps)
    yield "weak (RMS under a tenth of the median)", str(int(record.weak.sum()))
    yield "same pattern as an earlier one", str(int((record.twin >= 0).sum()))
    yield "largest RMS over the median", f"{record.dominance:.2f}"
    yield "low, middle, high filters", f"{low:.0%}, {middle:.0%}, {high:.0%}"
    yield "folded, of gratings of all frequencies", f"{record.folded:.1%}"
    own = [place for place, name in enumerate(record.fold_layers) if name == record.layer]
    told = f"{record.folds[own[0]].mean():.1%} ± {record.folds[own[0]].std():.1%}" if own else ""
    yield "folded, on pictures", told


def _strides(record: Filters) -> list[Part]:
    if not record.fold_layers:
        return []
    rows = [
        (
            printable(name),
            record.fold_kinds[place],
            str(record.fold_strides[place][0]),
            f"{record.folds[place].mean():.1%} ± {record.folds[place].std():.1%}",
        )
        for place, name in enumerate(record.fold_layers)
    ]
    title = f"Folded on pictures, {printable(record.network)}:"
    return [Table.of(("layer", "kind", "stride", "share of energy"), rows, title)]


def _maps(record: Filters) -> list[Part]:
    if not record.layers:
        return []
    title = f"Maps over {record.pictures:,} pictures, {printable(record.network)}:"
    head = ("layer", "maps", "never positive", "always positive", "constant", "copies")
    kinds = (record.silent, record.saturated, record.still, record.copies)
    rows = []
    for place, name in enumerate(record.layers):
        own = record.of == place
        counts = [int(own.sum()), *(int(kind[own].sum()) for kind in kinds)]
        rows.append((printable(name), *map(str, counts)))
    return [Table.of(head, rows, title)]


def _of_filters(record: Filters) -> Iterator[str]:
    maps = len(record.rms)
    if record.weak.mean() > WASTED:
        yield (
            f"{int(record.weak.sum())} of {maps} first filters are next to zero: a lower learning "
            "rate, or fewer maps"
        )
    if (record.twin >= 0).mean() > WASTED:
        yield (
            f"{int((record.twin >= 0).sum())} of {maps} first filters repeat others: fewer maps, "
            "or longer training"
        )
    if record.dominance > DROWNS:
        yield (
            f"one filter's RMS is {record.dominance:.1f} times the median: feature scale clipping "
            "while training (filter_rms in a recipe)"
        )
    if record.coverage[1] < FEW:
        large = max(record.weights.shape[2:]) > 7 or max(record.stride) > 2
        yield f"{record.coverage[1]:.0%} of the first filters are of middle frequency: " + (
            "a smaller first kernel and stride (the paper went from 11×11/4 to 7×7/2)"
            if large
            else "longer training, or pictures with finer detail"
        )


def _of_strides(record: Filters) -> Iterator[str]:
    for name, stride, shares in zip(
        record.fold_layers, record.fold_strides, record.folds, strict=True
    ):
        if shares.mean() > FOLDED:
            yield (
                f"{name}: {shares.mean():.0%} of the energy is folded by stride {max(stride)}: a "
                "smaller stride, or a blur before it"
            )


def _of_maps(record: Filters) -> Iterator[str]:
    said = (
        (record.silent, "are never positive", "a lower learning rate, or fewer maps"),
        (record.saturated, "are always positive", "they are linear: check their biases"),
        (record.still, "put out a constant", "fewer maps"),
        (record.copies, "repeat another", "fewer maps"),
    )
    for place, name in enumerate(record.layers):
        for wasted, what, step in said:
            share = record.share(wasted, place)
            if share > WASTED:
                yield f"{name}: {share:.0%} of the maps {what}: {step}"


COLUMNS = 11
"""Filters in a row, as in the paper."""
GAP = 1
BANDS = ("low\n< 1/8", "middle\n< 1/4", "high")
BLUE, RED, ORANGE = "#0b5cbf", "#b3261e", "#b25400"


def filters_figure(records: Sequence[Filters]) -> Figure:
    """One or two networks, or one before and after a change."""
    clipped = any(record.clip > 0 for record in records)
    sheet = max(_tall(len(record.weights)) for record in records)
    heights = [sheet, *([sheet] if clipped else []), 0.75, 0.38]
    figure = Figure(figsize=(4.3 * len(records), 4.1 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(heights), len(records), squeeze=False, height_ratios=heights)
    for column, record in enumerate(records):
        panels = iter(grid[:, column])
        _draw_filters(next(panels), record, record.weights)
        if clipped:
            _draw_clipped(next(panels), record)
        _draw_transfer(next(panels), record)
        _draw_bands(next(panels), record)
    return figure


def _tall(maps: int) -> float:
    """Height of a sheet of so many filters over its width, its title included."""
    return 0.14 + min(1.0, math.ceil(maps / COLUMNS) / min(COLUMNS, maps))


def clipped_filters(record: Filters) -> Float32[np.ndarray, "maps c k l"]:
    """Each filter whose RMS exceeds the radius, scaled back to it."""
    if record.clip <= 0:
        return record.weights
    factor = np.minimum(1, record.clip / np.maximum(record.rms, 1e-300)).astype(np.float32)
    result: Float32[np.ndarray, "maps c k l"] = record.weights * factor[:, None, None, None]
    return result


def filter_sheet(weights: Float32[np.ndarray, "maps c k l"]) -> UInt8[np.ndarray, "h w 3"]:
    """All filters in rows of 11 on one scale: 0 is mid-grey, the largest weight black or white.
    Filters of other than 3 colours are drawn by their mean over them."""
    colours = weights if weights.shape[1] == 3 else weights.mean(1, keepdims=True).repeat(3, 1)
    most = float(np.abs(colours).max()) or 1.0
    tiles = np.rint(127.5 + 127.5 * colours / most).astype(np.uint8).transpose(0, 2, 3, 1)
    down, across = tiles.shape[1] + GAP, tiles.shape[2] + GAP
    rows = math.ceil(len(tiles) / COLUMNS)
    sheet = np.full((rows * down - GAP, min(COLUMNS, len(tiles)) * across - GAP, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // COLUMNS * down, number % COLUMNS * across
        sheet[top : top + down - GAP, left : left + across - GAP] = tile
    return sheet


def _draw_filters(axes: Axes, record: Filters, weights: Float32[np.ndarray, "maps c k l"]) -> None:
    axes.imshow(filter_sheet(weights), interpolation="nearest")
    down, across = weights.shape[2] + GAP, weights.shape[3] + GAP
    for number in range(len(weights)):
        colour = RED if record.twin[number] >= 0 else ORANGE if record.weak[number] else ""
        if colour:
            corner = (number % COLUMNS * across - 0.75, number // COLUMNS * down - 0.75)
            frame = Rectangle(corner, across - 0.5, down - 0.5, fill=False, edgecolor=colour)
            axes.add_patch(frame)
    axes.set_axis_off()
    axes.set_anchor("NW")
    size = "×".join(map(str, weights.shape[2:]))
    step = "×".join(map(str, dict.fromkeys(record.stride)))
    told = f"{len(weights)} × {size}, stride {step}"
    title = f"{shortened(record.network)}\n{shortened(record.layer)}: {told}"
    axes.set_title(title, fontsize=9, color=INK, loc="left")


def _draw_clipped(axes: Axes, record: Filters) -> None:
    _draw_filters(axes, record, clipped_filters(record))
    over = int((record.rms > record.clip).sum()) if record.clip else 0
    told = f"clipped to RMS {record.clip:g}: {over} of {len(record.rms)} filters"
    axes.set_title(told, fontsize=9, color=INK, loc="left")


def _draw_transfer(axes: Axes, record: Filters) -> None:
    """Amplitude over frequencies, the slowest in the middle; what the stride keeps is framed."""
    side = len(record.transfer)
    shown = np.fft.fftshift(np.sqrt(record.transfer / max(record.transfer.max(), 1e-300)))
    half = 0.5 / side
    edges = (-0.5 - half, 0.5 - half, 0.5 - half, -0.5 - half)
    image = axes.imshow(
        shown, cmap="viridis", vmin=0, vmax=1, extent=edges, interpolation="nearest"
    )
    down, across = (0.5 / step for step in record.stride)
    frame = Rectangle((-across, -down), 2 * across, 2 * down, fill=False, edgecolor="white")
    frame.set_linewidth(1.8)
    axes.add_patch(frame)
    outside = f"outside the frame it is folded: {record.folded:.0%} of the energy"
    title = f"answer to gratings;\n{outside}"
    dress(axes, title, "cycles a pixel across", "down", size=7.5, without=())
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.75)
    bar.ax.tick_params(colors=SOFT, labelsize=7)
    bar.set_label("amplitude", fontsize=7, color=SOFT)


def _draw_bands(axes: Axes, record: Filters) -> None:
    shares = record.coverage
    bars = axes.bar(range(3), shares, color=BLUE, width=0.6)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize=8, color=INK, padding=2)
    axes.set_xticks(range(3), BANDS, fontsize=8)
    axes.set_ylim(0, 1.15)
    axes.set_yticks([])
    axes.tick_params(length=0)
    title = "filters by their strongest frequency, in cycles a pixel"
    dress(axes, title, size=7, without=("top", "right", "left"))


def show(records: Mapping[str, Filters], _: Options) -> Shown:
    both = list(records.values())
    return Shown({"figure": filters_figure(both)}, {"table": filters_table(both)})
