"""How often does each method point at the thing that somebody has marked?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from convscope.core.record import Record


@dataclass(frozen=True, eq=False)
class PointingGame(Record):
    """Methods against boxes, picture by picture; NaN where a map has no positive evidence."""

    methods: tuple[str, ...]
    pictures: tuple[str, ...]
    exact: Float32[np.ndarray, "pictures methods"]
    """1 where the map's peak lies in a box, 0 where not; a share where several peaks are equal."""
    near: Float32[np.ndarray, "pictures methods"]
    """The same if a peak may miss a box by `margin` pixels."""
    energy: Float32[np.ndarray, "pictures methods"]
    """Share of the positive evidence that lies in the boxes."""
    seconds: Float32[np.ndarray, "pictures methods"]
    """That each map took here; of use only beside each other."""
    boxed: Float32[np.ndarray, "pictures"]
    """Share of the picture that the boxes cover: exact and energy of a random map."""
    boxed_near: Float32[np.ndarray, "pictures"]
    """The same with the margin: near of a random map."""
    middle: Float32[np.ndarray, "pictures"]
    """1 where the picture's middle lies in a box: exact of a centred blob."""
    middle_near: Float32[np.ndarray, "pictures"]
    middle_energy: Float32[np.ndarray, "pictures"]
    """The same of a blob's near and energy."""
    margin: int
    refused: Mapping[str, str] = field(default_factory=dict)
    """Methods that are not defined for this network, and why."""
