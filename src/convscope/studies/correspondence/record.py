"""Does a network relate the same parts of different pictures to each other?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, UInt8

from convscope.core.record import Record

RANDOM = "random"
"""The name of the last kind of mask."""


@dataclass(frozen=True, eq=False)
class Correspondence(Record):
    """How far sign changes agree over pictures, when the same part is hidden in each and when
    random squares are. Kinds of mask are the parts, and last the random ones."""

    layers: tuple[str, ...]
    parts: tuple[str, ...]
    pictures: tuple[str, ...]
    pairs: Float64[np.ndarray, "layers parts pairs"]
    """Hamming distance over vector length for each two pictures, in the order (0, 1), (0, 2), …"""
    random_pairs: Float64[np.ndarray, "layers draws pairs"]
    """The same for each draw of one random mask a picture."""
    changed: Float64[np.ndarray, "layers kinds"]
    """Share of features that changed at all, mean over masks: a distance is small, too, where
    little changes."""
    relative: Float64[np.ndarray, "layers kinds"]
    """Mean over pairs of the distance over that of the same signs dealt out to the features anew:
    1 says that which features change is chance, whatever their number."""
    p: Float64[np.ndarray, "layers kinds"]
    """Permutation test of the distance: each part's, and last that of all parts together."""
    p_relative: Float64[np.ndarray, "layers kinds"]
    """The same of the relative distance."""
    seen: UInt8[np.ndarray, "pictures h w 3"]
    """The pictures as the network saw them."""
    corners: Int32[np.ndarray, "pictures masks 2"]
    """Row and column of each mask's first pixel: the parts', then the random draws'."""
    patch: int
    """Side of the masks in pixels of the network's input."""
    fill: tuple[int, ...]
    """Colour of the masks as drawn, 0 to 255."""

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*self.parts, RANDOM)

    @property
    def mean(self) -> Float64[np.ndarray, "layers kinds"]:
        """What table 1 prints: the mean over pairs; of random masks over all draws."""
        return np.column_stack([self.pairs.mean(2), self.random_pairs.mean((1, 2))])

    @property
    def spread(self) -> Float64[np.ndarray, "layers kinds"]:
        """What table 1 prints after ±: standard deviation over pairs (and draws)."""
        return np.column_stack([self.pairs.std(2), self.random_pairs.std((1, 2))])
