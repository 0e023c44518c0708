"""Tiles of pictures: blocks, enlarged, with captions; and pictures made for a network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from convscope.core.errors import UsageError, printable
from convscope.drawing.style import stretch
from convscope.records.features import LayerFeatures
from convscope.records.optimise import OptimisedPicture

PAPER = (255, 255, 255)
DARK = (32, 33, 36)
FINE = 16
"""Tiles of at most this side (first layers) keep their hard pixels when enlarged."""
LEAST = 48
"""Smaller tiles are enlarged to at least this side before they are stored or printed."""


def grid(k: int) -> tuple[int, int]:
    """Rows and columns of the block that holds k tiles; 9 → (3, 3)."""
    columns = max(1, math.ceil(math.sqrt(k)))
    return max(1, math.ceil(k / columns)), columns


def enlarged(tiles: UInt8[np.ndarray, "k s s 3"], side: int) -> UInt8[np.ndarray, "k t t 3"]:
    """The tiles at `side`: hard pixels where they are few, smooth otherwise."""
    s = tiles.shape[1]
    if s == side:
        return tiles
    how = Image.Resampling.NEAREST if s <= FINE and side % s == 0 else Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(t).resize((side, side), how)) for t in tiles])


def stored_side(s: int) -> int:
    """The side at which tiles of side s are stored: a whole multiple, at least LEAST."""
    return s * math.ceil(LEAST / s) if s < LEAST else s


def block(
    tiles: UInt8[np.ndarray, "k s s 3"] | Sequence[UInt8[np.ndarray, "s s 3"]],
    *,
    shape: tuple[int, int] | None = None,
    gap: int = 0,
    empty: int = 255,
) -> UInt8[np.ndarray, "h w 3"]:
    """Tiles row by row, strongest first; `empty` is the grey between and after them.

    shape: rows and columns; near-square unless given.
    """
    rows, columns = shape or grid(len(tiles))
    pitch = tiles[0].shape[0] + gap
    canvas = np.full((rows * pitch - gap, columns * pitch - gap, 3), empty, np.uint8)
    for place, tile in enumerate(tiles):
        top, left = (place // columns) * pitch, (place % columns) * pitch
        canvas[top : top + pitch - gap, left : left + pitch - gap] = tile
    return canvas


def sprite(features: LayerFeatures, channel: int, rule: int = 0) -> Image.Image:
    """One feature map's block of patches (left) and block of projections (right), no gaps.

    rule: number of the rule among those shown."""
    side = stored_side(features.patches.shape[2])
    halves = [
        block(enlarged(tiles[channel], side), empty=128)
        for tiles in (features.patches, features.shown[rule].projections)
    ]
    return Image.fromarray(np.concatenate(halves, axis=1))


def feature_figure(
    features: LayerFeatures,
    channels: Sequence[int],
    *,
    columns: int = 2,
    tile: int = 64,
    captions: bool = True,
) -> Image.Image:
    """The chosen feature maps: nine projections beside nine patches each, `columns` maps a row.

    tile: side of one patch in pixels. Projections share one scale over each map's nine, so a
    weaker one looks fainter, as in the paper. Raises UsageError U204 on an unknown feature map.
    """
    for channel in channels:
        _require(features, channel)
    cells = [_pair(features, channel, tile, captions=captions) for channel in channels]
    return _table(cells, columns, gap=max(6, tile // 4))


def network_figure(
    layers: Sequence[tuple[LayerFeatures, Sequence[int]]],
    *,
    columns: int = 4,
    tile: int = 48,
    captions: bool = True,
) -> Image.Image:
    """Several layers under each other, from pixels upwards: what `feature_figure` gives of each."""
    parts = [
        feature_figure(features, channels, columns=columns, tile=tile, captions=captions)
        for features, channels in layers
    ]
    return _table(parts, 1, gap=0)


def _require(features: LayerFeatures, channel: int) -> None:
    maps = len(features.value)
    if not 0 <= channel < maps:
        raise UsageError(
            "U204",
            f"{features.layer}:{channel}",
            f"no such feature map; the layer has {maps}, counted from 0",
            next_step=f"name one from 0 to {maps - 1}",
        )


def _pair(features: LayerFeatures, channel: int, tile: int, *, captions: bool) -> Image.Image:
    gap = max(1, tile // 32)
    blocks = [
        block(enlarged(tiles[channel], tile), gap=gap)
        for tiles in (features.projections, features.patches)
    ]
    between = np.full((blocks[0].shape[0], 3 * gap, 3), 255, np.uint8)
    picture = Image.fromarray(np.concatenate([blocks[0], between, blocks[1]], axis=1))
    return _captioned(picture, f"{features.layer}:{channel}", tile) if captions else picture


def _captioned(picture: Image.Image, text: str, tile: int) -> Image.Image:
    font = ImageFont.load_default(max(10, tile // 4))
    left, top, _, bottom = font.getbbox(text)
    room = int(bottom - top) + max(6, tile // 8)
    canvas = Image.new("RGB", (picture.width, picture.height + room), PAPER)
    canvas.paste(picture, (0, room))
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=DARK, font=font)
    return canvas


def _table(cells: Sequence[Image.Image], columns: int, *, gap: int) -> Image.Image:
    width = max((cell.width for cell in cells), default=1)
    height = max((cell.height for cell in cells), default=1)
    rows = math.ceil(len(cells) / columns) if columns > 1 else len(cells)
    columns = min(columns, max(1, len(cells)))
    if columns == 1:
        return _stacked(cells, gap)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    canvas = Image.new("RGB", size, PAPER)
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        canvas.paste(cell, (gap + column * (width + gap), gap + row * (height + gap)))
    return canvas


def _stacked(cells: Sequence[Image.Image], gap: int) -> Image.Image:
    width = max((cell.width for cell in cells), default=1) + 2 * gap
    height = sum(cell.height + gap for cell in cells) + gap
    canvas = Image.new("RGB", (width, max(1, height)), PAPER)
    top = gap
    for cell in cells:
        canvas.paste(cell, (gap, top))
        top += cell.height + gap
    return canvas


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
    ImageDraw.Draw(cell).multiline_text((0, picture.height + 3), text, fill=DARK, font=font)
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
