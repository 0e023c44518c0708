"""Occlusion, drawn: figure 7 by rows, and whether hidden objects matter more than the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from convscope.core.errors import printable
from convscope.drawing.tiles import (
    DISTINCT,
    INK,
    LETTERS,
    SOFT,
    Kind,
    bare,
    dress,
    kind_map,
    kinds,
    reach,
    seen_through,
    shortened,
)
from convscope.records.maps import OcclusionExample, Projection, interval, lowest
from convscope.studies.base import Shown
from convscope.studies.occlusion import Options
from convscope.studies.occlusion import table as words_of
from convscope.studies.occlusion.record import ASKED, LIKELIEST, TRUE, HiddenObjects, Occlusions

ROWS = 4
"""Pictures on one page."""
TITLES = (
    "(a) square where the\nprobability is lowest",
    "(b) activity of the\nstrongest feature map",
    "(c) its projection, here\nand in other pictures",
    "(d) probability of\nthe class",
    "(e) likeliest class",
)
ALONE = "(c) its projection"
"""Where no other pictures were looked at."""
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


def occlusion_figure(example: OcclusionExample, *, table: str = "viridis") -> Figure:
    """The row of one picture. table: of colours; the paper draws in jet, viridis orders values for
    every reader."""
    o = example.occlusion
    grey = Projection(np.zeros((3, 1, 1), np.float32), "", 0.0)
    known = example.projection is not None
    tile = seen_through(example.projection or grey)
    nothing = np.full((1, 1), np.nan, np.float32), np.full((1, 1), -1, np.int32)
    record = Occlusions.one(
        o,
        name=example.name,
        number=0,
        classes=example.classes,
        why=TRUE if o.target == example.label else ASKED,
        likeliest=-1,
        seen=example.picture,
        square=np.full((*o.sides, 3), example.fill, np.uint8),
        projections=tile[None, None],
        scale=np.full((1, 1, 2), 0.0 if known else np.nan, np.float32),
        others=((),),
        boxes=((),),
        box_probability=nothing[0][0],
        box_likeliest=nothing[1][0],
        other_probability=nothing[0],
        other_likeliest=nothing[1],
    )
    return _page(record, [0], table)


def _page(record: Occlusions, pictures: Sequence[int], table: str = "viridis") -> Figure:
    height, width = record.seen.shape[1:3]
    tall = PANEL * height / width
    high = HEADING + len(pictures) * (tall + FOOTING)
    figure = Figure(figsize=(WIDE, high))
    names = record.picture_names()
    others = record.projections.shape[1] > 1
    titles = [title if others or title[1] != "c" else ALONE for title in TITLES]
    for row, picture in enumerate(pictures):
        below = high - HEADING - (row + 1) * tall - row * FOOTING
        panels = [
            figure.add_axes((left / WIDE, below / high, PANEL / WIDE, tall / high))
            for left in LEFTS
        ]
        if row == 0:
            for axes, title in zip(panels, titles, strict=True):
                axes.set_title(title, fontsize=7.5, color=INK, loc="left", pad=4)
        _draw_picture(panels[0], record, picture, names[picture])
        _draw_map(panels[1], record, picture, record.activity[picture], table)
        _draw_projections(panels[2], record, picture)
        _draw_map(panels[3], record, picture, record.probability[picture], table)
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


def _draw_picture(axes: Axes, record: Occlusions, picture: int, shown: str) -> None:
    axes.imshow(hidden(record, picture), interpolation="antialiased")
    bare(axes)
    for top, left, bottom, right in record.boxes[picture]:
        size = (right - left, bottom - top)
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), *size, fill=False, ec=INK, lw=1.6))
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), *size, fill=False, ec=MARKED, lw=0.9))
    kind = {TRUE: "true", LIKELIEST: "likeliest"}.get(record.why[picture], "asked")
    name = _short(record.class_of(int(record.target[picture])))
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
    axes: Axes,
    record: Occlusions,
    picture: int,
    values: Float32[np.ndarray, "rows columns"],
    table: str,
) -> None:
    _draw_pale(axes, record, picture)
    drawn = axes.imshow(values, cmap=table, interpolation="nearest", extent=_extent(record))
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
    bare(axes)


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
        bare(axes)
        return
    tiles = record.projections[picture]
    side, shown = tiles.shape[1], 1 + len(record.others[picture])
    if shown == 1:
        axes.imshow(tiles[0], interpolation="antialiased")
        bare(axes)
        return
    sheet = np.full((2 * side + GAP, 2 * side + GAP, 3), 255, np.uint8)
    for place, tile in enumerate(tiles[:shown]):
        top, left = (place // 2) * (side + GAP), (place % 2) * (side + GAP)
        sheet[top : top + side, left : left + side] = tile
    axes.imshow(sheet, interpolation="antialiased")
    frame = Rectangle((-0.5, -0.5), side, side, fill=False, ec="black", lw=2, clip_on=False)
    axes.add_patch(frame)
    bare(axes)


def _draw_likeliest(axes: Axes, record: Occlusions, picture: int) -> None:
    result = kinds(record.likeliest[picture])
    _draw_pale(axes, record, picture)
    colours = kind_map(record.likeliest[picture], result)
    axes.imshow(colours, interpolation="nearest", extent=_extent(record))
    _limit(axes, record)
    middle = [side / 2 for side in record.sides]
    handles = []
    for letter, colour, kind in zip(LETTERS, DISTINCT, result, strict=False):
        shade = "#{:02x}{:02x}{:02x}".format(*colour)
        handles.append(Patch(color=shade, label=_label(record, letter, kind)))
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
    if (likeliest := int(record.base_likeliest[picture])) >= 0:
        name = _short(record.class_of(likeliest))
        axes.set_xlabel(f"uncovered:\n{name}", parse_math=False, **_WORDS)


def _label(record: Occlusions, letter: str, kind: Kind) -> str:
    name = "all others" if kind.index < 0 else _short(record.class_of(kind.index))
    return f"{letter}  {name} {kind.count}"


BLUE, ORANGE, GREY = "#0b5cbf", "#b25400", "#5b6067"
FEW_POWERS = 100


def hidden_objects_figure(result: HiddenObjects) -> Figure:
    """Left: a point a picture, what squares on the object leave of the probability against what
    squares beside it leave. Right: means and 95 % intervals over pictures."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _draw_pictures(left, result)
    _draw_means(right, result)
    return figure


def _draw_pictures(axes: Axes, result: HiddenObjects) -> None:
    known = ~np.isnan(result.difference)
    for chosen, mark, colour, name in (
        (known & result.recognised, "o", BLUE, "recognised"),
        (known & ~result.recognised, "^", ORANGE, "taken for something else"),
    ):
        if chosen.any():
            on, off = np.exp(-result.on[chosen]), np.exp(-result.off[chosen])
            axes.plot(off, on, mark, color=colour, markersize=4, alpha=0.75, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()[0], axes.get_xlim()[1]
    low, high = min(low, axes.get_ylim()[0]), max(high, axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color=SOFT, linewidth=0.8, linestyle=":")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    title = "Part of the probability left, by picture"
    across, up = "left by squares beside the object", "left by squares on the object"
    dress(axes, title, across, up, grid="both")
    for axis in (axes.xaxis, axes.yaxis):
        _mark(axis, low, high)
    if known.any():
        axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="upper left")


def _draw_means(axes: Axes, result: HiddenObjects) -> None:
    rows = means(result)
    places = range(len(rows), 0, -1)
    for place, (name, values) in zip(places, rows, strict=True):
        mean = interval(values)
        colour = ORANGE if "beside" in name else BLUE
        left = math.exp(-mean.mean) if math.isfinite(mean.mean) else math.nan
        if math.isfinite(mean.low):
            ends = [math.exp(-mean.high), math.exp(-mean.low)]
            axes.plot(ends, [place, place], color=colour, linewidth=1.6)
        axes.plot([left], [place], "o", color=colour, markersize=6)
        count = int((~np.isnan(values)).sum())
        axes.annotate(
            f"{words_of.share_left(left)} left, {count} pictures",
            (left, place),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=colour,
        )
    axes.set_yticks(list(places), [name for name, _ in rows], fontsize=8)
    axes.set_ylim(0.4, len(rows) + 0.75)
    axes.set_xscale("log")
    axes.axvline(1, color=SOFT, linewidth=0.8, linestyle=":")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.35, high * 1.35)
    _mark(axes.xaxis, low / 1.35, high * 1.35)
    title, across = "Part of the probability left", "geometric mean over pictures, 95 % interval"
    dress(axes, title, across, grid="both")


def _mark(axis: Axis, low: float, high: float) -> None:
    """Labels at powers of ten; at 2 and 5 between them too where there are few powers."""
    few = high / low < FEW_POWERS
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(words_of.share_left))
    axis.set_minor_formatter(NullFormatter())


def means(result: HiddenObjects) -> list[tuple[str, Float64[np.ndarray, "pictures"]]]:
    """Falls by what is hidden, over the same pictures on the object and beside it."""
    both, room = np.isnan(result.difference), np.isnan(result.beside)
    return [
        ("squares on\nthe object", np.where(both, np.nan, result.on)),
        ("squares beside\nthe object", np.where(both, np.nan, result.off)),
        ("the whole\nobject", np.where(room, np.nan, result.box)),
        ("as large an area\nbeside it", result.beside),
    ]


def show(result: Mapping[str, Any], options: Options) -> Shown:
    record: Occlusions = result[""]
    count = len(record.pictures)
    pages = occlusion_pages(record, range(min(options.draw, count)))
    figures = {f"figure-{n}": page for n, page in enumerate(pages, 1)}
    if len(pages) == 1:
        figures = {"figure": pages[0]}
    words = words_of.occlusion_words(record)
    if objects := result.get("objects"):
        words += words_of.hidden_objects_words(objects)
        figures["objects-figure"] = hidden_objects_figure(objects)
    numbers = {"summary": words_of.occlusion_summary(record)}
    if count <= words_of.LISTED:
        numbers = {"table": words_of.occlusion_table(record, beside=options.beside)}
    files = {
        "table.csv": words_of.occlusion_csv(record),
        "words.txt": ("\n".join(words) + "\n").encode("utf-8", "backslashreplace"),
    }
    more = f"drawn: the first {options.draw} of {count} pictures; more with --draw"
    remarks = [more] if count > options.draw else []
    return Shown(figures, numbers, [printable(word) for word in words], files, remarks)
