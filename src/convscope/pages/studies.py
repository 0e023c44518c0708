"""How do the studies of a network come into its atlas: each one's figures, numbers and origin?

A study is what its command left: a folder with `figure….svg` (or `.png`), tables as JSON
and a record. Figures are shown as pictures, which a browser never runs; names and numbers are text.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convscope.core.errors import DataError, UsageError, printable
from convscope.core.publish import claimed, publish_file, publish_folder
from convscope.core.record import INDEX, read_index, read_inside
from convscope.core.table import Table, read_tables
from convscope.core.text import parsed
from convscope.pages.describe import told
from convscope.pages.store import safe_json, script, shown
from convscope.studies.registry import by_record

TARGET = "window.CONVSCOPE_STUDIES"
PLACE = Path("data") / "studies.js"
LARGEST = 30_000_000
"""Bytes of a figure that a page may show."""
TEXT = 10_000_000
"""Bytes of a page of tables that is read."""
MOST = 500
"""Figures of one study."""


@dataclass(frozen=True)
class Study:
    """One study's folder, read."""

    name: str
    title: str
    shows: str
    limits: str
    figures: tuple[Path, ...]
    tables: tuple[Table, ...]
    origin: dict[str, str]


def read_study(folder: Path | str) -> Study:
    """Read what a study's command wrote.

    Raises UsageError U440 if there is no figure in the folder, or one that cannot be shown: too
    large, a link, no regular file; DataError D140 if its record is damaged.
    """
    place = Path(folder)
    figures = _figures(place)
    if not figures:
        step = "name a folder that a study wrote, such as that of convscope filters"
        raise UsageError("U440", str(place), "holds no figure of a study", next_step=step)
    kind, origin = _record(place)
    title, shows, limits = printable(place.resolve().name), "", ""
    if study := by_record(kind):
        title, shows, limits = study.about.get(kind, (study.title, study.shows, study.limits))
    kept = sorted(path for path in place.glob("*.json") if path.name != INDEX)
    tables = tuple(table for path in kept for table in _tables(path))
    return Study(place.resolve().name, title, shows, limits, figures, tables, origin)


def add_studies(atlas: Path | str, studies: Sequence[Study]) -> Path:
    """Put the studies into a written atlas, each in place of one of the same name.

    Returns the path of the atlas' index.html. Raises UsageError U441 if `atlas` is none,
    OutputError O501 while another process adds to it.
    """
    home = Path(atlas)
    _known(home)
    with claimed(home / "data" / "studies"):
        known = _known(home)
        _drop_unlisted(home, known)
        for study in studies:
            number = 1 + max((entry["place"] for entry in known), default=-1)
            known = [entry for entry in known if entry["name"] != printable(study.name)]
            known.append(_saved(study, home, number))
            publish_file(home / PLACE, script(TARGET, known))
            _drop_unlisted(home, known)
    return home / "index.html"


def _drop_unlisted(home: Path, known: Sequence[Mapping[str, Any]]) -> None:
    """Remove what was replaced, or copied by a command that was then killed."""
    listed = {str(entry["place"]) for entry in known}
    for place in (home / "studies").glob("*"):
        if place.name.isascii() and place.name.isdecimal() and place.name not in listed:
            shutil.rmtree(place, ignore_errors=True)


def save_studies(studies: Iterable[Study], folder: Path) -> None:
    """Those of a new atlas."""
    (folder / PLACE).write_bytes(script(TARGET, []))
    add_studies(folder, list(studies))


def _known(home: Path) -> list[dict[str, Any]]:
    try:
        if (home / "studies").is_symlink():
            raise ValueError("its studies are elsewhere")
        text = read_inside(home, PLACE.parts).decode("ascii")
        if not (home / "index.html").is_file() or not text.startswith(f"{TARGET}="):
            raise ValueError("not a list of studies")
        found = parsed(text.removeprefix(f"{TARGET}=").rstrip().removesuffix(";"))
        return [{**entry, "place": int(entry["place"])} for entry in found]
    except (OSError, ValueError, TypeError, KeyError) as fault:
        step = "name the folder that convscope atlas wrote, or make it anew with this version"
        raise UsageError(
            "U441", str(home), "is not an atlas that takes studies", next_step=step
        ) from fault


def _saved(study: Study, home: Path, number: int) -> dict[str, Any]:
    def write(folder: Path) -> None:
        for figure in study.figures:
            (folder / _plain(study, figure)).write_bytes(_inside(figure, LARGEST))

    publish_folder(home / "studies" / str(number), write)
    fields = {
        "place": number,
        "name": printable(study.name),
        "title": study.title,
        "shows": study.shows,
        "limits": study.limits,
        "figures": [_plain(study, figure) for figure in study.figures],
        "tables": [
            {
                "caption": printable(table.title),
                "rows": [shown(row) for row in (table.head, *table.rows)],
            }
            for table in study.tables
        ],
        "origin": study.origin,
    }
    return dict(json.loads(safe_json(fields)))


def _plain(study: Study, figure: Path) -> str:
    """A name that means nothing to an address."""
    return f"{study.figures.index(figure)}{figure.suffix}"


def _figures(place: Path) -> tuple[Path, ...]:
    """Vector where there is one of a name, otherwise pixels; the one called figure first."""
    pixels = {path.stem: path for path in sorted(place.glob("*.png"))}
    found = pixels | {path.stem: path for path in sorted(place.glob("*.svg"))}
    if len(found) > MOST:
        step = f"leave at most {MOST} in the folder"
        raise UsageError("U440", str(place), f"holds {len(found):,} figures", next_step=step)
    for path in found.values():
        _inside(path, LARGEST)
    return tuple(found[name] for name in sorted(found, key=lambda stem: (stem != "figure", stem)))


def _inside(path: Path, most: int) -> bytes:
    """A file of the study, which lies in its folder itself: no link, pipe or device is opened.

    Raises UsageError U440.
    """
    try:
        return read_inside(path.parent, [path.name], most=most)
    except (ValueError, OSError) as fault:
        step = "put the file itself there, as the study's command wrote it, or leave it out"
        raise UsageError("U440", str(path), f"cannot be shown: {fault}", next_step=step) from fault


def _record(place: Path) -> tuple[str, dict[str, str]]:
    """Kind and origin of the record there, or of the first one below; empty if there is none.

    Raises DataError D140 for a damaged one.
    """
    below = sorted(path.name for path in place.iterdir() if (path / INDEX).is_file())
    for parts in ((), *((name,) for name in below)):
        if not os.path.lexists(place.joinpath(*parts, INDEX)):
            continue
        try:
            index = read_index(place, *parts)
            origin = dict(index["plain"].get("origin", {}))
        except (OSError, ValueError, TypeError) as fault:
            step = "make the study again"
            raise DataError(
                "D140", str(place.joinpath(*parts)), f"is damaged ({fault})", next_step=step
            ) from fault
        return str(index.get("kind", "")), told(origin)
    return "", {}


def _tables(path: Path) -> tuple[Table, ...]:
    """The tables of a file, if it is one of tables. Raises UsageError U440 for a damaged one."""
    try:
        return read_tables(_inside(path, TEXT))
    except ValueError as fault:
        step = "make the study again, or leave it out"
        raise UsageError("U440", str(path), f"cannot be shown: {fault}", next_step=step) from fault
