"""Occlusion in numbers and in words: by picture, over all, and of hidden objects."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64

from convscope.core.errors import printable
from convscope.core.text import Part, Table, csv_table, plural
from convscope.drawing.tiles import kinds
from convscope.records.maps import Interval, interval, lowest
from convscope.studies.occlusion.record import HiddenObjects, Occlusions

PAPER = (
    ("paper: Pomeranian", ".061 / .978 / .883 / .949", "879 of 900", "tennis ball 9, Pekinese 9"),
    ("paper: car wheel", ".008 / .293 / .134 / .144", "129 of 900", "cab 435, racer 326"),
    (
        "paper: Afghan hound",
        ".009 / .750 / .338 / .374",
        "762 of 900",
        "Gordon setter 48, mortarboard 27",
    ),
)
"""Measured in the printed figure 7, whose colours give values to about a 64th of their range."""
FEW = 10
"""Pictures below which an interval is too narrow."""
NAMED = 3
"""Classes named in a line."""


def occlusion_table(record: Occlusions, *, beside: bool = False) -> list[Part]:
    """A row a picture. beside: the paper's three rows last."""
    head = ("picture", "class", "uncovered", "min / max / mean / median", "likeliest", "else")
    rows = []
    for picture, name in enumerate(record.picture_names()):
        values = record.probability[picture]
        four = (values.min(), values.max(), values.mean(), np.median(values))
        own = int((record.likeliest[picture] == record.target[picture]).sum())
        cells = (
            record.class_of(int(record.target[picture])),
            f"{record.base_probability[picture]:.3f}",
            " / ".join(f"{v:.3f}".lstrip("0") for v in four),
            f"{own} of {record.places}",
            ", ".join(_rest(record, picture)),
        )
        rows.append((name, *cells))
    if beside:
        rows += [(name, "", "", four, own, rest) for name, four, own, rest in PAPER]
    return [Table.of(head, rows)]


def _rest(record: Occlusions, picture: int) -> list[str]:
    """The likeliest classes besides the one followed, the most frequent first."""
    result = [k for k in kinds(record.likeliest[picture]) if k.index != record.target[picture]]
    shown = result[:NAMED]
    told = [f"{record.class_of(k.index) if k.index >= 0 else 'others'} {k.count}" for k in shown]
    more = sum(k.count for k in result[NAMED:])
    return told + ([f"others {more}"] if more else [])


HEAD = (
    "picture",
    "class",
    "why this class",
    "uncovered",
    "min",
    "max",
    "mean",
    "median",
    "lowest at x",
    "lowest at y",
    "feature map",
    "activity",
    "least activity",
    "least activity at x",
    "least activity at y",
    "likeliest uncovered",
    "places",
    "places with another likeliest",
    "likeliest classes",
    "boxes hidden",
    "likeliest with boxes hidden",
    "as much beside them hidden",
)
"""Columns of the CSV; x and y are the square's first pixels."""


def occlusion_csv(record: Occlusions) -> bytes:
    """A line a picture; every number of the Markdown table, and more."""
    rows = [list(_cells(record, picture)) for picture in range(len(record.pictures))]
    return csv_table([HEAD, *rows])


def _cells(record: Occlusions, picture: int) -> Iterator[object]:
    values, activity = record.probability[picture], record.activity[picture]
    yield printable(record.pictures[picture])
    yield record.class_of(int(record.target[picture]))
    yield record.why[picture]
    yield _number(record.base_probability[picture])
    yield from (_number(v) for v in (values.min(), values.max(), values.mean(), np.median(values)))
    yield from _place(record, values)
    yield f"{printable(record.layer)}:{record.channel[picture]}"
    yield _number(record.base_activity[picture])
    yield _number(activity.min())
    yield from _place(record, activity)
    yield record.class_of(int(record.base_likeliest[picture]))
    yield record.places
    yield int(record.turned[picture])
    yield "; ".join(_counted(record, picture))
    yield _number(record.box_probability[picture])
    hidden = int(record.box_likeliest[picture])
    yield record.class_of(hidden) if hidden >= 0 else ""
    beside = record.other_probability[picture]
    yield _number(np.nanmean(beside)) if np.isfinite(beside).any() else ""


def _counted(record: Occlusions, picture: int) -> list[str]:
    index, count = np.unique(record.likeliest[picture], return_counts=True)
    order = np.argsort(-count, kind="stable")
    return [f"{record.class_of(int(index[n]))} {count[n]}" for n in order]


def _place(record: Occlusions, values: np.ndarray) -> tuple[int, int]:
    row, column = lowest(values)
    return int(record.lefts[column]), int(record.tops[row])


def _number(value: float) -> str:
    return f"{value:.6g}" if np.isfinite(value) else ""


def occlusion_words(record: Occlusions) -> list[str]:
    """What a newcomer should read from it, a sentence a line."""
    count, turned = len(record.pictures), record.turned
    changed = int((turned > 0).sum())
    share = turned.sum() / (count * record.places)
    side = " × ".join(str(n) for n in dict.fromkeys(record.sides))
    square = f"A square of {side} pixels"
    said = [
        f"{square} was put at {record.places} places of each of {plural(count, 'picture')}.",
        f"In {changed} of {count} the answer changes somewhere; over all places it is another in "
        f"{share:.1%}.",
    ]
    if changed:
        said.append(_most_changed(record, int(turned.argmax())))
    failed = record.origin.get("left out", {})
    said += [f"Left out: {printable(name)}: {why}" for name, why in failed.items()]
    return said


def _most_changed(record: Occlusions, picture: int) -> str:
    own = int(record.base_likeliest[picture])
    result = next(kind for kind in kinds(record.likeliest[picture]) if kind.index != own)
    name = record.class_of(result.index) if result.index >= 0 else "others"
    return (
        f"It changes most in {record.picture_names()[picture]}: at {record.turned[picture]} places "
        f"another answer than {record.class_of(own)}, most often {name}."
    )


LISTED = 24
"""Pictures up to which each has its line in the printed table; of more the means are printed."""


def occlusion_summary(record: Occlusions) -> list[Part]:
    """Means over the pictures of each class that is followed, with 95 %
    intervals over all."""
    head = ("class", "pictures", "uncovered", "lowest", "mean", "other answers", "answer changes")
    rows = []
    groups = {int(n): record.target == n for n in np.unique(record.target)}
    if len(groups) > 1:
        rows += [_summed(record, record.class_of(n), chosen) for n, chosen in groups.items()]
    rows.append(_summed(record, "all", np.ones(len(record.pictures), bool), between=True))
    return [Table.of(head, rows)]


def _summed(
    record: Occlusions, name: str, chosen: Bool[np.ndarray, "pictures"], *, between: bool = False
) -> tuple[str, ...]:
    flat = record.probability[chosen].reshape(int(chosen.sum()), -1)
    columns = (
        record.base_probability[chosen],
        flat.min(1),
        flat.mean(1),
        record.turned[chosen] / record.places,
        record.turned[chosen] > 0,
    )
    told = []
    for place, values in enumerate(columns):
        mean = interval(np.asarray(values, np.float64))
        form = ".1%" if place > 2 else ".3f"
        ends = (
            f" ({mean.low:{form}} to {mean.high:{form}})"
            if between and mean.low == mean.low
            else ""
        )
        told.append(f"{mean.mean:{form}}{ends}")
    return (name, f"{int(chosen.sum())}", *told)


def hidden_objects_words(result: HiddenObjects) -> list[str]:
    """The answer for a newcomer, then what it rests on."""
    apart = result.difference
    known = ~np.isnan(apart)
    count = int(known.sum())
    if not count:
        why = f"{(result.on_squares == 0).sum()} have no square on the object"
        return [
            f"No picture can be compared: {why}, {(result.off_squares == 0).sum()} none beside."
        ]
    more = int((apart[known] > 0).sum())
    said = [
        f"Hiding the object lowers the probability more than hiding what is around it in {more} of "
        f"{count} pictures: on average a square on the object leaves "
        f"{share_left(_left(result.on[known]))} of it, one beside the object "
        f"{share_left(_left(result.off[known]))} (p = {_p(result.p_sign)}).",
        _dealt(result, apart),
        *_whole(result),
        *_recognised(result, known),
    ]
    dropped = [
        (int((result.on_squares == 0).sum()), "no square lies on the object"),
        (int((result.off_squares == 0).sum()), "no square lies beside it"),
        (len(result.unmarked), "nothing is marked where the network sees it"),
    ]
    told = [f"in {n} {why}" for n, why in dropped if n]
    if told:
        said.append(f"Not compared: {', '.join(told)}.")
    if count < FEW:
        said.append(f"{count} pictures are few: take the numbers as an anecdote.")
    return said


def _dealt(result: HiddenObjects, apart: Float64[np.ndarray, "pictures"]) -> str:
    real, other = interval(apart), interval(result.elsewhere)
    return (
        f"The difference of the falls is {_told_objects(real)} in natural logarithms; with the "
        "boxes of other pictures in their place, so that only where things usually lie counts, it "
        f"is {_told_objects(other)} (p = {_p(result.p_dealt)})."
    )


def _whole(result: HiddenObjects) -> list[str]:
    room = ~np.isnan(result.beside)
    if not room.any():
        return [f"In none of {len(room)} pictures is there room for an area as large beside it."]
    turned = result.box_turned[room].mean()
    return [
        f"With the whole object hidden {share_left(_left(result.box[room]))} of the probability is "
        f"left, with an area as large beside it {share_left(_left(result.beside[room]))} "
        f"(p = {_p(result.p_box)}); the answer changes in {turned:.0%} against "
        f"{np.nanmean(result.beside_turned):.0%} (the {room.sum()} of {len(room)} pictures with "
        "room for that)."
    ]


def _recognised(
    result: HiddenObjects, known: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> list[str]:
    chosen = known & result.recognised
    if chosen.all() or not chosen.any():
        return []
    return [
        f"Of the {chosen.sum()} pictures among them that the network recognises, "
        f"{(result.difference[chosen] > 0).sum()} fall more: "
        f"{share_left(_left(result.on[chosen]))} is left on the object, "
        f"{share_left(_left(result.off[chosen]))} beside it."
    ]


def _left(falls: Float64[np.ndarray, "n"]) -> float:
    return math.exp(-float(np.nanmean(falls)))


def _told_objects(mean: Interval) -> str:
    if not math.isfinite(mean.low):
        return f"{mean.mean:.2f}"
    return f"{mean.mean:.2f} ({mean.low:.2f} to {mean.high:.2f})"


def _p(value: float) -> str:
    return f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def share_left(value: float, _: object = None) -> str:
    if not math.isfinite(value):
        return ""
    percent = 100 * value
    return f"{percent:,.0f} %" if percent >= 10 else f"{percent:.2g} %"
