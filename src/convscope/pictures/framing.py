"""Resize and centre crop: what part of a picture the network sees; shift, scale and rotate.

Shifting and turning happen on the whole picture at the network's scale (the canvas), and only then
is the middle cut out: what moves in at a border is the picture itself as far as there is any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from convscope.core.errors import UsageError, nearest
from convscope.core.units import Box

Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"]
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
SHARP = ("nearest", "box")
"""Filters with edges: a rounding error in where they stand can be a whole pixel."""
REACH = {"nearest": 0, "box": 1, "bilinear": 1, "hamming": 1, "bicubic": 2, "lanczos": 3}
"""How far from its centre a filter looks, in pixels of the smaller picture."""


@dataclass(frozen=True)
class Framing:
    """Shorter side to `resize` pixels, then the middle `crop` (height, width) of that.

    `resize=(height, width)` stretches the whole picture to that first; `resize=None` to `crop`
    itself. What a crop larger than the
    resized picture adds is black. Equal to torchvision's Resize and CenterCrop to 1/255 (2/255
    in a few values of ten thousand at sizes where rounding ties abound, as 256 to 232), but only
    the pixels of the crop are resampled.
    """

    resize: int | tuple[int, int] | None = 256
    crop: tuple[int, int] = (224, 224)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        crop = (self.crop[0], self.crop[1])  # a list, where it comes out of JSON
        object.__setattr__(self, "crop", crop)
        if self.resize is not None and not isinstance(self.resize, int):
            sides = (self.resize[0], self.resize[1])
            object.__setattr__(self, "resize", None if sides == crop else sides)

    def __call__(self, picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        """picture: RGB of any size."""
        import numpy as np  # here, because decoding children never need it

        return np.asarray(self.image(picture))

    def box(self, box: Box, size: tuple[int, int]) -> Box:
        """Where a rectangle of a picture of this size (height, width) is afterwards, to the
        nearest pixel; it may reach outside."""
        (down, top), (across, left) = self._scale(size)
        return Box(
            round(box.top * down - top),
            round(box.left * across - left),
            round(box.bottom * down - top),
            round(box.right * across - left),
        )

    def _scale(self, size: tuple[int, int]) -> tuple[tuple[float, int], tuple[float, int]]:
        """Factor and first pixel of the crop, down and across."""
        height, width = size
        wide, high = self.whole((width, height))
        return (
            (high / height, _start(high, self.crop[0])),
            (wide / width, _start(wide, self.crop[1])),
        )

    def whole(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of a picture of such a size when it is resized and not yet cut."""
        if isinstance(self.resize, int):
            return resized(size, self.resize)
        height, width = self.resize or self.crop
        return width, height

    def image(self, picture: Image.Image) -> Image.Image:
        """The same as a Pillow image."""
        height, width = self.crop
        if self.resize is None:
            return picture.resize((width, height), FILTERS[self.interpolation])
        wide, high = self.whole(picture.size)
        if wide < width or high < height or self.interpolation in SHARP:
            return self._middle(picture.resize((wide, high), FILTERS[self.interpolation]))
        # Rounding to whole pixels of the resized picture: without it everything moves by up to
        # half a pixel (mean error 3/255).
        left, top = round((wide - width) / 2), round((high - height) / 2)
        across, down = picture.width / wide, picture.height / high
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return self._boxed(picture, box)

    def _boxed(self, picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
        """The box resampled to the crop, across and then down.

        Two steps, because Pillow from 13 on chooses the order by the sizes, and the pixels
        between them are rounded and clipped: on noise that changes the result by up to 20.
        """
        height, width = self.crop
        left, top, right, bottom = box
        reach = REACH[self.interpolation] * max(1.0, (bottom - top) / height) + 1
        first, last = max(0, int(top - reach)), min(picture.height, int(bottom + reach) + 1)
        whole = (first, last) == (0, picture.height)
        strip = picture if whole else picture.crop((0, first, picture.width, last))
        how, rows = FILTERS[self.interpolation], strip.height
        strip = strip.resize((width, rows), how, box=(left, 0, right, rows))
        return strip.resize((width, height), how, box=(0, top - first, width, bottom - first))

    def _middle(self, whole: Image.Image) -> Image.Image:
        """The middle of a picture that is resized as a whole.

        SHARP filters need that too: a box moves their sample points by a rounding error.
        """
        height, width = self.crop
        left, top = (_start(whole.width, width), _start(whole.height, height))
        return whole.crop((left, top, left + width, top + height))


def resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(width, height) after the shorter side became `shorter` pixels."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _start(there: int, wanted: int) -> int:
    """First pixel of a centred crop; negative where black is added."""
    return -((wanted - there) // 2) if there < wanted else round((there - wanted) / 2)


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
    top, left = _start_warp(pixels, size)
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
    top, left = _start_warp(pixels, size)
    wide = _padded(pixels, margin, border)
    top, left = top + margin - down, left + margin - across
    return np.ascontiguousarray(wide[top : top + size[0], left : left + size[1]])


def _scaled(pixels: Pixels, size: tuple[int, int], ratio: float, border: Border) -> Pixels:
    height, width = size[0] / ratio, size[1] / ratio
    margin = max(0, math.ceil(max(height - pixels.shape[0], width - pixels.shape[1]) / 2)) + 2
    top, left = _start_warp(pixels, size)
    y, x = top + margin + (size[0] - height) / 2, left + margin + (size[1] - width) / 2
    whole = Image.fromarray(_padded(pixels, margin, border))
    how = Image.Resampling.BILINEAR
    return np.asarray(whole.resize(size[::-1], how, box=(x, y, x + width, y + height)))


def _turned(pixels: Pixels, size: tuple[int, int], degrees: float, border: Border) -> Pixels:
    cosine, sine = _exact(math.cos, degrees), _exact(math.sin, degrees)
    margin = max(0, math.ceil((math.hypot(*size) - min(pixels.shape[:2])) / 2)) + 2
    top, left = _start_warp(pixels, size)
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


def _start_warp(pixels: Pixels, size: tuple[int, int]) -> tuple[int, int]:
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
