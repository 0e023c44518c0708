"""Linear probes: accuracy by layer, and the paper's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from convscope.records.record import Record

PAPER_LAYERS = {
    "caltech-101": {
        "svm": {
            1: (44.8, 0.7),
            2: (66.2, 0.5),
            3: (72.3, 0.4),
            4: (76.6, 0.4),
            5: (86.2, 0.8),
            7: (85.5, 0.4),
        },
        "softmax": {5: (82.9, 0.4), 7: (85.4, 0.4)},
    },
    "caltech-256": {
        "svm": {
            1: (24.6, 0.4),
            2: (39.6, 0.3),
            3: (46.0, 0.3),
            4: (51.3, 0.1),
            5: (65.6, 0.3),
            7: (71.7, 0.2),
        },
        "softmax": {5: (65.7, 0.5), 7: (72.6, 0.1)},
    },
}
"""Table 7, by layer: 30 a class of Caltech-101, 60 of Caltech-256."""


@dataclass(frozen=True, eq=False)
class Probes(Record):
    """Linear classifiers on the features of each layer; accuracies are means over the classes."""

    layers: tuple[str, ...]
    """From pixels to scores."""
    numbers: Int64[np.ndarray, "layers"]
    """Length of each layer's vector."""
    vectors: tuple[str, ...]
    kinds: tuple[str, ...]
    """svm, softmax."""
    accuracy: Float64[np.ndarray, "layers kinds folds"]
    """Mean per-class accuracy, 0 to 1."""
    per_class: int
    """Training pictures of each class."""
    test: int
    """Test pictures, of all classes."""
    classes: tuple[str, ...]
    short: tuple[str, ...] = ()
    """Classes with too few pictures, left out."""
