"""Shift, scale and rotate pictures, for tests of invariance.

Everything happens on the whole picture at the network's scale (the canvas), and only then is the
middle cut out: what moves in at a border is the picture itself as far as there is any.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from convscope.core.errors import UsageError, nearest
from convscope.pictures.framing import Framing

Colour = tuple[int, int, int]
Border = Literal["edge", "mirror"] | Colour
"""What lies beyond the canvas: its outermost pixels again and again, its mirror image, or one
colour."""
MODES: dict[str, Literal["edge", "symmetric"]] = {"edge": "edge", "mirror": "symmetric"}
CHANGES = {
    "vertical": "pixels down",
    "horizontal": "pixels to the right",
    "scale": "ratio",
    "rotation": "degrees to the left",
}
"""What can be done to a picture, and in which unit."""
UNTOUCHED = {"vertical": 0.0, "horizontal": 0.0, "scale": 1.0, "rotation": 0.0}
Pixels = UInt8[np.ndarray, "h w 3"]


def canvas(picture: Image.Image, framing: Framing) -> Pixels:
    """The whole picture at the scale at which `framing` cuts out its middle, and at least as
    large as that; the middle itself where the framing stretches the picture."""
    if framing.resize is None:
        return framing(picture)
    wide, high = framing.whole(picture.size)
    size = (max(high, framing.crop[0]), max(wide, framing.crop[1]))
    return Framing(framing.resize, size, framing.interpolation)(picture)


def middle(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """What a framing to this size would show of the canvas."""
    top, left = _start(pixels, size)
    return pixels[top : top + size[0], left : left + size[1]]


def warp(
    pixels: Pixels, size: tuple[int, int], change: str, amount: float, border: Border
) -> tuple[Pixels, float]:
    """The middle of a canvas after one of CHANGES, and the share of it that is made up (border).

    size: height and width of the middle. amount: whole pixels, a ratio above 0 (2 enlarges
    twofold, about the middle), or degrees to the left. Shifts and quarter turns move pixels as
    they are; otherwise they are interpolated linearly, and averaged where the picture shrinks.

    Raises UsageError U411 on anything else.
    """
    _require(pixels, size, change, amount, border)
    inside = np.full_like(pixels, 255)
    shown = _warped(pixels, size, change, amount, border)
    kept = _warped(inside, size, change, amount, (0, 0, 0))
    return shown, float((kept[..., 0] < 128).mean())


def _warped(
    pixels: Pixels, size: tuple[int, int], change: str, amount: float, border: Border
) -> Pixels:
    if change == "scale":
        return _scaled(pixels, size, amount, border)
    if change == "rotation":
        return _turned(pixels, size, amount, border)
    down, across = (round(amount), 0) if change == "vertical" else (0, round(amount))
    margin = abs(down) + abs(across)
    top, left = _start(pixels, size)
    wide = _padded(pixels, margin, border)
    top, left = top + margin - down, left + margin - across
    return np.ascontiguousarray(wide[top : top + size[0], left : left + size[1]])


def _scaled(pixels: Pixels, size: tuple[int, int], ratio: float, border: Border) -> Pixels:
    height, width = size[0] / ratio, size[1] / ratio
    margin = max(0, math.ceil(max(height - pixels.shape[0], width - pixels.shape[1]) / 2)) + 2
    top, left = _start(pixels, size)
    y, x = top + margin + (size[0] - height) / 2, left + margin + (size[1] - width) / 2
    whole = Image.fromarray(_padded(pixels, margin, border))
    how = Image.Resampling.BILINEAR
    return np.asarray(whole.resize(size[::-1], how, box=(x, y, x + width, y + height)))


def _turned(pixels: Pixels, size: tuple[int, int], degrees: float, border: Border) -> Pixels:
    cosine, sine = _exact(math.cos, degrees), _exact(math.sin, degrees)
    margin = max(0, math.ceil((math.hypot(*size) - min(pixels.shape[:2])) / 2)) + 2
    top, left = _start(pixels, size)
    y, x = top + margin + size[0] / 2, left + margin + size[1] / 2
    half_y, half_x = size[0] / 2, size[1] / 2
    # From a place in the result to its place in the canvas; rows count downwards.
    across = (cosine, -sine, x - cosine * half_x + sine * half_y)
    down = (sine, cosine, y - sine * half_x - cosine * half_y)
    whole = Image.fromarray(_padded(pixels, margin, border))
    how = Image.Resampling.BILINEAR
    return np.asarray(whole.transform(size[::-1], Image.Transform.AFFINE, across + down, how))


def _exact(function: object, degrees: float) -> float:
    """Sine or cosine without the rounding that would blur quarter turns."""
    value = float(function(math.radians(degrees)))  # type: ignore[operator]
    return float(round(value)) if abs(value - round(value)) < 1e-12 else value


def _padded(pixels: Pixels, margin: int, border: Border) -> Pixels:
    sides = ((margin, margin), (margin, margin), (0, 0))
    if isinstance(border, str):
        return np.pad(pixels, sides, mode=MODES[border])
    wide = np.pad(pixels, sides)
    wide[...] = border
    wide[margin : margin + pixels.shape[0], margin : margin + pixels.shape[1]] = pixels
    return wide


def _start(pixels: Pixels, size: tuple[int, int]) -> tuple[int, int]:
    """First row and column of the middle, as a Framing rounds them."""
    return round((pixels.shape[0] - size[0]) / 2), round((pixels.shape[1] - size[1]) / 2)


def _require(
    pixels: Pixels, size: tuple[int, int], change: str, amount: float, border: Border
) -> None:
    if change not in CHANGES:
        raise UsageError("U411", change, f"no such change of a picture; {nearest(change, CHANGES)}")
    whole = change in ("vertical", "horizontal")
    possible = {"scale": 1 / 64 <= amount <= 64}.get(change, abs(amount) <= 1 << 16)
    if not possible or (whole and amount != round(amount)):
        told = "whole pixels" if whole else "a ratio from 1/64 to 64, or finite degrees"
        raise UsageError("U411", f"{change}={amount:g}", "is impossible", next_step=f"take {told}")
    if isinstance(border, str) and border not in MODES:
        raise UsageError("U411", border, f"no such border; {nearest(border, MODES)}")
    if min(pixels.shape[0] - size[0], pixels.shape[1] - size[1]) < 0:
        raise UsageError("U411", "", f"a canvas of {pixels.shape[:2]} is smaller than {size}")
