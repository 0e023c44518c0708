"""What do the tests of a map say, in words that a newcomer understands?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8

from convscope.drawing.style import shortened
from convscope.records.maps import Faithfulness, area, interval
from convscope.studies.explain.record import Explanation, Explanations

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
    result = [*_crops(record), *_boxes(record), *_supported(record)]
    return sorted(result, key=lambda one: one.level != "warn")


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
    result: Float[np.ndarray, "n pixels"] = coarse.mean((2, 4)).reshape(len(crops), -1) / 255
    return result


def _boxes(record: Explanations) -> Iterator[Finding]:
    boxed = ~np.isnan(record.boxed)
    if int(boxed.sum()) < ENOUGH:
        return
    quiet = boxed.copy()
    for index in np.unique(record.target[boxed]).tolist():
        chosen = boxed & (record.target == index)
        if int(chosen.sum()) >= ENOUGH:
            result = _inside(record, chosen, f"“{_name(record, index)}”")
            if result.level == "warn":
                quiet &= ~chosen
                yield result
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


Level = Literal["good", "fair", "poor", "none"]
SAME = 0.5
"""Rank correlation with the map of a random network above which a map is called unchanged."""
BLIND = 0.95
"""Rank correlation with another class's map above which the two are called the same."""
GAP = 0.01
"""By how much of the picture's probability an area must be better than another's: a network that
stays sure whatever is hidden would let chance decide."""
FAINT = 0.01
"""Probability below which there is hardly anything to explain."""

TITLES = {"none": "no evidence", "poor": "not supported", "fair": "in part", "good": "supported"}
"""Of the levels, as pages and figures print them."""

LAYER = (
    "It shows one layer's coarse grid, enlarged; not finer detail, and not what would happen "
    "without these places."
)
PIXELS = "It shows what small changes of pixels would do; not what the network needs, nor objects."
EDGES = (
    "It recovers edges of the picture whatever the class; read it as what rectifiers let pass, "
    "not as a reason."
)
LIMITS = {
    "scorecam": "It shows what is enough when all else is dark; a darkened picture is unusual to "
    "the network.",
    "eigencam": "It shows what the layer responds to most, whatever the class.",
    "eigengradcam": "It shows the main pattern of gradient times activation; no paper backs it.",
    "fullgrad": "It adds up sizes without signs: places against the class shine too.",
    "saliency": PIXELS,
    "smoothgrad": PIXELS,
    "gradient-x-input": "It shows a first-order share of the score; dark pixels get none.",
    "integrated-gradients": "It shares out the score against a grey picture; another baseline "
    "gives another map.",
    "guided-backprop": EDGES,
    "deconvnet": EDGES,
    "guided-gradcam": "It is guided backpropagation cut out by Grad-CAM; its fine detail is that "
    "of edges.",
    "occlusion": "It shows what hiding one square does; evidence that stands twice goes unseen.",
}
"""What a method does not show, where that is not what is true of every map of a layer."""


@dataclass(frozen=True)
class Verdict:
    """How far one map of one picture may be believed, and why."""

    level: Level
    headline: str
    reasons: tuple[str, ...]
    limit: str


def verdict(result: Explanation, number: int) -> Verdict:
    """Of the map at this place of the explanation."""
    name, seen, test = result.methods[number], result.maps[number], result.tests[number]
    is_own = ":" in name or seen.variant == "own"
    limit = LIMITS.get(name, "" if is_own else LAYER)
    target = shortened(result.target_name)
    if not seen.positive:
        return Verdict("none", f"No positive evidence for “{target}”.", (), limit)
    if not test.is_known:
        return Verdict(
            "poor", "Nothing tells whether it is right: it could not be tested.", (), limit
        )
    level, headline = _supported_verdicts(test)
    again, other = _unchanged(result, number), _blind(result, number)
    if level == "good" and (again or other):
        level, headline = "fair", SAME_ANYWAY if again else SAME_CLASS
    told = (_measured(test), again, other)
    return Verdict(level, headline, tuple(reason for reason in told if reason), limit)


SAME_ANYWAY = "It does well here, but a network that learned nothing gives much the same map."
SAME_CLASS = "It marks what the network uses here, but would mark the same for another class."


def _supported_verdicts(test: Faithfulness) -> tuple[Level, str]:
    gap = GAP * abs(test.score)
    hides = _below(test.deletion_area, test.random_deletion_areas, gap)
    shows = _above(test.insertion_area, test.random_insertion_areas, gap)
    blob_hides = _below(test.deletion_area, [area(test.blob_deletion, test.share)], gap)
    blob_shows = _above(test.insertion_area, [area(test.blob_insertion, test.share)], gap)
    if not hides and not shows:
        return "poor", "No better than chance here: do not rely on it."
    if hides and shows and blob_hides and blob_shows:
        return "good", "It marks what the network uses here."
    if hides and shows:
        return "fair", "It beats chance, but the middle of the picture does as well."
    if hides:
        return "fair", "Hiding what it marks hurts, but showing it alone is not enough."
    return "fair", "Showing what it marks is enough, but hiding it hurts no more than chance."


def _below(value: float, others: Sequence[float], gap: float) -> bool:
    return all(value < other - gap for other in others)


def _above(value: float, others: Sequence[float], gap: float) -> bool:
    return all(value > other + gap for other in others)


def _measured(test: Faithfulness) -> str:
    return (
        f"Mean probability while hiding what it marks first {test.deletion_area:.2f} "
        f"(random maps {_span(test.random_deletion_areas)}, "
        f"blob {area(test.blob_deletion, test.share):.2f}; lower is better), "
        f"while showing it first {test.insertion_area:.2f} "
        f"(random {_span(test.random_insertion_areas)}, "
        f"blob {area(test.blob_insertion, test.share):.2f}; higher is better)."
    )


def _span(values: tuple[float, ...]) -> str:
    if not values:
        return "none"
    low, high = min(values), max(values)
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def _unchanged(result: Explanation, number: int) -> str | None:
    """Said only where the map of a random network is much the same."""
    if number >= len(result.randomised):
        return None
    alike = float(result.randomised[number].spearman_absolute[-1])
    if math.isnan(alike) or alike < SAME:
        return None
    return (
        f"With random weights it draws much the same map (rank correlation {alike:.2f}): it "
        "follows the picture, not what was learned."
    )


def _blind(result: Explanation, number: int) -> str | None:
    if number >= len(result.sensitive):
        return None
    other = result.sensitive[number]
    if math.isnan(other.spearman) or other.spearman < BLIND:
        return None
    return (
        f"For “{_class(result, other.second)}” it draws nearly the same map (rank correlation "
        f"{other.spearman:.2f}): it does not tell the two classes apart."
    )


def _class(result: Explanation, index: int) -> str:
    known = dict(zip(result.prediction.classes.tolist(), result.prediction.names, strict=True))
    return shortened(known.get(index, f"class {index}"))


def _rival(result: Explanation) -> str:
    """The likeliest other class, and whether it is the network's answer."""
    seen = result.prediction
    rivals = [place for place, index in enumerate(seen.classes.tolist()) if index != result.target]
    if not rivals:
        return ""
    role = "the runner-up is" if rivals[0] else "its answer is"
    return f"; {role} “{shortened(seen.names[rivals[0]])}”, {seen.probability[rivals[0]]:.1%}"


def summary(result: Explanation) -> str:
    """The whole explanation in one or two sentences."""
    first = (
        f"“{shortened(result.target_name)}”, {result.score:.1%}"
        + (f" (true: “{shortened(result.label)}”)" if result.label else "")
        + _rival(result)
        + "."
    )
    if result.score < FAINT and result.target != int(result.prediction.classes[0]):
        first += " The network all but rules it out, so that there is little to explain."
    verdicts = [verdict(result, number) for number in range(len(result.methods))]
    backed = [n for n, one in zip(result.methods, verdicts, strict=True) if one.level == "good"]
    if not backed:
        return f"{first} None of these maps is well supported by the tests on this picture."
    if len(backed) == len(verdicts):
        return f"{first} Every map is supported by the tests on this picture."
    return f"{first} Supported by the tests on this picture: {', '.join(backed)}."
