"""Transfer: accuracy by training pictures a class, average precision of lists, and the paper's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from convscope.core.record import Record

PAPER = {
    "caltech-101": {15: (83.8, 0.5), 30: (86.5, 0.5)},
    "caltech-256": {
        1: (27.25, 0.89),
        2: (39.24, 2.32),
        3: (46.15, 0.83),
        4: (51.84, 0.26),
        5: (54.94, 0.41),
        6: (57.01, 0.60),
        7: (58.89, 0.58),
        10: (62.60, 0.53),
        15: (65.67, 0.24),
        30: (70.64, 0.19),
        45: (72.68, 0.38),
        60: (74.18, 0.26),
    },
}
"""Mean per-class accuracy in % and its spread, by pictures a class: Zeiler and Fergus 2014,
tables 4 and 5, between these read off the vectors of figure 9."""
PAPER_SCRATCH = {
    "caltech-101": {15: (22.8, 1.5), 30: (46.5, 1.7)},
    "caltech-256": {15: (9.0, 1.4), 30: (22.5, 0.7), 45: (31.2, 0.5), 60: (38.8, 1.4)},
}


@dataclass(frozen=True, eq=False)
class Transfer(Record):
    """A new softmax on frozen features, by the number of training pictures a class."""

    layer: str
    vector: str
    per_class: tuple[int, ...]
    accuracy: Float64[np.ndarray, "n folds"]
    """Mean per-class accuracy, 0 to 1."""
    precision: Float64[np.ndarray, "n folds"]
    """Mean over the classes of the average precision of the softmax, as VOC counts it."""
    each: Float64[np.ndarray, "n classes"]
    """Accuracy of each class, mean over the folds."""
    scratch: Float64[np.ndarray, "n folds"]
    """The same as accuracy for a network trained from scratch on the same pictures; NaN where
    none was."""
    test: int
    classes: tuple[str, ...]
    short: tuple[str, ...] = ()
    """Classes with too few pictures, left out."""
    recipe: str = ""
    """Of the network from scratch."""
    duplicates: int = 0
    """Pictures of the folder flagged as occurring in the source, or twice; -1 if not looked."""
    left_out: int = 0
    """Of these, not used."""


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
