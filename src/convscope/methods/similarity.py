"""How alike are two maps of one picture?"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata
from skimage.measure import block_reduce
from skimage.metrics import structural_similarity

Map = Float[np.ndarray, "h w"]
WINDOW = 11
"""Side of SSIM's window where its Gaussian has the width of the paper, 1.5 pixels."""


def spearman(one: Map, other: Map) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN if a map is flat."""
    a, b = (rankdata(values.ravel()) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / size if size else math.nan


def ssim(one: Map, other: Map) -> float:
    """Mean structural similarity of two maps, each scaled to [0, 1]; 1 only for equal ones.

    NaN where the maps are smaller than the window, 11 by 11. Source: Wang et al. 2004, §III.B.
    """
    if min(one.shape) < WINDOW:
        return math.nan
    found = structural_similarity(
        _scaled(one),
        _scaled(other),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(found)


def _scaled(values: Map) -> Map:
    low, high = float(values.min()), float(values.max())
    span = high - low if high > low else 1.0
    scaled: Map = (values.astype(np.float64) - low) / span
    return scaled


def overlap(one: Map, other: Map, share: float = 0.1) -> float:
    """Of the share of the picture that each marks most: what both mark over what either marks."""
    count = max(1, round(share * one.size))
    first, second = (set(_first(values, count).tolist()) for values in (one, other))
    return len(first & second) / len(first | second)


def _first(values: Map, count: int) -> Int[np.ndarray, "n"]:
    order: Int[np.ndarray, "n"] = np.argsort(-values.ravel(), kind="stable")[:count]
    return order


def in_cells(values: Map, cells: int) -> Map:
    """Means over about `cells` by `cells` squares, so that places are compared, not pixels."""
    side = max(1, min(values.shape) // cells)
    found: Map = block_reduce(values.astype(np.float64), side, np.mean, cval=float(values.mean()))
    return found
