"""Skipped and changed pictures: which, why, in a line and in skipped.csv and notes.csv."""

from __future__ import annotations

import urllib.parse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from convscope.core.errors import DataError, printable
from convscope.core.text import csv_table
from convscope.pictures.decode.decode import NOTES

CODES = {
    "D101": "not an image",
    "D102": "format not enabled",
    "D103": "too many pixels",
    "D104": "truncated",
    "D105": "broken",
    "D106": "text bomb",
    "D107": "too small or thin",
    "D108": "too slow",
    "D109": "not a file",
    "D110": "file too large",
    "D111": "32-bit",
    "D120": "link loop",
    "D121": "leads nowhere",
    "D122": "unreadable",
    "D123": "not fetched",
    "D130": "ends the decoder",
    "D206": "damaged archive",
    "D207": "unsafe member",
}
"""What each code means, in the words of the summary line."""
UNKNOWN_LOSS = ("D122", "D206")
"""A folder without permission, a damaged archive: nobody knows how many pictures are missing."""

PICTURE_NOTES = "picture notes"
"""In the origin of a record: how many of its pictures were changed, by code."""


class Skipped(NamedTuple):
    """One picture that is not used."""

    number: int
    """The picture's number in its folder; -1 for a whole folder or archive."""
    name: str
    path: bytes
    """As the file system has it, below the root."""
    size: int
    sha256: str
    """Of the file's content; empty where that could not be read."""
    code: str
    text: str


class Noted(NamedTuple):
    """Something that was changed in a picture that is used."""

    number: int
    name: str
    path: bytes
    """As the file system has it, below the root."""
    code: str
    text: str

    @classmethod
    def of(cls, number: int, name: str, path: bytes, note: str) -> Noted:
        """note: as a Picture has it, `EXIF orientation 6 not applied (N111)`."""
        text, _, code = note.removesuffix(")").rpartition(" (")
        return cls(number, name, path, code, text)


class Report:
    """What became of pictures: which could not be used, and what was changed in the others."""

    def __init__(self, findings: Sequence[Skipped] = ()) -> None:
        """findings: whole folders or archives that are not used."""
        self.findings = tuple(findings)
        self._skipped: dict[int, Skipped] = {}
        self._noted: dict[int, Sequence[Noted]] = {}

    def skip(self, entry: Skipped) -> None:
        self._skipped[entry.number] = entry
        self._noted.pop(entry.number, None)

    def use(self, number: int, noted: Sequence[Noted]) -> None:
        self._noted[number] = noted
        self._skipped.pop(number, None)

    def notes(self, number: int) -> tuple[str, ...]:
        """What was changed in that picture, as a Picture tells it."""
        return tuple(f"{one.text} ({one.code})" for one in self._noted.get(number, ()))

    def left(self, number: int) -> Skipped | None:
        """Why that picture could not be used; None if it could, or was not read."""
        return self._skipped.get(number)

    def __len__(self) -> int:
        """Pictures that were asked for."""
        return len(self._skipped) + len(self._noted)

    @property
    def used(self) -> int:
        return len(self._noted)

    @property
    def skipped(self) -> list[Skipped]:
        return [*self.findings, *(entry for _, entry in sorted(self._skipped.items()))]

    @property
    def noted(self) -> list[Noted]:
        return [entry for _, entries in sorted(self._noted.items()) for entry in entries]

    def summary(self) -> str:
        """`12 of 13 pictures used; 1 skipped (1 D104 truncated)`."""
        line = f"{self.used:,} of {len(self):,} pictures used"
        if self.skipped:
            line += f"; {len(self.skipped):,} skipped ({counted(self.skipped)})"
        return line

    def check(self, max_bad: float, place: str) -> None:
        """Raise DataError D118 if more than this share could not be used, see
        `Pictures.check_bad`."""
        bad = len(self._skipped)
        unread = any(entry.code in UNKNOWN_LOSS for entry in self.findings)
        too_many = unread or bad > max_bad * len(self)
        if (bad and not self.used) or (max_bad < 1 and too_many):
            raise DataError(
                "D118",
                place,
                f"{self.summary()}: {first_few(self.skipped)}; allowed are {100 * max_bad:g} %",
                next_step="mend or remove them, or allow more with --max-bad (max_bad)",
            )


def tables(reports: Iterable[Report]) -> dict[str, bytes]:
    """The tables of what was skipped and changed, by the names of their files; none is empty."""
    each = list({id(report): report for report in reports}.values())
    skipped = [entry for report in each for entry in report.skipped]
    noted = [entry for report in each for entry in report.noted]
    result = {"skipped.csv": table(skipped)} if skipped else {}
    return result | ({"notes.csv": notes_table(noted)} if noted else {})


def counted(skipped: Iterable[Skipped]) -> str:
    """`9 D104 truncated, 4 D101 not an image`, the commonest first."""
    counts = Counter(entry.code for entry in skipped)
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count:,} {code} {CODES.get(code, '')}".strip() for code, count in ordered)


def first_few(skipped: Sequence[Skipped], most: int = 3) -> str:
    """`a.jpg (truncated JPEG), b.jpg (empty file) and 4 more`, for a message."""
    told = [f"{printable(entry.name) or 'the folder'} ({entry.text})" for entry in skipped[:most]]
    more = len(skipped) - len(told)
    return ", ".join(told) + (f" and {more:,} more" if more else "")


def words(counts: Mapping[str, int]) -> list[str]:
    """Notes by code, how often each, the worst first."""
    return [f"{counts[code]:,} × {NOTES[code]} ({code})" for code in NOTES if code in counts]


def codes_of(notes: Iterable[str]) -> dict[str, int]:
    """Of a picture's own notes, each once."""
    return {note.rpartition(" (")[2].rstrip(")"): 1 for note in notes}


def counted_notes(noted: Iterable[Noted]) -> str:
    """`2 × wholly transparent … (N114); 1 × EXIF orientation 6 … (N111)`, the worst first, in a
    note's own words where all pictures have the same, otherwise in those of its code."""
    said: dict[str, list[str]] = {code: [] for code in NOTES}
    for entry in noted:
        said[entry.code].append(entry.text)
    return "; ".join(
        f"{len(texts):,} × {texts[0] if len(set(texts)) == 1 else NOTES[code]} ({code})"
        for code, texts in said.items()
        if texts
    )


def notes_table(noted: Iterable[Noted]) -> bytes:
    """notes.csv: a line for each note on a picture; `path` as in skipped.csv."""
    head = ("number", "name", "path", "code", "text")
    rows = ((one.number, one.name, _exact(one.path), one.code, one.text) for one in noted)
    return csv_table([head, *rows])


def table(skipped: Iterable[Skipped]) -> bytes:
    """skipped.csv: one line a picture; `path` is exact, with %-escapes."""
    head = ("number", "name", "path", "size", "sha256", "code", "text")
    return csv_table([head, *map(_row, skipped)])


def _row(entry: Skipped) -> tuple[object, ...]:
    name, path = printable(entry.name), _exact(entry.path)
    return (entry.number, name, path, entry.size, entry.sha256, entry.code, entry.text)


def _exact(path: bytes) -> str:
    told = urllib.parse.quote_from_bytes(path)
    return f"%2D{told[1:]}" if told.startswith("-") else told  # no formula of a spreadsheet
