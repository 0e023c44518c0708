"""Does the probability fall more when the square hides the object than when it hides background?

All squares have the same area, so their falls can be compared as they are. That things lie in the
middle, where networks look most, is told apart by dealing the boxes out among the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from convscope.core.run import PLAIN, Run
from convscope.core.units import Box
from convscope.metrics.localisation import inside
from convscope.network.provenance import recorded
from convscope.studies.occlusion.record import HiddenObjects, Occlusions

ON, OFF = 0.5, 0.1
"""A square lies on the object if it shares this much with it, or beside it if it shares less."""
LEAST = 1e-30
"""Of a probability before the logarithm."""


@recorded
def hidden_objects(
    record: Occlusions, *, permutations: int = 10_000, run: Run = PLAIN
) -> HiddenObjects:
    """Falls on the object and beside it, picture by picture, and whether that is chance.

    What a square shares with the boxes is taken over its own area, or over theirs where that is
    smaller: a square that swallows a small object lies on it.
    """
    marked = [number for number, boxes in enumerate(record.boxes) if boxes]
    kept = np.array(marked, np.int64)
    shares = np.stack([_shared(record, number) for number in marked])
    on, off = shares >= ON, shares <= OFF
    before, after = record.base_probability[kept], record.probability[kept].reshape(len(kept), -1)
    falls, points = _falls(before, after), before[:, None] - after
    table = _means(falls, on) - _means(falls, off)
    box = _falls(before, record.box_probability[kept, None])[:, 0]
    beside_mean = _known_mean(_falls(before, record.other_probability[kept]))
    return HiddenObjects(
        pictures=tuple(record.pictures[number] for number in marked),
        recognised=record.base_likeliest[kept] == record.target[kept],
        on=_own(falls, on),
        off=_own(falls, off),
        on_points=_own(points, on),
        off_points=_own(points, off),
        on_squares=on.sum(1),
        off_squares=off.sum(1),
        elsewhere=_off_diagonal(table),
        box=box,
        beside=beside_mean,
        box_turned=record.box_likeliest[kept] != record.base_likeliest[kept],
        beside_turned=_turned(record, kept),
        p_sign=sign_test(np.diag(table), permutations, run.seed),
        p_dealt=deal_test(table, permutations, run.seed),
        p_box=sign_test(box - beside_mean, permutations, run.seed),
        least_on=ON,
        most_off=OFF,
        permutations=permutations,
        unmarked=tuple(n for n, b in zip(record.pictures, record.boxes, strict=True) if not b),
        origin={**record.origin, "method": "hidden objects", "permutation seed": run.seed},
    )


def shared(
    tops: Sequence[int],
    lefts: Sequence[int],
    sides: tuple[int, int],
    boxes: Sequence[Box],
    size: tuple[int, int],
) -> Float64[np.ndarray, "rows columns"]:
    """Pixels that the square at each place has in common with the boxes, over the smaller of
    both areas."""
    marked = inside(size, boxes)
    sums = np.pad(marked.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    top, left = np.asarray(tops)[:, None], np.asarray(lefts)[None]
    bottom, right = top + sides[0], left + sides[1]
    common = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    share: Float64[np.ndarray, "rows columns"] = common / max(
        1, min(sides[0] * sides[1], int(marked.sum()))
    )
    return share


def sign_test(values: Float64[np.ndarray, "pictures"], permutations: int, seed: int) -> float:
    """How often the mean is as large with signs at random; the real one counts too. NaN are left
    out; 1 where nothing is left."""
    known = values[~np.isnan(values)]
    chance = np.random.default_rng(seed)
    signs = chance.integers(0, 2, (permutations, len(known))) * 2 - 1
    as_large = int(((signs * known).sum(1) >= known.sum() - 1e-12).sum())
    return (1 + as_large) / (1 + permutations)


def deal_test(table: Float64[np.ndarray, "pictures boxes"], permutations: int, seed: int) -> float:
    """How often the mean is as large with the boxes dealt out among the pictures. Pairs that have
    no squares of one kind are NaN and left out."""
    chance, rows = np.random.default_rng(seed), np.arange(len(table))
    real = _known_mean(np.diag(table)[None])[0]
    deals = np.stack([chance.permutation(len(table)) for _ in range(permutations)])
    means = _known_mean(table[rows[None], deals])
    return float((1 + (means >= real - 1e-12).sum()) / (1 + permutations))


def _shared(record: Occlusions, number: int) -> Float64[np.ndarray, "places"]:
    size = (int(record.seen.shape[1]), int(record.seen.shape[2]))
    boxes = [Box(*box) for box in record.boxes[number]]
    tops, lefts = record.tops.tolist(), record.lefts.tolist()
    return shared(tops, lefts, record.sides, boxes, size).ravel()


def _falls(
    before: np.ndarray, after: Float64[np.ndarray, "pictures n"]
) -> Float64[np.ndarray, "pictures n"]:
    logs = [np.log(np.maximum(v.astype(np.float64), LEAST)) for v in (before[:, None], after)]
    fall: Float64[np.ndarray, "pictures n"] = logs[0] - logs[1]
    return fall


def _means(
    falls: Float64[np.ndarray, "pictures places"], chosen: Bool[np.ndarray, "boxes places"]
) -> Float64[np.ndarray, "pictures boxes"]:
    """Each picture's mean over the squares that each one's boxes choose; NaN where none is."""
    count = chosen.sum(1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Float64[np.ndarray, "pictures boxes"] = (falls @ chosen.T.astype(np.float64)) / count
    return mean


def _own(
    falls: Float64[np.ndarray, "pictures places"], chosen: Bool[np.ndarray, "pictures places"]
) -> Float64[np.ndarray, "pictures"]:
    return np.diag(_means(falls, chosen)).copy()


def _off_diagonal(
    table: Float64[np.ndarray, "pictures boxes"],
) -> Float64[np.ndarray, "pictures"]:
    others = table.copy()
    np.fill_diagonal(others, np.nan)
    return _known_mean(others)


def _known_mean(values: Float64[np.ndarray, "n m"]) -> Float64[np.ndarray, "n"]:
    """Of each row without its NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Float64[np.ndarray, "n"] = np.where(known, values, 0).sum(1) / known.sum(1)
    return mean


def _turned(record: Occlusions, kept: np.ndarray) -> Float64[np.ndarray, "pictures"]:
    result = record.other_likeliest[kept]
    other = (result != record.base_likeliest[kept, None]).astype(np.float64)
    return _known_mean(np.where(result < 0, np.nan, other))
