"""How does accuracy on other classes grow with depth, and with pictures a class?

The curve over pictures a class is laid out as figure 9 of Zeiler and Fergus 2014.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convscope.drawing.style import INK, SOFT, TRAINING, VALIDATION, shortened
from convscope.studies.transfer.record import (
    PAPER,
    PAPER_SCRATCH,
    PAPER_VOC,
    ListTransfer,
    Probes,
    Transfer,
)

COLOURS = {"svm": TRAINING, "softmax": VALIDATION}


def probes_figure(found: Probes) -> Figure:
    """Accuracy by depth; bars are one standard deviation over the folds."""
    figure = Figure(figsize=(max(5.0, 0.55 * len(found.layers) + 2), 3.8), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(found.layers))
    for column, kind in enumerate(found.kinds):
        values = 100 * found.accuracy[:, column]
        axes.errorbar(
            places,
            values.mean(1),
            values.std(1),
            color=COLOURS[kind],
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1.4,
            label={"svm": "linear SVM", "softmax": "softmax"}[kind],
        )
    _chance(axes, len(found.classes))
    names = [shortened(name) for name in found.layers]
    axes.set_xticks(places, names, rotation=40, ha="right", parse_math=False)
    what = f"{len(found.classes)} classes, {found.per_class} pictures a class to train"
    _dress(axes, what)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def transfer_figure(found: Transfer, *, beside: str = "") -> Figure:
    """Accuracy over pictures a class. beside: a key of PAPER, to draw the paper's curve too."""
    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    axes = figure.subplots()
    at = np.array(found.per_class)
    _curve(axes, at, 100 * found.accuracy, TRAINING, f"frozen to {found.layer}")
    trained = np.isfinite(found.scratch).any(1)
    if trained.any():
        _curve(axes, at[trained], 100 * found.scratch[trained], VALIDATION, "from scratch")
    for table, marker, name in ((PAPER, "s", "pre-trained"), (PAPER_SCRATCH, "D", "from scratch")):
        if beside in table:
            _paper(axes, table[beside], marker, f"paper, {beside}, {name}")
    _chance(axes, len(found.classes))
    _dress(axes, f"{len(found.classes)} classes, {found.accuracy.shape[1]} divisions")
    axes.set_xlabel("training pictures a class", color=SOFT)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _curve(axes: Axes, at: np.ndarray, values: np.ndarray, colour: str, name: str) -> None:
    mean, spread = np.nanmean(values, 1), np.nanstd(values, 1)
    axes.errorbar(
        at,
        mean,
        spread,
        color=colour,
        marker="o",
        markersize=4,
        capsize=2,
        linewidth=1.4,
        label=name,
    )


def _paper(axes: Axes, table: dict[int, tuple[float, float]], marker: str, name: str) -> None:
    mean, spread = np.array(list(table.values())).T
    axes.errorbar(
        list(table),
        mean,
        spread,
        color=SOFT,
        marker=marker,
        markersize=3,
        linewidth=0.9,
        linestyle="--",
        label=name,
    )


def _chance(axes: Axes, classes: int) -> None:
    axes.axhline(100 / classes, color=SOFT, linewidth=0.8, linestyle=":", label="at random")


def _dress(axes: Axes, what: str) -> None:
    axes.set_title(what, loc="left", fontsize=10, color=INK)
    axes.set_ylabel("mean accuracy of the classes, %", color=SOFT)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", color="#e4e4e0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, labelsize=9)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)


def lists_figure(found: ListTransfer, *, beside: bool = False) -> Figure:
    """Average precision of each class. beside: the paper's too, where the classes are VOC's."""
    figure = Figure(figsize=(5.0, 0.24 * len(found.classes) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(found.classes))
    axes.barh(places, 100 * found.precision, height=0.66, color=TRAINING, label=found.layer)
    if beside and set(found.classes) == set(PAPER_VOC):
        theirs = [PAPER_VOC[name] for name in found.classes]
        (points,) = axes.plot(theirs, places, "D", color=INK, label="paper, VOC 2012 test")
        points.set(markersize=5, markeredgecolor="white")
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    axes.axvline(100 * found.mean, color=SOFT, linewidth=0.9, linestyle="--")
    axes.set_yticks(places, [shortened(name) for name in found.classes], parse_math=False)
    axes.set_xlabel(
        f"average precision, %; dashed: mean {100 * found.mean:.1f}", color=SOFT, fontsize=9
    )
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.tick_params(colors=SOFT, labelsize=8)
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    return figure
