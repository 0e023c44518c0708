"""Transfer to lists: average precision by class, drawn and in numbers, the paper's beside."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from convscope.core.text import Part, Table
from convscope.drawing.style import INK, SOFT, TRAINING, dress, shortened
from convscope.studies.base import Shown
from convscope.studies.transfer_lists import Options
from convscope.studies.transfer_lists.record import PAPER_VOC, ListTransfer


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


def show(record: ListTransfer, options: Options) -> Shown:
    return Shown(
        {"figure": lists_figure(record, beside=options.beside)},
        {"table": lists_table(record, beside=options.beside)},
    )
