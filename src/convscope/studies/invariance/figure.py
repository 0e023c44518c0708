"""How do features and answer change while a picture moves? Figure 5 of the paper.

A row a change: pictures, distance at the low and at the high layer, probability of the class.
Source: Zeiler and Fergus 2014 (arXiv 1311.2901v3), figure 5, whose axes' ranges are beside ours
in the table; its curves are not printed as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convscope.core.errors import printable
from convscope.core.text import Part, Table, give_or_take
from convscope.drawing.tiles import INK, SOFT, bare, dress, shortened
from convscope.records.maps import interval
from convscope.studies.base import Shown
from convscope.studies.invariance import Options
from convscope.studies.invariance.record import Invariance

PAPER: Mapping[str, tuple[float, float]] = {
    "vertical": (10, 0.8),
    "scale": (12, 0.7),
    "rotation": (15, 1.4),
}
"""Where the paper's axes of the distance end, at layers 1 and 7."""
TITLES = {
    "vertical": "vertical translation (pixels)",
    "horizontal": "horizontal translation (pixels)",
    "scale": "scale (ratio)",
    "rotation": "rotation (degrees)",
}
COLOURS = ("#0b5cbf", "#c2410c", "#2f7d32", "#7a3e9d", "#a6761d", "#0e7c86", "#b0225f", "#5b6067")
GAP = 4
"""Pixels between example pictures."""


def invariance_figure(record: Invariance, *, normalised: bool = True) -> Figure:
    """normalised: distances between vectors at length 1; otherwise as they are, as the paper's
    first layer seems to be. With up to eight pictures a curve each; the black line is the mean,
    with more the band around it is its 95 % interval over pictures."""
    rows, layers = len(record.changes), len(record.layers)
    figure = Figure(figsize=(1.6 + 2.5 * (layers + 1), 2.05 * rows + 0.6), layout="constrained")
    grid = figure.subplots(
        rows, layers + 2, squeeze=False, width_ratios=(0.62, *(1,) * (layers + 1))
    )
    values = record.normalised if normalised else record.distance
    for row, change in enumerate(record.changes):
        pictures, *distances, probability = grid[row]
        _draw_examples(pictures, record, row)
        for layer, axes in enumerate(distances):
            _draw_curves(axes, record, row, values[:, layer])
            axes.set_ylim(bottom=0)
        _draw_curves(axes := probability, record, row, record.probability.astype(np.float64))
        axes.set_ylim(0, 1)
        for axes in grid[row][1:]:
            axes.set_xlabel(TITLES[change], fontsize=8, color=SOFT)
    kind = "between unit vectors" if normalised else "as they are"
    for layer, place in enumerate(record.layers):
        title = f"distance at {shortened(place)}\n({kind})"
        grid[0][1 + layer].set_title(title, fontsize=9, color=INK)
    told = "true" if record.known.all() else "likeliest" if not record.known.any() else "followed"
    grid[0][-1].set_title(f"probability of\nthe {told} class", fontsize=9, color=INK)
    _legend(figure, grid[0][-1])
    return figure


def invariance_table(record: Invariance, *, beside: bool = False) -> list[Part]:
    """Mean over each change's range, ± its spread over pictures. beside: where the paper's axes
    end."""
    head = ["change", "range", "border"]
    for place in record.layers:
        head += [printable(place), "raw", "raw up to"]
    head += ["p", "same answer", *(["paper's axes"] if beside else [])]
    rows = []
    for number, name in enumerate(record.changes):
        steps = record.at(number)
        amounts = record.amount[steps]
        cells = [
            name,
            f"{amounts[0]:g} to {amounts[-1]:g}",
            f"{record.filled[:, steps].mean():.0%}",
        ]
        for layer in range(len(record.layers)):
            apart = record.distance[:, layer]
            cells.append(give_or_take(record.area(record.normalised[:, layer], number)))
            cells += [f"{record.area(apart, number).mean():.4g}", f"{apart[:, steps].max():.4g}"]
        cells.append(give_or_take(record.area(record.probability.astype(np.float64), number)))
        cells.append(f"{record.kept(number).mean():.0%}")
        paper = PAPER.get(name)
        ends = "" if paper is None else f"layer 1 to {paper[0]:g}, layer 7 to {paper[1]:g}"
        cells += [ends] if beside else []
        rows.append(cells)
    return [Table.of(head, rows), f"Border: {record.border}."]


def _draw_examples(axes: Axes, record: Invariance, change: int) -> None:
    axes.imshow(_montage(record.examples[:, change]), interpolation="antialiased")
    steps = record.at(change)
    three = record.amount[steps[[0, len(steps) // 2, -1]]]
    side = record.examples.shape[3] + GAP
    places = [side * place + side / 2 for place in range(3)]
    for row in range(len(record.examples)):
        axes.plot(
            [-7, -7], [row * side + 2, (row + 1) * side - GAP - 2], color=_colour(record, row)
        )
        axes.lines[-1].set(linewidth=3, clip_on=False, solid_capstyle="butt")
    axes.set_xlim(-10, 3 * side - GAP)
    bare(axes)
    axes.set_xticks(places, [f"{amount:g}" for amount in three], fontsize=7, color=SOFT)
    axes.tick_params(length=0)


def _montage(examples: UInt8[np.ndarray, "shown 3 s s 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A row a picture, its three looks side by side."""
    shown, looks, side = examples.shape[:3]
    pitch = side + GAP
    sheet = np.full((shown * pitch - GAP, looks * pitch - GAP, 3), 255, np.uint8)
    for row, three in enumerate(examples):
        for column, one in enumerate(three):
            top, left = row * pitch, column * pitch
            sheet[top : top + side, left : left + side] = one
    return sheet


def _draw_curves(
    axes: Axes, record: Invariance, change: int, values: Float64[np.ndarray, "pictures steps"]
) -> None:
    steps = record.at(change)
    amounts, curves = record.amount[steps], values[:, steps]
    many = len(curves) > len(COLOURS)
    for number, curve in enumerate(curves[:200]):
        name = shortened(record.names[number])
        thin = 0.4 if many else 1.1
        axes.plot(amounts, curve, color=_colour(record, number), linewidth=thin, label=name)
    if len(curves) > 1:
        mean = [interval(column.tolist()) for column in curves.T]
        axes.plot(amounts, [m.mean for m in mean], color=INK, linewidth=1.8, label="mean")
        if many:
            low, high = [m.low for m in mean], [m.high for m in mean]
            axes.fill_between(amounts, low, high, color=INK, alpha=0.2, linewidth=0)
    axes.set_xlim(amounts[0], amounts[-1] if amounts[-1] > amounts[0] else amounts[0] + 1)
    dress(axes, grid="both", size=7.5)


def _colour(record: Invariance, number: int) -> str:
    return "#a9b4c2" if len(record.pictures) > len(COLOURS) else COLOURS[number]


def _legend(figure: Figure, axes: Axes) -> None:
    """Each name once, below all panels; with many pictures the mean alone."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) > len(COLOURS) + 1:
        handles, names = [handles[0], handles[-1]], ["each picture", "mean, with 95 % interval"]
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(6, len(names)),
        frameon=False,
        fontsize=8,
    )


def show(record: Invariance, options: Options) -> Shown:
    figures = {
        "figure-raw": invariance_figure(record, normalised=False),
        "figure": invariance_figure(record),
    }
    return Shown(figures, {"table": invariance_table(record, beside=options.beside)})
