"""In which order do a network's layers settle while it is trained?

For every map and recorded epoch: is its strongest picture that of the last epoch, does its
projection look like the last one's, and does it respond as at the last epoch? A layer's mean
response starts somewhere at the first recorded epoch and is 1 at the last; how far along that way
it has come is compared between layers.
Source of the claim: Zeiler and Fergus 2014, §4 and figure 4 (low layers converge within a few
epochs, top ones after 40 to 50; seen in pictures, without numbers). The measures are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from convscope.records.series import Convergence

WAY = 0.9
RESAMPLES = 1000
LEVEL = (2.5, 97.5)
"""Percentiles: a 95 % interval over maps, by drawing maps again and again with replacement."""


def convergence(
    layers: Sequence[str],
    epochs: Sequence[int],
    image: Sequence[Mapping[str, Int64[np.ndarray, "maps"]]],
    responses: Sequence[Mapping[str, Float32[np.ndarray, "maps samples"]]],
    units: Sequence[str],
    projections: Float[np.ndarray, "units epochs *pixels"],
    *,
    seed: int = 0,
    origin: Mapping[str, object] | None = None,
) -> Convergence:
    """From what was seen at each epoch. responses: ranks, see `ranked`. seed: of the resampling."""
    counts = [len(image[0][layer]) for layer in layers]
    starts = np.cumsum([0, *counts], dtype=np.int64)
    images = np.concatenate([np.stack([one[layer] for one in image], 1) for layer in layers])
    alike = np.concatenate([_alike([one[layer] for one in responses]) for layer in layers])
    looks = _cosines(projections)
    members = [[n for n, u in enumerate(units) if u.rpartition(":")[0] == x] for x in layers]
    same = (images == images[:, -1:]).astype(np.float64)
    blocks = [slice(int(a), int(b)) for a, b in pairwise(starts)]
    at = np.asarray(epochs, np.int64)
    drawn = [_resampled(alike[block], seed) for block in blocks]
    return Convergence(
        layers=tuple(layers),
        starts=starts,
        epochs=at,
        image=images,
        responses=alike.astype(np.float32),
        units=tuple(units),
        projection=looks.astype(np.float32),
        responses_curve=np.stack([_curve(each) for each in drawn]),
        same_curve=np.stack([_curve(_resampled(same[block], seed)) for block in blocks]),
        projection_curve=np.stack([_curve(_resampled(looks[rows], seed)) for rows in members]),
        arrived=np.stack([_spread(arrived(each, at)) for each in drawn]),
        centre=np.stack([_spread(centre(each, at)) for each in drawn]),
        samples=int(responses[0][layers[0]].shape[1]),
        origin=dict(origin or {}),
    )


def way(means: Float64[np.ndarray, "*n epochs"]) -> Float64[np.ndarray, "*n epochs"]:
    """How much of the way from the first value to 1 is gone; all of it if there is none to go."""
    left = 1 - means[..., :1]
    there = left < 1e-6
    gone: Float64[np.ndarray, "*n epochs"]
    gone = np.where(there, 1.0, (means - means[..., :1]) / np.where(there, 1.0, left))
    return gone


def arrived(
    means: Float64[np.ndarray, "n epochs"], epochs: Int64[np.ndarray, "epochs"]
) -> Float64[np.ndarray, "n"]:
    """The first recorded epoch from which WAY of the way is gone for good."""
    there = way(means) >= WAY
    there[:, -1] = True
    ever_after = np.logical_and.accumulate(there[:, ::-1], axis=1).sum(axis=1)
    first: Float64[np.ndarray, "n"] = epochs[len(epochs) - ever_after].astype(np.float64)
    return first


def centre(
    means: Float64[np.ndarray, "n epochs"], epochs: Int64[np.ndarray, "epochs"]
) -> Float64[np.ndarray, "n"]:
    """Epochs weighted by the share of the way gone there; between two recorded ones, the middle."""
    gone = np.diff(way(means), axis=1)
    # With no way to go there is no step: the layer was there at the first epoch.
    found: Float64[np.ndarray, "n"] = gone @ ((epochs[1:] + epochs[:-1]) / 2)
    return np.where(gone.any(axis=1), found, float(epochs[0]))


def _alike(ranks: Sequence[Float32[np.ndarray, "maps samples"]]) -> Float64[np.ndarray, "maps e"]:
    """Rank correlation with the last epoch; 0 where only the earlier responses are all the same."""
    last = ranks[-1]
    found = np.stack([(np.nan_to_num(each) * last).sum(axis=1) for each in ranks], axis=1)
    return found.astype(np.float64).clip(-1, 1)


def _cosines(pixels: Float[np.ndarray, "units epochs *pixels"]) -> Float64[np.ndarray, "units e"]:
    flat = pixels.reshape(*pixels.shape[:2], math.prod(pixels.shape[2:])).astype(np.float64)
    size = np.linalg.norm(flat, axis=2)
    products = np.einsum("uep,up->ue", flat, flat[:, -1])
    silent = np.where(size[:, -1:] > 0, size[:, -1:], np.nan)
    found: Float64[np.ndarray, "units e"] = products / np.where(size > 0, size, 1.0) / silent
    return found


def _resampled(
    values: Float64[np.ndarray, "maps epochs"], seed: int
) -> Float64[np.ndarray, "n+1 epochs"]:
    """The mean over maps, and the means of resamples of the maps; maps with NaN are left out."""
    known = values[~np.isnan(values).any(axis=1)]
    if not len(known):
        return np.full((1, values.shape[1]), np.nan)
    chance = np.random.default_rng(seed)
    draws = chance.integers(len(known), size=(RESAMPLES, len(known)))
    return np.stack([known.mean(axis=0), *(known[draw].mean(axis=0) for draw in draws)])


def _curve(means: Float64[np.ndarray, "n epochs"]) -> Float64[np.ndarray, "epochs 3"]:
    return np.stack([_spread(column) for column in means.T])


def _spread(values: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "3"]:
    """The first value and the interval of the others."""
    draws = values[1:] if len(values) > 1 else values
    return np.array([values[0], *np.percentile(draws, LEVEL)])
