"""Does the grid of a stride show in a layer's projections, and of which convolution?

A transposed convolution lays its filter down at every stop of the stride; where the sums that
overlap are uneven, the energy of what arrives rises and falls with the stride's period. The energy
of a layer's projections, laid over one another at their receptive fields, is compared with its own
running mean, and the strength of this ripple at the period with that at periods around it.
Source: Odena, Dumoulin and Olah 2016, "Deconvolution and Checkerboard Artifacts".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch import Tensor

from convscope.core.units import Box
from convscope.records.features import Grid
from convscope.trace.autograd import Stride
from convscope.trace.receptive_field import ReceptiveField

GREY = 128
"""Of what lies outside the picture; no network saw it."""
CLIP = 99.5
SCALING = f"zero is mid-grey, the scale ends at the {CLIP}th percentile of absolute values"


def side_of(field: ReceptiveField, most: int) -> int:
    """Side of the square for a layer: the receptive field's own size, that of the picture where
    the field is larger, or the display's limit."""
    return max(1, min(most, max(map(min, field.size, field.picture))))


def around(box: Box, picture: tuple[int, int]) -> Box:
    """What is shown of a receptive field: all of it, and around its middle as much as the picture
    is large where it is larger."""
    down, across = max(0, box.height - picture[0]), max(0, box.width - picture[1])
    top, left = box.top + down // 2, box.left + across // 2
    return Box(top, left, top + box.height - down, left + box.width - across)


def inside(box: Box, picture: tuple[int, int], side: int) -> Bool[np.ndarray, "side side"]:
    """Which pixels of the square that `cut` makes lie in the picture, with their middles."""
    scale = min(1.0, side / max(box.height, box.width))
    axes = []
    starts, lengths = (box.top, box.left), (box.height, box.width)
    for first, length, most in zip(starts, lengths, picture, strict=True):
        before = (side - max(1, round(length * scale))) // 2
        middles = first + (np.arange(side) - before + 0.5) / scale
        axes.append((middles > max(0, first)) & (middles < min(most, first + length)))
    return np.logical_and.outer(*axes)


def cut(
    image: Float[Tensor, "c h w"], box: Box, side: int, outside: float
) -> Float[Tensor, "c side side"]:
    """The box of the image as a square; what reaches outside, or beyond a box that is not
    square, has the value `outside`. Boxes larger than the square are made smaller, by averages;
    none is made larger."""
    part = _padded(image, box, outside)
    scale = min(1.0, side / max(box.height, box.width))
    if scale < 1:
        size = [max(1, round(length * scale)) for length in (box.height, box.width)]
        part = F.interpolate(part[None], size, mode="bilinear", antialias=True)[0]
    square = part.new_full((part.shape[0], side, side), outside)
    height, width = part.shape[-2:]
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = part
    return square


def _padded(
    image: Float[Tensor, "c h w"], box: Box, outside: float
) -> Float[Tensor, "c boxheight boxwidth"]:
    inside = box.clipped(*image.shape[-2:])
    part = image.new_full((image.shape[0], box.height, box.width), outside)
    down, across = inside.top - box.top, inside.left - box.left
    part[:, down : down + inside.height, across : across + inside.width] = image[
        :, inside.top : inside.bottom, inside.left : inside.right
    ]
    return part


def patch(
    pixels: UInt8[np.ndarray, "h w 3"], box: Box, side: int
) -> UInt8[np.ndarray, "side side 3"]:
    """The box of a framed picture as a square for display."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float()
    square = cut(image, box, side, GREY).round().clamp(0, 255).byte()
    return square.permute(1, 2, 0).numpy()


def limit(values: Float32[np.ndarray, "*any"]) -> float:
    """Where the display's scale ends on both sides of zero, which is mid-grey.

    Between least and largest, as the paper's figures seem to be scaled, a few bright pixels leave
    the rest of a deep unit's projection all but invisible.
    """
    size = np.abs(values)
    return float(np.percentile(size, CLIP)) or float(size.max())


def quantised(
    values: Float32[np.ndarray, "*any"], low: float, high: float
) -> UInt8[np.ndarray, "*any"]:
    """Numbers between low and high as 0 to 255; all at mid-grey if low is high."""
    if not high > low:
        return np.full(values.shape, GREY, np.uint8)
    return np.rint((values - low) * (255.0 / (high - low))).clip(0, 255).astype(np.uint8)


RIPPLE = 0.1
"""By how much of its mean the energy swings, at least, where a grid is named …"""
ABOVE = 3.0
"""… and how many times what it does at periods around."""
STOPS = 5
"""Periods that have to be seen at least."""
AROUND = (0.58, 0.66, 0.74, 1.32, 1.41, 1.55)
"""Frequencies that no stride has, in those of the stride."""
FAINT = 0.05
"""Of the strongest row: weaker ones are left out."""


class Energy:
    """Of a layer's projections by row and column of the receptive field."""

    def __init__(self, field: ReceptiveField) -> None:
        self._sums = [np.zeros(length) for length in field.size]
        self._counts = [np.zeros(length) for length in field.size]

    def add(self, pixels: Float[Tensor, "c h w"], near: Box) -> None:
        """near: the receptive field, in rows and columns of these pixels; each counts alike."""
        squares = pixels.double().square_().sum(dim=0)
        total = float(squares.sum())
        if not total > 0:
            return
        for axis, (low, high) in enumerate(((near.top, near.bottom), (near.left, near.right))):
            along = (squares.sum(dim=1 - axis) / total).cpu().numpy()
            first, last = max(low, 0), min(high, len(along), low + len(self._sums[axis]))
            if first < last:
                self._sums[axis][first - low : last - low] += along[first:last]
                self._counts[axis][first - low : last - low] += 1

    def grids(self, strides: Sequence[Stride]) -> tuple[Grid, ...]:
        """Those that show, the widest first; each period once, with the first convolution on the
        way down that is uneven."""
        result: dict[int, Grid] = {}
        profiles = [s / np.maximum(c, 1) for s, c in zip(self._sums, self._counts, strict=True)]
        for stride in sorted(strides, key=lambda each: each.is_even):
            for axis in (0, 1):
                period, step = stride.period[axis], stride.stride[axis]
                if step == 1:
                    continue
                ripple = _ripple(profiles[axis], period)
                known = result.get(period)
                if known is None and ripple > 0:
                    how = (stride.kernel[axis], step, period, ripple)
                    result[period] = (stride.layer, *how)
                elif known is not None and known[0] == stride.layer:
                    result[period] = (*known[:4], max(known[4], ripple))
        return tuple(result[period] for period in sorted(result, reverse=True))


def _ripple(profile: Float64[np.ndarray, "n"], period: int) -> float:
    """By what share of its mean the profile swings with this period; 0 where that is nothing
    special."""
    seen = np.flatnonzero(profile > 0)
    if not len(seen):
        return 0.0
    profile = profile[seen[0] : seen[-1] + 1]
    if len(profile) < (STOPS + 1) * period:
        return 0.0
    smooth = np.convolve(profile, np.ones(period) / period, "valid")
    start = (period - 1) // 2
    inner = profile[start : start + len(smooth)]
    strong = np.flatnonzero(smooth > FAINT * smooth.max())
    if len(strong) < STOPS * period:
        return 0.0
    part = slice(strong[0], strong[-1] + 1)
    relative = inner[part] / np.maximum(smooth[part], 1e-300) - 1
    own = _at(relative, 1 / period)
    around = max(float(np.median([_at(relative, share / period) for share in AROUND])), 1e-12)
    return own if own >= RIPPLE and own >= ABOVE * around else 0.0


def _at(values: Float[np.ndarray, "n"], frequency: float) -> float:
    """The amplitude of one frequency, in cycles a pixel."""
    window = np.hanning(len(values) + 2)[1:-1]
    wave = np.exp(-2j * np.pi * frequency * np.arange(len(values)))
    return float(
        (1 if frequency == 0.5 else 2) * abs((window * values * wave).sum()) / window.sum()
    )
