"""How does somebody who looks at pictures mark their parts, and boxes, without a server?

One page that shows the pictures one by one. A click marks a part, a drag a box; the page saves
the two files that `pictures/annotations.py` reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

import convscope
from convscope.core.errors import UsageError, printable
from convscope.core.publish import publish_folder
from convscope.core.run import PLAIN, Run
from convscope.core.units import Box
from convscope.drawing.tiles import DISTINCT
from convscope.pages.describe import policy, safe_json, save, script
from convscope.pictures.annotations import Parts
from convscope.pictures.pictures import Pictures

POLICY = policy("'none'")
MOST = 1600
"""Pixels of a picture's longer side as shown; marks are in its own pixels all the same."""
SCRIPTS = ("marks", "overlay", "mark")
Boxes = Mapping[str, Sequence[Box]]


def write_marking(
    out: Path,
    folder: Pictures,
    parts: Sequence[str],
    *,
    marked: Parts | None = None,
    boxes: Boxes | None = None,
    run: Run = PLAIN,
) -> Path:
    """Write the page for these pictures into the new folder `out`; return its index.html.

    parts: names of what all pictures show; none: boxes alone are marked. marked, boxes: what is
    there already, to go on from. Unusable pictures are left out and listed in `folder.skipped`.

    Raises UsageError U371 (names of parts), DataError D118, D161 (no usable picture), OutputError
    O501, EnvironmentFault R602 or R603.
    """
    _require(parts)

    def write(place: Path) -> None:
        pictures: list[dict[str, Any]] = []
        for (picture,) in folder.batches(run=run):
            height, width = picture.pixels.shape[:2]
            file = f"pictures/{len(pictures)}.webp"
            save(_shown(picture.pixels), place / file, exact=False)
            known = _known(picture.name, parts, marked or {}, boxes or {})
            pictures.append(
                {
                    "name": picture.name,
                    "shown": printable(picture.name),
                    "file": file,
                    "size": [width, height],
                    **known,
                }
            )
        folder.check_bad()
        _page(place, folder, parts, pictures)

    publish_folder(Path(out), write)
    return Path(out) / "index.html"


def _require(parts: Sequence[str]) -> None:
    twice = [name for place, name in enumerate(parts) if name in parts[:place]]
    nameless = not all(name.strip() for name in parts)
    if twice or nameless:
        what = "a part has no name" if nameless else f"{twice[0]} is there twice"
        step = "name each part once, as in left_eye,right_eye,nose"
        raise UsageError("U371", ",".join(parts), what, next_step=step)


def _shown(pixels: Any) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((MOST, MOST), Image.Resampling.LANCZOS)
    return picture


def _known(name: str, parts: Sequence[str], marked: Parts, boxes: Boxes) -> dict[str, Any]:
    """What is marked already, by the picture's name or its file name alone."""
    short = name.rpartition("/")[2]
    points = marked.get(name, marked.get(short, {}))
    found = boxes.get(name, boxes.get(short, ()))
    return {
        "points": [list(points[part]) if part in points else None for part in parts],
        "boxes": [[box.left, box.top, box.right, box.bottom] for box in found],
    }


def _page(
    place: Path, folder: Pictures, parts: Sequence[str], pictures: Sequence[Mapping[str, Any]]
) -> None:
    data = {"parts": list(parts), "pictures": pictures, "colours": _colours(len(parts))}
    key = hashlib.sha256(f"{folder.sha256}{safe_json(data)}".encode()).hexdigest()[:16]
    (place / "static").mkdir()
    (place / "data").mkdir()
    (place / "data" / "marking.js").write_bytes(script("window.MARKING", {**data, "key": key}))
    source = files("convscope.pages") / "static"
    for name in ("atlas.css", "mark.css", "icon.svg", *(f"{part}.js" for part in SCRIPTS)):
        (place / "static" / name).write_bytes((source / name).read_bytes())
    environment = Environment(
        loader=PackageLoader("convscope.pages"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("mark.html.j2").render(
        policy=POLICY,
        scripts=SCRIPTS,
        version=convscope.__version__,
        parts=[printable(part) for part in parts],
        pictures=pictures,
    )
    (place / "index.html").write_text(page, encoding="utf-8", errors="backslashreplace")


def _colours(count: int) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*DISTINCT[n % len(DISTINCT[:-1])]) for n in range(count)]
