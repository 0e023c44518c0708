"""How does data enter a page that cannot fetch, without ever becoming code or markup?

An opened file may load scripts but not JSON, so data come as `window.NAME = JSON;`. The JSON is
ASCII, and `<`, `>`, `&` are escaped too: no name can close a script, open a comment or start a
line of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from convscope.drawing.tiles import FINE, block, sprite
from convscope.records.features import LayerFeatures, Pictures

QUALITY = 86
EFFORT = 2
"""WebP's quality and method: about 30 KB and 20 ms for the 18 tiles of 96 px of one map."""
SHEET = 5
"""Thumbnails of whole pictures come in sheets of SHEET × SHEET."""
THUMBS = 12_000_000
"""All thumbnails together stay near this many bytes, by their size."""
HANDS = 4
"""Encoding leaves the interpreter's lock; more threads than this find nothing to do."""


def save(pixels: UInt8[np.ndarray, "h w 3"] | Image.Image, path: Path, *, exact: bool) -> None:
    """Write one WebP; exact: without loss, for few and hard pixels."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    if exact:
        picture.save(path, "WEBP", lossless=True, method=0)  # a third larger, 20 times as fast
    else:
        picture.save(path, "WEBP", quality=QUALITY, method=EFFORT)


def save_sprites(features: LayerFeatures, folder: Path) -> None:
    """One picture a feature map, NUMBER.webp: patches on the left, projections on the right; with
    those of a second rule NUMBERb.webp."""
    folder.mkdir(parents=True)
    exact = features.patches.shape[2] <= FINE

    def one(place: tuple[int, int]) -> None:
        channel, rule = place
        name = f"{channel}{'b' if rule else ''}.webp"
        save(sprite(features, channel, rule), folder / name, exact=exact)

    places = [(c, rule) for c in range(len(features.value)) for rule in range(len(features.shown))]
    with ThreadPoolExecutor(HANDS) as hands:
        list(hands.map(one, places))


def save_thumbs(pictures: Pictures, folder: Path) -> int:
    """Sheets NUMBER.webp of the whole pictures; returns the side of one in pixels."""
    folder.mkdir(parents=True)
    count = len(pictures.number)
    side = thumb_side(pictures.thumbs.shape[1] if count else 1, count)
    per = SHEET * SHEET
    for start in range(0, count, per):
        tiles = [shrunk(thumb, side) for thumb in pictures.thumbs[start : start + per]]
        save(
            block(tiles, shape=(SHEET, SHEET), empty=128),
            folder / f"{start // per}.webp",
            exact=False,
        )
    return side


def thumb_side(given: int, count: int) -> int:
    """The side that keeps `count` thumbnails within THUMBS; a photograph takes ¼ byte a pixel."""
    fits = int((THUMBS / (0.25 * max(1, count))) ** 0.5)
    return max(min(given, fits), min(given, 48))


def shrunk(thumb: UInt8[np.ndarray, "t t 3"], side: int) -> UInt8[np.ndarray, "s s 3"]:
    if thumb.shape[0] == side:
        return thumb
    return np.asarray(Image.fromarray(thumb).resize((side, side), Image.Resampling.LANCZOS))


ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def policy(types: str) -> str:
    """A page's content security policy: no inline script, no inline style, nothing from elsewhere,
    no string ever becomes markup.

    types: name of the one trusted type that the page makes, or `'none'`.
    """
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self' file:",
            "style-src 'self' file:",
            "img-src 'self' file:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            f"trusted-types {types}",
        )
    )


def script(target: str, value: Any) -> bytes:
    """One statement that sets `target` (an expression of ours, never of the data) to `value`."""
    return f"{target}={safe_json(value)};\n".encode("ascii")


def safe_json(value: Any) -> str:
    """JSON that is also a safe script: pure ASCII, no markup, no NaN."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.translate(ESCAPES)


def number(value: float, digits: int = 5) -> float | None:
    """A value at display precision; None where it is not finite."""
    value = float(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def numbers(values: np.ndarray[Any, Any]) -> Any:
    """An array as nested lists: whole numbers as they are, others by `number`."""
    if values.dtype.kind in "iub":
        return values.tolist()
    return [numbers(v) if np.ndim(v) else number(v) for v in values]


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with every array made plain."""
    return {k: numbers(v) if isinstance(v, np.ndarray) else v for k, v in fields.items()}


def shown(names: Iterable[str]) -> list[str]:
    """Names as a page may show them: control and undecodable characters made visible."""
    from convscope.core.errors import printable

    return [printable(name) for name in names]
