"""Results of commands: claimed first, written with one rename; progress bars, lines to read.

A command calls `claim(out)` first, computes, and writes record, figures and tables into the folder
that `new_study(out)` gives. What is to be in every result is registered by `in_every_study`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from convscope.core.errors import ConvscopeError, Stopped, UsageError
from convscope.core.text import Part, lines, one_line, tables_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from convscope.pictures.pictures import Pictures


Tick = Callable[[int, int], None]


EVERY = 60.0
"""Seconds between lines of progress where no terminal looks on, as in a batch system's log."""


class Pace:
    """How fast a pass goes, since it was begun or gone on with here."""

    def __init__(self, what: str) -> None:
        self.what, self.begun, self.told = what, time.monotonic(), time.monotonic()
        self.first: int | None = None

    def words(self, done: int) -> str:
        """`12.3 a second, 2 skipped`."""
        self.first = done if self.first is None else self.first
        rate = (done - self.first) / max(1e-9, time.monotonic() - self.begun)
        skipped = sum(len(folder.skipped) for folder in _folders())
        parts = [f"{rate:,.3g} a second" if rate else "", f"{skipped:,} skipped" if skipped else ""]
        return ", ".join(part for part in parts if part)

    def line(self, done: int, total: int) -> None:
        """Said now and then: `looking: 300 of 702, 12.3 a second, 33 s left, 2 skipped`."""
        words, now = self.words(done), time.monotonic()
        if now - self.told < EVERY or done >= total:
            return
        self.told = now
        rest = (now - self.begun) / max(1, done - (self.first or 0)) * (total - done)
        left = f"{rest:,.0f} s left" if rest < 100 else f"{rest / 60:,.0f} min left"
        say(", ".join(filter(None, [f"{self.what}: {done:,} of {total:,}", words, left])))


def _folders() -> Sequence[Pictures]:
    running = RUNNING.get(None)
    return () if running is None else running.folders


@contextmanager
def progress(what: str) -> Iterator[Tick]:
    """A bar with counts, time left, speed and pictures skipped; gives the callback `(done, total)`
    that moves it. Where no terminal looks on, a line a minute."""
    pace = Pace(what)
    if not sys.stderr.isatty():
        yield pace.line
        return
    from rich.console import Console  # here: it takes 0.1 s, which only a bar needs
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None, pace="")

        def tick(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, pace=pace.words(done))

        yield tick


@contextmanager
def phases() -> Iterator[Callable[[str], Tick]]:
    """Bars one after the other: each appears with its first step, in the place of the one before.

    Two at a time would write over each other.
    """
    with ExitStack() as stack:
        bars: dict[str, Tick] = {}

        def named(what: str) -> Tick:
            def tick(done: int, total: int) -> None:
                if what not in bars:
                    stack.close()
                    bars.clear()
                    bars[what] = stack.enter_context(progress(what))
                bars[what](done, total)

            return tick

        yield named


def say(line: str) -> None:
    """A remark beside the result, for people; one line, whatever names are in it."""
    typer.echo(one_line(line), err=True)


def tell(*lines: object) -> None:
    """The result, on stdout; each of these is one line, whatever names are in it."""
    for line in lines:
        typer.echo(one_line(str(line)))


DONE = "DONE.json"
FAR = re.compile(r"[a-z][a-z0-9+]+:/")
"""A URL, of which a path keeps one slash."""
CLIP = re.compile(rb'<clipPath id="(p[0-9a-f]{10})"')
KINDS = ("pdf", "svg", "png")
"""For print, for pages and for looking."""
Writer = Callable[[Path], None]


@dataclass
class _Command:
    """The command that runs: what it holds until its end, and what goes into its results."""

    held: ExitStack
    writers: list[Writer]
    folders: Sequence[Pictures] = ()
    """Those that it reads."""


RUNNING: ContextVar[_Command] = ContextVar("RUNNING")


@contextmanager
def command_running() -> Iterator[None]:
    """Around a command: its claims end with it."""
    with ExitStack() as held:
        before = RUNNING.set(_Command(held, []))
        try:
            yield
        finally:
            RUNNING.reset(before)


def claim(out: Path) -> None:
    """Hold the place of the result until the command ends.

    Raises UsageError U226 for a URL, OutputError O501 if something is there, or another command
    makes it now; EnvironmentFault R602 or R603 if it cannot be written.
    """
    if FAR.match(str(out)):
        step = "name a folder with --out; finished parts alone may lie there, with --run-folder"
        raise UsageError("U226", str(out), "the result is a folder of this machine", next_step=step)
    from convscope.core.publish import claimed, require_free

    if (running := RUNNING.get(None)) is None:  # called as a function, not as a command
        require_free(out)
    else:
        running.held.enter_context(claimed(out))


def in_every_study(write: Writer) -> None:
    """Let `write` add to every result of this command."""
    if (running := RUNNING.get(None)) is not None:
        running.writers.append(write)


@contextmanager
def new_study(out: Path, *, instead: Sequence[Path] = ()) -> Iterator[Path]:
    """A folder to write into, which is `out` when the block ends well, and otherwise is gone.

    instead: folders that are of no use then, such as parts kept on the way. Raises as `claim`.
    """
    from convscope.core.publish import publishing

    with publishing(out, instead=instead) as folder:
        yield folder
        if (running := RUNNING.get(None)) is not None:
            for write in running.writers:
                write(folder)
        (folder / DONE).write_bytes(listed(folder))


def listed(folder: Path) -> bytes:
    """DONE.json: every other file of a result, with its bytes and SHA-256."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != DONE:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, digest]
    return (json.dumps({"schema": 1, "files": files}, indent=1) + "\n").encode()


def add_file(place: Path, content: bytes) -> Path:
    """Beside what is there: under this name, or with a number where that is taken by something
    else; nothing is overwritten, and the same is not kept twice. Gives its path."""
    from convscope.core.publish import publish_file

    for path in _names(place):
        if not os.path.lexists(path):
            break
        if path.is_file() and path.read_bytes() == content:
            return path
    publish_file(path, content)
    return path


def add_study(out: Path, write: Writer) -> Path:
    """The same for a folder, which `write` fills."""
    from convscope.core.publish import publishing

    taken = list(takewhile(os.path.lexists, _names(out)))
    new = next(islice(_names(out), len(taken), None))
    try:
        with publishing(new) as folder:
            write(folder)
            for path in taken:
                if _contents(path) == _contents(folder):
                    raise _Known(path)
    except _Known as known:
        return known.path
    return new


class _Known(Exception):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


def _names(place: Path) -> Iterator[Path]:
    """The name, and then with 2, 3, …"""
    yield place
    for number in count(2):
        yield place.with_stem(f"{place.stem}-{number}")


def _contents(folder: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def save_figure(figure: Figure, place: Path) -> None:
    """`place` with each ending of KINDS."""
    for kind in KINDS:
        place.with_name(f"{place.name}.{kind}").write_bytes(drawn(figure, kind))


def drawn(figure: Figure, kind: str) -> bytes:
    """The figure as a file of that kind, with letters as letters and without a date, so that the
    same record gives the same file."""
    import matplotlib

    from convscope.drawing.plots import letters_as_letters

    dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    letters: dict[Any, Any] = {
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "convscope",
    }
    with warnings.catch_warnings(), matplotlib.rc_context(letters):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        out = io.BytesIO()
        letters_as_letters(figure)
        figure.savefig(out, format=kind, dpi=200, metadata=dated)
    return _numbered(out.getvalue()) if kind == "svg" else out.getvalue()


def _numbered(svg: bytes) -> bytes:
    """With clips named by their order: matplotlib names them by places in memory."""
    names = {name: b"clip%d" % number for number, name in enumerate(CLIP.findall(svg))}
    return re.sub(rb"\bp[0-9a-f]{10}\b", lambda one: names.get(one[0], one[0]), svg)


def keep_table(parts: Sequence[Part], place: Path) -> list[str]:
    """Kept as `place` in Markdown, and its tables for pages as JSON; gives the Markdown's lines."""
    told = lines(parts)
    place.write_bytes("".join(f"{line}\n" for line in told).encode())
    place.with_suffix(".json").write_bytes(tables_json(parts))
    return told


@contextmanager
def reporting(folders: Sequence[Pictures], out: Path | None) -> Iterator[None]:
    """After the work, how many pictures were used, which were not, and what was changed.

    The tables are skipped.csv and notes.csv in the folder of the results, or beside its place
    while that has to stay free (`OUT-skipped.csv`). When too many pictures are unusable (D118),
    the fault says where they are listed.
    """

    def into(place: Path) -> None:
        for name, content in _tables(folders).items():
            (place / name).write_bytes(content)

    in_every_study(into)
    if (running := RUNNING.get(None)) is not None:
        running.folders = folders
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


def _tell_notes(folders: Sequence[Pictures], place: Path | None) -> None:
    from convscope.pictures.notes import counted_notes

    reports = {id(folder.report): folder.report for folder in folders}.values()
    if line := counted_notes(entry for report in reports for entry in report.noted):
        say(f"notes: {line}" + (f": {place}" if place else ""))


def _has_results(out: Path) -> bool:
    return out.is_dir() and any(out.iterdir())


def _written(folders: Sequence[Pictures], out: Path | None) -> dict[str, Path]:
    """Where each table is, by its name."""
    found: dict[str, Path] = {}
    for name, content in _tables(folders).items():
        if out is not None:
            place = out / name if _has_results(out) else out.with_name(f"{out.name}-{name}")
            found[name] = add_file(place, content)
    return found


def _tables(folders: Sequence[Pictures]) -> dict[str, bytes]:
    from convscope.pictures.notes import tables

    return tables(folder.report for folder in folders)
