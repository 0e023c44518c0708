"""What is recorded along a training run: one row an epoch, one column a quantity?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8

from convscope.records.record import Record


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
