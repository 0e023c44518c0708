"""Predictions and evaluations: likeliest classes, top-1 and top-5, confusion matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from convscope.records.record import Record

Z = 1.959963984540054
"""Standard deviations that hold 95 % of a normal distribution."""


class Share(NamedTuple):
    """A part of some pictures, and between what it would lie with other pictures of their kind."""

    part: float
    low: float
    high: float


def share(hits: int, many: int) -> Share:
    """hits of many, with the 95 % interval of a binomial share; NaN of none.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not many:
        return Share(math.nan, math.nan, math.nan)
    part, wide = hits / many, Z**2 / many
    middle = (part + wide / 2) / (1 + wide)
    reach = Z * math.sqrt(part * (1 - part) / many + wide / (4 * many)) / (1 + wide)
    return Share(part, max(0.0, middle - reach), min(1.0, middle + reach))


@dataclass(frozen=True, eq=False)
class Prediction(Record):
    """The likeliest classes of one picture, the likeliest first."""

    picture: str
    """Name of the picture."""
    names: tuple[str, ...]
    """Of the classes; their numbers as text where the network has no names."""
    classes: Int64[np.ndarray, "top"]
    """Class indices, counted as the network counts them."""
    probability: Float32[np.ndarray, "top"]
    """Averaged over the views."""
    views: int = 1


@dataclass(frozen=True, eq=False)
class Evaluation(Record):
    """How often a network is right on pictures with known classes."""

    top1: float
    """Part of the pictures whose class is the likeliest, 0 to 1."""
    top5: float
    """Part of the pictures whose class is among the five likeliest (or all there are)."""
    names: tuple[str, ...]
    """Of the classes; their numbers as text where the network has no names."""
    pictures: tuple[str, ...]
    """Names of the pictures that were used."""
    numbers: Int64[np.ndarray, "pictures"]
    """Numbers of these pictures in their folder."""
    labels: Int64[np.ndarray, "pictures"]
    """True class indices, counted as the network counts them."""
    likeliest: Int64[np.ndarray, "pictures top"]
    """The five likeliest classes, the likeliest first."""
    probability: Float32[np.ndarray, "pictures top"]
    """Averaged over the views."""
    confusion: Int64[np.ndarray, "classes classes"]
    """Pictures of true class (row) taken for class (column)."""
    views: int = 1
    skipped: int = 0
    """Pictures that could not be used or have no class; they count neither as right nor as
    wrong."""
    members: tuple[tuple[str, float, float], ...] = ()
    """Of an ensemble: each network with the top-1 and top-5 that it has alone."""

    @property
    def error1(self) -> Share:
        """Top-1 error with its interval."""
        return share(len(self.labels) - round(self.top1 * len(self.labels)), len(self.labels))

    @property
    def error5(self) -> Share:
        """Top-5 error with its interval."""
        return share(len(self.labels) - round(self.top5 * len(self.labels)), len(self.labels))

    @property
    def per_class(self) -> Float32[np.ndarray, "classes"]:
        """Part of each class's pictures that are right; NaN where a class has none."""
        total = self.confusion.sum(1)
        right = np.diagonal(self.confusion)
        return np.where(total > 0, right / np.maximum(total, 1), np.nan).astype(np.float32)
