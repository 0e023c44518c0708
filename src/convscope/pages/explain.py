"""How does one picture's occlusion enter the page: five pictures, the numbers, the words?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from convscope.figures.heat import DISTINCT, heat
from convscope.figures.occlusion import LETTERS, class_name, kind_map, kinds, reach, seen_through
from convscope.figures.occlusion import worst as lowest
from convscope.pages.describe import origin
from convscope.pages.script import number, numbers, shown
from convscope.pages.store import save
from convscope.records.maps import Occlusion, OcclusionExample


def save_example(example: OcclusionExample, folder: Path) -> dict[str, Any]:
    """Write the panels' pictures into `folder`; return what the page says beside them."""
    o = example.occlusion
    found = kinds(o.likeliest)
    save(example.picture, folder / "picture.webp", exact=False)
    for name in ("activity", "probability"):
        values = getattr(o, name)
        colours = heat(values, float(np.nanmin(values)), float(np.nanmax(values)))
        save(colours, folder / f"{name}.webp", exact=True)
    save(kind_map(o.likeliest, found), folder / "likeliest.webp", exact=True)
    if example.projection is not None:
        save(seen_through(example.projection), folder / "projection.webp", exact=False)
    return _numbers(example) | {
        "kinds": [
            {
                "letter": letter,
                "name": _name(example, kind.index),
                "target": kind.index == o.target,
                "count": kind.count,
                "place": kind.place,
                "colour": "#{:02x}{:02x}{:02x}".format(*colour),
            }
            for letter, colour, kind in zip(LETTERS, DISTINCT, found, strict=False)
        ],
    }


def _numbers(example: OcclusionExample) -> dict[str, Any]:
    o = example.occlusion
    return {
        "picture": shown([example.name])[0],
        "label": None if example.label < 0 else _name(example, example.label),
        "size": example.picture.shape[:2],
        "fill": example.fill,
        "target": _name(example, o.target),
        "unit": [shown([o.layer])[0], o.channel],
        "sides": o.sides,
        "tops": numbers(o.tops),
        "lefts": numbers(o.lefts),
        "reach": reach(o),
        "probability": numbers(o.probability),
        "activity": numbers(o.activity),
        "likeliest": numbers(o.likeliest),
        "classes": {int(i): _name(example, int(i)) for i in np.unique(o.likeliest)},
        "base_probability": number(o.base_probability),
        "base_activity": number(o.base_activity),
        "lowest_probability": lowest(o.probability),
        "lowest_activity": lowest(o.activity),
        "projection": _scale(example),
        "keeps": _keeps(o),
        "origin": origin(o),
    }


def _keeps(o: Occlusion) -> list[int]:
    """At how many of the square's places the target stays the likeliest, and of how many."""
    return [int(np.count_nonzero(o.likeliest == o.target)), int(o.likeliest.size)]


def _name(example: OcclusionExample, index: int) -> str:
    return shown(["all others" if index < 0 else class_name(example.classes, index)])[0]


def _scale(example: OcclusionExample) -> list[float | None] | None:
    if example.projection is None:
        return None
    pixels = example.projection.pixels
    return [number(pixels.min(initial=0.0)), number(pixels.max(initial=0.0))]
