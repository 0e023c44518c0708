"""How far do a network's features and its answer stay the same while a picture moves?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from convscope.core.record import Record


@dataclass(frozen=True, eq=False)
class Invariance(Record):
    """Distances to the untransformed picture, and a class's probability, at every step.

    Steps of all changes stand in one row after each other; `at` picks out those of one.
    """

    changes: tuple[str, ...]
    """vertical, horizontal, scale, rotation."""
    units: tuple[str, ...]
    """Of each change's amounts."""
    change: Int32[np.ndarray, "steps"]
    """Number of the change that a step belongs to."""
    amount: Float64[np.ndarray, "steps"]
    layers: tuple[str, ...]
    """From low to high."""
    pictures: tuple[str, ...]
    target: Int64[np.ndarray, "pictures"]
    """Class whose probability is followed: the true one where it is known …"""
    known: Bool[np.ndarray, "pictures"]
    """… else the likeliest of the untransformed picture."""
    names: tuple[str, ...]
    """Of these classes."""
    distance: Float64[np.ndarray, "pictures layers steps"]
    """Euclidean, between the feature vectors as they are."""
    normalised: Float64[np.ndarray, "pictures layers steps"]
    """Between the vectors at length 1: 0 to 2, and to √2 where no feature is negative."""
    probability: Float32[np.ndarray, "pictures steps"]
    likeliest: Int32[np.ndarray, "pictures steps"]
    base_probability: Float32[np.ndarray, "pictures"]
    """Of the untransformed picture."""
    base_likeliest: Int32[np.ndarray, "pictures"]
    filled: Float32[np.ndarray, "pictures steps"]
    """Share of what the network saw that is border, not picture."""
    border: str
    """In words: what is shown where the picture ends."""
    examples: UInt8[np.ndarray, "shown changes 3 s s 3"]
    """Of the first pictures: each change's first, middle and last step."""

    def at(self, change: int) -> Int64[np.ndarray, "its_steps"]:
        """Numbers of a change's steps, in the order of their amounts."""
        steps = np.nonzero(self.change == change)[0]
        return steps[np.argsort(self.amount[steps], kind="stable")]

    def area(
        self, values: Float64[np.ndarray, "*rest steps"], change: int
    ) -> Float64[np.ndarray, "*rest"]:
        """Mean of a curve over a change's range, by trapezia: a number with which networks can
        be compared as long as ranges and borders are the same."""
        steps = self.at(change)
        amounts = self.amount[steps]
        if amounts[0] == amounts[-1]:
            return np.asarray(values[..., steps].mean(-1), np.float64)
        result = np.trapezoid(values[..., steps], amounts, axis=-1) / (amounts[-1] - amounts[0])
        return np.asarray(result, np.float64)

    def kept(self, change: int) -> Float64[np.ndarray, "pictures"]:
        """Share of a change's steps at which the likeliest class is still the same."""
        same = self.likeliest[:, self.at(change)] == self.base_likeliest[:, None]
        return np.asarray(same.mean(1), np.float64)
