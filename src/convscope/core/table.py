"""Tables of studies: a head, rows of words and a title, as Markdown, CSV and JSON.

Studies give tables and the sentences between them as one list of parts. Markdown is for reading;
pages take the JSON, so that no name in a cell can shift a column.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convscope.core.errors import printable
from convscope.core.text import checked, csv_table, decoded, parsed

KIND = "convscope tables"


@dataclass(frozen=True)
class Table:
    """Rows as long as the head. Raises ValueError for any other."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.head) for row in self.rows):
            raise ValueError("a row has not as many cells as the head")

    @classmethod
    def of(cls, head: Iterable[str], rows: Iterable[Iterable[str]], title: str = "") -> Table:
        """The same from any rows."""
        return cls(tuple(head), tuple(map(tuple, rows)), title)

    def markdown(self) -> list[str]:
        """Lines of one length, each column as wide as its longest cell."""
        every = [[_cell(cell) for cell in row] for row in (self.head, *self.rows)]
        every.insert(1, ["---"] * len(self.head))
        widths = [max(map(len, column)) for column in zip(*every, strict=True)]
        lines = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
            for row in every
        ]
        return [*([self.title, ""] if self.title else []), *lines]

    def csv(self) -> bytes:
        return csv_table([self.head, *self.rows])

    def json(self) -> dict[str, Any]:
        return asdict(self)


Part = Table | str
"""A table, or a line of text."""


def lines(parts: Iterable[Part]) -> list[str]:
    """All of it as Markdown, an empty line around each table but at the ends."""
    text: list[str] = []
    for part in parts:
        if isinstance(part, Table):
            text += ["", *part.markdown(), ""]
        else:
            text.append(part)
    squeezed = [line for n, line in enumerate(text) if line or (n and text[n - 1])]
    while squeezed and not squeezed[-1]:
        squeezed.pop()
    return squeezed[1:] if squeezed and not squeezed[0] else squeezed


def tables_json(parts: Sequence[Part]) -> bytes:
    """The tables alone, as `read_tables` takes them."""
    tables = [part.json() for part in parts if isinstance(part, Table)]
    text = json.dumps({"kind": KIND, "tables": tables}, ensure_ascii=False, indent=1)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def read_tables(text: bytes) -> tuple[Table, ...]:
    """What `tables_json` wrote; nothing if it is JSON of another kind. Raises ValueError."""
    plain = parsed(decoded(text))
    if not isinstance(plain, dict) or plain.get("kind") != KIND:
        return ()
    try:
        return checked(plain.get("tables"), tuple[Table, ...])
    except ValueError as fault:
        raise ValueError(f"not a list of tables ({fault})") from None


def plural(count: int, what: str) -> str:
    """1 picture, 2 pictures."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def give_or_take(values: Any, form: str = ".3f", factor: float = 1) -> str:
    """Mean ± standard deviation."""
    return f"{factor * values.mean():{form}} ± {factor * values.std():{form}}"


def percent(values: Any) -> str:
    """The same in %, without the sign."""
    return give_or_take(values, ".1f", 100)


def _cell(text: str) -> str:
    """A bar would end the cell."""
    return printable(text).replace("|", "\\|")
