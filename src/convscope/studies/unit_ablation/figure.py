"""Which maps matter? The effect of silencing each map of a layer, sorted, and for which classes.

A row a layer: on the left all its maps, from the one that matters most to the one that harms most;
on the right the first ones by class, or with their noise where there are many classes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convscope.core.errors import printable
from convscope.core.text import Part, Table
from convscope.drawing.tiles import INK, SOFT, TRAINING, VALIDATION, dress, shortened
from convscope.studies.base import Shown
from convscope.studies.unit_ablation import Options
from convscope.studies.unit_ablation.record import Silence

FIRST = 12
"""Maps that are named."""
FEW = 12
"""Classes that have a column each."""
WRITTEN = 6
"""Classes whose columns are wide enough for numbers."""


def silence_figure(record: Silence) -> Figure:
    """One or several layers."""
    rows = len(record.layers)
    figure = Figure(figsize=(7.2, 2.9 * rows + 0.2), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False, width_ratios=(1.25, 1))
    for layer in range(rows):
        _sorted(grid[layer, 0], record, layer)
        if len(record.classes) <= FEW:
            _by_class(grid[layer, 1], record, layer)
        else:
            _first(grid[layer, 1], record, layer)
    return figure


def _sorted(axes: Axes, record: Silence, layer: int) -> None:
    """Every map's rise, with the noise as a band and those beyond chance as discs."""
    places = record.own(layer)
    rank = np.arange(1, len(places) + 1)
    rise, noise = record.rise[places], record.noise[places]
    axes.fill_between(rank, rise - noise, rise + noise, color=SOFT, alpha=0.3, linewidth=0)
    axes.plot(rank, rise, color=TRAINING, linewidth=1.2)
    sure = np.isin(places, record.beyond_chance(layer))
    axes.scatter(rank[sure], rise[sure], 9, color=VALIDATION, zorder=3)
    axes.axhline(0, color=INK, linewidth=0.7)
    title = f"{shortened(record.layers[layer])}: {sure.sum()} of {len(places)} maps beyond chance"
    dress(axes, title, "maps, sorted", "rise of −ln p(true)", grid="y")


def _by_class(axes: Axes, record: Silence, layer: int) -> None:
    """The first maps against the classes; as numbers where there is room."""
    places = record.own(layer)[:FIRST]
    values = record.by_class[places]
    most = max(1e-9, float(np.abs(values).max()))
    image = axes.imshow(values, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
    if len(record.classes) <= WRITTEN:
        _write(axes, values, most)
    else:
        bar = axes.figure.colorbar(image, ax=axes, fraction=0.05)
        bar.ax.tick_params(labelsize=8, colors=SOFT)
    axes.set_yticks(range(len(places)), [str(record.map[place]) for place in places])
    names = [shortened(name) for name in record.classes]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", parse_math=False)
    dress(axes, "rise by class", "", "map")
    axes.tick_params(length=0)


def _write(axes: Axes, values: Float64[np.ndarray, "maps classes"], most: float) -> None:
    """The larger ones."""
    digits = 2 if most >= 0.1 else 3
    for row, column in np.argwhere(np.abs(values) > 0.15 * most):
        value = values[row, column]
        text = f"{value:+.{digits}f}".replace("-", "−")
        axes.text(column, row, text, ha="center", va="center", fontsize=7,
                  color="white" if abs(value) > 0.6 * most else INK)  # fmt: skip


def _first(axes: Axes, record: Silence, layer: int) -> None:
    """The first maps with their standard errors, and the pictures that they win and lose."""
    places = record.own(layer)[:FIRST]
    rows = np.arange(len(places))
    axes.errorbar(record.rise[places], rows, xerr=record.noise[places], fmt="o", markersize=4,
                  color=TRAINING, linewidth=1, capsize=2)  # fmt: skip
    for row, place in enumerate(places):
        axes.text(1.02, row, f"−{record.lost[place]} +{record.gained[place]}", fontsize=7,
                  transform=axes.get_yaxis_transform(), va="center", color=SOFT)  # fmt: skip
    axes.set_yticks(rows, [str(record.map[place]) for place in places])
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    title = "first maps; pictures lost, gained"
    dress(axes, title, "rise of −ln p(true)", "map", grid="y")


def silence_table(record: Silence, first: int = 10) -> list[Part]:
    """A table for each layer: the maps that matter most, and how sure it is."""
    parts: list[Part] = [
        f"{record.pictures:,} pictures, all maps there: {record.base_accuracy:.1%} right, "
        f"−ln p(true) {record.base_loss:.3f}, p(true) {record.base_probability:.3f}; a map is "
        f"silenced to {FILLS[record.fill]}.",
    ]
    for layer in range(len(record.layers)):
        parts += _layer_table(record, layer, first)
    parts += [
        "",
        "± is the standard error over pictures; p an exact sign test on pictures lost and gained, "
        "for one map alone: of 100 maps without effect 5 have p below 0.05.",
    ]
    return parts


FILLS = {"zero": "zero", "mean": "its mean"}


def _layer_table(record: Silence, layer: int, first: int) -> list[Part]:
    places, sure = record.own(layer), record.beyond_chance(layer)
    idle = int((record.changed[places] == 0).sum())
    head = (
        f"{printable(record.layers[layer])}: {len(places)} maps, {len(sure)} matter beyond chance, "
        f"{idle} change nothing; without one map between {record.accuracy[places].min():.1%} and "
        f"{record.accuracy[places].max():.1%} right"
    )
    rows = []
    for place in places[:first]:
        own = record.by_class[place]
        name, most = printable(record.classes[int(own.argmax())]), own.max()
        cells = (
            str(record.map[place]),
            f"{record.rise[place]:+.3f} ± {record.noise[place]:.3f}",
            f"{record.accuracy[place]:.1%}",
            f"−{record.lost[place]} +{record.gained[place]}",
            f"{record.p[place]:.2g}",
            f"{name} ({most:+.2f})" if most > 0 else "",
        )
        rows.append(cells)
    columns = ("map", "rise of −ln p", "right", "lost, gained", "p", "most for")
    return [Table.of(columns, rows, head)]


def show(record: Silence, options: Options) -> Shown:
    return Shown(
        {"figure": silence_figure(record)}, {"table": silence_table(record, options.first)}
    )
