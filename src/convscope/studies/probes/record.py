"""Linear probes: accuracy by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from convscope.core.record import Record


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
