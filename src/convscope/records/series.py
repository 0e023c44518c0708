"""Series over epochs of a training: metrics, evolution of features, convergence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from convscope.core.record import Record

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
