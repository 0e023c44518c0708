"""What do the formulas of the CAM family give, written out the long way, one number at a time?

Slow twins in float64 with plain loops, each after its authors' paper or code. They take what the
method sees: the feature maps A (k, h, w), the gradient g of the score with respect to them, or
functions of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np

Maps = np.ndarray
"""(k, h, w) in float64."""


def weighted(w: Sequence[float], A: Maps) -> np.ndarray:
    """ReLU of the weighted sum of the maps."""
    out = np.zeros(A.shape[1:])
    for i, j in product(*map(range, out.shape)):
        out[i, j] = max(0.0, math.fsum(w[k] * A[k, i, j] for k in range(len(A))))
    return out


def gradcam(A: Maps, g: Maps) -> np.ndarray:
    """Selvaraju et al. 2017, equations 1 and 2."""
    return weighted([math.fsum(g[k].flat) / g[k].size for k in range(len(A))], A)


def gradcam_plus_plus(A: Maps, g: Maps) -> np.ndarray:
    """Chattopadhyay et al. 2018, equation 19 (alpha) and 7 (weights), alpha normalised as in the
    authors' code: by the sum of alpha where the gradient is positive."""
    w = []
    for k in range(len(A)):
        total = math.fsum(A[k].flat)
        alpha = np.zeros(A[k].shape)
        for i, j in product(*map(range, alpha.shape)):
            below = 2 * g[k, i, j] ** 2 + total * g[k, i, j] ** 3
            alpha[i, j] = g[k, i, j] ** 2 / (below if below != 0 else 1)
        norm = math.fsum(
            alpha[i, j] for i, j in product(*map(range, alpha.shape)) if g[k, i, j] > 0
        )
        alpha = alpha / (norm if norm != 0 else 1)
        w.append(math.fsum((alpha * np.maximum(g[k], 0)).flat))
    return weighted(w, A)


def xgradcam(A: Maps, g: Maps) -> np.ndarray:
    """Fu et al. 2020, equation 11."""
    w = []
    for k in range(len(A)):
        total = math.fsum(A[k].flat)
        terms = zip(A[k].flat, g[k].flat, strict=True)
        w.append(math.fsum(a / total * b for a, b in terms) if total != 0 else 0.0)
    return weighted(w, A)


def layercam(A: Maps, g: Maps) -> np.ndarray:
    """Jiang et al. 2021, equations 6 and 7."""
    out = np.zeros(A.shape[1:])
    for i, j in product(*map(range, out.shape)):
        out[i, j] = max(0.0, math.fsum(max(0.0, g[k, i, j]) * A[k, i, j] for k in range(len(A))))
    return out


def layercam_fused(maps: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """Jiang et al. 2021, equation 8 with gamma = 2 for all but the deepest layer (the last); then
    enlarged, and the largest value at each place."""
    out = np.zeros((height, width))
    for number, values in enumerate(maps):
        top = values.max()
        scaled = values / top if top > 0 else values
        for i, j in product(*map(range, scaled.shape)):
            if number < len(maps) - 1:
                scaled[i, j] = math.tanh(2 * scaled[i, j])
        large = upsampled(scaled, height, width)
        for i, j in product(range(height), range(width)):
            out[i, j] = max(out[i, j], large[i, j])
    return out


def ablationcam(A: Maps, head: Callable[[Maps], float], *, slope: bool = False) -> np.ndarray:
    """Desai and Ramaswamy 2020, equation 3: (y - y_k) / y; with slope, equation 1: by |A_k|."""
    y = head(A)
    w = []
    for k in range(len(A)):
        without = A.copy()
        without[k] = 0
        size = math.sqrt(math.fsum(a * a for a in A[k].flat)) if slope else y
        w.append((y - head(without)) / size if size else 0.0)
    return weighted(w, A)


def scorecam(
    A: Maps,
    image: np.ndarray,
    scores: Callable[[np.ndarray], np.ndarray],
    target: int,
    *,
    paper: bool,
) -> np.ndarray:
    """Wang et al. 2020: the authors' code weighs with class probabilities; algorithm 1 of the
    paper with the softmax over the maps of the logits' increase over a black image."""
    height, width = image.shape[1:]
    gains: dict[int, float] = {}
    for k in range(len(A)):
        mask = upsampled(A[k], height, width)
        if mask.max() == mask.min():
            continue
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        seen = scores(image * mask)
        black = scores(image * 0)
        gains[k] = seen[target] - black[target] if paper else softmax(seen)[target]
    if paper:
        gains = dict(zip(gains, softmax(list(gains.values())), strict=True))
    return weighted([gains.get(k, 0.0) for k in range(len(A))], A)


def eigencam(A: Maps) -> np.ndarray:
    """Muhammad and Yeasin 2020: the (hw × k) matrix of activations, not centred, projected on its
    first right singular vector; the sign is the one that agrees with the activations' strength."""
    rows = A.reshape(len(A), -1).T
    return _turned(_projection(rows), np.sqrt((rows**2).sum(1))).reshape(A.shape[1:])


def eigengradcam(A: Maps, g: Maps) -> np.ndarray:
    """pytorch-grad-cam's own: the first principal component of g∘A, which is centred; the sign
    is the one that agrees with Σ g∘A, what speaks for the target."""
    rows = (A * g).reshape(len(A), -1).T
    return _turned(_projection(rows - rows.mean(0)), rows.sum(1)).reshape(A.shape[1:])


def _projection(rows: np.ndarray) -> np.ndarray:
    """Power iteration on rowsᵀ·rows, for another way than an eigenvalue routine."""
    v = np.random.default_rng(0).normal(size=rows.shape[1])
    for _ in range(20_000):
        before, v = v, rows.T @ (rows @ v)
        v /= np.linalg.norm(v) or 1.0
        if np.abs(v - before).max() < 1e-15:
            break
    return np.asarray(rows @ v)


def _turned(values: np.ndarray, strength: np.ndarray) -> np.ndarray:
    return values if (values * strength).sum() >= 0 else -values


def fullgrad(parts: Sequence[Maps], height: int, width: int) -> np.ndarray:
    """Srinivas and Fleuret 2019, equation 5: `parts` are ∇f∘x and the bias-gradients b·g of every
    layer with maps; each in absolute value, scaled over all its maps together, enlarged, added."""
    out = np.zeros((height, width))
    for part in parts:
        size = np.abs(part)
        size = size - size.min()
        if size.max() > 0:
            size = size / size.max()
        for one in size:
            out += upsampled(one, height, width)
    return out


def softmax(x: Sequence[float] | np.ndarray) -> np.ndarray:
    e = np.exp(np.asarray(x) - np.max(x))
    return np.asarray(e / e.sum())


def upsampled(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with pixel centres at the half (align_corners=False), pixel by pixel."""
    out = np.zeros((height, width))
    for i, j in product(range(height), range(width)):
        (top, bottom, v), (left, right, u) = (
            _between(i, height, values.shape[0]),
            _between(j, width, values.shape[1]),
        )
        upper = (1 - u) * values[top, left] + u * values[top, right]
        lower = (1 - u) * values[bottom, left] + u * values[bottom, right]
        out[i, j] = (1 - v) * upper + v * lower
    return out


def _between(at: int, large: int, small: int) -> tuple[int, int, float]:
    place = max(0.0, (at + 0.5) * small / large - 0.5)
    low = min(int(place), small - 1)
    return low, min(low + 1, small - 1), place - low
