"""Does hiding the object lower the probability more than hiding what is around it?"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from convscope.figures.style import INK, SOFT
from convscope.records.faithfulness import Interval, interval
from convscope.records.occlusion import HiddenObjects

BLUE, ORANGE, GREY = "#0b5cbf", "#b25400", "#5b6067"
FEW_POWERS = 100
FEW = 10
"""Pictures below which an interval is too narrow."""


def hidden_objects_figure(found: HiddenObjects) -> Figure:
    """Left: a point a picture, what squares on the object leave of the probability against what
    squares beside it leave. Right: means and 95 % intervals over pictures."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _draw_pictures(left, found)
    _draw_means(right, found)
    return figure


def _draw_pictures(axes: Axes, found: HiddenObjects) -> None:
    known = ~np.isnan(found.difference)
    for chosen, mark, colour, name in (
        (known & found.recognised, "o", BLUE, "recognised"),
        (known & ~found.recognised, "^", ORANGE, "taken for something else"),
    ):
        if chosen.any():
            on, off = np.exp(-found.on[chosen]), np.exp(-found.off[chosen])
            axes.plot(off, on, mark, color=colour, markersize=4, alpha=0.75, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_xlim()[0], axes.get_xlim()[1]
    low, high = min(low, axes.get_ylim()[0]), max(high, axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color=SOFT, linewidth=0.8, linestyle=":")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("left by squares beside the object", fontsize=8.5, color=SOFT)
    axes.set_ylabel("left by squares on the object", fontsize=8.5, color=SOFT)
    axes.set_title("Part of the probability left, by picture", loc="left", fontsize=9, color=INK)
    _quiet(axes)
    for axis in (axes.xaxis, axes.yaxis):
        _mark(axis, low, high)
    if known.any():
        axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="upper left")


def _draw_means(axes: Axes, found: HiddenObjects) -> None:
    rows = means(found)
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
            f"{_share(left)} left, {count} pictures",
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
    axes.set_xlabel("geometric mean over pictures, 95 % interval", fontsize=8.5, color=SOFT)
    axes.set_title("Part of the probability left", loc="left", fontsize=9, color=INK)
    _quiet(axes)


def _mark(axis: Axis, low: float, high: float) -> None:
    """Labels at powers of ten; at 2 and 5 between them too where there are few powers."""
    few = high / low < FEW_POWERS
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axis.set_major_formatter(FuncFormatter(_share))
    axis.set_minor_formatter(NullFormatter())


def means(found: HiddenObjects) -> list[tuple[str, Float64[np.ndarray, "pictures"]]]:
    """Falls by what is hidden, over the same pictures on the object and beside it."""
    both, room = np.isnan(found.difference), np.isnan(found.beside)
    return [
        ("squares on\nthe object", np.where(both, np.nan, found.on)),
        ("squares beside\nthe object", np.where(both, np.nan, found.off)),
        ("the whole\nobject", np.where(room, np.nan, found.box)),
        ("as large an area\nbeside it", found.beside),
    ]


def _quiet(axes: Axes) -> None:
    for edge in ("top", "right"):
        axes.spines[edge].set_visible(False)
    axes.grid(color="#e4e4e0", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=SOFT, labelsize=8)


def _share(value: float, _: object = None) -> str:
    if not math.isfinite(value):
        return ""
    percent = 100 * value
    return f"{percent:,.0f} %" if percent >= 10 else f"{percent:.2g} %"


def hidden_objects_words(found: HiddenObjects) -> list[str]:
    """The answer for a newcomer, then what it rests on."""
    apart = found.difference
    known = ~np.isnan(apart)
    count = int(known.sum())
    if not count:
        why = f"{(found.on_squares == 0).sum()} have no square on the object"
        return [f"No picture can be compared: {why}, {(found.off_squares == 0).sum()} none beside."]
    more = int((apart[known] > 0).sum())
    said = [
        f"Hiding the object lowers the probability more than hiding what is around it in {more} of "
        f"{count} pictures: on average a square on the object leaves "
        f"{_share(_left(found.on[known]))} of it, one beside the object "
        f"{_share(_left(found.off[known]))} (p = {_p(found.p_sign)}).",
        _dealt(found, apart),
        *_whole(found),
        *_recognised(found, known),
    ]
    dropped = [
        (int((found.on_squares == 0).sum()), "no square lies on the object"),
        (int((found.off_squares == 0).sum()), "no square lies beside it"),
        (len(found.unmarked), "nothing is marked where the network sees it"),
    ]
    told = [f"in {n} {why}" for n, why in dropped if n]
    if told:
        said.append(f"Not compared: {', '.join(told)}.")
    if count < FEW:
        said.append(f"{count} pictures are few: take the numbers as an anecdote.")
    return said


def _dealt(found: HiddenObjects, apart: Float64[np.ndarray, "pictures"]) -> str:
    real, other = interval(apart), interval(found.elsewhere)
    return (
        f"The difference of the falls is {_told(real)} in natural logarithms; with the boxes of "
        f"other pictures in their place, so that only where things usually lie counts, it is "
        f"{_told(other)} (p = {_p(found.p_dealt)})."
    )


def _whole(found: HiddenObjects) -> list[str]:
    room = ~np.isnan(found.beside)
    if not room.any():
        return [f"In none of {len(room)} pictures is there room for an area as large beside it."]
    turned = found.box_turned[room].mean()
    return [
        f"With the whole object hidden {_share(_left(found.box[room]))} of the probability is "
        f"left, with an area as large beside it {_share(_left(found.beside[room]))} "
        f"(p = {_p(found.p_box)}); the answer changes in {turned:.0%} against "
        f"{np.nanmean(found.beside_turned):.0%} (the {room.sum()} of {len(room)} pictures with "
        "room for that)."
    ]


def _recognised(
    found: HiddenObjects, known: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> list[str]:
    chosen = known & found.recognised
    if chosen.all() or not chosen.any():
        return []
    return [
        f"Of the {chosen.sum()} pictures among them that the network recognises, "
        f"{(found.difference[chosen] > 0).sum()} fall more: "
        f"{_share(_left(found.on[chosen]))} is left on the object, "
        f"{_share(_left(found.off[chosen]))} beside it."
    ]


def _left(falls: Float64[np.ndarray, "n"]) -> float:
    return math.exp(-float(np.nanmean(falls)))


def _told(mean: Interval) -> str:
    if not math.isfinite(mean.low):
        return f"{mean.mean:.2f}"
    return f"{mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f})"


def _p(value: float) -> str:
    return f"{value:.4f}" if value < 0.01 else f"{value:.2f}"
