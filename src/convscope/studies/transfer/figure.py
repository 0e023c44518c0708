"""Transfer: accuracy over pictures a class (figure 9), average precision by class; tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convscope.core.text import Part, Table, percent
from convscope.drawing.tiles import INK, SOFT, TRAINING, VALIDATION, dress, shortened
from convscope.studies.base import Shown
from convscope.studies.transfer import ListOptions, Options
from convscope.studies.transfer.record import (
    PAPER,
    PAPER_SCRATCH,
    PAPER_VOC,
    ListTransfer,
    Transfer,
)

CURVE: Any = {"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.4}
"""Of a mean with its spread over the folds."""
PAPERS: Any = {"color": SOFT, "markersize": 3, "linewidth": 0.9, "linestyle": "--"}
UP = "mean accuracy of the classes, %"


def transfer_figure(record: Transfer, *, beside: str = "") -> Figure:
    """Accuracy over pictures a class. beside: a key of PAPER, to draw the paper's curve too."""
    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    axes = figure.subplots()
    at = np.array(record.per_class)
    _curve(axes, at, 100 * record.accuracy, TRAINING, f"frozen to {record.layer}")
    trained = np.isfinite(record.scratch).any(1)
    if trained.any():
        _curve(axes, at[trained], 100 * record.scratch[trained], VALIDATION, "from scratch")
    for table, marker, name in ((PAPER, "s", "pre-trained"), (PAPER_SCRATCH, "D", "from scratch")):
        if beside in table:
            mean, spread = np.array(list(table[beside].values())).T
            label = f"paper, {beside}, {name}"
            axes.errorbar(list(table[beside]), mean, spread, marker=marker, label=label, **PAPERS)
    chance(axes, len(record.classes))
    title = f"{len(record.classes)} classes, {record.accuracy.shape[1]} divisions"
    dress(axes, title, "training pictures a class", UP, grid="y", size=9)
    axes.set_ylim(0, 100)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _curve(axes: Axes, at: np.ndarray, values: np.ndarray, colour: str, name: str) -> None:
    mean, spread = np.nanmean(values, 1), np.nanstd(values, 1)
    axes.errorbar(at, mean, spread, color=colour, label=name, **CURVE)


def chance(axes: Axes, classes: int) -> None:
    axes.axhline(100 / classes, color=SOFT, linewidth=0.8, linestyle=":", label="at random")


def transfer_table(record: Transfer, *, beside: str = "") -> list[Part]:
    """A row a number of pictures. beside: as of the figure."""
    columns = {"accuracy": record.accuracy, "mean AP": record.precision}
    if np.isfinite(record.scratch).any():
        columns["from scratch"] = record.scratch
    papers = {"paper": PAPER, "paper, from scratch": PAPER_SCRATCH} if beside else {}
    rows = [
        [
            str(count),
            *(percent(values[row]) for values in columns.values()),
            *(_paper(table[beside], count) for table in papers.values()),
        ]
        for row, count in enumerate(record.per_class)
    ]
    return [Table.of(["pictures a class", *columns, *papers], rows)]


def _paper(table: dict[int, tuple[float, float]], count: int) -> str:
    return f"{table[count][0]:.1f} ± {table[count][1]:.1f}" if count in table else ""


def lists_figure(record: ListTransfer, *, beside: bool = False) -> Figure:
    """Average precision of each class. beside: the paper's too, where the classes are VOC's."""
    figure = Figure(figsize=(5.0, 0.24 * len(record.classes) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(record.classes))
    axes.barh(places, 100 * record.precision, height=0.66, color=TRAINING, label=record.layer)
    if beside and set(record.classes) == set(PAPER_VOC):
        theirs = [PAPER_VOC[name] for name in record.classes]
        (points,) = axes.plot(theirs, places, "D", color=INK, label="paper, VOC 2012 test")
        points.set(markersize=5, markeredgecolor="white")
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    axes.axvline(100 * record.mean, color=SOFT, linewidth=0.9, linestyle="--")
    axes.set_yticks(places, [shortened(name) for name in record.classes], parse_math=False)
    dress(axes, across=f"average precision, %; dashed: mean {100 * record.mean:.1f}")
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    return figure


def lists_table(record: ListTransfer, *, beside: bool = False) -> list[Part]:
    """A row a class. beside: the paper's numbers too, where the classes are VOC's."""
    known = beside and set(record.classes) == set(PAPER_VOC)
    head = ["class", "taught by", "judged by", "average precision", *["paper"] * known]
    columns = zip(record.classes, record.taught, record.judged, record.precision, strict=True)
    rows = [
        [name, f"{taught:,}", f"{judged:,}", f"{100 * precision:.1f}"]
        + ([f"{PAPER_VOC[name]:.1f}"] if known else [])
        for name, taught, judged, precision in columns
    ]
    rows.append(["mean", "", "", f"{100 * record.mean:.1f}", *["79.0"] * known])
    return [Table.of(head, rows)]


def show(record: Transfer | ListTransfer, options: Options | ListOptions) -> Shown:
    if isinstance(record, ListTransfer):
        beside = bool(options.beside)
        return Shown(
            {"figure": lists_figure(record, beside=beside)},
            {"table": lists_table(record, beside=beside)},
        )
    name = str(options.beside)
    return Shown(
        {"figure": transfer_figure(record, beside=name)},
        {"table": transfer_table(record, beside=name)},
    )
