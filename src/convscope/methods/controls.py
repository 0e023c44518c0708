"""What do maps look like that know nothing of the network?"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.functional import interpolate

HALF = 0.72
"""Where the correlation of enlarged random numbers falls to one half, in their distances."""
COARSEST = 4


def grain_of(values: Float[np.ndarray, "h w"]) -> tuple[int, int]:
    """How many numbers a random map must have to be as smooth as this one when enlarged: rows and
    columns, the picture's size halved as often as fits, down to 4.

    Measured where the map's correlation with itself, moved, falls to one half: enlarged random
    numbers do that at 0.72 of their distance (a cubic B-spline at half of its height).
    """
    height, width = values.shape
    wave = np.abs(np.fft.fft2(values - values.mean(), (2 * height, 2 * width))) ** 2
    sums = np.fft.ifft2(wave).real  # of products; twice the size keeps the borders apart
    down = sums[:height, 0] / np.arange(height, 0, -1)
    across = sums[0, :width] / np.arange(width, 0, -1)
    return _cells(down), _cells(across)


def _cells(alike: Float[np.ndarray, "side"]) -> int:
    side = len(alike)
    low = np.flatnonzero(alike[: side // 2 + 1] < alike[0] / 2)
    reach = _crossing(alike, int(low[0])) if len(low) else side / 2
    halvings = max(0, round(np.log2(max(1.0, reach / HALF))))
    return int(max(min(COARSEST, side), side // 2**halvings))


def _crossing(line: Float[np.ndarray, "side"], first: int) -> float:
    """Where a falling line passes half its height, between `first` and the place before."""
    above, below, half = float(line[first - 1]), float(line[first]), float(line[0]) / 2
    return first - 1 + (above - half) / (above - below)


def random_map(
    grain: tuple[int, ...], size: tuple[int, int], seed: int
) -> Float[np.ndarray, "h w"]:
    """Uniform random numbers, enlarged bilinearly to the picture's size as a layer's map is."""
    small = torch.from_numpy(np.random.default_rng(seed).random(grain))
    if tuple(grain) == size:
        return small.numpy()
    large = interpolate(small[None, None], size, mode="bilinear", align_corners=False)
    found: Float[np.ndarray, "h w"] = large[0, 0].numpy()
    return found


def blob(size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Falls off from the picture's middle, evenly along both of its sides."""
    down, across = (np.linspace(-1, 1, side) if side > 1 else np.zeros(1) for side in size)
    falling: Float[np.ndarray, "h w"] = np.exp(-2 * (down[:, None] ** 2 + across**2))
    return falling
