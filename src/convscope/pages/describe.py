"""What does the page need to know of each record, as plain fields?"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from jaxtyping import Int64

from convscope.core.errors import printable
from convscope.core.record import Record
from convscope.drawing.tiles import grid, stored_side
from convscope.pages.store import SHEET, number, numbers, shown
from convscope.pictures.notes import PICTURE_NOTES, words
from convscope.records.features import (
    LayerFeatures,
    LayerTable,
    ModelCard,
    Pictures,
    Shown,
    grid_words,
)
from convscope.records.series import Evolution, Series

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
