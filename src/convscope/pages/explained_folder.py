"""What does the page of a folder of explained pictures show: methods compared, and crops?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convscope.errors import printable
from convscope.figures.findings import leading
from convscope.figures.pictures import block
from convscope.pages.store import save
from convscope.records.explanation import Explanations
from convscope.records.faithfulness import interval

SHOWN = (
    "deletion",
    "random deletion",
    "insertion",
    "random insertion",
    "blob insertion",
    "drop",
    "increase",
    "road",
    "coverage",
    "pointing",
    "energy inside",
)
"""Columns of the table over a folder, where anything is known."""
HIGHER = {"insertion", "increase", "road", "pointing", "energy inside"}
LOWER = {"deletion", "drop"}
CLASSES = 12
"""Classes whose crops are shown …"""
CROPS = 24
"""… and how many of each."""


def table(record: Explanations) -> dict[str, Any]:
    """Mean and 95 % interval of each measure, by method; the best of a column is marked."""
    known = [
        one for one in SHOWN if not np.isnan(record.values[..., record.metrics.index(one)]).all()
    ]
    means = {one: [interval(record.of(one, method)) for method in record.methods] for one in known}
    best = {one: _best(one, [found.mean for found in means[one]]) for one in known}
    rows = [
        {
            "method": method,
            "cells": [
                (_cell(means[one][place]), best[one] == place and len(record.methods) > 1)
                for one in known
            ],
        }
        for place, method in enumerate(record.methods)
    ]
    heads = [(one, "↑" if one in HIGHER else "↓" if one in LOWER else "") for one in known]
    return {"heads": heads, "rows": rows, "pointing": _chance(record)}


def _best(metric: str, means: list[float]) -> int:
    if metric not in HIGHER | LOWER or np.isnan(means).all():
        return -1
    return int(np.nanargmax(means) if metric in HIGHER else np.nanargmin(means))


def _cell(found: tuple[float, float, float]) -> str:
    mean, low, high = found
    if np.isnan(mean):
        return "–"
    return f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _chance(record: Explanations) -> str:
    if np.isnan(record.pointing_random):
        return ""
    return (
        f"A random place would hit the boxes in {record.pointing_random:.0%}, the middle of the "
        f"picture in {record.pointing_blob:.0%}."
    )


def classes(record: Explanations, folder: Path) -> list[dict[str, Any]]:
    """What the leading method's maps point at, class by class, beside random places."""
    lead = leading(record)
    counts = {int(i): int((record.target == i).sum()) for i in np.unique(record.target)}
    chosen = sorted(counts, key=lambda i: (-counts[i], i))[:CLASSES]
    shown = []
    for index in chosen:
        places = np.flatnonzero(record.target == index)[:CROPS]
        for kind, crops in (("peak", record.crops), ("else", record.elsewhere)):
            tiles = list(crops[places, lead])
            sheet = block(tiles, shape=(-(-len(tiles) // 12), min(12, len(tiles))), empty=128)
            save(sheet, folder / "crops" / f"{index}-{kind}.webp", exact=False)
        name = record.classes[index] if index < len(record.classes) else f"class {index}"
        shown.append({"name": printable(name), "count": counts[index], "index": index})
    return shown
