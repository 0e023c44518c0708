"""What does a part of a picture show while it is hidden?"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.errors import UsageError, shown

Fill = float | tuple[float, ...] | Literal["mean", "noise", "blur"] | Tensor
NAMED = ("mean", "noise", "blur")
BLUR = 0.25
"""Standard deviation of the blur, of the rectangle's shorter side."""


def filled(
    fill: Fill, picture: Float[Tensor, "c h w"], size: tuple[int, int], seed: int
) -> Float[Tensor, "c r k"]:
    """What a rectangle of this size shows; of the picture's size: what is seen through it.

    Raises UsageError U531 if it cannot be filled with that.
    """
    channels = picture.shape[0]
    if isinstance(fill, str):
        if fill not in NAMED:
            raise UsageError("U531", fill, f"is no fill; numbers or {' or '.join(NAMED)}")
        return (
            blurred(picture, BLUR * min(size))
            if fill == "blur"
            else _noise(picture, size, seed if fill == "noise" else None)
        )
    try:
        given = fill if isinstance(fill, Tensor) else torch.as_tensor(np.atleast_1d(fill))
        given = given.to(picture)
    except (TypeError, ValueError) as fault:
        what = f"{shown(fill)} is no fill; numbers or {' or '.join(NAMED)}"
        raise UsageError("U531", "fill", what) from fault
    if given.dim() <= 1 and given.numel() in (1, channels):
        return given.expand(channels)[:, None, None].expand(channels, *size)
    if given.shape in ((channels, *size), picture.shape):
        return given
    wanted = f"one number, {channels}, or a tensor {(channels, *size)} or {tuple(picture.shape)}"
    raise UsageError("U531", named(fill), f"is not {wanted}")


def _noise(
    picture: Float[Tensor, "c h w"], size: tuple[int, int], seed: int | None
) -> Float[Tensor, "c r k"]:
    """Drawn with the picture's mean and spread; without a seed, its mean alone."""
    mean, spread = picture.mean((1, 2)), picture.std((1, 2))
    noise = torch.zeros(len(picture), *size, dtype=picture.dtype)
    if seed is not None:
        noise.normal_(generator=torch.Generator().manual_seed(seed))
    return mean[:, None, None] + spread[:, None, None] * noise.to(picture.device)


def blurred(picture: Float[Tensor, "c h w"], sigma: float) -> Float[Tensor, "c h w"]:
    """Gaussian, in pixels, to three standard deviations; beyond the border the border goes on."""
    reach = max(1, math.ceil(3 * sigma))
    steps = torch.arange(-reach, reach + 1, dtype=picture.dtype, device=picture.device)
    weights = torch.exp(-0.5 * (steps / sigma) ** 2)
    weights = weights / weights.sum()
    padded = F.pad(picture[:, None], (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, weights[None, None, :, None])
    return F.conv2d(rows, weights[None, None, None, :])[:, 0]


def named(fill: Fill) -> Any:
    """In words or numbers, for a record's origin or a message."""
    if isinstance(fill, Tensor):
        return f"tensor {tuple(fill.shape)}"
    return fill if isinstance(fill, str) else np.atleast_1d(fill).astype(float).tolist()
