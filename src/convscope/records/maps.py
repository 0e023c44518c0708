"""Records of pictures: projections, attributions and their tests, occlusion, optimised ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, UInt8

from convscope.core.errors import UsageError
from convscope.core.record import Record


@dataclass(frozen=True, eq=False)
class Projection(Record):
    """What in the picture excited a unit, projected down to input pixels; signed and not scaled."""

    pixels: Float32[np.ndarray, "3 h w"]
    """In the units of the network's input (after preprocessing)."""
    unit: str
    value: float
    """The activation that was projected."""
    rewritten: int = 0
    """Number of rectifier calls that followed the backward rule …"""
    rectifiers: int = 0
    """… out of this many on the way from pixels to the unit."""


@dataclass(frozen=True, eq=False)
class Attribution(Record):
    """What in the picture speaks for (positive) or against the target; raw, not scaled.

    `origin` says what else decides the numbers: the model, how layer and target were chosen,
    epsilons, notes on what to be careful about.
    """

    values: Float[np.ndarray, "h w"]
    """At the picture's size, in float32; in float64 where the network computes so."""
    target: int
    """Class index; -1 where the target is a function of the scores."""
    raw: Float[np.ndarray, "rows columns"] | None = None
    """At the layer's own size, before it was enlarged; without one the same as `values`."""
    method: str = ""
    variant: str = ""
    layer: str = ""
    space: str = "logit"
    """What the target's score is: "logit", "probability" or "function"."""
    score: float = math.nan
    """The target's score for this picture."""
    pixels: Float[np.ndarray, "c height width"] | None = None
    """Of methods that give each colour of each pixel its own number: those, signed, in the units
    of the network's input; `values` is made of them. None for methods that give maps."""

    @property
    def peak(self) -> float:
        """The largest value before any enlarging or scaling."""
        return float((self.values if self.raw is None else self.raw).max())

    @property
    def positive(self) -> bool:
        """Whether anything speaks for the target. If not, say "no positive evidence for this
        target" and draw an empty map; scaling would make one up."""
        return self.peak > 0


@dataclass(frozen=True, eq=False)
class Occlusion(Record):
    """What happens when a square of the picture is hidden, for every position of the square."""

    probability: Float32[np.ndarray, "rows columns"]
    """Softmax probability of the target class with the square there."""
    likeliest: Int32[np.ndarray, "rows columns"]
    """Class index with the highest score with the square there."""
    activity: Float32[np.ndarray, "rows columns"]
    """Sum over positions of the strongest feature map of `layer`."""
    tops: Int32[np.ndarray, "rows"]
    lefts: Int32[np.ndarray, "columns"]
    """Top-left corners of the square in input pixels."""
    patch: int
    """Side of the square in input pixels; the height where it is no square."""
    target: int
    base_probability: float
    base_activity: float
    layer: str
    channel: int
    """The feature map of `layer` with the largest sum of activations in the whole picture."""
    width: int = 0
    """Width of the rectangle in input pixels; 0: a square."""
    score: Float32[np.ndarray, "rows columns"] | None = None
    """Score of the target class before the softmax, with the square there."""
    base_score: float = math.nan
    probabilities: Float32[np.ndarray, "rows columns classes"] | None = None
    """Of all classes, where they were asked for."""

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of what is hidden."""
        return self.patch, self.width or self.patch


def lowest(values: Float32[np.ndarray, "rows columns"]) -> tuple[int, int]:
    """Row and column of the least value; the first of equals."""
    row, column = np.unravel_index(int(np.nanargmin(values)), values.shape)
    return int(row), int(column)


@dataclass(frozen=True, eq=False)
class OcclusionExample:
    """One picture explained by occlusion, with all that a page or a printed figure shows of it."""

    picture: UInt8[np.ndarray, "h w 3"]
    """As the network saw it; the square's corners are in these pixels."""
    name: str
    """Display name, e.g. roses/123.jpg."""
    label: int
    """True class as an index into `classes`, -1 if unknown."""
    classes: tuple[str, ...]
    """The network's class names; empty if unknown."""
    occlusion: Occlusion
    projection: Projection | None = None
    """Of the strongest activation of `occlusion.layer:channel` in this picture."""
    fill: int = 128
    """Grey value of the square, 0 to 255, as drawn."""


@dataclass(frozen=True, eq=False)
class Faithfulness(Record):
    """One map of one picture, put to the test by hiding and showing parts of the picture.

    Scores are the target's probabilities; those of the target itself where it is a function of
    the scores.
    """

    method: str
    target: int
    """Class index; -1 where the target is a function of the scores."""
    score: float
    """Of the whole picture."""
    share: Float32[np.ndarray, "steps"]
    """Part of the picture's pixels that are hidden, or shown: 0 to 1."""
    deletion: Float32[np.ndarray, "steps"]
    """Score with that share hidden, what the map marks first."""
    insertion: Float32[np.ndarray, "steps"]
    """Score of a blurred picture with that share shown sharp, what the map marks first."""
    random_deletion: Float32[np.ndarray, "maps steps"]
    random_insertion: Float32[np.ndarray, "maps steps"]
    """The same for random maps of the same grain …"""
    blob_deletion: Float32[np.ndarray, "steps"]
    blob_insertion: Float32[np.ndarray, "steps"]
    """… and for a round blob in the middle of the picture."""
    drop: float
    """Part of the score that is lost if only what the map lights up is seen: 0 to 1. NaN where
    there was none to lose: a function of the scores that is 0 or below."""
    increase: bool
    """Whether the score is higher then."""
    road_share: Float32[np.ndarray, "shares"]
    road_most: Float32[np.ndarray, "shares"]
    """Score with that share imputed from its surroundings, what the map marks first …"""
    road_least: Float32[np.ndarray, "shares"]
    """… and what it marks last. Empty where ROAD was not asked for."""

    @classmethod
    def unknown(cls, method: str, target: int) -> Self:
        """What is told of a map that could not be tested: NaN everywhere."""
        nothing, share = np.full(2, np.nan, np.float32), np.array([0, 1], np.float32)
        empty = np.empty(0, np.float32)
        return cls(
            *(method, target, math.nan, share, nothing, nothing),
            *(nothing[None], nothing[None], nothing, nothing, math.nan, False),
            *(empty, empty, empty),
        )

    @property
    def is_known(self) -> bool:
        """Whether it was tested."""
        return not math.isnan(self.score)

    @property
    def deletion_area(self) -> float:
        """Mean score while hiding; the lower, the better the map finds what is used."""
        return area(self.deletion, self.share)

    @property
    def insertion_area(self) -> float:
        """Mean score while showing; the higher, the better the map finds what is enough."""
        return area(self.insertion, self.share)

    @property
    def random_deletion_areas(self) -> tuple[float, ...]:
        return tuple(area(curve, self.share) for curve in self.random_deletion)

    @property
    def random_insertion_areas(self) -> tuple[float, ...]:
        return tuple(area(curve, self.share) for curve in self.random_insertion)

    @property
    def road(self) -> float:
        """Half of how much more is lost with what the map marks first than with what it marks
        last, mean over the shares: the higher the better, 0 for a map that knows nothing."""
        if not len(self.road_share):
            return float("nan")
        return float((self.road_least - self.road_most).mean() / 2)


@dataclass(frozen=True, eq=False)
class Randomisation(Record):
    """Does a map change when the network forgets what it learned, layer by layer from the top?"""

    method: str
    layers: tuple[str, ...]
    """Down to which layer, this one too, weights are random."""
    spearman: Float32[np.ndarray, "steps"]
    """Rank correlation with the trained network's map; near 0 means that the map depends on what
    was learned. NaN where a map is flat."""
    spearman_absolute: Float32[np.ndarray, "steps"]
    """The same of the absolute values."""
    ssim: Float32[np.ndarray, "steps"]
    """Structural similarity of both maps, each scaled to [0, 1]."""


@dataclass(frozen=True, eq=False)
class Sensitivity(Record):
    """Does a map of one class differ from a map of another one?"""

    method: str
    first: int
    second: int
    """Class indices: the likeliest and the second likeliest, or as told."""
    spearman: float
    """Rank correlation of the two maps; near 1 means that the map says nothing of the class. NaN
    where a map is flat."""
    overlap: float
    """Of the tenth of the picture that each marks most: what they share, over what they cover."""


@dataclass(frozen=True, eq=False)
class Agreement(Record):
    """Do several methods mark the same places of one picture?"""

    methods: tuple[str, ...]
    spearman: Float32[np.ndarray, "methods methods"]
    """Rank correlation of the maps averaged over cells; NaN where a map is flat."""


def area(curve: Float32[np.ndarray, "steps"], share: Float32[np.ndarray, "steps"]) -> float:
    """Under the curve, by trapezia."""
    return float(np.trapezoid(curve, share))


class Interval(NamedTuple):
    """A mean over pictures, and between what it would lie with other pictures of their kind."""

    mean: float
    low: float
    high: float


def interval(
    values: Sequence[float] | Float[np.ndarray, "pictures"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of one number a picture, and its confidence interval: pictures are drawn again and
    again with replacement, and the middle `level` of these draws' means is given.

    NaN are left out; `left_out` counts them. The limits are NaN with fewer than two numbers, all
    three with none. With less than about ten pictures the interval is too narrow. Raises
    UsageError U391 on a level outside of 0 to 1, or no resamples.
    Source: Efron 1979, "Bootstrap Methods" (percentile interval).
    """
    if not 0 < level < 1 or resamples < 1:
        what = f"no interval at level {level} of {resamples} resamples"
        step = "give a level between 0 and 1, and at least 1 resample"
        raise UsageError("U391", "", what, next_step=step)
    numbers = np.asarray(values, np.float64).ravel()
    numbers = numbers[~np.isnan(numbers)]
    mean = float(numbers.mean()) if len(numbers) else math.nan
    if len(numbers) < 2:
        return Interval(mean, math.nan, math.nan)
    chance = np.random.default_rng(seed)
    draws = (numbers[chance.integers(len(numbers), size=len(numbers))] for _ in range(resamples))
    means = np.fromiter((draw.mean() for draw in draws), np.float64, resamples)
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2)).tolist()
    return Interval(mean, low, high)


def left_out(values: Sequence[float] | Float[np.ndarray, "pictures"]) -> int:
    """How many of the numbers are NaN, so that `interval` cannot use them."""
    return int(np.isnan(np.asarray(values, np.float64)).sum())


Kind = Literal["unit", "class", "inversion", "dream"]


def _none() -> np.ndarray:
    return np.zeros(0, np.float32)


@dataclass(frozen=True, eq=False)
class OptimisedPicture(Record):
    """A picture made for a network. `origin` has the settings that decide the numbers."""

    pixels: Float[np.ndarray, "c h w"]
    """In the units of the network's input."""
    kind: Kind
    subject: str
    """The unit, class or layer."""
    value: float
    """Of the finished picture: the unit's activation, the class's score, the relative error of
    the layer's output ‖Φ − Φ0‖² / ‖Φ0‖², or ½ ‖Φ‖²."""
    values: Float64[np.ndarray, "steps"] = field(default_factory=lambda: np.zeros(0))
    """The same before each step, of the picture as the network saw it then (moved by jitter)."""
    objective: Float64[np.ndarray, "steps"] = field(default_factory=lambda: np.zeros(0))
    """What each step made larger: the value (an error: its negative) less the penalties."""
    asked: int = 0
    """Steps that were asked for."""
    natural: float = math.nan
    """The value of the best natural picture that the caller knows, for comparison."""
    black: Float[np.ndarray, "..."] = field(default_factory=_none)
    white: Float[np.ndarray, "..."] = field(default_factory=_none)
    """What black and white are in the units of the network's input; empty if unknown."""
    original: Float[np.ndarray, "c h w"] | None = None
    """The photograph that was inverted, or that the dream began with."""

    @property
    def stopped(self) -> bool:
        """Whether it was stopped before all its steps were done."""
        return len(self.values) < self.asked
