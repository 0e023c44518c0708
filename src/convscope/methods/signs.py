"""Do the same units rise and fall when something is hidden in different pictures?

Two vectors of sign changes are compared by their Hamming distance: the share of units in which
they differ. Zero, a unit that did not change, is a sign of its own.
Source: Zeiler and Fergus 2014 (arXiv 1311.2901v3), §4.4, table 1.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Float64, Int8, Int64
from torch import Tensor

TOLERANCE = 1e-5
"""Of the picture's largest feature: a change no larger is rounding, and counts as none."""
STATES = (-1, 0, 1)


def sign_changes(
    whole: Float[Tensor, "features"],
    masked: Float[Tensor, "masks features"],
    tolerance: float = TOLERANCE,
) -> Int8[Tensor, "masks features"]:
    """Sign of original minus masked: 1 where hiding lowered the feature, −1 where it raised it."""
    change = whole - masked
    least = tolerance * float(whole.abs().max())
    return (change.sign() * (change.abs() > least)).to(torch.int8)


def distances(signs: Int8[Tensor, "n features"]) -> Float64[np.ndarray, "n n"]:
    """Share of features in which two sign vectors differ, for each two of them."""
    same = torch.zeros(len(signs), len(signs), dtype=torch.float64)
    for part in torch.split(signs, 1 << 16, dim=1):  # sums of so few ones are exact in float32
        for state in STATES:
            is_so = (part == state).float()
            same += (is_so @ is_so.T).double()
    found: Float64[np.ndarray, "n n"] = (1 - same / signs.shape[1]).numpy()
    return found


def relative(
    signs: Int8[Tensor, "n features"], table: Float64[np.ndarray, "n n"]
) -> Float64[np.ndarray, "n n"]:
    """The distances over what they would be, on average, if each vector's signs were dealt out
    to the features anew: below 1 the vectors agree on *which* features change. 1 where nothing
    can differ."""
    shares = torch.stack([(signs == state).double().mean(1) for state in STATES], 1)
    expected = (1 - shares @ shares.T).numpy()
    none = np.ones_like(table)
    found: Float64[np.ndarray, "n n"]
    found = np.divide(table, expected, out=none, where=expected > 1e-12)
    return found


def over_pairs(
    table: Float64[np.ndarray, "pictures masks pictures masks"],
    choice: Int64[np.ndarray, "pictures"],
) -> Float64[np.ndarray, "pairs"]:
    """One mask of each picture chosen: the entries of each two pictures."""
    pairs = combinations(range(len(choice)), 2)
    return np.array([table[i, choice[i], j, choice[j]] for i, j in pairs], np.float64)


def permutation_test(
    table: Float64[np.ndarray, "pictures masks pictures masks"],
    parts: int,
    *,
    permutations: int,
    seed: int,
) -> Float64[np.ndarray, "parts_and_all"]:
    """How often is chance as consistent as the parts? One p-value a part, and one of all.

    The first `parts` masks of each picture are the parts. If it did not matter which of its masks
    a picture is given under a part's name, dealing the names out anew within each picture would
    change nothing; so they are dealt out anew `permutations` times. p is the share of deals, the
    real one included, whose mean distance over pairs is as low as the real one's.
    """
    pictures, masks = table.shape[:2]
    chance = np.random.default_rng(seed)
    real = _means(table, np.broadcast_to(np.arange(parts), (1, pictures, parts)))
    dealt = chance.random((permutations, pictures, masks)).argsort(2)[:, :, :parts]
    drawn = np.concatenate(
        [_means(table, some) for some in np.array_split(dealt, 1 + permutations // 500)]
    )
    real, drawn = (np.column_stack([means, means.mean(1)]) for means in (real, drawn))
    as_low = (drawn <= real + 1e-12).sum(0)
    found: Float64[np.ndarray, "parts_and_all"] = (1 + as_low) / (1 + permutations)
    return found


def _means(
    table: Float64[np.ndarray, "pictures masks pictures masks"],
    deals: Int64[np.ndarray, "deals pictures parts"],
) -> Float64[np.ndarray, "deals parts"]:
    """Mean over pairs of pictures, for each deal and part."""
    sums = np.zeros((deals.shape[0], deals.shape[2]))
    pairs = list(combinations(range(deals.shape[1]), 2))
    for i, j in pairs:
        sums += table[i, deals[:, i], j, deals[:, j]]
    return sums / len(pairs)
