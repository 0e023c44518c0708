"""Pictures drawn: colours, fonts and heat maps shared by all figures; tiles, maps over pictures."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8
from PIL import Image, ImageDraw, ImageFont

from convscope.core.errors import UsageError, printable
from convscope.records.features import LayerFeatures
from convscope.records.maps import Attribution, OptimisedPicture, Projection
from convscope.records.predictions import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TRAINING, VALIDATION = "#0b5cbf", "#b25400"
INK, SOFT = "#1b1d20", "#5b6067"
LONGEST = 26
"""Characters of a name in a plot."""


def shortened(name: str) -> str:
    """A name as plots show it: printable, and not too long."""
    text = printable(name)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Matplotlib's own letters, so that all figures look alike; size: pixels."""
    home = find_spec("matplotlib")
    for place in (home.submodule_search_locations or ()) if home else ():
        file = Path(place) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


DISTINCT = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (110, 110, 110),
)
"""Colours for kinds, told apart by colour-blind readers; the last one stands for all the rest.

Source: Okabe and Ito 2008, Color Universal Design.
"""


def heat(
    values: Float[np.ndarray, "h w"], low: float, high: float, *, table: str = "viridis"
) -> UInt8[np.ndarray, "h w 3"]:
    """Values from `low` to `high` in a perceptually uniform colour map; NaN is mid-grey.

    table: any of matplotlib's, e.g. viridis, magma, or jet to redraw the paper's own figures.
    """
    from matplotlib import colormaps

    span = high - low if high > low else 1.0
    place = np.nan_to_num((np.asarray(values, dtype=np.float64) - low) / span, nan=0.0)
    colours = np.asarray(colormaps[table](np.clip(place, 0.0, 1.0)))[..., :3]
    colours[np.isnan(values)] = 0.5
    whole: UInt8[np.ndarray, "h w 3"] = np.rint(colours * 255).astype(np.uint8)
    return whole


def signed(values: Float[np.ndarray, "h w"], limit: float = 0.0) -> UInt8[np.ndarray, "h w 3"]:
    """Signed values from -limit (blue) over 0 (grey) to +limit (red).

    limit: 0 means the largest absolute value, so that zero stays grey.
    """
    top = limit or float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return heat(values, -top, top, table="coolwarm")


def stretch(values: Float[np.ndarray, "..."], low: float, high: float) -> UInt8[np.ndarray, "..."]:
    """Values from `low` (black) to `high` (white), clipped; one scale for all that share it."""
    span = high - low if high > low else 1.0
    scaled: UInt8[np.ndarray, "..."] = np.rint(
        np.clip((values - low) / span, 0.0, 1.0) * 255
    ).astype(np.uint8)
    return scaled


def dress(
    axes: Axes,
    title: str = "",
    across: str = "",
    up: str = "",
    *,
    grid: Literal["", "x", "y", "both"] = "",
    size: float = 8,
    without: Sequence[str] = ("top", "right"),
) -> None:
    """Titles and pale ticks of a plot, a grid behind the data, and no frame where it is of no use.

    size: of the ticks' letters, in points; the title's are one larger.
    """
    if title:
        axes.set_title(title, loc="left", fontsize=size + 1, color=INK, parse_math=False)
    if across:
        axes.set_xlabel(across, color=SOFT, fontsize=size)
    if up:
        axes.set_ylabel(up, color=SOFT, fontsize=size)
    axes.tick_params(colors=SOFT, labelsize=size)
    if grid:
        axes.grid(axis=grid, color="#e4e4e0", linewidth=0.8)
        axes.set_axisbelow(True)
    for edge in without:
        axes.spines[edge].set_visible(False)


def bare(axes: Axes) -> None:
    """A picture alone, without frame and ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set_visible(False)


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


CELL_GAP = 8
CAPTION_SIZE = 13
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
    size = (columns * (width + CELL_GAP) + CELL_GAP, rows * (height + CELL_GAP) + CELL_GAP)
    sheet = Image.new("RGB", size, PAPER)
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        sheet.paste(
            cell, (CELL_GAP + column * (width + CELL_GAP), CELL_GAP + row * (height + CELL_GAP))
        )
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
    font = ImageFont.load_default(CAPTION_SIZE)
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
