"""What does a picture look like that was made for a network?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from convscope.errors import printable
from convscope.figures.heat import stretch
from convscope.figures.pictures import INK, PAPER, grid
from convscope.records.optimise import OptimisedPicture

GAP = 8
LETTERS = 13
"""Height of a caption's letters in pixels."""
SPREAD = (0.5, 99.5)
"""Percentiles that become black and white where the network's are not known."""


def optimised_picture(record: OptimisedPicture) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as it is: from the network's black to its white, if they are known."""
    return _drawn(record.pixels, record)


def optimised_figure(records: Sequence[OptimisedPicture], *, columns: int = 0) -> Image.Image:
    """Pictures side by side, each with what it is of and how well it does; an inversion and a
    dream with the photograph at their left. columns: near-square unless given."""
    cells = [_cell(record) for record in records]
    columns = columns or grid(len(cells))[1]
    width, height = (max(getattr(cell, side) for cell in cells) for side in ("width", "height"))
    rows = math.ceil(len(cells) / columns)
    size = (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, PAPER)
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        sheet.paste(cell, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return sheet


def caption(record: OptimisedPicture) -> str:
    """Two lines: what it is of, and how well it does."""
    subject = printable(record.subject)
    if record.kind == "inversion":
        told = f"{math.sqrt(record.value):.0%} off the photograph's features"
    else:
        told = f"{record.value:.4g}"
        if math.isfinite(record.natural):
            told += f"; best photograph {record.natural:.4g}"
    if record.stopped:
        told += f"; stopped after {len(record.values)} of {record.asked} steps"
    return f"{subject}\n{told}"


def _cell(record: OptimisedPicture) -> Image.Image:
    parts = [optimised_picture(record)]
    if record.original is not None:
        parts.insert(0, _drawn(record.original, record))
    picture = Image.fromarray(np.concatenate(parts, axis=1))
    font = ImageFont.load_default(LETTERS)
    text = caption(record)
    draw = ImageDraw.Draw(picture)
    _, _, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    cell = Image.new(
        "RGB", (max(picture.width, int(right) + 1), picture.height + int(bottom) + 5), PAPER
    )
    cell.paste(picture, (0, 0))
    ImageDraw.Draw(cell).multiline_text((0, picture.height + 3), text, fill=INK, font=font)
    return cell


def _drawn(pixels: np.ndarray, record: OptimisedPicture) -> UInt8[np.ndarray, "h w 3"]:
    if record.black.size:
        values = (pixels - record.black) / (record.white - record.black)
        whole = stretch(values, 0.0, 1.0)
    else:
        low, high = np.percentile(pixels, SPREAD)
        whole = stretch(pixels, float(low), float(high))
    if len(whole) != 3:  # grey, or channels that are no colours: their mean
        whole = np.rint(whole.mean(0, keepdims=True)).astype(np.uint8).repeat(3, 0)
    return np.ascontiguousarray(whole.transpose(1, 2, 0))
