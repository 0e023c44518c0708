"""What could stand where a picture is hidden, so that the gap itself tells nothing?"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

SIDE, CORNER = 1 / 6, 1 / 12
"""How much a neighbour counts: across an edge, and across a corner."""
NEIGHBOURS = tuple(
    (down, across, CORNER if down and across else SIDE)
    for down in (-1, 0, 1)
    for across in (-1, 0, 1)
    if down or across
)


def imputed(
    picture: Float[np.ndarray, "c h w"],
    hidden: Bool[np.ndarray, "h w"],
    noise: Float[np.ndarray, "c h w"] | None = None,
) -> Float[np.ndarray, "c h w"]:
    """The picture with every hidden pixel the weighted mean of its eight neighbours.

    The neighbours may be hidden too: one linear system, solved exactly. noise: added to hidden
    pixels. Where the whole picture is hidden, its mean.
    Source: Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution
    Methods", §4.2, noisy linear imputation.
    """
    filled = picture.astype(np.float64)
    if hidden.all():
        filled[:] = filled.mean((1, 2), keepdims=True)
    elif hidden.any():
        filled[:, hidden] = _solved(filled, hidden)
    if noise is not None:
        filled[:, hidden] += noise[:, hidden]
    return filled


def _solved(
    picture: Float[np.ndarray, "c h w"], hidden: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "c n"]:
    """Each unknown times the weights of its neighbours = what they add up to."""
    number = np.where(hidden, np.cumsum(hidden).reshape(hidden.shape) - 1, -1)
    places = np.argwhere(hidden)
    count = len(places)
    total, known = np.zeros(count), np.zeros((count, len(picture)))
    rows, columns, weights = [np.arange(count)], [np.arange(count)], [total]
    for down, across, weight in NEIGHBOURS:
        beside = places + np.array((down, across))
        inside = ((beside >= 0) & (beside < hidden.shape)).all(1)
        row, (y, x) = np.flatnonzero(inside), beside[inside].T
        total[row] += weight
        unknown = number[y, x] >= 0
        known[row[~unknown]] += weight * picture[:, y[~unknown], x[~unknown]].T
        rows.append(row[unknown])
        columns.append(number[y, x][unknown])
        weights.append(np.full(int(unknown.sum()), -weight))
    system = csc_matrix(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), (count, count)
    )
    # Symmetric and diagonally dominant, for which this order of elimination keeps most zeros.
    factors = splu(system, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    solved: Float[np.ndarray, "c n"] = factors.solve(known).T
    return solved
