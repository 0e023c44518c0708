"""Why this class, as a small page that opens anywhere: one picture, or a folder of them?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from jinja2 import Environment, PackageLoader, StrictUndefined

import convscope
from convscope.core.errors import printable
from convscope.core.publish import publish_folder
from convscope.core.units import Box
from convscope.drawing.plots import png
from convscope.drawing.tiles import (
    DISTINCT,
    LETTERS,
    block,
    class_name,
    drawn,
    heat,
    kind_map,
    kinds,
    legend,
    reach,
    seen_through,
)
from convscope.pages.describe import assumption, notes, number, numbers, origin, save, shown
from convscope.pictures.notes import PICTURE_NOTES
from convscope.records.maps import Faithfulness, Occlusion, OcclusionExample, interval, lowest
from convscope.studies.explain.figure import (
    TITLES,
    explanation_figure,
    findings,
    leading,
    summary,
    verdict,
)
from convscope.studies.explain.record import Explanation, Explanations


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


REWRITTEN = " rewritten"


def picture(found: Explanation, folder: Path, at: str) -> dict[str, Any]:
    """Write the drawings; return what the page says beside them."""
    save(found.picture, folder / "picture.webp", exact=False)
    return {
        "name": printable(found.prediction.picture),
        "summary": summary(found),
        "target": printable(found.target_name),
        "label": printable(found.label),
        "notes": [printable(note) for note in found.notes],
        "assumed": assumption(found.origin),
        "picture": f"{at}picture.webp",
        "boxes": [_box(found, box) for box in found.boxes],
        "size": found.picture.shape[:2],
        "classes": [
            (printable(name), f"{p:.1%}", float(p))
            for name, p in zip(found.prediction.names, found.prediction.probability, strict=True)
        ],
        "maps": [_map(found, number, folder, at) for number in range(len(found.methods))],
        "refused": {name: printable(why) for name, why in found.refused.items()},
        "untested": {name: printable(why) for name, why in found.untested.items()},
        "agreement": _agreement(found),
        "origin": {name: printable(str(value)) for name, value in found.origin.items() if value},
    }


def _box(found: Explanation, box: Box) -> tuple[int, int, int, int]:
    part = box.clipped(*found.picture.shape[:2])
    return part.left, part.top, part.width, part.height


def _map(found: Explanation, number: int, folder: Path, at: str) -> dict[str, Any]:
    seen, test, said = found.maps[number], found.tests[number], verdict(found, number)
    save(drawn(found.picture, seen), folder / f"map{number}.webp", exact=False)
    size = "" if seen.raw is None else f", {seen.raw.shape[0]}×{seen.raw.shape[1]}"
    facts = [("raw peak", f"{seen.peak:.4g}")]
    if not np.isnan(found.coverage[number]):
        facts.append(("half lies in", f"{found.coverage[number]:.0%} of the picture"))
    if test.is_known:
        facts += [
            ("hidden first", _against(test.deletion_area, test.random_deletion_areas)),
            ("shown first", _against(test.insertion_area, test.random_insertion_areas)),
            ("seen alone", f"{test.drop:.0%} lost"),
        ]
    if len(test.road_share):
        facts.append(("ROAD", f"{test.road:+.3f}"))
    facts += _sanity(found, number)
    if "coverage" in seen.origin:
        facts.append(
            ("by the rule", printable(str(seen.origin["coverage"])).removesuffix(REWRITTEN))
        )
    if "completeness" in seen.origin:
        facts.append(("of the score", _gap(seen.origin["completeness"])))
    return {
        "name": found.methods[number],
        "title": seen.method,
        "where": printable(f"{seen.layer}{size}"),
        "variant": seen.variant,
        "file": f"{at}map{number}.webp",
        "legend": legend(seen),
        "level": said.level,
        "verdict": TITLES[said.level],
        "headline": said.headline,
        "reasons": [*said.reasons, *(printable(str(n)) for n in seen.origin.get("notes", ()))],
        "limit": said.limit,
        "facts": facts,
        "curves": _curves(test),
    }


def _against(value: float, chance: tuple[float, ...]) -> str:
    return f"{value:.3f} (random {float(np.mean(chance)):.3f})" if chance else f"{value:.3f}"


def _sanity(found: Explanation, number: int) -> list[tuple[str, str]]:
    facts = []
    if number < len(found.randomised):
        one = found.randomised[number]
        steps = ", ".join(_rank(float(value)) for value in one.spearman_absolute)
        facts.append(("random weights", f"ρ {steps}"))
    if number < len(found.sensitive):
        facts.append(("other class", f"ρ {_rank(found.sensitive[number].spearman)}"))
    return facts


def _rank(value: float) -> str:
    return "flat map" if np.isnan(value) else f"{value:.2f}"


def _gap(told: Any) -> str:
    gap = told.get("relative gap") if isinstance(told, Mapping) else None
    known = isinstance(gap, float) and math.isfinite(gap)
    return f"{gap:.1%} missing" if known else "unknown part missing"


def _curves(test: Faithfulness) -> dict[str, str]:
    """Points of polylines in a box of 100 by 40, 0 at the bottom."""
    if not test.is_known:
        return {}
    top = max(1e-9, float(max(test.deletion.max(), test.insertion.max(), test.score)))

    def points(curve: Float32[np.ndarray, "steps"]) -> str:
        return " ".join(
            f"{100 * x:.1f},{40 - 38 * min(1.0, y / top):.1f}"
            for x, y in zip(test.share.tolist(), curve.tolist(), strict=True)
        )

    curves = {"deletion": points(test.deletion), "insertion": points(test.insertion)}
    if len(test.random_deletion):
        curves["random_deletion"] = points(test.random_deletion.mean(0))
        curves["random_insertion"] = points(test.random_insertion.mean(0))
    return curves


def _agreement(found: Explanation) -> dict[str, Any] | None:
    if found.agreement is None:
        return None
    rows = [[_rank(float(value)) for value in row] for row in found.agreement.spearman]
    return {"methods": found.agreement.methods, "rows": rows}


POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'self' file:",
        "img-src 'self' file:",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
"""No script at all, no inline style, nothing from elsewhere."""


def write_explanation(out: Path, found: Explanation) -> Path:
    """Write page, figure and records of one picture into the new folder `out`.

    Returns the path of index.html. The folder appears whole or not at all. Raises OutputError
    O501 if `out` holds anything, EnvironmentFault R602 or R603 if it cannot be written.
    """

    def write(folder: Path) -> None:
        save_style(folder)
        found.write(folder / "records")
        (folder / "figure.png").write_bytes(png(explanation_figure(found)))
        _page(folder / "index.html", "picture.html.j2", "", one=picture(found, folder, ""))

    publish_folder(Path(out), write)
    return Path(out) / "index.html"


def write_explanations(
    out: Path, run: Callable[[Callable[[int, Explanation], None]], Explanations]
) -> Path:
    """Write the page of a folder, and one of each picture, into the new folder `out`.

    run: explains the pictures and calls what it is given with each picture's number and
    explanation, so that only one is in memory; returns the record of all. The rest as
    `write_explanation`.
    """

    def write(folder: Path) -> None:
        save_style(folder)
        listed: list[dict[str, Any]] = []

        def each(number: int, found: Explanation) -> None:
            place = f"pictures/{number}"
            (folder / place).mkdir(parents=True)
            one = picture(found, folder / place, "")
            _page(folder / place / "index.html", "picture.html.j2", "../../", one=one)
            listed.append(_line(found, place))

        record = run(each)
        record.save(folder / "record")
        _folder_page(folder, record, listed)

    publish_folder(Path(out), write)
    return Path(out) / "index.html"


def _folder_page(folder: Path, record: Explanations, listed: Sequence[dict[str, Any]]) -> None:
    """The page of all pictures. listed: what its gallery says of each."""
    method = record.methods[leading(record)]
    _page(
        folder / "index.html",
        "folder.html.j2",
        "",
        title=f"{len(record.pictures)} pictures",
        origin={k: v for k, v in record.origin.items() if k not in ("layers", PICTURE_NOTES)},
        layers=record.origin["layers"],
        notes=notes(record.origin),
        assumed=assumption(record.origin),
        findings=findings(record),
        refused=record.refused,
        table=table(record),
        classes=classes(record, folder),
        method=method,
        pictures=[_shown(one, method) for one in listed],
    )


def save_style(folder: Path) -> None:
    """What all pages without scripts share."""
    (folder / "static").mkdir(parents=True)
    source = files("convscope.pages") / "static"
    for name in ("atlas.css", "explain.css", "icon.svg"):
        (folder / "static" / name).write_bytes((source / name).read_bytes())


def _page(path: Path, template: str, root: str, **fields: Any) -> None:
    path.write_bytes(render(template, root, **fields))


def render(template: str, root: str, **fields: Any) -> bytes:
    """The page. root: address of the folder with its style, "" or ending in a slash."""
    environment = Environment(
        loader=PackageLoader("convscope.pages"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template(f"explain/{template}").render(
        policy=POLICY, root=root, version=convscope.__version__, **fields
    )
    return page.encode("utf-8", errors="backslashreplace")


def _line(found: Explanation, place: str) -> dict[str, Any]:
    """What the gallery says of a picture, by method."""
    return {
        "place": f"{place}/index.html",
        "picture": f"{place}/picture.webp",
        "name": printable(found.prediction.picture),
        "target": printable(found.target_name),
        "score": f"{found.score:.0%}",
        "notes": [printable(note) for note in found.notes],
        "maps": {
            name: (f"{place}/map{number}.webp", verdict(found, number).level)
            for number, name in enumerate(found.methods)
        },
    }


def _shown(one: dict[str, Any], method: str) -> dict[str, Any]:
    """The same with one method's map; with the first one where that is not defined."""
    maps = one["maps"]
    file, level = maps.get(method) or next(iter(maps.values()))
    return one | {"thumb": file, "level": level, "verdict": TITLES[level]}
