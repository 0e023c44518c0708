"""Average precision of each class where pictures show several, and the paper's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from convscope.core.record import Record

PAPER_VOC = {
    "aeroplane": 96.0,
    "bicycle": 77.1,
    "bird": 88.4,
    "boat": 85.5,
    "bottle": 55.8,
    "bus": 85.8,
    "car": 78.6,
    "cat": 91.2,
    "chair": 65.0,
    "cow": 74.4,
    "diningtable": 67.7,
    "dog": 87.8,
    "horse": 86.0,
    "motorbike": 85.1,
    "person": 90.9,
    "pottedplant": 52.2,
    "sheep": 83.6,
    "sofa": 61.1,
    "train": 91.8,
    "tvmonitor": 76.1,
}
"""Average precision in % on VOC 2012's test set, under VOC's own names: table 6, mean 79.0."""


@dataclass(frozen=True, eq=False)
class ListTransfer(Record):
    """A new softmax on frozen features, for pictures that may show several classes."""

    layer: str
    vector: str
    classes: tuple[str, ...]
    precision: Float64[np.ndarray, "classes"]
    """Average precision as VOC counts it, 0 to 1."""
    taught: Int64[np.ndarray, "classes"]
    """Pictures that taught the class."""
    judged: Int64[np.ndarray, "classes"]
    """Pictures that show the class, among those judged."""
    pictures: tuple[int, ...]
    """Usable ones to teach and to judge."""
    several: int
    """Pictures to teach that show more than one class, so that they taught as copies."""
    hard: int
    """Pairs of picture and class that were not judged, as the class is hard to see."""

    @property
    def mean(self) -> float:
        """Mean average precision, 0 to 1."""
        return float(self.precision.mean())
