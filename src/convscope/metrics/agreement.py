"""Agreement of maps: rank correlation, structural similarity and overlap of two of them."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Shaped

Map = Float[np.ndarray, "h w"]
WINDOW = 11
"""Side of SSIM's window where its Gaussian has the width of the paper, 1.5 pixels."""


def spearman(one: Map, other: Map) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN if a map is flat."""
    a, b = (ranks(values.ravel()) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a @ a) * (b @ b)))
    return max(-1.0, min(1.0, float(a @ b) / size)) if size else math.nan


def ranks(values: Shaped[np.ndarray, "*rows n"]) -> Float64[np.ndarray, "*rows n"]:
    """Of the values along each row, from 1; equal ones share their mean rank. A NaN makes all ranks
    of its row NaN. What SciPy's statistics would say, whose import takes as long as a forward pass.
    """
    n = values.shape[-1]
    order = np.argsort(values, axis=-1, kind="stable")
    there = np.take_along_axis(values, order, -1)
    begins = np.ones(values.shape, bool)
    begins[..., 1:] = there[..., 1:] != there[..., :-1]
    ends = np.ones(values.shape, bool)
    ends[..., :-1] = begins[..., 1:]
    places = np.arange(n)
    first = np.maximum.accumulate(np.where(begins, places, 0), -1)
    last = np.minimum.accumulate(np.where(ends, places, n)[..., ::-1], -1)[..., ::-1]
    found = np.empty(values.shape)
    np.put_along_axis(found, order, (first + last) / 2 + 1, -1)
    if n and values.dtype.kind == "f":
        found[np.isnan(there[..., -1])] = np.nan  # NaN is sorted to the end
    return found


def ssim(one: Map, other: Map) -> float:
    """Mean structural similarity of two maps, each scaled to [0, 1]; 1 only for equal ones.

    NaN where the maps are smaller than the window, 11 by 11. Source: Wang et al. 2004, §III.B.
    """
    if min(one.shape) < WINDOW:
        return math.nan
    from skimage.metrics import structural_similarity

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
    """Of the share of the picture that each marks most: what both mark over what either marks.

    Only positive values count as marks. Where equal values would exceed the share, each counts
    in part. NaN if neither map marks anything.
    """
    count = max(1, round(share * one.size))
    first, second = (_marks(values.ravel(), count) for values in (one, other))
    either = float(np.maximum(first, second).sum())
    return float(np.minimum(first, second).sum()) / either if either else math.nan


def _marks(values: Float[np.ndarray, "n"], count: int) -> Float[np.ndarray, "n"]:
    """How much each place belongs to the `count` highest ones, 0 to 1."""
    last = np.partition(values, -count)[-count]
    above, equal = values > last, values == last
    marks = above + equal * ((count - above.sum()) / equal.sum())
    found: Float[np.ndarray, "n"] = np.where(values > 0, marks, 0.0)
    return found


def in_cells(values: Map, cells: int) -> Map:
    """Means over about `cells` by `cells` squares, so that places are compared, not pixels."""
    side = max(1, min(values.shape) // cells)
    starts = [np.arange(0, max(1, extent - side // 2), side) for extent in values.shape]
    sums = np.add.reduceat(values.astype(np.float64), starts[0])
    sums = np.add.reduceat(sums, starts[1], axis=1)
    sizes = [
        np.diff(start, append=extent) for start, extent in zip(starts, values.shape, strict=True)
    ]
    found: Map = sums / np.outer(*sizes)
    return found


def mean_correlation(
    pictures: Float32[np.ndarray, "k h w c"], seen: Bool[np.ndarray, "k h w"]
) -> float:
    """Mean over all pairs of Pearson's correlation of the numbers, all colours together, at the
    places that both have; NaN where no pair has two places at which neither is flat."""
    size = np.abs(pictures).max(axis=(1, 2, 3), keepdims=True, initial=0.0)
    scaled = pictures / np.where(size > 0, size, 1)  # single precision then holds all sums
    marks = np.broadcast_to(seen[..., None], scaled.shape).reshape(len(scaled), -1)
    marks = marks.astype(np.float32)
    values = scaled.reshape(len(scaled), -1) * marks
    count, total = marks @ marks.T, values @ marks.T
    count = np.maximum(count, 1)
    shared = values @ values.T - total * total.T / count
    spread = (values * values) @ marks.T - total * total / count
    pairs = np.triu_indices(len(scaled), 1)
    product = (spread * spread.T)[pairs]
    is_flat = np.minimum(spread, spread.T)[pairs] <= 1e-6 * count[pairs]
    if is_flat.all():
        return math.nan
    return float(np.clip(shared[pairs][~is_flat] / np.sqrt(product[~is_flat]), -1, 1).mean())
