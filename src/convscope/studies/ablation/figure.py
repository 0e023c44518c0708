"""What do layers bring? Training and validation error by variant, the paper's beside ours.

A row a variant: the ring is the training error, the disc the validation error, and the line
between them how much the network has learned by heart.
Source: Zeiler and Fergus 2014, table 3, which has no figure.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convscope.core.errors import printable
from convscope.core.text import Part, Table
from convscope.drawing.tiles import INK, SOFT, TRAINING, VALIDATION, dress, shortened
from convscope.studies.ablation import Options
from convscope.studies.ablation.record import PAPER, Ablation
from convscope.studies.base import Shown

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
    dress(axes, title, "top-1 error, %", grid="x", without=("top", "right", "left"))
    axes.tick_params(axis="y", length=0, labelcolor=INK)


PARTS = (("training", 0), ("validation", 0), ("validation", 1))


def ablation_table(record: Ablation, *, beside: bool = False) -> list[Part]:
    """A row a variant; what the errors mean stands below. beside: the paper's errors too."""
    head = ["variant", "parameters", "multiply-adds", "train top-1", "val top-1", "val top-5"]
    head += ["against its base", "paper: train top-1", "val top-1", "val top-5"]
    rows = [list(_row(record, number)) for number in range(len(record.variants))]
    columns = list(zip(head, *rows, strict=True))
    kept = [column for column in columns[: None if beside else -3] if any(column[1:])]
    names, *rest = zip(*kept, strict=True)
    failed = zip(record.variants, record.failed, strict=True)
    why = [f"{name}: {printable(why)}" for name, why in failed if why]
    return [Table.of(names, rest), _protocol(record), *why]


def _row(record: Ablation, number: int) -> Iterator[str]:
    name = record.variants[number]
    yield name
    yield f"{record.parameters[number]:,}"
    work = int(record.multiply_adds[number])
    yield f"{work / 1e9:.3f} G" if work >= 1e9 else f"{work / 1e6:.1f} M"
    for part, top in PARTS:
        yield "failed" if record.failed[number] else _error(record, part, top, number)
    yield _against(record, number)
    yield from (f"{error:.1f}" for error in PAPER.get(name, ()))
    yield from ("",) * (0 if name in PAPER else 3)


def _error(record: Ablation, part: str, top: int, number: int) -> str:
    """Mean ± spread in %."""
    error, spread = record.mean(part, top)[number], record.spread(part, top)[number]
    return "" if error != error else f"{error:.1%} ± {spread:.1%}".replace("%", "")


def _against(record: Ablation, number: int) -> str:
    """Of the first seed: on how many pictures it differs from its base."""
    base = int(record.base[number])
    if base == number or record.failed[number] or record.failed[base]:
        return ""
    lost, gained, p = record.lost[number, 0], record.gained[number, 0], record.p[number, 0]
    return f"−{lost} +{gained}, p = {p:.2g}"


def _protocol(record: Ablation) -> str:
    training, validation = record.pictures
    crops = "the centre" if record.views == 1 else f"{record.views} views"
    noise = (
        f"± is the standard deviation over {len(record.seeds)} seeds"
        if len(record.seeds) > 1
        else "one seed: ± is √(e (1 − e) / n), for other pictures; another seed adds to it"
    )
    return (
        f"Errors in %, after epoch {record.epochs}, on {training:,} training and {validation:,} "
        f"validation pictures of {record.size[0]} × {record.size[1]} pixels, {crops}, no dropout, "
        f"no augmentation; {noise}. Against its base: validation pictures lost and gained, and an "
        "exact sign test on these."
    )


def show(record: Ablation, options: Options) -> Shown:
    return Shown(
        {"figure": ablation_figure(record, beside=options.beside)},
        {"table": ablation_table(record, beside=options.beside)},
    )
