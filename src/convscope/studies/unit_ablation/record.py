"""Which feature maps matter: what does the network lose when one of them is taken away?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from convscope.core.record import Record

ROUNDING = 1e-6
"""Rises below this are single precision's own."""


@dataclass(frozen=True, eq=False)
class Silence(Record):
    """Accuracy and loss on a labelled folder without each map of one or several layers.

    Arrays over all maps hold the layers' maps one after the other.
    """

    layers: tuple[str, ...]
    of: Int64[np.ndarray, "all_maps"]
    """Number of the layer in `layers`."""
    map: Int64[np.ndarray, "all_maps"]
    """Number of the map in its layer."""
    fill: str
    """"zero", or "mean": its mean over pictures and places."""
    level: Float64[np.ndarray, "all_maps"]
    """What the map was set to."""
    accuracy: Float64[np.ndarray, "all_maps"]
    """Top-1 without the map, 0 to 1."""
    lost: Int64[np.ndarray, "all_maps"]
    """Pictures that are right with the map and wrong without."""
    gained: Int64[np.ndarray, "all_maps"]
    """The other way round."""
    p: Float64[np.ndarray, "all_maps"]
    """Of an exact two-sided sign test on these (McNemar's), for this map alone."""
    rise: Float64[np.ndarray, "all_maps"]
    """By how much the mean −ln p(true class) rises; negative where it falls."""
    noise: Float64[np.ndarray, "all_maps"]
    """Standard error of `rise`, for pictures drawn at random."""
    probability: Float64[np.ndarray, "all_maps"]
    """Mean p(true class) without the map."""
    by_class: Float64[np.ndarray, "all_maps classes"]
    """`rise` on each class's pictures alone."""
    changed: Int64[np.ndarray, "all_maps"]
    """Pictures in which the map was not silent (or at its mean) anyway."""
    classes: tuple[str, ...]
    """Those that the pictures have."""
    counts: Int64[np.ndarray, "classes"]
    """Pictures of each."""
    base_accuracy: float
    """With all maps."""
    base_loss: float
    base_probability: float

    @property
    def pictures(self) -> int:
        return int(self.counts.sum())

    def own(self, layer: int) -> Int64[np.ndarray, "maps"]:
        """Where a layer's maps are in the arrays; those that matter most come first."""
        places = np.flatnonzero(self.of == layer)
        return places[np.argsort(-self.rise[places], kind="stable")]

    def beyond_chance(self, layer: int) -> Int64[np.ndarray, "some_maps"]:
        """Those of a layer whose `rise` is above 0 by more than chance makes of as many maps.

        That is by more than √(2 ln maps) standard errors, at about which the largest of so many
        draws of pure noise lies.
        """
        places = self.own(layer)
        limit = np.sqrt(2 * np.log(max(2, len(places))))
        above = self.rise[places] > np.maximum(limit * self.noise[places], ROUNDING)
        return np.asarray(places[above], np.int64)
