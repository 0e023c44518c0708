"""Maps put to the test the slow way: one picture at a time, one pixel at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def curve(
    score: Callable[[Tensor], float], start: Tensor, end: Tensor, map_: np.ndarray, steps: int
) -> np.ndarray:
    """Scores while the pixels of `start` become those of `end`, the map's largest first. The
    map has no equal values."""
    places = sorted(np.ndindex(*map_.shape), key=lambda place: -map_[place])
    now, scores, done = start.clone(), [score(start)], 0
    for step in range(1, steps + 1):
        while done < round(step * len(places) / steps):
            row, column = places[done]
            now[:, row, column] = end[:, row, column]
            done += 1
        scores.append(score(now))
    return np.array(scores)


def blurred(image: Tensor, sigma: float = 5.0, reach: int = 5) -> Tensor:
    """Every pixel the mean of those within `reach`, by a Gaussian; borders are mirrors."""
    height, width = image.shape[1:]
    soft = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            total = 0.0
            for down in range(-reach, reach + 1):
                for across in range(-reach, reach + 1):
                    weight = np.exp(-(down**2 + across**2) / (2 * sigma**2))
                    y, x = mirrored(row + down, height), mirrored(column + across, width)
                    soft[:, row, column] += weight * image[:, y, x]
                    total += weight
            soft[:, row, column] /= total
    return soft


def mirrored(place: int, extent: int) -> int:
    """Where a walk ends that turns round at the first and the last pixel."""
    period = max(1, 2 * (extent - 1))
    place %= period
    return place if place < extent else period - place


def imputed(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """One equation a pixel, solved as a full matrix: a known pixel is itself, a hidden one the
    mean of its neighbours, those across a corner counting half."""
    height, width = hidden.shape
    places = list(np.ndindex(height, width))
    system = np.eye(len(places))
    right = picture.reshape(len(picture), -1).T.astype(np.float64).copy()
    for number, (row, column) in enumerate(places):
        if not hidden[row, column]:
            continue
        beside = {}
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                y, x = row + down, column + across
                if (down or across) and 0 <= y < height and 0 <= x < width:
                    beside[y * width + x] = 1.0 if down and across else 2.0
        for other, weight in beside.items():
            system[number, other] = -weight / sum(beside.values())
        right[number] = 0
    return np.linalg.solve(system, right).T.reshape(picture.shape)


def overlap(one: np.ndarray, other: np.ndarray, count: int) -> float:
    """Of the `count` largest places of each map: shared over covered. No equal values."""
    first, second = (
        set(sorted(np.ndindex(*m.shape), key=lambda place: -m[place])[:count]) for m in (one, other)
    )
    return len(first & second) / len(first | second)
