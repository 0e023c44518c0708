"""Text, JSON, CSV and TOML, read and checked; tables of words as Markdown, CSV and JSON.

What others wrote may be nested a hundred thousand deep, hold a number of a million digits, or be
of another encoding: `read_json` gives it as plain values or raises one ValueError that says what
is wrong and where. The caller adds the file's name and its own code.

Studies give tables and the sentences between them as one list of parts. Markdown is for reading;
pages take the JSON, so that no name in a cell can shift a column.
"""

from __future__ import annotations

import csv
import io
import json
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeVar

from convscope.core.errors import UsageError, printable, shown

Kind = TypeVar("Kind")
LARGEST = 1 << 30
"""Bytes of a file of text that are read; what is larger is no list of anything."""
DEEPEST = 100
"""Levels of lists and objects in one another."""
OTHER_ENCODINGS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
FORMULAS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What spreadsheets take for the start of a formula, in any of their languages."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.ASCII)
WORDS = {
    "int": "whole number",
    "float": "number",
    "str": "text",
    "bool": "true or false",
    "array": "list",
    "object": "table",
    "null": "nothing",
}
"""For msgspec's names of types."""
TYPES = re.compile(rf"(?<=`|\s)({'|'.join(WORDS)})(?=`|\s)")
DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Invisible letters that turn what follows around."""


def unusable(name: Path | str) -> str:
    """Why no file can have this name; nothing where one can."""
    data = str(name).encode("utf-8", "surrogatepass")
    if b"\0" in data:
        return "has a letter of zeros, which no name of a file has"
    long = len(data) > 4095 or any(len(part) > 255 for part in data.split(b"/"))
    return "is too long for the name of a file" if long else ""


def as_path(name: str, given: object) -> Path:
    """What was given as this argument, as a path. Raises UsageError U380."""
    if not isinstance(given, str | Path):
        raise UsageError("U380", name, f"{shown(given)} is no path")
    if why := unusable(given):
        raise UsageError("U380", name, f"{shown(str(given))} {why}")
    return Path(given)


class Openable(Protocol):
    """What is opened as a Path is, wherever it lies."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]: ...


def read_text(path: Path | str | Openable) -> str:
    """A file's text, UTF-8 with or without its mark.

    Raises ValueError if it cannot be read, is of another encoding or larger than a gibibyte.
    """
    try:
        with (Path(path) if isinstance(path, str) else path).open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as fault:
        raise ValueError((fault.strerror or str(fault)).lower()) from fault
    if len(data) > LARGEST:
        raise ValueError(f"more than {LARGEST >> 30} GiB")
    return decoded(data)


def decoded(data: bytes) -> str:
    """Bytes as text. Raises ValueError unless they are UTF-8, with or without its mark."""
    for mark, name in OTHER_ENCODINGS:
        if data.startswith(mark):
            raise ValueError(f"is {name} text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ValueError(f"is no UTF-8 text from byte {fault.start:,} on") from None


def read_json(path: Path | str | Openable) -> Any:
    """What a file of JSON holds, in plain values.

    Raises ValueError that says what is wrong and where: not there, no JSON, nested more than
    DEEPEST deep, a number of thousands of digits, one name twice in an object.
    """
    return parsed(read_text(path))


def parsed(text: str) -> Any:
    """As `read_json`, of text."""
    try:
        result = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as fault:
        raise ValueError(f"no JSON: {fault}") from None
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    except ValueError as fault:
        long = "set_int_max_str_digits" in str(fault)
        raise (ValueError("holds a number of thousands of digits") if long else fault) from None
    _require_shallow(result)
    return result


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{brief(twice)} is there twice")
    return result


def _require_shallow(result: Any) -> None:
    level, here = 0, [result]
    while here := [item for value in here for item in _inside(value)]:
        level += 1
        if level >= DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")


def _inside(value: Any) -> Iterable[Any]:
    """The lists and objects right in a value."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, dict | list)]


def checked(value: object, kind: type[Kind]) -> Kind:
    """A value that was read, as this type; JSON's lists become tuples. Raises ValueError that says
    in words what is wrong, and where."""
    import msgspec  # takes 20 ms

    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as fault:
        raise ValueError(TYPES.sub(lambda name: WORDS[name[0]], str(fault))) from None


def checked_table(value: object, kind: Any) -> dict[str, Any]:
    """An object that was read, all its values of this type, by names on one line. Raises ValueError
    that names the entry at fault."""
    if not isinstance(value, dict):
        raise ValueError(f"{brief(value)} is no table of names")
    result: dict[str, Any] = {}
    for name, inner in value.items():
        try:
            result[one_line(name)] = checked(inner, kind)
        except ValueError as fault:
            raise ValueError(f"{name}: {brief(inner)}: {fault}") from None
    return result


def brief(value: object) -> str:
    """A value that was read, as a message shows it: however deep or long, in a few words."""
    return _BRIEF.repr(value)


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 2, 60, 60


def one_line(text: str) -> str:
    """A name on one line: control letters, and those that turn the text around, as escapes."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if _moves(c) else c for c in text)


def _moves(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in DIRECTIONS


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def csv_table(rows: Iterable[Iterable[object]]) -> bytes:
    """Rows as CSV in UTF-8, one line each. Text that a spreadsheet would run as a formula is led
    by an apostrophe; numbers, also as text, stay as they are."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow([_csv_cell(value) for value in row])
    return text.getvalue().encode("utf-8", "backslashreplace")


def _csv_cell(value: object) -> object:
    if not isinstance(value, str) or NUMBER.fullmatch(value):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(FORMULAS) else text


def as_toml(value: Any) -> str:
    """A text, a number, or a list of them, as TOML writes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, float):
        return repr(float(value))  # inf and nan are other words in JSON
    return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")


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
        every = [[_markdown_cell(cell) for cell in row] for row in (self.head, *self.rows)]
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


def _markdown_cell(text: str) -> str:
    """A bar would end the cell."""
    return printable(text).replace("|", "\\|")
