"""What does the network take this picture for: the picture beside its likeliest classes?

Drawn by Pillow, as a command that looks at one picture should not wait for Matplotlib.
"""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from convscope.figures.style import INK, SOFT, TRAINING, font, shortened
from convscope.records.predictions import Prediction

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
