"""Which masks were compared, and how far did the changes agree? Figure 8 and table 1 of the paper.

Source of the numbers beside ours: Zeiler and Fergus 2014 (arXiv 1311.2901v3), table 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from convscope.core.errors import printable
from convscope.core.text import Part, Table
from convscope.drawing.tiles import INK, SOFT, dress, shortened
from convscope.studies.base import Shown
from convscope.studies.correspondence import Options
from convscope.studies.correspondence.record import RANDOM, Correspondence

PAPER: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "right_eye": ((0.067, 0.007), (0.069, 0.015)),
    "left_eye": ((0.069, 0.007), (0.068, 0.013)),
    "nose": ((0.079, 0.017), (0.069, 0.011)),
    RANDOM: ((0.107, 0.017), (0.073, 0.014)),
}
"""Mean and spread at layers 5 and 7, of five dogs and a network trained on ImageNet."""
COLOURS = ("#0b5cbf", "#b25400", "#4a7a2a", "#7a3e9d", "#5b6067")
SHOWN = 5
"""Pictures drawn, as in the paper's figure 8."""
SHOWN_RANDOM = 3


def correspondence_table(record: Correspondence, *, beside: bool = False) -> list[Part]:
    """A row a layer and kind of mask. beside: the paper's at the end."""
    head = ("layer", "mask", "distance", "p", "relative", "p", "changed")
    rows: list[tuple[str, ...]] = []
    mean, spread = record.mean, record.spread
    for row, layer in enumerate(record.layers):
        for kind, name in enumerate(record.kinds):
            whole = name == RANDOM
            tests = (record.p[row, kind], record.p_relative[row, kind])
            said = ["" if whole else _p(float(p)) for p in tests]
            values = f"{mean[row, kind]:.3f} ± {spread[row, kind]:.3f}"
            relative, changed = record.relative[row, kind], record.changed[row, kind]
            cells = (values, said[0], f"{relative:.3f}", said[1], f"{changed:.3f}")
            rows.append((printable(layer), printable(name), *cells))
        together = (_p(record.p[row, -1]), "", _p(record.p_relative[row, -1]), "")
        rows.append((printable(layer), "all parts", "", *together))
    for place, layer in enumerate(("5", "7") if beside else ()):
        for name, printed in PAPER.items():
            value, around = printed[place]
            told = f"{value:.3f} ± {around:.3f}"
            rows.append((f"paper, layer {layer}", name, told, "", "", "", ""))
    return [Table.of(head, rows)]


def correspondence_figure(record: Correspondence, *, beside: bool = False) -> Figure:
    """The masked pictures at the left, distances at the right. beside: with the paper's."""
    pictures = min(SHOWN, len(record.pictures))
    figure = Figure(figsize=(10, max(3.4, 0.8 * pictures + 0.4)), layout="constrained")
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=(1.25, 1)))
    _draw_pictures(left, record, pictures)
    above, below = right.subplots(2, 1, sharex=True)
    _draw_distances(above, record, beside)
    _draw_relative(below, record)
    below.legend(frameon=False, fontsize=7.5, ncols=2, labelcolor=INK)
    return figure


def _draw_pictures(part: SubFigure, record: Correspondence, pictures: int) -> None:
    columns = len(record.parts) + min(SHOWN_RANDOM, record.corners.shape[1] - len(record.parts))
    grid = part.subplots(pictures, 1 + columns, squeeze=False)
    for row in range(pictures):
        for column, axes in enumerate(grid[row]):
            axes.imshow(masked(record, row, column - 1), interpolation="antialiased")
            axes.set_axis_off()
            if row == 0:
                axes.set_title(_title(record, column - 1), fontsize=8, color=INK)


def masked(record: Correspondence, picture: int, mask: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture with its mask of that number as the network saw it; −1: whole."""
    pixels: UInt8[np.ndarray, "h w 3"] = record.seen[picture].copy()
    if mask >= 0:
        top, left = record.corners[picture, mask].tolist()
        pixels[top : top + record.patch, left : left + record.patch] = record.fill
    return pixels


def _title(record: Correspondence, mask: int) -> str:
    if mask < 0:
        return "whole"
    return _plain(record.parts[mask]) if mask < len(record.parts) else RANDOM


def _plain(name: str) -> str:
    return shortened(name.replace("_", " "))


def _draw_distances(axes: Axes, record: Correspondence, beside: bool) -> None:
    _draw(axes, record, record.mean, record.spread)
    known = [place for place, name in enumerate(record.kinds) if beside and name in PAPER]
    for layer, marker in ((0, "D"), (1, "s")):
        values = [PAPER[record.kinds[place]][layer] for place in known]
        if len(known) > 1:
            axes.plot(
                [place + 0.3 + 0.07 * layer for place in known],
                [value for value, _ in values],
                marker,
                color=INK,
                fillstyle="none",
                markersize=5,
                label=f"paper, layer {(5, 7)[layer]}",
            )
    axes.set_ylim(bottom=0)
    axes.set_title("Hamming distance of sign changes", loc="left", fontsize=9, color=INK)
    handles, names = axes.get_legend_handles_labels()
    chosen = [(h, n) for h, n in zip(handles, names, strict=True) if n.startswith("paper,")]
    if chosen:
        axes.legend(*zip(*chosen, strict=True), frameon=False, fontsize=7.5, loc="best")


def _draw_relative(axes: Axes, record: Correspondence) -> None:
    _draw(axes, record, record.relative, None)
    axes.axhline(1, color=SOFT, linewidth=0.8, linestyle=":")
    axes.set_title("over that of shuffled features", loc="left", fontsize=9, color=INK)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.35 * (high - low), high)  # room for the legend


def _draw(
    axes: Axes,
    record: Correspondence,
    values: Float64[np.ndarray, "layers kinds"],
    spread: Float64[np.ndarray, "layers kinds"] | None,
) -> None:
    count = len(record.layers)
    places = np.arange(len(record.kinds))
    for row, layer in enumerate(record.layers):
        shift = 0.0 if count == 1 else -0.2 + 0.4 * row / (count - 1)
        axes.errorbar(
            places + shift,
            values[row],
            None if spread is None else spread[row],
            fmt="o",
            color=COLOURS[row % len(COLOURS)],
            markersize=4,
            elinewidth=1.2,
            label=shortened(layer),
        )
    axes.set_xticks(places, [_plain(kind) for kind in record.kinds], fontsize=8)
    dress(axes, grid="y")


def _p(value: float) -> str:
    return f"{value:.4f}" if value < 0.01 else f"{value:.3f}"


def show(record: Correspondence, options: Options) -> Shown:
    return Shown(
        {"figure": correspondence_figure(record, beside=options.beside)},
        {"table": correspondence_table(record, beside=options.beside)},
    )
