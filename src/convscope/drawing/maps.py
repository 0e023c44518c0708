"""Maps over a picture: class-activation maps, areas of likeliest classes, and the picture beside
its likeliest classes. Drawn by Pillow: Matplotlib is slow to start.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8
from PIL import Image, ImageDraw

from convscope.drawing.style import (
    DISTINCT,
    INK,
    SOFT,
    TRAINING,
    font,
    heat,
    shortened,
    signed,
    stretch,
)
from convscope.records.maps import Attribution, Projection
from convscope.records.predictions import Prediction

OPAQUE = 0.85
"""How much of the picture the strongest place of a map covers."""
RARE = 99.5
"""Percent of the pixels below the value that is drawn strongest, for maps of single pixels: a few
outliers would leave the rest black."""
GREY = np.array((0.299, 0.587, 0.114))
"""Weights of red, green and blue in grey. Source: ITU-R BT.601."""


def drawn(picture: UInt8[np.ndarray, "h w 3"], found: Attribution) -> UInt8[np.ndarray, "h w 3"]:
    """A coarse map over the grey picture, where it is positive; a map of pixels on its own.

    A map with no positive part is drawn as the grey picture alone. Maps of pixels with both
    signs are red for and blue against the target, grey at 0.
    """
    if found.values.min() >= 0 and not found.positive:
        return _grey(picture)
    if _coarse(found):
        return over(picture, found.values)
    limit = float(np.percentile(np.abs(found.values), RARE)) or float(np.abs(found.values).max())
    if found.values.min() < 0:
        return signed(found.values, limit)
    return heat(found.values, 0.0, limit, table="magma")


def over(
    picture: UInt8[np.ndarray, "h w 3"], values: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Positive values over the grey picture, the more covering the larger they are."""
    top = float(values.max())
    if top <= 0:
        return _grey(picture)
    share = np.clip(np.asarray(values, np.float64) / top, 0, 1)
    cover = (OPAQUE * share)[..., None]
    mixed = _grey(picture) * (1 - cover) + heat(share, 0, 1) * cover
    whole: UInt8[np.ndarray, "h w 3"] = np.rint(mixed).astype(np.uint8)
    return whole


def legend(found: Attribution) -> str:
    """What the drawing's colours stand for."""
    if not found.positive and (_coarse(found) or found.values.min() >= 0):
        return "no positive evidence"
    if _coarse(found):
        return f"clear 0, yellow {float(found.values.max()):.3g}"
    limit = float(np.percentile(np.abs(found.values), RARE)) or float(np.abs(found.values).max())
    if found.values.min() < 0:
        return f"red +{limit:.2g} for, blue −{limit:.2g} against"
    return f"black 0, white {limit:.2g}"


def _coarse(found: Attribution) -> bool:
    """Maps of layers are smooth when enlarged; maps of pixels are not."""
    return found.pixels is None and (
        found.raw is None or found.raw.size * 4 <= found.values.size or found.values.min() >= 0
    )


def _grey(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    light = np.rint(picture @ GREY).astype(np.uint8)
    return np.repeat(light[..., None], 3, axis=2)


LETTERS = "ABCDEFGH"
"""Names of the areas in the likeliest-class map, so that colour is not all that tells them."""


@dataclass(frozen=True)
class Kind:
    """One of the classes that won somewhere, in the likeliest-class map."""

    index: int
    """Class index, -1 for all the rest together."""
    count: int
    """Number of the square's places at which it won."""
    place: tuple[int, int]
    """Row and column deep inside its largest area, where a letter can stand."""


def kinds(likeliest: Int32[np.ndarray, "rows columns"]) -> list[Kind]:
    """The classes that won somewhere, most places first (then lower index); rest as index -1."""
    counts = sorted(Counter(likeliest.ravel().tolist()).items(), key=lambda kv: (-kv[1], kv[0]))
    fits = len(DISTINCT)
    named = counts if len(counts) <= fits else counts[: fits - 1]
    found = [Kind(index, n, _deepest(likeliest == index)) for index, n in named]
    rest = sum(n for _, n in counts[len(named) :])
    if rest:
        others = ~np.isin(likeliest, [index for index, _ in named])
        found.append(Kind(-1, rest, _deepest(others)))
    return found


def kind_map(
    likeliest: Int32[np.ndarray, "rows columns"], found: list[Kind]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Each class of `kinds` in its colour: the k-th one in DISTINCT[k]; the rest in grey."""
    colours = np.full((*likeliest.shape, 3), DISTINCT[-1], np.uint8)
    for kind, colour in zip(found, DISTINCT, strict=False):
        if kind.index >= 0:
            colours[likeliest == kind.index] = colour
    return colours


def _deepest(inside: Bool[np.ndarray, "rows columns"]) -> tuple[int, int]:
    """A place of the area that survives the most peeling of its edge."""
    left = np.pad(inside, 1)
    last = left
    while left.any():
        last = left
        left = left & np.roll(left, 1, 0) & np.roll(left, -1, 0)
        left = left & np.roll(last, 1, 1) & np.roll(last, -1, 1)
    row, column = (int(v[0]) for v in np.nonzero(last[1:-1, 1:-1]))
    return row, column


def seen_through(projection: Projection) -> UInt8[np.ndarray, "h w 3"]:
    """The projection scaled jointly over its three colours from its minimum to its maximum."""
    pixels = np.moveaxis(projection.pixels, 0, -1)
    return stretch(pixels, float(pixels.min(initial=0.0)), float(pixels.max(initial=0.0)))


class Placed(Protocol):
    """Where the squares of an occlusion were."""

    @property
    def tops(self) -> np.ndarray: ...
    @property
    def lefts(self) -> np.ndarray: ...
    @property
    def sides(self) -> tuple[int, int]: ...


def reach(occlusion: Placed) -> tuple[float, float, float, float]:
    """Left, top, width and height in pixels of the map whose cells lie on the square's centres."""
    tops, lefts = (np.asarray(v, np.float64) for v in (occlusion.tops, occlusion.lefts))
    down, across = (float(v[1] - v[0]) if len(v) > 1 else 1.0 for v in (tops, lefts))
    height, width = occlusion.sides
    return (
        float(lefts[0]) + width / 2 - across / 2,
        float(tops[0]) + height / 2 - down / 2,
        across * len(lefts),
        down * len(tops),
    )


def class_name(classes: tuple[str, ...], index: int) -> str:
    """The class's name, or `class 12` where names are unknown."""
    return classes[index] if 0 <= index < len(classes) else f"class {index}"


HIGH, GAP = 540, 12
"""Rows of the figure, and of white around and between its parts."""
NARROWEST, WIDEST = 300, 750
"""Columns that the picture may take."""
BARS, PART = 620, 0.62
"""Columns of names, bars and numbers; and part of its row that a bar fills."""


def prediction_figure(pixels: UInt8[np.ndarray, "h w 3"], prediction: Prediction) -> Image.Image:
    """pixels: what the network saw, or the whole picture."""
    height, width = pixels.shape[:2]
    wide = int(np.clip(HIGH * width / height, NARROWEST, WIDEST))
    scale = min(wide / width, (HIGH - 2 * GAP) / height)
    shown = Image.fromarray(pixels).resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC
    )
    figure = Image.new("RGB", (wide + BARS + 3 * GAP, HIGH), "white")
    figure.paste(shown, (GAP + (wide - shown.width) // 2, (HIGH - shown.height) // 2))
    _bars(ImageDraw.Draw(figure), wide + 2 * GAP, prediction)
    return figure


def prediction_png(pixels: UInt8[np.ndarray, "h w 3"], prediction: Prediction) -> bytes:
    """`prediction_figure` as a PNG file."""
    out = io.BytesIO()
    prediction_figure(pixels, prediction).save(out, "PNG")
    return out.getvalue()


def _bars(draw: ImageDraw.ImageDraw, left: int, prediction: Prediction) -> None:
    """Names, bars as long as the probabilities, and these as numbers, one class a row."""
    names = [shortened(name) for name in prediction.names]
    row = (HIGH - 2 * GAP) / max(1, len(names))
    letters, digits = font(min(21, max(8, int(row)))), font(min(19, max(7, int(row))))
    begin = left + round(max((draw.textlength(name, letters) for name in names), default=0)) + GAP
    whole = left + BARS - begin - round(draw.textlength("100.0% ", digits))
    for place, (name, part) in enumerate(zip(names, prediction.probability, strict=True)):
        middle = GAP + (place + 0.5) * row
        half, end = PART * row / 2, begin + round(float(part) * whole)
        draw.rectangle((begin, middle - half, max(begin, end), middle + half), fill=TRAINING)
        draw.text((begin - GAP / 2, middle), name, INK, letters, anchor="rm")
        draw.text((end + GAP / 2, middle), f"{part:.1%}", INK, digits, anchor="lm")
    draw.line((begin, GAP, begin, HIGH - GAP), fill=SOFT, width=2)
