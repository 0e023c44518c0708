"""Tests of attributions: deletion, insertion, ROAD, randomisation, class sensitivity, agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Float, Float32

from convscope.core.errors import UsageError
from convscope.core.record import Record


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
