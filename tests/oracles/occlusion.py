"""Occlusion the slow way: one position, one picture, one forward pass at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def occluded(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    image: Tensor,
    patch: int,
    tops: list[int],
    lefts: list[int],
    fill: float,
) -> tuple[Tensor, Tensor]:
    """(softmax probabilities, sums of each map's positive part) for every position.

    forward: one picture (1, 3, h, w) to its scores (1, classes) and maps (1, c, h, w).
    """
    probabilities, sums = [], []
    for top in tops:
        for left in lefts:
            hidden = image.clone()
            for row in range(top, top + patch):
                for column in range(left, left + patch):
                    hidden[:, row, column] = fill
            scores, maps = forward(hidden[None])
            exponentials = torch.exp(scores[0])
            probabilities.append(exponentials / exponentials.sum())
            sums.append(torch.stack([m[m > 0].sum() for m in maps[0]]))
    shape = (len(tops), len(lefts), -1)
    return torch.stack(probabilities).reshape(shape), torch.stack(sums).reshape(shape)
