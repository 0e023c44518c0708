"""How did training go, and which classes are taken for which? Records as plots.

Matplotlib's figure objects only, never pyplot: nothing global, nothing to close.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator

from convscope.core.errors import UsageError
from convscope.drawing.tiles import INK, SOFT, TRAINING, VALIDATION, dress, shortened
from convscope.records.predictions import Evaluation, Series

NUMBERED = 20
"""With at most this many classes, the confusion's cells have their numbers written in them."""
NAMED = 60
"""With more classes than this, names would be too small to read."""


def png(figure: Figure, *, dots_per_inch: int = 150) -> bytes:
    """The figure as a PNG file."""
    with warnings.catch_warnings():
        # A name may have letters that the font lacks; a box in their place is no fault.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        out = io.BytesIO()
        letters_as_letters(figure)
        figure.savefig(out, format="png", dpi=dots_per_inch)
    return out.getvalue()


def letters_as_letters(figure: Figure) -> None:
    """Take dollars in names for dollars, not for formulas, which may end the drawing.

    The numbers along logarithmic axes are formulas, and stay so.
    """
    axes = (axis for part in figure.axes for axis in (part.xaxis, part.yaxis))
    powers = [axis for axis in axes if isinstance(axis.get_major_formatter(), LogFormatter)]
    numbers = {id(text) for axis in powers for text in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in numbers:
            text.set_parse_math(False)


def training_curves(series: Series) -> Figure:
    """Loss and accuracy over epochs, training and validation, the best epoch marked.

    Raises UsageError U312 if the series lacks one of these columns.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    best = int(np.argmax(_column(series, "val_accuracy"))) if len(series.epochs) else 0
    for axes, what in ((left, "loss"), (right, "accuracy")):
        for part, colour, line in (("train", TRAINING, "--"), ("val", VALIDATION, "-")):
            values = _column(series, f"{part}_{what}")
            name = {"train": "training", "val": "validation"}[part]
            axes.plot(
                series.epochs,
                values,
                line,
                color=colour,
                marker="o" if len(values) < 25 else None,
                markersize=3,
                label=name,
            )
        dress(axes, what.capitalize(), "epoch", grid="y", size=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _percent(right)
    right.set_ylim(0, 1)
    if len(series.epochs):
        _mark_best(right, int(series.epochs[best]), float(_column(series, "val_accuracy")[best]))
    left.legend(frameon=False, fontsize=9)
    return figure


def confusion(evaluation: Evaluation) -> Figure:
    """True classes down, the network's answers across; colour is the part of the true class.

    Only classes that occur, as truth or as answer, are drawn.
    """
    counts = evaluation.confusion
    used = np.nonzero(counts.sum(0) + counts.sum(1))[0]
    counts = counts[np.ix_(used, used)]
    parts = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = float(np.clip(2.6 + 0.42 * len(used), 4.2, 11))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("taken for", color=SOFT)
    axes.set_ylabel("true class", color=SOFT)
    title = f"{evaluation.top1:.1%} right of {len(evaluation.labels):,} pictures"
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    _name_ticks(axes, [evaluation.names[index] for index in used])
    if len(used) <= NUMBERED:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if parts[row, column] > 0.55 else INK
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, format=FuncFormatter(_as_percent))
    bar.outline.set_visible(False)
    return figure


def _column(series: Series, name: str) -> Float64[np.ndarray, "epochs"]:
    if name not in series.columns:
        raise UsageError("U312", name, f"no such column; there are {', '.join(series.columns)}")
    values: Float64[np.ndarray, "epochs"] = series.values[:, series.columns.index(name)]
    return values


def _mark_best(axes: Axes, epoch: int, accuracy: float) -> None:
    axes.plot([epoch], [accuracy], "o", color=VALIDATION, markersize=7, fillstyle="none")
    above = accuracy < 0.15  # else below, where the training curve seldom is
    axes.annotate(
        f"{accuracy:.1%} at epoch {epoch}",
        (epoch, accuracy),
        xytext=(0, 9 if above else -9),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        fontsize=9,
        color=VALIDATION,
    )


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(_as_percent))


def _as_percent(value: float, _: object) -> str:
    return f"{value:.0%}"


def _name_ticks(axes: Axes, names: list[str]) -> None:
    if len(names) > NAMED:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    places, shown = range(len(names)), [shortened(name) for name in names]
    size = 9 if len(names) <= NUMBERED else 6
    axes.set_xticks(places, shown, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(places, shown, fontsize=size, parse_math=False)
