"""In which coordinates is a picture changed?

The same picture and the same optimum, but other ways there. One pixel at a time, a gradient finds
noise first, as high frequencies are what networks with strides let through. If each coordinate is
a wave, weighed as waves are in photographs, large shapes grow as fast as small ones.
Source: Olah, Mordvintsev and Schubert 2017, "Feature Visualization", the section on
preconditioning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.errors import UsageError, nearest

OPPONENT = (
    (0.94, 0.94, 0.94),
    (0.33, 0.0, -0.33),
    (0.10, -0.20, 0.10),
)
"""Three directions in which colours of photographs vary, each as long as its standard deviation:
grey, red against blue, green against both. Measured on 702 photographs of ImageNet's classes:
0.431, 0.125 and 0.064 of the range from black to white; scaled so that the mean over the colours
of their sums of squares is 1."""


@dataclass(frozen=True)
class Basis:
    """There and back: `decode(encode(picture))` is the picture."""

    encode: Callable[[Float[Tensor, "c h w"]], Tensor]
    decode: Callable[[Tensor], Float[Tensor, "c h w"]]


def pixels(like: Float[Tensor, "c h w"]) -> Basis:  # noqa: ARG001
    """Each pixel and colour by itself."""
    return Basis(Tensor.clone, Tensor.clone)


def fourier(like: Float[Tensor, "c h w"]) -> Basis:
    """Waves, each as strong as 1 / frequency; three colours as they vary in photographs.

    Coordinates of unit variance make a picture of unit variance.
    """
    height, width = like.shape[1:]
    strength = _falling(height, width).to(like)
    colours = torch.tensor(OPPONENT, dtype=like.dtype, device=like.device)
    mixed = len(like) == 3
    back = torch.linalg.inv(colours)

    def encode(picture: Tensor) -> Tensor:
        if mixed:
            picture = torch.einsum("khw,kc->chw", picture, back)
        waves = torch.fft.rfft2(picture, norm="ortho") / strength
        return torch.view_as_real(waves).clone()

    def decode(coordinates: Tensor) -> Tensor:
        waves = torch.view_as_complex(coordinates) * strength
        picture = torch.fft.irfft2(waves, s=(height, width), norm="ortho")
        return torch.einsum("khw,kc->chw", picture, colours) if mixed else picture

    return Basis(encode, decode)


def _falling(height: int, width: int) -> Float[Tensor, "h _"]:
    """1 / frequency, the mean's as of the longest wave, for unit variance."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)[None]
    strength = 1 / torch.hypot(rows, columns).clamp_min(1 / max(height, width))
    # Waves across are stored once for left and right, but for the first and, if even, the last.
    twice = torch.full_like(columns, 2.0)
    twice[0, 0] = 1
    if width % 2 == 0:
        twice[0, -1] = 1
    total = (strength**2 * twice).sum() * 2  # a wave has two coordinates
    return strength * math.sqrt(height * width / float(total))


BASES: Mapping[str, Callable[[Tensor], Basis]] = {"fourier": fourier, "pixels": pixels}


def basis(name: str, like: Float[Tensor, "c h w"]) -> Basis:
    """Raises UsageError U365 if there is no such basis."""
    if name not in BASES:
        raise UsageError("U365", name, f"no such basis; {nearest(name, BASES)}")
    return BASES[name](like)
