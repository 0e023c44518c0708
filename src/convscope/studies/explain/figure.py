"""Why this class: the picture, its maps side by side, and under each what the tests say?"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from convscope.drawing.style import INK, SOFT, TRAINING, VALIDATION, dress, shortened
from convscope.drawing.tiles import drawn, legend
from convscope.records.maps import Faithfulness
from convscope.studies.explain.record import Explanation
from convscope.studies.explain.table import TITLES, verdict

MOST_COLUMNS = 6
WIDE, HIGHEST = 2.6, 3.4
"""Width of a panel, and the greatest height of a picture in it; in inches, as all below."""
EDGE = 0.25
TITLE, CURVES, LINE, HEADLINE = 0.46, 1.0, 0.12, 0.132
"""Heights of a panel's title, of its curves with what they are called, and of lines of text."""
LETTERS, BOLD = 52, 42
"""Letters that fit into a panel's width, in small type and in the verdict's."""
COLOURS = {"good": "#00664a", "fair": "#8f4300", "poor": "#a01818", "none": SOFT}
"""Of verdicts; the word says it too."""


@dataclass(frozen=True)
class _Panel:
    """What is written under a map."""

    small: str
    headline: str
    level: str

    @classmethod
    def of(cls, result: Explanation, number: int) -> _Panel:
        said, seen = verdict(result, number), result.maps[number]
        facts = [f"{legend(seen)}; raw peak {seen.peak:.3g}", *_numbers(result, number)]
        small = "\n".join(textwrap.fill(fact, LETTERS) for fact in facts)
        headline = textwrap.fill(f"{TITLES[said.level].upper()}: {said.headline}", BOLD)
        return cls(small, headline, said.level)

    @property
    def height(self) -> float:
        return LINE * _lines(self.small) + HEADLINE * (_lines(self.headline) + 0.5)


def _lines(text: str) -> int:
    return text.count("\n") + 1


@dataclass(frozen=True)
class _Sheet:
    """Where things stand on a figure, in inches from its top left corner."""

    figure: Figure
    columns: int
    image: tuple[float, float]
    row: float

    @classmethod
    def of(cls, result: Explanation, panels: list[_Panel]) -> _Sheet:
        height, width = result.picture.shape[:2]
        scale = min(WIDE / width, HIGHEST / height)
        image = width * scale, height * scale
        row = TITLE + image[1] + CURVES + max(panel.height for panel in panels) + EDGE
        columns = _columns(1 + len(panels))
        rows = -(-(1 + len(panels)) // columns)
        size = columns * (WIDE + EDGE) + EDGE, rows * row + EDGE
        return cls(Figure(figsize=size), columns, image, row)

    def axes(self, panel: int, down: float, width: float, height: float, left: float = 0) -> Axes:
        row, column = divmod(panel, self.columns)
        wide, high = self.figure.get_size_inches()
        x = EDGE + column * (WIDE + EDGE) + left
        y = high - row * self.row - down - height
        return self.figure.add_axes((x / wide, y / high, width / wide, height / high))


def explanation_figure(result: Explanation) -> Figure:
    """The picture with its likeliest classes, then a panel for each method."""
    panels = [_Panel.of(result, number) for number in range(len(result.methods))]
    sheet = _Sheet.of(result, panels)
    _picture(sheet, result)
    for number, panel in enumerate(panels):
        _map(sheet, result, number, panel)
    return sheet.figure


def _columns(count: int) -> int:
    """As many as leave the fewest places empty; of these the most."""
    if count <= MOST_COLUMNS:
        return count
    return min(range(MOST_COLUMNS, 3, -1), key=lambda columns: -count % columns)


def _image(sheet: _Sheet, panel: int, pixels: np.ndarray, title: str) -> Axes:
    width, height = sheet.image
    axes = sheet.axes(panel, TITLE, width, height)
    axes.imshow(pixels)
    axes.set_axis_off()
    axes.set_title(title, fontsize=8.5, color=INK, loc="left", parse_math=False, pad=4)
    return axes


def _picture(sheet: _Sheet, result: Explanation) -> None:
    axes = _image(sheet, 0, result.picture, shortened(result.prediction.picture))
    for box in result.boxes:
        corner = (box.left - 0.5, box.top - 0.5)
        for colour, width in (("white", 2.0), (INK, 0.8)):
            axes.add_patch(
                Rectangle(
                    corner, box.width, box.height, fill=False, edgecolor=colour, linewidth=width
                )
            )
    lines = [
        f"{p:6.1%}  {shortened(name)}"
        for name, p in zip(result.prediction.names, result.prediction.probability, strict=True)
    ]
    truth = [f"true: {shortened(result.label)}"] if result.label else []
    asked = [f"explained: {shortened(result.target_name)}, {result.score:.1%}"]
    _text(sheet, 0, TITLE + sheet.image[1] + 0.12, "\n".join([*lines, "", *truth, *asked]), 8, INK)


def _map(sheet: _Sheet, result: Explanation, number: int, panel: _Panel) -> None:
    seen, place = result.maps[number], number + 1
    title = f"{shortened(seen.method)}\n{_where(result, number)}"
    _image(sheet, place, drawn(result.picture, seen), title)
    down = TITLE + sheet.image[1]
    _curves(
        sheet.axes(place, down + 0.28, WIDE - 0.3, CURVES - 0.52, left=0.3), result.tests[number]
    )
    down += CURVES
    _text(sheet, place, down, panel.small, 6.4, SOFT)
    down += LINE * _lines(panel.small) + 0.5 * HEADLINE
    _text(sheet, place, down, panel.headline, 7.2, COLOURS[panel.level], weight="bold")


def _text(
    sheet: _Sheet, panel: int, down: float, words: str, size: float, colour: str, **how: str
) -> None:
    axes = sheet.axes(panel, down, WIDE, LINE)
    axes.set_axis_off()
    axes.text(
        0.0, 1.0, words, fontsize=size, color=colour, va="top", transform=axes.transAxes,
        parse_math=False, linespacing=1.25, **how,  # type: ignore[arg-type]
    )  # fmt: skip


def _where(result: Explanation, number: int) -> str:
    seen = result.maps[number]
    layer = shortened(seen.layer) if seen.layer else "own method"
    size = "" if seen.raw is None else f", {seen.raw.shape[0]}×{seen.raw.shape[1]}"
    return f"{layer}{size}"


def _numbers(result: Explanation, number: int) -> list[str]:
    lines = []
    if not np.isnan(result.coverage[number]):
        lines.append(f"half of the evidence in {result.coverage[number]:.0%} of the picture")
    if "coverage" in result.maps[number].origin:
        lines.append(str(result.maps[number].origin["coverage"]))
    sanity = []
    if number < len(result.randomised):
        sanity.append(f"random weights ρ {_rank(result.randomised[number].spearman_absolute[-1])}")
    if number < len(result.sensitive):
        sanity.append(f"other class ρ {_rank(result.sensitive[number].spearman)}")
    return [*lines, " · ".join(sanity)] if sanity else lines


def _rank(value: float) -> str:
    return "flat map" if np.isnan(value) else f"{value:.2f}"


def _curves(axes: Axes, test: Faithfulness) -> None:
    """Probability while hiding and while showing, small, with the random maps' span."""
    for curve, chance, colour in (
        (test.deletion, test.random_deletion, VALIDATION),
        (test.insertion, test.random_insertion, TRAINING),
    ):
        if len(chance):
            axes.fill_between(
                test.share, chance.min(0), chance.max(0), color=colour, alpha=0.18, linewidth=0
            )
        axes.plot(test.share, curve, color=colour, linewidth=1.4)
    if test.is_known:
        axes.set_ylim(0, max(1e-6, float(max(test.deletion.max(), test.insertion.max()))) * 1.08)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 1], ["0", "all"])
    dress(axes, size=6)
    axes.tick_params(length=2, pad=1)
    axes.yaxis.set_major_locator(MaxNLocator(2))
    if not test.is_known:
        axes.text(0.5, 0.5, "could not be tested", fontsize=6.2, color=SOFT, ha="center")
        return
    hidden = f"hidden {test.deletion_area:.2f} (random {_mean(test.random_deletion_areas)})"
    shown = f"shown {test.insertion_area:.2f} (random {_mean(test.random_insertion_areas)})"
    for words, place, side, colour in (
        (hidden, -0.13, "left", VALIDATION),
        (shown, 1.0, "right", TRAINING),
    ):
        axes.text(place, 1.08, words, color=colour, fontsize=6.2, ha=side, va="bottom",
                  transform=axes.transAxes)  # fmt: skip


def _mean(values: tuple[float, ...]) -> str:
    return f"{float(np.mean(values)):.2f}" if values else "none"
