"""Which layers settle first? Curves over epochs, and a table beside what the paper says.

Source of what is beside ours: Zeiler and Fergus 2014, §4: "a few epochs" for low layers, 40 to 50
for high ones; it gives no other numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convscope.core.errors import printable
from convscope.core.text import Part, Table
from convscope.drawing.tiles import INK, SOFT, bare, block, dress, shortened
from convscope.records.predictions import Convergence, Evolution
from convscope.studies.base import Shown
from convscope.studies.evolution import Options

WIDE = 7.2
LEAST = 4.2
"""Inches: both columns of a page, and what the line below needs."""
MOST, LABELS, TITLE, TICKS, FOOT = 0.5, 0.45, 0.27, 0.17, 0.36
"""Inches: a tile at most, room left of a block, above it, below it, and below all."""
T = TypeVar("T")
GAP = 2
"""Pixels between tiles of 64."""
BESIDE = 12
"""With more epochs than this, layers stand under each other, not two in a row."""
MARK = "#ffb000"


def evolution_figure(record: Evolution, *, patches: bool = False) -> Figure:
    """patches: under each row of projections the parts of the pictures that they are of."""
    layers = list(dict.fromkeys(unit.rpartition(":")[0] for unit in record.units))
    rows = [[n for n, u in enumerate(record.units) if u.rpartition(":")[0] == x] for x in layers]
    columns = 2 if len(record.epochs) <= BESIDE and len(layers) > 1 else 1
    tile = min(MOST, (WIDE / columns - LABELS) / len(record.epochs))
    across, each = len(record.epochs) * tile, 2 if patches else 1
    tall = [each * tile * max(map(len, some)) for some in _in_turn(rows, columns)]
    width = max(columns * (across + LABELS), LEAST)
    height = sum(tall) + len(tall) * (TITLE + TICKS) + FOOT
    figure = Figure(figsize=(width, height))
    top = height
    for some, names, down in zip(
        _in_turn(rows, columns), _in_turn(layers, columns), tall, strict=True
    ):
        for place, (members, layer) in enumerate(zip(some, names, strict=True)):
            own = len(members) * each * tile
            left, low = place * (across + LABELS) + LABELS - 0.05, top - TITLE - own
            axes = figure.add_axes(
                (left / width, low / height, across / width, own / height), aspect="auto"
            )
            _draw(axes, record, members, patches)
            axes.set_title(shortened(layer), loc="left", fontsize=9, color=INK, parse_math=False)
        top -= down + TITLE + TICKS
    figure.text(0.5, 0.06 / height, _footnote(patches), fontsize=7, color=SOFT, ha="center")
    return figure


def _in_turn(items: Sequence[T], columns: int) -> list[Sequence[T]]:
    return [items[start : start + columns] for start in range(0, len(items), columns)]


def _footnote(patches: bool) -> str:
    under = "; under it the part of the picture" if patches else ""
    return (
        f"columns: epochs; rows: maps, each at one scale over its epochs, zero is grey{under}\n"
        "◆: another picture became the strongest"
    ).replace("◆", "diamond")


def _draw(axes: Axes, record: Evolution, members: Sequence[int], patches: bool) -> None:
    tiles, epochs = _tiles(record, members, patches), len(record.epochs)
    pitch, side = tiles[0].shape[0] + GAP, tiles[0].shape[0]
    each = 2 if patches else 1
    sheet = block(tiles, shape=(len(members) * each, epochs), gap=GAP)
    axes.imshow(sheet, interpolation="none", aspect="auto")
    bare(axes)
    names = [record.units[member].rpartition(":")[2] for member in members]
    middle = (each * pitch - GAP) / 2
    axes.set_yticks([row * each * pitch + middle for row in range(len(members))], names)
    axes.set_xticks([n * pitch + side / 2 for n in range(epochs)], list(map(str, record.epochs)))
    every = math.ceil(epochs / 16)
    for number, label in enumerate(axes.get_xticklabels()):
        label.set_visible(number % every == 0)
    axes.tick_params(length=0, pad=2, labelsize=7, colors=SOFT)
    jumped = record.image[members][:, 1:] != record.image[members][:, :-1]
    row, column = np.nonzero(jumped)
    axes.plot(
        (column + 1) * pitch - GAP / 2,
        row * each * pitch + side / 6,
        "D",
        color=MARK,
        markersize=3.2,
        markeredgecolor="black",
        markeredgewidth=0.5,
        clip_on=False,
    )


def _tiles(
    record: Evolution, members: Sequence[int], patches: bool
) -> list[UInt8[np.ndarray, "s s 3"]]:
    """Row by row; with patches each row of projections is followed by that of its patches."""
    kinds = (record.projections, record.patches) if patches else (record.projections,)
    return [tile for member in members for kind in kinds for tile in kind[member]]


EPOCH_TICKS = (0, 1, 2, 5, 10, 20, 30, 40, 64, 100, 200, 300)
MARKERS = "osD^vP*X<>hp"


def convergence_figure(record: Convergence) -> Figure:
    """Likeness to the last epoch by layer: responses, strongest pictures, projections. Bands are
    95 % intervals over a layer's maps; rings mark 90 % of the way."""
    figure = Figure(figsize=(7.2, 3.1), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    curves = (record.responses_curve, record.same_curve, record.projection_curve)
    followed = max((len(record.followed(n)) for n in range(len(record.layers))), default=0)
    titles = (
        "same responses\n(rank correlation)",
        "same strongest picture\n(share of maps)",
        f"same projection\n(cosine, up to {followed} maps a layer)",
    )
    for axes, values, title in zip(panels, curves, titles, strict=True):
        _draw_convergence(axes, record, values)
        axes.set_title(title, fontsize=8, color=INK, loc="left")
    _ring(panels[0], record)
    panels[0].set_ylabel("likeness to the last epoch", fontsize=8, color=SOFT)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(len(names), 6),
        frameon=False,
        fontsize=7.5,
        labelcolor=INK,
    )
    return figure


def convergence_table(record: Convergence, *, beside: bool = False) -> list[Part]:
    """A row a layer. beside: what the paper says at the end."""
    head = ("layer", "maps", "jumps a map", "picture settled", "projection settled")
    more = ("90 % of the way", "middle of the way", "responses at the first")
    rows: list[tuple[str, ...]] = []
    for number, layer in enumerate(record.layers):
        maps, followed = record.maps(number), record.followed(number)
        living = followed[~np.isnan(record.projection[followed, -1])]
        first = record.responses_curve[number, 0, 0]
        rows.append(
            (
                printable(layer),
                str(maps.stop - maps.start),
                f"{record.jumps[maps].sum(axis=1).mean():.1f}",
                _quartiles(record.settled_image[maps]),
                _quartiles(record.settled_projection[living]),
                _interval(record.arrived[number], "g"),
                _interval(record.centre[number], ".1f"),
                f"{first:.2f}",
            )
        )
    if beside:
        rows.append(("paper: low layers", "", "", "", "a few epochs", "", "", ""))
        rows.append(("paper: high layers", "", "", "", "40 to 50", "", "", ""))
    return [Table.of((*head, *more), rows)]


def _draw_convergence(
    axes: Axes, record: Convergence, values: Float64[np.ndarray, "layers epochs 3"]
) -> None:
    shades = colormaps["viridis"](np.linspace(0.0, 0.85, max(2, len(record.layers))))
    for number, layer in enumerate(record.layers):
        mean, low, high = values[number].T
        axes.fill_between(record.epochs, low, high, color=shades[number], alpha=0.18, linewidth=0)
        axes.plot(
            record.epochs,
            mean,
            color=shades[number],
            marker=MARKERS[number % len(MARKERS)],
            markersize=3.5 if len(record.epochs) < 20 else 0,
            linewidth=1.2,
            label=shortened(layer),
            clip_on=False,
        )
    # Half of what happens, happens in the first epochs.
    axes.set_xscale("function", functions=(np.sqrt, np.square))
    last = int(record.epochs[-1])
    ticks = [tick for tick in EPOCH_TICKS if record.epochs[0] <= tick < 0.85 * last] + [last]
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.set_xlim(int(record.epochs[0]), last)
    axes.set_ylim(min(0.0, float(np.nanmin(values))), 1.02)
    dress(axes, across="epoch", grid="y", size=7)


def _ring(axes: Axes, record: Convergence) -> None:
    for number in range(len(record.layers)):
        at = int(np.searchsorted(record.epochs, record.arrived[number, 0]))
        place = (record.epochs[at], record.responses_curve[number, at, 0])
        (ring,) = axes.plot(*place, "o", color=INK, clip_on=False)
        ring.set(markersize=7.5, markeredgewidth=0.8, fillstyle="none")


def _quartiles(epochs: np.ndarray) -> str:
    if not len(epochs):
        return ""
    low, middle, high = np.percentile(epochs, (25, 50, 75))
    return f"{middle:g} ({low:g} to {high:g})"


def _interval(values: Float64[np.ndarray, "3"], form: str) -> str:
    mean, low, high = (format(value, form) for value in values)
    return f"{mean} ({low} to {high})"


def show(result: Mapping[str, Any], options: Options) -> Shown:
    features, layers = result["features"], result["convergence"]
    figures = {
        "patches": evolution_figure(features, patches=True),
        "layers": convergence_figure(layers),
        "figure": evolution_figure(features),
    }
    return Shown(figures, {"table": convergence_table(layers, beside=options.beside)})
