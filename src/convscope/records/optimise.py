"""Feature visualisation: pictures changed until a network answers more strongly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64

from convscope.core.record import Record

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
