"""What does the network see of the picture in one step?

Not the picture itself but a variation of it, another one in each step: what excites only at one
place, one size and one angle to the pixel is noise to the network's strides, and does not last.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def moved(
    pixels: Float[Tensor, "c h w"], jitter: int, noise: torch.Generator
) -> Float[Tensor, "c h w"]:
    """By up to `jitter` pixels down and right; what leaves comes in on the other side.

    Source: Mordvintsev, Olah and Tyka 2015, the published notebook.
    """
    if not jitter:
        return pixels
    down, right = torch.randint(-jitter, jitter + 1, (2,), generator=noise).tolist()
    return pixels.roll((down, right), (1, 2))


def turned(
    pixels: Float[Tensor, "c h w"], turn: float, noise: torch.Generator
) -> Float[Tensor, "c h w"]:
    """About the middle by up to `turn` (radians), and enlarged or shrunk by up to exp(turn); the
    border is mirrored. Source: Olah, Mordvintsev and Schubert 2017, transformation robustness.
    """
    if not turn:
        return pixels
    angle, zoom = (turn * (2 * torch.rand(2, generator=noise, dtype=torch.float64) - 1)).tolist()
    height, width = pixels.shape[1:]
    cosine, sine = math.cos(angle) * math.exp(zoom), math.sin(angle) * math.exp(zoom)
    # Coordinates go from −1 to 1 along each side, whatever its length.
    way = [[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]
    places = F.affine_grid(pixels.new_tensor([way]), [1, *pixels.shape], align_corners=False)
    whole = F.grid_sample(pixels[None], places, padding_mode="reflection", align_corners=False)
    return whole[0]
