"""How does a command tell which pictures it had to leave out, and what was changed in others?

Everything that a command opened by `Reading` is reported at its end, in this one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from convscope.cli.progress import say
from convscope.cli.study_files import add_file, in_every_study
from convscope.errors import ConvscopeError, Stopped

if TYPE_CHECKING:
    from convscope.pictures.pictures import Folder


@contextmanager
def reporting(folders: Sequence[Folder], out: Path | None) -> Iterator[None]:
    """After the work, how many pictures were used, which were not, and what was changed.

    The tables are skipped.csv and notes.csv in the folder of the results, or beside its place
    while that has to stay free (`OUT-skipped.csv`). When too many pictures are unusable (D118),
    the fault says where they are listed.
    """

    def into(place: Path) -> None:
        for name, content in _tables(folders).items():
            (place / name).write_bytes(content)

    in_every_study(into)
    try:
        yield
        for folder in folders:
            folder.check_all()
    except Stopped:
        raise
    except ConvscopeError as fault:
        _tell_notes(folders, None)
        if fault.code == "D118" and "skipped.csv" in (written := _written(folders, out)):
            fault.kept = f"which pictures, and why, in {written['skipped.csv']}"
        raise
    written = _written(folders, out)
    for report in {id(folder.report): folder.report for folder in folders}.values():
        if len(report) > 1:
            say(report.summary())
    if "skipped.csv" in written:
        say(f"which, and why: {written['skipped.csv']}")
    _tell_notes(folders, written.get("notes.csv"))


def _tell_notes(folders: Sequence[Folder], place: Path | None) -> None:
    from convscope.pictures.notes import counted_notes

    reports = {id(folder.report): folder.report for folder in folders}.values()
    if line := counted_notes(entry for report in reports for entry in report.noted):
        say(f"notes: {line}" + (f": {place}" if place else ""))


def _has_results(out: Path) -> bool:
    return out.is_dir() and any(out.iterdir())


def _written(folders: Sequence[Folder], out: Path | None) -> dict[str, Path]:
    """Where each table is, by its name."""
    found: dict[str, Path] = {}
    for name, content in _tables(folders).items():
        if out is not None:
            place = out / name if _has_results(out) else out.with_name(f"{out.name}-{name}")
            found[name] = add_file(place, content)
    return found


def _tables(folders: Sequence[Folder]) -> dict[str, bytes]:
    from convscope.pictures.notes import tables

    return tables(folder.report for folder in folders)
