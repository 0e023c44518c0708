"""What do layers bring? Training and validation error by variant, the paper's beside ours.

A row a variant: the ring is the training error, the disc the validation error, and the line
between them how much the network has learned by heart.
Source: Zeiler and Fergus 2014, table 3, which has no figure.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convscope.drawing.style import INK, SOFT, TRAINING, VALIDATION, shortened
from convscope.studies.ablation.record import PAPER, Ablation

ROW = 0.36
"""Inches."""


def ablation_figure(record: Ablation, *, beside: bool = False) -> Figure:
    """beside: on the right the paper's, on its own scale, if it has any of these."""
    places = np.arange(len(record.variants))
    known = [beside and name in PAPER for name in record.variants]
    panels = 2 if any(known) else 1
    height = 1.25 + ROW * len(places)
    figure = Figure(figsize=(2.4 + 2.3 * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    _dots(axes[0], places, 100 * record.mean("training"), 100 * record.mean("validation"))
    _bars(axes[0], places, record)
    if panels == 2:
        theirs = np.array([PAPER.get(name, (np.nan,) * 3) for name in record.variants])
        _dots(axes[1], places, theirs[:, 0], theirs[:, 1])
    titles = (f"{record.pictures[1]:,} pictures, {record.classes} classes", "paper, ImageNet")
    for panel, title in zip(axes, titles, strict=False):
        _dress(panel, title)
    names = [_named(record, number) for number in range(len(places))]
    axes[0].set_yticks(places, names, parse_math=False)
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2,
                  frameon=False, fontsize=8)  # fmt: skip
    return figure


def _dots(axes: Axes, places: np.ndarray, training: np.ndarray, validation: np.ndarray) -> None:
    axes.hlines(places, training, validation, color=SOFT, linewidth=1, zorder=1)
    for values, fill, colour, name in (
        (training, "white", TRAINING, "training error"),
        (validation, VALIDATION, VALIDATION, "validation error"),
    ):
        axes.scatter(values, places, 24, facecolor=fill, edgecolor=colour, label=name, zorder=3)
    axes.set_xlim(0, 1.08 * np.nanmax([training, validation], initial=1.0))


def _bars(axes: Axes, places: np.ndarray, record: Ablation) -> None:
    for part, colour in (("training", TRAINING), ("validation", VALIDATION)):
        middle, spread = 100 * record.mean(part), 100 * record.spread(part)
        axes.errorbar(middle, places, xerr=spread, fmt="none", color=colour, linewidth=1, capsize=2)
        reach = np.nanmax(middle + spread, initial=0.0)
        axes.set_xlim(0, max(axes.get_xlim()[1], 1.03 * reach))
    for place, why in zip(places, record.failed, strict=True):
        if why:
            axes.text(0.02, place, "failed", transform=axes.get_yaxis_transform(), fontsize=8,
                      color=SOFT, va="center")  # fmt: skip


def _named(record: Ablation, number: int) -> str:
    """With its size."""
    weights = int(record.parameters[number])
    told = f"{weights / 1e6:.3g} M" if weights >= 1e6 else f"{weights / 1e3:.3g} k"
    return f"{shortened(record.variants[number])}  {told}"


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9, color=INK)
    axes.set_xlabel("top-1 error, %", color=SOFT, fontsize=9)
    axes.grid(axis="x", color="#e4e4e0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, labelsize=8)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
