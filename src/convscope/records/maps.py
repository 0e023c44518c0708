"""Results of one picture: projections, attributions, occlusion maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int32, UInt8

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
