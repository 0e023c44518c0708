"""Why this class: the picture, its maps side by side, and under each what the tests say?"""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from convscope.figures.attribution import drawn, legend
from convscope.figures.plots import INK, SOFT, TRAINING, VALIDATION, shortened
from convscope.figures.verdicts import TITLES, verdict
from convscope.records.explanation import Explanation
from convscope.records.faithfulness import Faithfulness

COLUMNS = 4
WIDE, HIGH = 2.9, 4.6
"""Of a panel with what is under it, in inches."""
COLOURS = {"good": "#00664a", "fair": "#8f4300", "poor": "#a01818", "none": SOFT}
"""Of verdicts; the word says it too."""
LINE = 46
"""Characters under a panel."""


def explanation_figure(found: Explanation) -> Figure:
    """The picture with its likeliest classes, then a panel for each method."""
    count = 1 + len(found.methods)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDE * columns, HIGH * rows), layout="constrained")
    panels = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=(2.75, 1.85) * rows)
    for axes in panels.ravel():
        axes.set_axis_off()
    _picture(panels[0, 0], panels[1, 0], found)
    for number in range(len(found.methods)):
        row, column = divmod(number + 1, columns)
        _map(panels[2 * row, column], panels[2 * row + 1, column], found, number)
    return figure


def _picture(above: Axes, below: Axes, found: Explanation) -> None:
    above.imshow(found.picture)
    for box in found.boxes:
        corner = (box.left - 0.5, box.top - 0.5)
        above.add_patch(
            Rectangle(corner, box.width, box.height, fill=False, edgecolor="white", linewidth=2)
        )
        above.add_patch(
            Rectangle(corner, box.width, box.height, fill=False, edgecolor=INK, linewidth=0.8)
        )
    above.set_title(shortened(found.prediction.picture), fontsize=9, color=INK, parse_math=False)
    lines = [
        f"{p:6.1%}  {shortened(name)}"
        for name, p in zip(found.prediction.names, found.prediction.probability, strict=True)
    ]
    truth = [f"true: {shortened(found.label)}"] if found.label else []
    asked = [f"explained: {shortened(found.target_name)}, {found.score:.1%}"]
    _text(below, "\n".join([*lines, "", *truth, *asked]), INK)


def _map(above: Axes, below: Axes, found: Explanation, number: int) -> None:
    seen = found.maps[number]
    said = verdict(found, number)
    above.imshow(drawn(found.picture, seen))
    above.set_title(
        f"{seen.method}\n{_where(found, number)}", fontsize=9, color=INK, parse_math=False
    )
    _curves(below, found.tests[number])
    words = [
        f"{legend(seen)}; raw peak {seen.peak:.3g}",
        *_numbers(found, number),
    ]
    below.text(
        0.0, 0.52, "\n".join(words), fontsize=6.6, color=SOFT, va="top", transform=below.transAxes,
        linespacing=1.35, parse_math=False,
    )  # fmt: skip
    headline = textwrap.fill(f"{TITLES[said.level].upper()}: {said.headline}", LINE)
    below.text(
        0.0, 0.0, headline, fontsize=7.4, color=COLOURS[said.level], va="bottom",
        transform=below.transAxes, weight="bold", parse_math=False,
    )  # fmt: skip


def _where(found: Explanation, number: int) -> str:
    seen = found.maps[number]
    layer = shortened(seen.layer) if seen.layer else "own method"
    size = "" if seen.raw is None else f", {seen.raw.shape[0]}×{seen.raw.shape[1]}"
    return f"{layer}{size}"


def _numbers(found: Explanation, number: int) -> list[str]:
    lines = []
    if not np.isnan(found.coverage[number]):
        lines.append(f"half of the evidence in {found.coverage[number]:.0%} of the picture")
    if "coverage" in found.maps[number].origin:
        lines.append(str(found.maps[number].origin["coverage"]))
    sanity = []
    if number < len(found.randomised):
        sanity.append(f"random weights ρ {_rank(found.randomised[number].spearman_absolute[-1])}")
    if number < len(found.sensitive):
        sanity.append(f"other class ρ {_rank(found.sensitive[number].spearman)}")
    return [*lines, " · ".join(sanity)] if sanity else lines


def _rank(value: float) -> str:
    return "– (flat map)" if np.isnan(value) else f"{value:.2f}"


def _curves(axes: Axes, test: Faithfulness) -> None:
    """Probability while hiding and while showing, small, with the random maps' span."""
    inner = axes.inset_axes((0.04, 0.58, 0.96, 0.38))
    for curve, chance, colour, name in (
        (test.deletion, test.random_deletion, VALIDATION, "hidden"),
        (test.insertion, test.random_insertion, TRAINING, "shown"),
    ):
        if len(chance):
            inner.fill_between(
                test.share, chance.min(0), chance.max(0), color=colour, alpha=0.18, linewidth=0
            )
        inner.plot(test.share, curve, color=colour, linewidth=1.4, label=name)
    inner.set_ylim(0, max(1e-6, float(max(test.deletion.max(), test.insertion.max()))) * 1.08)
    inner.set_xlim(0, 1)
    inner.set_xticks([0, 1], ["0", "all"])
    inner.tick_params(labelsize=6, length=2, colors=SOFT, pad=1)
    inner.yaxis.set_major_locator(MaxNLocator(2))
    for edge in ("top", "right"):
        inner.spines[edge].set_visible(False)
    area = f"hidden {test.deletion_area:.2f} (random {_mean(test.random_deletion_areas)})"
    shown = f"shown {test.insertion_area:.2f} (random {_mean(test.random_insertion_areas)})"
    inner.text(0.5, 1.0, area, color=VALIDATION, fontsize=6.4, ha="right", va="bottom",
               transform=inner.transAxes)  # fmt: skip
    inner.text(0.53, 1.0, shown, color=TRAINING, fontsize=6.4, ha="left", va="bottom",
               transform=inner.transAxes)  # fmt: skip


def _mean(values: tuple[float, ...]) -> str:
    return f"{float(np.mean(values)):.2f}" if values else "none"


def _text(axes: Axes, words: str, colour: str) -> None:
    axes.text(
        0.0, 0.98, words, fontsize=8, color=colour, va="top", transform=axes.transAxes,
        parse_math=False, linespacing=1.4,
    )  # fmt: skip
