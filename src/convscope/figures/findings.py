"""What do many explained pictures say about the network, in words that a newcomer understands?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from convscope.figures.plots import shortened
from convscope.records.explanation import Explanations
from convscope.records.faithfulness import interval

ENOUGH = 5
"""Pictures of a class below which nothing is said of it."""
ALIKE = 0.1
"""Mean difference of two crops' middles, of the full range, below which they show the same."""
MOST = 0.5
"""Share of a class's pictures that must show the same at the peak …"""
RARE = 0.3
"""… and at most this share of it at random places."""


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


def _crops(record: Explanations) -> Iterator[Finding]:
    """Whether the maps of a class always point at one and the same thing."""
    for index in np.unique(record.target).tolist():
        of_class = record.target == index
        if int(of_class.sum()) < ENOUGH:
            continue
        same, chance = sameness(record, of_class)
        if same >= MOST and same * RARE > chance:
            yield Finding(
                "warn",
                f"“{_name(record, index)}”: in {same:.0%} of {int(of_class.sum())} pictures "
                f"{record.methods[0]} points at nearly the same patch (at random places of these "
                f"pictures {chance:.0%} look like it). That is rather a tag, a logo or a border "
                "than the thing itself: look at the crops, and hide it.",
            )


def sameness(record: Explanations, chosen: Bool[np.ndarray, "pictures"]) -> tuple[float, float]:
    """By the first method: the share of the pictures whose crop at the map's peak looks like the
    most typical of these crops, and the share of crops at random places that do."""
    peaks, others = (_middles(crops[chosen, 0]) for crops in (record.crops, record.elsewhere))
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
    for index in np.unique(record.target[boxed]).tolist():
        chosen = boxed & (record.target == index)
        if int(chosen.sum()) >= ENOUGH:
            yield Finding(*_inside(record, chosen, _name(record, index)))


def _inside(
    record: Explanations, chosen: Bool[np.ndarray, "pictures"], name: str
) -> tuple[str, str]:
    method = record.methods[0]
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
        f"“{name}”: in the {int(chosen.sum())} pictures with boxes, {mean:.0%} of what speaks for "
        f"it (95 % interval {low:.0%} to {high:.0%}, {method}) lies in the boxes, which cover "
        f"{share:.0%} of the picture. Hiding the boxes lowers its probability from {before:.0%} to "
        f"{hidden:.0%} and changes the answer in {turned:.0%} of the pictures; hiding as much "
        f"elsewhere leaves {other:.0%}."
    )
    if not decides:
        return "ok", words
    return "warn", (
        f"{words} The network decides by what is in the boxes. If they mark the thing itself, "
        "good; if they mark a tag, a watermark or a border, it has learned a shortcut."
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
