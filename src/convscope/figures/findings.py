"""What do many explained pictures say about the network, in words that a newcomer understands?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from convscope.figures.style import shortened
from convscope.records.explanation import Explanations
from convscope.records.faithfulness import interval

ENOUGH = 8
"""Pictures of a class below which nothing is said of it."""
ALIKE = 0.1
"""Mean difference of two crops' middles, of the full range, below which they show the same."""
MOST = 0.5
"""Share of a class's pictures that must show the same at the peak …"""
RARE = 0.15
"""… and how much of that share, at most, random places may show it too."""


@dataclass(frozen=True)
class Finding:
    """One sentence or two, and how bad it is."""

    level: str
    """"warn" or "ok"."""
    text: str


def findings(record: Explanations) -> list[Finding]:
    """What to know first, warnings before the rest."""
    found = [*_crops(record), *_boxes(record), *_supported(record)]
    return sorted(found, key=lambda one: one.level != "warn")


def leading(record: Explanations) -> int:
    """Which method's maps the tests support most: the largest mean gain over random maps in
    hiding and in showing together. What the others do not see, it may."""
    gains = [
        record.of("random deletion", method)
        - record.of("deletion", method)
        + record.of("insertion", method)
        - record.of("random insertion", method)
        for method in record.methods
    ]
    means = [float(np.nanmean(gain)) if not np.isnan(gain).all() else -np.inf for gain in gains]
    return int(np.argmax(means))


def _crops(record: Explanations) -> Iterator[Finding]:
    """Whether the maps of a class always point at one and the same thing."""
    for index in np.unique(record.target).tolist():
        of_class = record.target == index
        if int(of_class.sum()) < ENOUGH:
            continue
        same, chance = sameness(record, of_class)
        count, method = int(of_class.sum()), record.methods[leading(record)]
        if same >= MOST and same * RARE > chance:
            yield Finding(
                "warn",
                f"“{_name(record, index)}”: in {same:.0%} of {count} pictures {method} points at "
                f"nearly the same patch (at random places of these pictures {chance:.0%} look "
                "like it). That is rather a tag, a logo or a border than the thing itself: look "
                "at the crops, and hide it.",
            )


def sameness(record: Explanations, chosen: Bool[np.ndarray, "pictures"]) -> tuple[float, float]:
    """By the leading method: the share of the pictures whose crop at the map's peak looks like the
    most typical of these crops, and the share of crops at random places that do."""
    lead = leading(record)
    peaks, others = (_middles(crops[chosen, lead]) for crops in (record.crops, record.elsewhere))
    apart = np.abs(peaks[:, None] - peaks[None]).mean(2)
    typical = int(np.median(apart, axis=1).argmin())
    chance = np.abs(others - peaks[typical]).mean(1)
    return float((apart[typical] < ALIKE).mean()), float((chance < ALIKE).mean())


def _middles(crops: UInt8[np.ndarray, "n s s 3"]) -> Float[np.ndarray, "n pixels"]:
    """The middle of each crop, coarse, from 0 to 1: small shifts must not count."""
    side = crops.shape[1]
    middle = crops[:, side // 3 : side - side // 3, side // 3 : side - side // 3]
    step = max(1, middle.shape[1] // 4)
    coarse = middle[:, : 4 * step, : 4 * step].reshape(len(crops), -1, step, 4, step, 3)
    found: Float[np.ndarray, "n pixels"] = coarse.mean((2, 4)).reshape(len(crops), -1) / 255
    return found


def _boxes(record: Explanations) -> Iterator[Finding]:
    boxed = ~np.isnan(record.boxed)
    if int(boxed.sum()) < ENOUGH:
        return
    quiet = boxed.copy()
    for index in np.unique(record.target[boxed]).tolist():
        chosen = boxed & (record.target == index)
        if int(chosen.sum()) >= ENOUGH:
            found = _inside(record, chosen, f"“{_name(record, index)}”")
            if found.level == "warn":
                quiet &= ~chosen
                yield found
    if quiet.any():
        yield _inside(record, quiet, "other classes" if quiet.sum() < boxed.sum() else "some class")


def _inside(record: Explanations, chosen: Bool[np.ndarray, "pictures"], name: str) -> Finding:
    method = record.methods[leading(record)]
    energy = record.of("energy inside", method)[chosen]
    mean, low, high = interval(energy)
    share = float(record.boxed[chosen].mean())
    turned = float((record.box_turned[chosen] != record.target[chosen]).mean())
    before, hidden, other = (
        float(values[chosen].mean())
        for values in (record.score, record.box_hidden, record.other_hidden)
    )
    decides = mean > 2 * share and before - hidden > 2 * (before - other) and turned > MOST
    words = (
        f"In the {int(chosen.sum())} pictures with boxes that are taken for {name}, {mean:.0%} of "
        f"what speaks for it (95 % interval {low:.0%} to {high:.0%}, {method}) lies in the boxes, "
        f"which cover {share:.0%} of the picture. Hiding the boxes lowers its probability from "
        f"{before:.0%} to {hidden:.0%} and changes the answer in {turned:.0%} of the pictures; "
        f"hiding as much elsewhere leaves {other:.0%}."
    )
    if not decides:
        return Finding("ok", words)
    return Finding(
        "warn",
        f"{words} The network decides by what is in the boxes. If they mark the thing itself, "
        "good; if they mark a tag, a watermark or a border, it has learned a shortcut.",
    )


def _supported(record: Explanations) -> Iterator[Finding]:
    """Which methods beat chance and the middle of the picture."""
    good: list[str] = []
    rest: list[str] = []
    for method in record.methods:
        gain = record.of("insertion", method) - record.of("random insertion", method)
        loss = record.of("random deletion", method) - record.of("deletion", method)
        blob = record.of("insertion", method) - record.of("blob insertion", method)
        if np.isnan(gain).all():
            continue
        beats = all(interval(values)[1] > 0 for values in (gain, loss))
        middle = interval(blob)[1] > 0
        (good if beats and middle else rest).append(method)
    count = len(record.pictures)
    if good:
        yield Finding(
            "ok",
            f"Over {count} pictures better than random maps at hiding and showing, and than the "
            f"middle of the picture at showing: {', '.join(good)}.",
        )
    if rest:
        yield Finding(
            "warn",
            f"Over {count} pictures not clearly better than random maps or the middle of the "
            f"picture: {', '.join(rest)}. Do not build on these maps for this network.",
        )


def _name(record: Explanations, index: int) -> str:
    names = record.classes
    return shortened(names[index] if index < len(names) else f"class {index}")
