"""Records of predictions and evaluations; series over epochs: metrics, evolution, convergence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

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


ALIKE = 0.9
"""Cosine from which two projections count as alike: four fifths of their energy are shared."""


@dataclass(frozen=True, eq=False)
class Series(Record):
    """Quantities over epochs."""

    columns: tuple[str, ...]
    """E.g. train_loss, train_accuracy, val_loss, val_accuracy, learning_rate, seconds."""
    epochs: Int64[np.ndarray, "epochs"]
    values: Float64[np.ndarray, "epochs columns"]


@dataclass(frozen=True, eq=False)
class Evolution(Record):
    """How chosen feature maps formed: each one's strongest activation at recorded epochs."""

    units: tuple[str, ...]
    """Feature maps as `conv5:41`."""
    epochs: Int64[np.ndarray, "epochs"]
    value: Float32[np.ndarray, "units epochs"]
    image: Int64[np.ndarray, "units epochs"]
    """Number of the picture with the strongest activation; a change is a jump."""
    row: Int32[np.ndarray, "units epochs"]
    column: Int32[np.ndarray, "units epochs"]
    patches: UInt8[np.ndarray, "units epochs s s 3"]
    """The receptive field's part of the picture, at display size."""
    projections: UInt8[np.ndarray, "units epochs s s 3"]
    low: Float32[np.ndarray, "units"]
    high: Float32[np.ndarray, "units"]
    """A projection pixel v means low + v / 255 · (high - low), jointly over a unit's epochs."""


@dataclass(frozen=True, eq=False)
class Convergence(Record):
    """From which epoch on does each feature map stay as it is at the last one?

    Rows of `image` and `responses` are all feature maps, layer after layer;
    `starts[i]:starts[i + 1]` are those of `layers[i]`. Curves have the mean over a layer's maps
    and its 95 % interval.
    """

    layers: tuple[str, ...]
    starts: Int64[np.ndarray, "layers+1"]
    epochs: Int64[np.ndarray, "epochs"]
    """Recorded ones, ascending."""
    image: Int64[np.ndarray, "maps epochs"]
    """Number of the picture with the strongest activation; -1: none."""
    responses: Float32[np.ndarray, "maps epochs"]
    """Rank correlation of the map's responses at fixed places of fixed pictures with those at the
    last epoch; NaN for a map that responds the same everywhere at the last epoch."""
    units: tuple[str, ...]
    """The feature maps that were projected, as `conv5:41`."""
    projection: Float32[np.ndarray, "units epochs"]
    """Cosine of the strongest activation's projection, cut at its receptive field, with that at
    the last epoch, whether or not it is of the same picture; 0 where one is silent, NaN for a map
    that is silent at the last epoch."""
    responses_curve: Float64[np.ndarray, "layers epochs 3"]
    same_curve: Float64[np.ndarray, "layers epochs 3"]
    """Share of the maps whose strongest picture is already that of the last epoch."""
    projection_curve: Float64[np.ndarray, "layers epochs 3"]
    """Of the maps that were projected; NaN where a layer has none."""
    arrived: Float64[np.ndarray, "layers 3"]
    """First recorded epoch from which the layer's mean response has come 90 % of the way from the
    first recorded epoch to the last, for good; and its 95 % interval."""
    centre: Float64[np.ndarray, "layers 3"]
    """The epoch around which that way was gone: epochs weighted by the share of it gone there."""
    samples: int
    """Places at which responses were compared."""

    @property
    def jumps(self) -> Bool[np.ndarray, "maps epochs-1"]:
        """Did another picture become the strongest since the epoch recorded before?"""
        jumps: Bool[np.ndarray, "maps epochs-1"] = self.image[:, 1:] != self.image[:, :-1]
        return jumps

    @property
    def settled_image(self) -> Int64[np.ndarray, "maps"]:
        """First recorded epoch from which the map's strongest picture is that of the last."""
        return self._for_good(self.image == self.image[:, -1:])

    @property
    def settled_projection(self) -> Int64[np.ndarray, "units"]:
        """First recorded epoch from which the projection's cosine with the last stays 0.9."""
        return self._for_good(self.projection >= ALIKE)

    def maps(self, layer: int) -> slice:
        """The rows of the layer of this number."""
        return slice(int(self.starts[layer]), int(self.starts[layer + 1]))

    def followed(self, layer: int) -> Int64[np.ndarray, "followed"]:
        """Places in `units` of the maps of the layer of this number."""
        of = [unit.rpartition(":")[0] == self.layers[layer] for unit in self.units]
        return np.flatnonzero(of).astype(np.int64)

    def _for_good(self, holds: Bool[np.ndarray, "n epochs"]) -> Int64[np.ndarray, "n"]:
        later = np.ones((len(holds), 1), bool)  # at the last epoch it is what it is
        ever_after = np.logical_and.accumulate(np.hstack([later, holds[:, -2::-1]]), axis=1)
        first: Int64[np.ndarray, "n"] = self.epochs[len(self.epochs) - ever_after.sum(axis=1)]
        return first
