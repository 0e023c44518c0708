"""Data of the pages: records as plain fields, JSON scripts and sprites, never code or markup.

An opened file may load scripts but not JSON, so data come as `window.NAME = JSON;`. The JSON is
ASCII, and `<`, `>`, `&` are escaped too: no name can close a script, open a comment or start a
line of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from convscope.core.errors import printable
from convscope.core.record import Record
from convscope.drawing.tiles import FINE, block, grid, sprite, stored_side
from convscope.pictures.notes import PICTURE_NOTES, words
from convscope.records.features import (
    LayerFeatures,
    LayerTable,
    ModelCard,
    Pictures,
    Shown,
    grid_words,
)
from convscope.records.predictions import Evolution, Series

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


STRONGEST = 12
"""Feature maps of a layer that the first screen may show."""


def origin(record: Record) -> dict[str, str]:
    """What made the record, in words; lists are left to the record itself."""
    return told(record.origin)


def told(made: Mapping[str, Any]) -> dict[str, str]:
    """The same of what stands in a record's origin."""
    found = {
        printable(name).replace("_", " "): printable(str(value))
        for name, value in made.items()
        if isinstance(value, str | int | float)
    }
    noted = "; ".join(notes(made))
    return found | ({PICTURE_NOTES: noted} if noted else {})


def notes(made: Mapping[str, Any]) -> list[str]:
    """What was changed in the pictures of a record; none if nothing was, or nobody knows."""
    counts = made.get(PICTURE_NOTES)
    known = isinstance(counts, dict) and all(isinstance(n, int) for n in counts.values())
    return words(counts) if known and counts else []


def assumption(made: Mapping[str, Any]) -> str:
    """How pictures were made ready for the network of a record, where that was assumed."""
    told = str(made.get("preprocessing", "")) if made.get("preprocessing is") == "assumed" else ""
    return printable(told.removeprefix("assumed: "))


SPELLED = {
    "alexnet": "AlexNet",
    "convnext": "ConvNeXt",
    "densenet": "DenseNet",
    "efficientnet": "EfficientNet",
    "googlenet": "GoogLeNet",
    "inception": "Inception",
    "mnasnet": "MNASNet",
    "mobilenet": "MobileNet",
    "regnet": "RegNet",
    "resnet": "ResNet",
    "resnext": "ResNeXt",
    "shufflenet": "ShuffleNet",
    "squeezenet": "SqueezeNet",
    "vgg": "VGG",
    "zfnet": "ZFNet",
}
"""Families of networks as their authors write them."""


def readable(spec: str) -> str:
    """A network's name for people: "SqueezeNet 1.0 (torchvision)" for torchvision:squeezenet1_0,
    "ZFNet (width 0.25)" for zfnet:width=0.25, "net (mynet)" for mynet:net."""
    head, _, rest = printable(spec).partition(":")
    if not rest or "=" in rest.partition(":")[0]:  # one of ours, with options
        name, more = head, rest.replace("=", " ").replace(",", ", ")
    else:
        name, _, options = rest.partition(":")
        more = ", ".join(filter(None, [head, options.replace("=", " ").replace(",", ", ")]))
    family = max((one for one in SPELLED if name.startswith(one)), key=len, default="")
    if family:
        after = re.sub(r"(?<=\d)_(?=\d)", ".", name.removeprefix(family)).replace("_", " ")
        name = f"{SPELLED[family]} {after.strip()}".strip()
    return f"{name} ({more})" if more else name


def card(record: ModelCard) -> dict[str, Any]:
    fields = {
        entry.name: getattr(record, entry.name)
        for entry in dataclasses.fields(record)
        if entry.name != "origin"
    }
    fields["weights"] = PurePath(record.weights).name  # the rest says where, not what
    texts = ("name", "weights", "sha256", "preprocessing")
    fields |= dict(zip(texts, shown(fields[name] for name in texts), strict=True))
    return fields | {
        "classes": shown(record.classes),
        "top1": number(record.top1),
        "top5": number(record.top5),
    }


def table(record: LayerTable) -> dict[str, Any]:
    return {
        "name": shown(record.name),
        "kind": shown(record.kind),
        "shape": record.shape,
        "parameters": numbers(record.parameters),
        "multiply_adds": numbers(record.multiply_adds),
        "field": numbers(record.field),
        "stride": numbers(record.stride),
        "kernel": record.kernel or [()] * len(record.name),
        "of": shown(record.of or [""] * len(record.name)),
    }


def pictures(record: Pictures, side: int) -> dict[str, Any]:
    return {
        "number": numbers(record.number),
        "name": shown(record.name),
        "label": numbers(record.label),
        "classes": shown(record.classes),
        "size": record.size,
        "notes": notes(record.origin),
        "sheet": SHEET,
        "side": side,
    }


def layer(record: LayerFeatures) -> dict[str, Any]:
    """What the first screen shows of a layer; `maps` is the rest, for the layer's own file."""
    maps, k = record.value.shape
    rows, columns = grid(k)
    return {
        "name": shown([record.layer])[0],
        "kind": record.kind,
        "shape": record.shape,
        "field": record.field,
        "stride": record.stride,
        "maps": maps,
        "k": k,
        "rows": rows,
        "columns": columns,
        "side": record.patches.shape[2],
        "tile": stored_side(record.patches.shape[2]),
        "seen": record.seen,
        "dead": int(np.count_nonzero(record.active == 0)),
        "rules": [each.rule for each in record.shown],
        "why": printable(str(record.origin.get("rule_chosen", ""))),
        "alike": [int(record.alike(each.similarity).sum()) for each in record.shown],
        "grids": [shown([grid_words(grid) for grid in each.grids]) for each in record.shown],
        "rewritten": record.rewritten,
        "rectifiers": record.rectifiers,
        "strongest": strongest(record),
        "origin": origin(record),
    }


def strongest(record: LayerFeatures) -> list[int]:
    """The living feature maps with the highest peaks, highest first, then lower index."""
    living = np.flatnonzero(record.active > 0)
    order = np.argsort(-record.value[living, 0], kind="stable")
    return numbers(living[order][:STRONGEST])  # type: ignore[no-any-return]


def maps(record: LayerFeatures, known: Int64[np.ndarray, "pictures"]) -> dict[str, Any]:
    """Every map's numbers, places and scales; pictures by their place in `known`, or -1."""
    return {
        "value": numbers(record.value),
        "picture": numbers(places(record.image, known)),
        "row": numbers(record.row),
        "column": numbers(record.column),
        "box": numbers(record.box),
        "active": numbers(record.active),
        "invalid": numbers(record.invalid),
        "patch_similarity": numbers(record.patch_similarity),
        **drawn(record, record.shown[0]),
        "beside": drawn(record, record.shown[1]) if record.beside else None,
    }


def drawn(record: LayerFeatures, rule: Shown) -> dict[str, Any]:
    """Of each map what the page says of one rule's projections."""
    return {
        "low": numbers(rule.low),
        "high": numbers(rule.high),
        "darkest": numbers(rule.projections.min(axis=(2, 3, 4))),
        "lightest": numbers(rule.projections.max(axis=(2, 3, 4))),
        "similarity": numbers(rule.similarity),
        "alike": numbers(record.alike(rule.similarity).astype(int)),
    }


def places(
    image: Int64[np.ndarray, "maps k"], known: Int64[np.ndarray, "pictures"]
) -> Int64[np.ndarray, "maps k"]:
    """Where each picture number stands in the ascending `known`; -1 where it does not."""
    if not len(known):
        return np.full(image.shape, -1, np.int64)
    at = np.minimum(np.searchsorted(known, image), len(known) - 1)
    return np.where(known[at] == image, at, -1).astype(np.int64)


def training(record: Series) -> dict[str, Any]:
    return {
        "columns": shown(record.columns),
        "epochs": numbers(record.epochs),
        "values": numbers(record.values),
        "origin": origin(record),
    }


def evolution(record: Evolution) -> dict[str, Any]:
    return {
        "units": shown(record.units),
        "epochs": numbers(record.epochs),
        "value": numbers(record.value),
        "image": numbers(record.image),
        "row": numbers(record.row),
        "column": numbers(record.column),
        "low": numbers(record.low),
        "high": numbers(record.high),
        "tile": stored_side(record.patches.shape[2]),
        "origin": origin(record),
        "per_row": max(1, min(len(record.epochs), 16)),
    }
