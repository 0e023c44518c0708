"""Which pictures were left out, why, and how is that told in one line and in one table?"""

from __future__ import annotations

import urllib.parse
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from convscope.errors import printable
from convscope.texts import csv_table

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
    "D130": "ends the decoder",
    "D206": "damaged archive",
    "D207": "unsafe member",
}
"""What each code means, in the words of the summary line."""


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


def table(skipped: Iterable[Skipped]) -> bytes:
    """skipped.csv: one line a picture; `path` is exact, with %-escapes."""
    head = ("number", "name", "path", "size", "sha256", "code", "text")
    return csv_table([head, *map(_row, skipped)])


def _row(entry: Skipped) -> tuple[object, ...]:
    exact = urllib.parse.quote_from_bytes(entry.path)
    exact = f"%2D{exact[1:]}" if exact.startswith("-") else exact  # no formula of a spreadsheet
    name = printable(entry.name)
    return (entry.number, name, exact, entry.size, entry.sha256, entry.code, entry.text)
