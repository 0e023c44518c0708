"""Resize and centre crop: which part of a picture the network sees, and at what scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from PIL import Image

from convscope.core.units import Box

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

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
