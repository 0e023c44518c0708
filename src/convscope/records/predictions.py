"""Predictions and evaluations, and the error rates of Zeiler and Fergus 2014, table 2, beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from convscope.core.record import Record

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


TABLE2: tuple[tuple[str, float | None, float | None, float | None], ...] = (
    ("Gunji et al. 2012", None, None, 26.2),
    ("DeCAF (Donahue et al. 2013)", None, None, 19.2),
    ("Krizhevsky et al. 2012, 1 net", 40.7, 18.2, None),
    ("Krizhevsky et al. 2012, 5 nets", 38.1, 16.4, 16.4),
    ("Krizhevsky et al. 2012, 1 net, ImageNet 2011 too", 39.0, 16.6, None),
    ("Krizhevsky et al. 2012, 7 nets, ImageNet 2011 too", 36.7, 15.4, 15.3),
    ("paper, Krizhevsky's net rebuilt, 1 net", 40.5, 18.1, None),
    ("paper, 1 net (figure 3)", 38.4, 16.5, None),
    ("paper, 5 nets (figure 3) (a)", 36.7, 15.3, 15.3),
    ("paper, 1 net, layers 3-5 of 512-1024-512 maps (b)", 37.5, 16.0, 16.1),
    ("paper, 6 nets, (a) and (b)", 36.0, 14.7, 14.8),
    ("Howard 2013", None, None, 13.5),
    ("Clarifai, ILSVRC 2013", None, None, 11.7),
)
"""Network, then errors in % on ImageNet 2012: validation top-1 and top-5, test top-5.
Source: Zeiler and Fergus 2014, table 2 (ECCV table 1)."""


def table2(result: Evaluation) -> list[str]:
    """The paper's table with our rows below, in Markdown; ± is half of a 95 % interval."""
    lines = ["| error in % | val top-1 | val top-5 | test top-5 |", "|---|---|---|---|"]
    for name, *errors in TABLE2:
        lines.append(_row(name, ["" if error is None else f"{error:.1f}" for error in errors]))
    many = f"{len(result.labels):,} pictures, {result.views} view{'s' * (result.views > 1)}"
    for name, top1, top5 in result.members:
        lines.append(
            _row(f"ours, {name}", [f"{100 - 100 * top1:.1f}", f"{100 - 100 * top5:.1f}", ""])
        )
    which = (
        f"mean of {len(result.members)} nets" if result.members else str(result.origin.get("model"))
    )
    ours = [_error(result.error1), _error(result.error5), ""]
    return [*lines, _row(f"**ours, {which}, {many}**", ours)]


def _error(error: Share) -> str:
    return f"**{100 * error.part:.1f}** ({100 * error.low:.1f}–{100 * error.high:.1f})"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"
