"""What does hiding parts of several pictures do? Figure 7 of the paper, a row a picture.

(a) the picture with the square where the probability is lowest, (b) activity of the strongest
feature map for each place of the square's middle, (c) that map's projection, framed, with those
of other pictures, (d) the class's probability, (e) the likeliest class.
Source: Zeiler and Fergus 2014, figure 7. The paper's maps (b), (d) and (e) fill their panels; here
they lie over the picture, so that each value stands where the square's middle was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from convscope.errors import printable
from convscope.figures.heat import DISTINCT
from convscope.figures.occlusion import LETTERS, Kind, kind_map, kinds, reach
from convscope.figures.style import INK, SOFT, shortened
from convscope.records.occlusion import LIKELIEST, TRUE, Occlusions, lowest

ROWS = 4
"""Pictures on one page."""
TITLES = (
    "(a) square where the\nprobability is lowest",
    "(b) activity of the\nstrongest feature map",
    "(c) its projection, here\nand in other pictures",
    "(d) probability of\nthe class",
    "(e) likeliest class",
)
WIDE, PANEL, HEADING, FOOTING = 8.6, 1.12, 0.42, 0.4
"""In inches: the page, a panel's width, what stands above all rows and below each."""
LEFTS = (0.08, 1.33, 3.02, 4.3, 5.97)
"""Of the panels, in inches; the second and the fourth have a bar beside them."""
LONGEST = 20
"""Characters of a name under a panel."""
MARKED = "#ffd400"
SMALL = 7
LETTERED = 0.01
"""Of all places, the share from which on a class's letter stands in its area."""
GAP = 6
"""Pixels between projections."""
_PLAIN: dict[str, Any] = {"fontsize": SMALL, "color": SOFT}
_WORDS: dict[str, Any] = {**_PLAIN, "labelpad": 3}


def occlusion_pages(record: Occlusions, pictures: Sequence[int]) -> list[Figure]:
    """Figures of up to four rows each, for these pictures of the record."""
    starts = range(0, len(pictures), ROWS)
    return [_page(record, pictures[start : start + ROWS]) for start in starts]


def class_of(record: Occlusions, index: int) -> str:
    """The class's name as a figure or a table shows it."""
    return printable(record.classes[index]) if 0 <= index < len(record.classes) else f"{index}"


def picture_names(record: Occlusions) -> list[str]:
    """Printable, without the folder that all have in common."""
    parts = [printable(name).split("/") for name in record.pictures]
    above = list(zip(*(each[:-1] for each in parts), strict=False))
    common = next((n for n, level in enumerate(above) if len(set(level)) > 1), len(above))
    return ["/".join(each[common:]) for each in parts]


def _page(record: Occlusions, pictures: Sequence[int]) -> Figure:
    height, width = record.seen.shape[1:3]
    tall = PANEL * height / width
    high = HEADING + len(pictures) * (tall + FOOTING)
    figure = Figure(figsize=(WIDE, high))
    names = picture_names(record)
    for row, picture in enumerate(pictures):
        below = high - HEADING - (row + 1) * tall - row * FOOTING
        panels = [
            figure.add_axes((left / WIDE, below / high, PANEL / WIDE, tall / high))
            for left in LEFTS
        ]
        if row == 0:
            for axes, title in zip(panels, TITLES, strict=True):
                axes.set_title(title, fontsize=7.5, color=INK, loc="left", pad=4)
        _draw_picture(panels[0], record, picture, names[picture])
        _draw_map(panels[1], record, picture, record.activity[picture])
        _draw_projections(panels[2], record, picture)
        _draw_map(panels[3], record, picture, record.probability[picture])
        _draw_likeliest(panels[4], record, picture)
        activity = _three_figures(float(record.base_activity[picture]))
        unit = f"{_short(record.layer)}:{record.channel[picture]}"
        panels[1].set_xlabel(f"{activity} uncovered\n{unit}", parse_math=False, **_WORDS)
        whole = _three_figures(float(record.base_probability[picture]))
        panels[3].set_xlabel(f"{whole} uncovered", **_WORDS)
    return figure


def _short(name: str) -> str:
    text = shortened(name)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set_visible(False)


def _draw_picture(axes: Axes, record: Occlusions, picture: int, shown: str) -> None:
    axes.imshow(hidden(record, picture), interpolation="antialiased")
    _bare(axes)
    for top, left, bottom, right in record.boxes[picture]:
        size = (right - left, bottom - top)
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), *size, fill=False, ec=INK, lw=1.6))
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), *size, fill=False, ec=MARKED, lw=0.9))
    kind = {TRUE: "true", LIKELIEST: "likeliest"}.get(record.why[picture], "asked")
    name = _short(class_of(record, int(record.target[picture])))
    told = f"{_short(shown)}\n{kind}: {name}"
    axes.set_xlabel(told, parse_math=False, **{**_WORDS, "color": INK})
    _limit(axes, record)


def hidden(record: Occlusions, picture: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as the network saw it with the square where the probability is lowest."""
    row, column = lowest(record.probability[picture])
    top, left = int(record.tops[row]), int(record.lefts[column])
    height, width = record.sides
    pixels: UInt8[np.ndarray, "h w 3"] = record.seen[picture].copy()
    pixels[top : top + height, left : left + width] = record.square[picture]
    return pixels


def _draw_map(
    axes: Axes, record: Occlusions, picture: int, values: Float32[np.ndarray, "rows columns"]
) -> None:
    _draw_pale(axes, record, picture)
    drawn = axes.imshow(values, cmap="viridis", interpolation="nearest", extent=_extent(record))
    _limit(axes, record)
    bar = axes.figure.colorbar(drawn, cax=axes.inset_axes((1.04, 0.0, 0.06, 1.0)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, colors=SOFT, length=2, pad=2)
    low, high = float(values.min()), float(values.max())
    bar.set_ticks(_ticks(low, high))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(_three_figures))


def _ticks(low: float, high: float) -> list[float]:
    """Ends and middle, as far as three figures tell them apart."""
    told = {_three_figures(value): value for value in ((low + high) / 2, high, low)}
    return sorted(told.values())


def _three_figures(value: float, _: object = None) -> str:
    if 0 < value < 0.001:
        return "< 0.001"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _draw_pale(axes: Axes, record: Occlusions, picture: int) -> None:
    grey = record.seen[picture].mean(2) * 0.25 + 190
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    _bare(axes)


def _limit(axes: Axes, record: Occlusions) -> None:
    """The picture's borders: a later imshow sets its own."""
    axes.set_xlim(-0.5, record.seen.shape[2] - 0.5)
    axes.set_ylim(record.seen.shape[1] - 0.5, -0.5)


def _extent(record: Occlusions) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a map whose cells lie on the square's middles."""
    left, top, width, height = reach(record)
    return (left - 0.5, left + width - 0.5, top + height - 0.5, top - 0.5)


def _draw_projections(axes: Axes, record: Occlusions, picture: int) -> None:
    """Two by two as in the paper, the picture's own framed."""
    if not np.isfinite(record.scale[picture]).any():
        axes.text(0.5, 0.5, "none for\nthis network", ha="center", va="center", **_PLAIN)
        _bare(axes)
        return
    tiles = record.projections[picture]
    side, shown = tiles.shape[1], 1 + len(record.others[picture])
    sheet = np.full((2 * side + GAP, 2 * side + GAP, 3), 255, np.uint8)
    for place, tile in enumerate(tiles[:shown]):
        top, left = (place // 2) * (side + GAP), (place % 2) * (side + GAP)
        sheet[top : top + side, left : left + side] = tile
    axes.imshow(sheet, interpolation="antialiased")
    frame = Rectangle((-0.5, -0.5), side, side, fill=False, ec="black", lw=2, clip_on=False)
    axes.add_patch(frame)
    _bare(axes)


def _draw_likeliest(axes: Axes, record: Occlusions, picture: int) -> None:
    found = kinds(record.likeliest[picture])
    _draw_pale(axes, record, picture)
    colours = kind_map(record.likeliest[picture], found)
    axes.imshow(colours, interpolation="nearest", extent=_extent(record))
    _limit(axes, record)
    middle = [side / 2 for side in record.sides]
    handles = []
    for letter, colour, kind in zip(LETTERS, DISTINCT, found, strict=False):
        shade = "#{:02x}{:02x}{:02x}".format(*colour)
        handles.append(Patch(color=shade, label=_told(record, letter, kind)))
        if kind.count < LETTERED * record.places:
            continue
        row, column = kind.place
        at = (record.lefts[column] + middle[1], record.tops[row] + middle[0])
        words = axes.text(*at, letter, ha="center", va="center", fontsize=6.5, color=INK)
        words.set_path_effects([withStroke(linewidth=1.4, foreground="white")])
    axes.legend(
        handles=handles,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        handlelength=0.9,
        handletextpad=0.5,
        borderpad=0,
        labelspacing=0.35,
    )
    name = _short(class_of(record, int(record.base_likeliest[picture])))
    axes.set_xlabel(f"uncovered:\n{name}", parse_math=False, **_WORDS)


def _told(record: Occlusions, letter: str, kind: Kind) -> str:
    name = "all others" if kind.index < 0 else _short(class_of(record, kind.index))
    return f"{letter}  {name} {kind.count}"
