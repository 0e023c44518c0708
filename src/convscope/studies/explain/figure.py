"""Why this class: the picture and its maps side by side, verdicts of the tests in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from convscope.drawing.tiles import INK, SOFT, TRAINING, VALIDATION, drawn, dress, legend, shortened
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
