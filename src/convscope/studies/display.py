"""How does a part of a picture or of a projection become a small square to look at?"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from convscope.lens.geometry import Field
from convscope.units import Box

GREY = 128
"""Of what lies outside the picture; no network saw it."""
CLIP = 99.5
SCALING = f"zero is mid-grey, the scale ends at the {CLIP}th percentile of absolute values"


def side_of(field: Field, most: int) -> int:
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
