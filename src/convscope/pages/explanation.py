"""Why this class, as a small page that opens anywhere: one picture, or a folder of them?"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import convscope
from convscope.errors import printable
from convscope.figures.explanation import explanation_figure
from convscope.figures.findings import findings, leading
from convscope.figures.plots import png
from convscope.figures.verdicts import TITLES, verdict
from convscope.pages.describe import assumption, notes
from convscope.pages.explained_folder import classes, table
from convscope.pages.explained_picture import picture
from convscope.pictures.notes import PICTURE_NOTES
from convscope.publish import publish_folder
from convscope.records.explanation import Explanation, Explanations

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
            method=record.methods[leading(record)],
            pictures=[_shown(one, record.methods[leading(record)]) for one in listed],
        )

    publish_folder(Path(out), write)
    return Path(out) / "index.html"


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
