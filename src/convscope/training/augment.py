"""What does a training picture look like in this epoch?

Every random choice is a pure function of (seed, what it is for, epoch, number), so neither the
number of processes, nor threads, nor a resumed run can change it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from convscope.pictures.framing import resized
from convscope.training.recipe import Recipe

CROP, ORDER, MIX, NOISE = range(4)
"""What random numbers are for; each has a stream of its own."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in grey. Source: ITU-R BT.601."""
TO_GREY = np.tile(LUMA, (3, 1))
EYE = np.eye(3, dtype=np.float32)


def stream(seed: int, purpose: int, epoch: int, number: int = 0) -> np.random.Generator:
    """The random numbers of one purpose, epoch and picture (or batch, or process)."""
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence((seed, purpose, epoch, number)))
    )


def order(seed: int, epoch: int, pictures: int) -> Int64[np.ndarray, "pictures"]:
    """In which order an epoch sees the pictures."""
    return stream(seed, ORDER, epoch).permutation(pictures)


@dataclass(frozen=True)
class Shrunk:
    """A framing that only makes the shorter side at most `side` pixels long."""

    side: int

    def __call__(self, picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        ratio = self.side / min(picture.size)
        if ratio < 1:
            width, height = (max(self.side, round(edge * ratio)) for edge in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture)


class View(NamedTuple):
    """One picture as an epoch sees it: pixels, and the change of colour still to be applied."""

    pixels: UInt8[np.ndarray, "size size 3"]
    colour: Float32[np.ndarray, "3 3"]
    """new = colour @ old + offset, on values 0 to 1; not clipped."""
    offset: Float32[np.ndarray, "3"]


def view(
    pixels: UInt8[np.ndarray, "h w 3"], size: int, recipe: Recipe, random: np.random.Generator
) -> View:
    """Cut, turn, mirror and recolour a picture as the recipe says."""
    box = _box(pixels.shape[1], pixels.shape[0], size, recipe, random)
    cut = _cut(Image.fromarray(pixels), box, size, recipe.rotate, random)
    if random.random() < recipe.flip:
        cut = cut[:, ::-1]
    if random.random() < recipe.flip_vertical:
        cut = cut[::-1]
    colour, offset = _colour(cut, recipe, random)
    cut = np.ascontiguousarray(cut)
    if random.random() < recipe.erase:
        cut = _erased(cut, random)
    return View(cut, colour, offset)


Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as Pillow has it."""


def _box(w: int, h: int, size: int, recipe: Recipe, random: np.random.Generator) -> Box:
    """Source of random windows: Krizhevsky et al. 2012, section 4.1."""
    if recipe.crop == "resized":
        return _resized_box(w, h, recipe, random)
    wide, high = resized((w, h), recipe.test_resize)
    if recipe.crop == "random":
        x, y = (int(place) for place in random.integers(0, recipe.test_resize - size + 1, 2))
        left, top = (round((edge - recipe.test_resize) / 2) for edge in (wide, high))
        left, top = left + x, top + y
    else:  # as images.framing rounds
        left, top = round((wide - size) / 2), round((high - size) / 2)
    across, down = w / wide, h / high
    return left * across, top * down, (left + size) * across, (top + size) * down


def _resized_box(w: int, h: int, recipe: Recipe, random: np.random.Generator) -> Box:
    """A box of random area and shape; the largest centred square after ten that do not fit.

    Source: Szegedy et al. 2015, section 6.
    """
    widest = math.log(recipe.ratio_max)
    for _ in range(10):
        area = w * h * random.uniform(recipe.scale_min, 1.0)
        ratio = math.exp(random.uniform(-widest, widest))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= w and height <= h:
            left, top = random.uniform(0, w - width), random.uniform(0, h - height)
            return left, top, left + width, top + height
    side = min(w, h)
    return (w - side) / 2, (h - side) / 2, (w + side) / 2, (h + side) / 2


def _cut(
    picture: Image.Image, box: Box, size: int, rotate: float, random: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    if not rotate:
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
    left, top, right, bottom = box
    angle = math.radians(random.uniform(-rotate, rotate))
    cos, sin, half = math.cos(angle), math.sin(angle), size / 2
    across, down = (right - left) / size, (bottom - top) / size
    a, b, d, e = across * cos, -down * sin, across * sin, down * cos
    x = (left + right) / 2 - a * half - b * half
    y = (top + bottom) / 2 - d * half - e * half
    turned = picture.transform(
        (size, size), Image.Transform.AFFINE, (a, b, x, d, e, y), Image.Resampling.BILINEAR
    )
    return np.asarray(turned)


def _colour(
    pixels: UInt8[np.ndarray, "size size 3"], recipe: Recipe, random: np.random.Generator
) -> tuple[Float32[np.ndarray, "3 3"], Float32[np.ndarray, "3"]]:
    """Brightness, contrast (about the mean grey), saturation and hue as one affine map."""
    brightness, contrast, saturation = 1 + random.uniform(-recipe.jitter, recipe.jitter, 3)
    if random.random() < recipe.grey:
        saturation = 0.0
    colour = saturation * EYE + (1 - saturation) * TO_GREY
    if recipe.hue:
        colour = _hue(2 * math.pi * random.uniform(-recipe.hue, recipe.hue)) @ colour
    # The mean of every eighth pixel both ways is near enough, and 64 times as quick.
    grey = float(pixels[::8, ::8].reshape(-1, 3).mean(0) @ LUMA) / 255 * brightness
    offset = np.full(3, (1 - contrast) * grey, np.float32)
    return (brightness * contrast * colour).astype(np.float32), offset


def _hue(angle: float) -> Float32[np.ndarray, "3 3"]:
    """Turn colours about the grey axis (Rodrigues' formula about (1, 1, 1))."""
    cos, side = math.cos(angle), math.sin(angle) * math.sqrt(1 / 3)
    rest = (1 - cos) / 3
    first = [cos + rest, rest - side, rest + side]
    return np.array([first, first[-1:] + first[:-1], first[1:] + first[:1]], np.float32)


def _erased(
    pixels: UInt8[np.ndarray, "size size 3"], random: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Source: Zhong et al. 2017; one colour a rectangle."""
    size = pixels.shape[0]
    area, shape = random.uniform(0.02, 0.25), math.exp(random.uniform(-1.0, 1.0))
    height = min(size, int(size * math.sqrt(area * shape)))
    width = min(size, int(size * math.sqrt(area / shape)))
    top, left = random.integers(0, size - height + 1), random.integers(0, size - width + 1)
    out = pixels.copy()
    out[top : top + height, left : left + width] = random.integers(0, 256, 3)
    return out
