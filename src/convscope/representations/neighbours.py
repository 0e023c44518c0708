"""Exact nearest neighbours: which of many vectors lie nearest to a given one?

No index and no approximation: every distance is computed, in chunks, in double precision, and
those of the nearest once more from the differences, so that equal vectors are at exactly 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64

from convscope.core.errors import UsageError
from convscope.core.run import PLAIN, Run

Metric = Literal["euclidean", "cosine"]
METRICS: tuple[Metric, ...] = ("euclidean", "cosine")
CHUNK = 8192
"""Vectors compared at a time: 34 MB in double precision at 512 numbers each."""
QUERIES = 256
SPARE = 8
"""Candidates beyond k, as the rounding of dot products may change places."""


def nearest_vectors(
    queries: Float32[np.ndarray, "q d"],
    base: Float32[np.ndarray, "n d"],
    k: int = 6,
    *,
    metric: Metric = "euclidean",
    without: Int64[np.ndarray, "q"] | None = None,
    run: Run = PLAIN,
) -> tuple[Int64[np.ndarray, "q k"], Float64[np.ndarray, "q k"]]:
    """Row numbers in `base` and distances, the nearest first; of equals the lower number.

    base: may stay on disk (mapped): it is read once, in chunks. metric: cosine is 1 − cos, and 1
    where a vector is 0. without: for each query a row that does not count (itself), or -1. Where
    there are fewer than k rows, the rest is -1 at infinity.

    Raises UsageError U426 on k or metric that cannot be, U427 where the lengths differ.
    """
    _require(queries, base, k, metric)
    asked = _ready(np.asarray(queries, np.float64), metric)
    best = np.full((len(asked), 0), -1, np.int64), np.zeros((len(asked), 0))
    for start in range(0, len(base), CHUNK):
        chunk = _ready(np.asarray(base[start : start + CHUNK], np.float64), metric)
        squares, parts = (chunk**2).sum(1), list[Best]()
        for first in range(0, len(asked), QUERIES):
            part = slice(first, first + QUERIES)
            near = squares - 2 * (asked[part] @ chunk.T)  # the query's own square changes no order
            if without is not None:
                own = without[part] - start
                inside = np.flatnonzero((own >= 0) & (own < len(chunk)))
                near[inside, own[inside]] = np.inf
            parts.append(_merged((best[0][part], best[1][part]), near, start, k + SPARE))
        best = _joined(parts)
        run.tick(min(start + CHUNK, len(base)), len(base))
    return _decided(asked, base, best, k, metric)


Best = tuple[Int64[np.ndarray, "q m"], Float64[np.ndarray, "q m"]]


def _ready(rows: Float64[np.ndarray, "n d"], metric: Metric) -> Float64[np.ndarray, "n d"]:
    if metric == "euclidean":
        return rows
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Float64[np.ndarray, "n d"] = rows / np.where(length > 0, length, 1)
    return unit


def _merged(best: Best, near: Float64[np.ndarray, "q c"], start: int, most: int) -> Best:
    """The best so far and the chunk's, whose rows begin at `start`: the nearest, in no order."""
    count = min(most, near.shape[1])
    take = np.argpartition(near, count - 1, axis=1)[:, :count]
    number = np.concatenate([best[0], take + start], axis=1)
    value = np.concatenate([best[1], np.take_along_axis(near, take, axis=1)], axis=1)
    order = np.lexsort((number, value), axis=1)[:, :most]
    return np.take_along_axis(number, order, axis=1), np.take_along_axis(value, order, axis=1)


def _joined(parts: list[Best]) -> Best:
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _decided(
    asked: Float64[np.ndarray, "q d"],
    base: Float32[np.ndarray, "n d"],
    best: Best,
    k: int,
    metric: Metric,
) -> Best:
    """The candidates' distances from the differences, and their final order."""
    result = np.full((len(asked), k), -1, np.int64), np.full((len(asked), k), np.inf)
    for row, query in enumerate(asked):
        number = best[0][row][np.isfinite(best[1][row])]
        rows = _ready(np.asarray(base[number], np.float64), metric)
        square = ((rows - query) ** 2).sum(1)
        if metric == "cosine":  # of unit vectors; to a zero vector it is 1
            distance = np.where(rows.any(1) & query.any(), square / 2, 1.0)
        else:
            distance = np.sqrt(square)
        order = np.lexsort((number, distance))[:k]
        result[0][row, : len(order)] = number[order]
        result[1][row, : len(order)] = distance[order]
    return result


def _require(
    queries: Float32[np.ndarray, "q d"], base: Float32[np.ndarray, "n d"], k: int, metric: str
) -> None:
    if metric not in METRICS or k < 1:
        said = f"k={k}, metric={metric}"
        what = "k is at least 1, and the metric euclidean or cosine"
        raise UsageError("U426", said, what)
    if queries.ndim != 2 or base.ndim != 2 or queries.shape[1] != base.shape[1]:
        what = f"vectors of {queries.shape} and {base.shape} cannot be compared"
        raise UsageError("U427", "", what, next_step="take both from one layer, as one vector")
