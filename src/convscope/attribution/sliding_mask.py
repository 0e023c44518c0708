"""Sliding mask: where the square of occlusion lies, and what it shows (fill, baseline, blur)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from convscope.core.errors import ModelError, UsageError, shown
from convscope.trace.forward.engine import Incremental
from convscope.trace.forward.plan import Patches

Fill = float | tuple[float, ...] | Literal["mean", "noise", "blur"] | Tensor
"""One number, one a channel, "mean" of the picture, "noise" of its mean and spread, drawn once,
"blur" of it (Gaussian, a quarter of the square's shorter side), or a tensor: of the square's size
it moves along, of the picture's size it is seen through the square."""
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


def blurred(
    picture: Float[Tensor, "c h w"],
    sigma: float,
    reach: int | None = None,
    border: Literal["nearest", "mirror"] = "nearest",
) -> Float[Tensor, "c h w"]:
    """Gaussian, in pixels, to `reach` pixels (three standard deviations); beyond the border the
    border goes on, or the picture is mirrored."""
    # Here, because few commands blur and scipy.ndimage takes long to import.
    from scipy.ndimage import gaussian_filter  # type: ignore[attr-defined]

    reach = max(1, math.ceil(3 * sigma)) if reach is None else reach
    pixels = picture.detach().cpu().double().numpy()
    soft = gaussian_filter(pixels, sigma, mode=border, radius=reach, axes=(1, 2))
    return torch.from_numpy(soft).to(picture)


def named(fill: Fill) -> Any:
    """In words or numbers, for a record's origin or a message."""
    if isinstance(fill, Tensor):
        return f"tensor {tuple(fill.shape)}"
    return fill if isinstance(fill, str) else np.atleast_1d(fill).astype(float).tolist()


Pair = int | tuple[int, int]


@dataclass(frozen=True)
class SlidingMask:
    """What is done to every picture of one size."""

    tops: list[int]
    lefts: list[int]
    size: tuple[int, int]
    stride: tuple[int, int]
    fill: Fill
    seed: int

    @classmethod
    def of(cls, images: Tensor, patch: Pair, stride: Pair, fill: Fill, seed: int) -> SlidingMask:
        """Raises UsageError U355 (no pictures), U530 (a square that does not fit)."""
        if images.dim() != 4 or not len(images):
            what = "are not (pictures, channels, height, width)"
            raise UsageError("U355", f"pictures {tuple(images.shape)}", what)
        size, step = _pair(patch), _pair(stride)
        tops, lefts = (corners(images.shape[2 + n], size[n], step[n]) for n in (0, 1))
        return cls(tops, lefts, size, step, fill, seed)

    def patches(self, image: Float[Tensor, "c h w"]) -> Patches:
        """Raises UsageError U531 (fill)."""
        show = filled(self.fill, image, self.size, self.seed)
        return Patches(self.tops, self.lefts, self.size, show)

    def origin(self, engine: Incremental) -> dict[str, Any]:
        return {
            "method": "occlusion",
            "patch": list(self.size),
            "stride": list(self.stride),
            "fill": named(self.fill),
            "seed": self.seed,
            "engine": engine.how,
        }


def corners(extent: int, patch: int, stride: int) -> list[int]:
    """First pixels of the square along one axis: 0, stride, …; the last one touches the border."""
    if not 1 <= patch <= extent or stride < 1:
        raise UsageError(
            "U530",
            f"patch {patch}, stride {stride}",
            f"the square's side lies between 1 and the picture's {extent} px, its stride above 0",
        )
    last = extent - patch
    starts = list(range(0, last + 1, stride))
    return starts if starts[-1] == last else [*starts, last]


PAPER, PLACES = 50 / 224, 7
"""The paper's square as a part of the picture's side, and its places along one."""


def covering(images: Tensor, patch: Pair | None, stride: Pair | None) -> tuple[Pair, Pair]:
    """What was not told: the paper's square, and steps in which so many places cover a side."""
    if images.dim() != 4:
        return patch or 1, stride or 1  # `SlidingMask.of` says what is wrong
    sides = (int(images.shape[2]), int(images.shape[3]))
    height, width = _pair(patch) if patch is not None else (max(1, round(n * PAPER)) for n in sides)
    if stride is None:
        left = (sides[0] - height, sides[1] - width)
        down, across = (max(1, -(-rest // (PLACES - 1))) for rest in left)
        stride = (down, across)
    return (height, width), stride


def _pair(given: Pair) -> tuple[int, int]:
    pair = given if isinstance(given, Sequence) else (given, given)
    if len(pair) != 2 or not all(isinstance(n, (int, np.integer)) for n in pair):
        what = "give one whole number of pixels, or two: rows and columns"
        raise UsageError("U530", shown(given), what)
    return int(pair[0]), int(pair[1])


def finite(scores: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
    """In float32 at least. Raises ModelError M514 where a score is NaN or infinite."""
    if not bool(torch.isfinite(scores).all()):
        raise ModelError("M514", "the scores", "have a NaN or an infinity in this picture")
    return scores if scores.dtype == torch.float64 else scores.float()


def targets_of(
    target: int | Sequence[int] | None, images: Float[Tensor, "b c h w"]
) -> list[int] | None:
    """A target for each picture; None where none was named. Raises UsageError U351,
    U397 (a function)."""
    if target is None:
        return None
    if any(map(callable, target if isinstance(target, Sequence) else [target])):
        what = "what is hidden changes the probability of a class"
        raise UsageError("U397", "a function as target", what, next_step="name a class")
    several = list(target) if isinstance(target, Sequence) else [target] * len(images)
    aims = [int(one) if hasattr(one, "__index__") else one for one in several]
    if len(aims) != len(images):
        raise UsageError("U351", f"{len(aims)} targets", f"for {len(images)} pictures")
    return aims
