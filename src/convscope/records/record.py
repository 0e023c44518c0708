"""What do all results share: frozen, named, with an origin, saved whole or not at all?"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from types import NoneType
from typing import (
    Any,
    BinaryIO,
    ClassVar,
    Literal,
    Self,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from convscope.errors import DataError, printable
from convscope.publish import publish_folder
from convscope.records.inside import digest, open_inside, read_array, read_inside, read_packed
from convscope.texts import as_path, decoded, parsed

SCHEMA = 2
"""1: without checksums; `arrays` a list of names. 2: `arrays` has the SHA-256 of each file, and
`sha256` is that of the rest."""
INDEX = "record.json"
FAST = 1
"""Of zlib: photographs get hardly smaller by its slower ways."""


@dataclass(frozen=True, eq=False)
class Record:
    """NumPy arrays and plain fields under one name, with what made them.

    A subclass is a frozen dataclass whose fields are arrays or what JSON can hold. Arrays are
    made read-only. `origin` says where the record comes from: method, variant, model, weights'
    hash, layer, pictures, version and whatever else decides the numbers.
    """

    mapped: ClassVar[frozenset[str]] = frozenset()
    """Arrays that `load` leaves on disk, to be read as they are used."""
    packed: ClassVar[frozenset[str]] = frozenset()
    """Arrays that are written as `.npy.gz`: many pictures."""

    origin: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.ndarray):
                view = value.view()
                view.flags.writeable = False
                object.__setattr__(self, entry.name, view)

    def save(self, folder: Path | str) -> Path:
        """Write `record.json` and one `.npy` per array to the new folder; return its path.

        Raises OutputError O501 if the folder holds anything, EnvironmentFault on a full disk.
        """
        place = as_path("folder", folder)
        publish_folder(place, self.write)
        return place

    def write(self, folder: Path) -> None:
        """Fill a folder that is there; an array that stands in it already is left as it is."""
        plain: dict[str, Any] = {}
        arrays: dict[str, str] = {}
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, np.ndarray):
                name = f"{entry.name}.npy" + (".gz" if entry.name in self.packed else "")
                arrays[entry.name] = _written(folder / name, value)
            else:
                plain[entry.name] = value
        index = {"schema": SCHEMA, "kind": type(self).__name__, "arrays": arrays, "plain": plain}
        sealed = {**index, "sha256": seal(json.loads(json.dumps(index)))}
        (folder / INDEX).write_text(json.dumps(sealed, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str, *, whole: bool = False) -> Self:
        """Read what `save` wrote. Raises DataError D140 if it is not such a record.

        The content of every file must have its checksum; of arrays that stay on disk that is
        looked at only if `whole`, their size always.
        """
        place = as_path("folder", folder)
        try:
            index = cls._index(place)
            told = {*index["arrays"], *index["plain"]}
            if strange := told - {entry.name for entry in dataclasses.fields(cls)}:
                raise ValueError(f"it has a field {min(strange)}")
            sums = index["arrays"] if isinstance(index["arrays"], dict) else {}
            arrays: dict[str, Any] = {
                name: cls._array(place, name, sums.get(name), whole) for name in index["arrays"]
            }
            found = cls(**arrays, **cls._revive(index["plain"]))
            _require_fits(found)
        except DataError:
            raise
        except MemoryError:  # sizes are borne out by the files
            raise
        except Exception as fault:  # a damaged file shows in whatever reads it
            raise _damaged(place, cls.__name__, fault) from fault
        return found

    @classmethod
    def part(cls, folder: Path | str, name: str) -> Any:
        """One field of a record, where the rest is not needed. Raises DataError D140."""
        place = Path(folder)
        try:
            index = cls._index(place)
            if name in index["arrays"]:
                return cls._array(place, name, index["arrays"][name], whole=True)
            return cls._revive(index["plain"])[name]
        except DataError:
            raise
        except Exception as fault:
            raise _damaged(place, cls.__name__, fault) from fault

    @classmethod
    def _index(cls, place: Path) -> dict[str, Any]:
        index = read_index(place)
        if index["kind"] != cls.__name__:
            raise DataError("D140", str(place), f"is a {index['kind']}, not a {cls.__name__}")
        return index

    @classmethod
    def _array(cls, place: Path, name: str, told: str | None, whole: bool) -> np.ndarray:
        mapped = name in cls.mapped
        packed = name in cls.packed and (place / f"{name}.npy.gz").exists()
        file_name = f"{name}.npy.gz" if packed else f"{name}.npy"
        try:
            with open_inside(place, [file_name]) as file:
                values = read_packed(file) if packed else read_array(file, mapped=mapped)
                if told is not None and (whole or not mapped) and digest(file) != told:
                    raise ValueError("its content is not what was written")
        except ValueError as fault:
            raise ValueError(f"{file_name}: {fault}") from fault
        return values

    @classmethod
    def _revive(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """JSON knows only lists: fields annotated as tuples become tuples again."""
        kinds = {entry.name: str(entry.type) for entry in dataclasses.fields(cls)}
        return {
            name: _tuples(value) if kinds.get(name, "").startswith("tuple") else value
            for name, value in plain.items()
        }


def _damaged(place: Path, kind: str, fault: Exception) -> DataError:
    what = f"is not a {kind} record ({printable(str(fault) or repr(fault))})"
    return DataError("D140", str(place), what, next_step="make it again")


def read_index(folder: Path, *below: str) -> dict[str, Any]:
    """What `record.json` says, of whatever kind of record, in the folder or one below it. Raises
    ValueError, OSError, and DataError D140 for a record of a newer convscope."""
    try:
        index = parsed(decoded(read_inside(folder, [*below, INDEX])))
    except ValueError as fault:
        raise ValueError(f"{INDEX}: {fault}") from fault
    if type(index) is not dict or type(index.get("schema")) is not int:
        raise ValueError(f"{INDEX} is of another form")
    if index["schema"] > SCHEMA:
        raise DataError(
            "D140", str(folder), "was written by a newer convscope", next_step="update convscope"
        )
    rest = {name: value for name, value in index.items() if name != "sha256"}
    if index["schema"] > 1 and index.get("sha256") != seal(rest):
        raise ValueError(f"{INDEX} is not what was written")
    if type(index.get("plain")) is not dict:
        raise ValueError(f"{INDEX} is of another form")
    return index


def seal(index: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON object says, however it is laid out."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode("ascii")).hexdigest()


class _Sink:
    """A file that knows the hash of what went into it; each write is one of the system's, which
    says what went wrong, where NumPy's own would not."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()

    def write(self, piece: bytes) -> int:
        self.hash.update(piece)
        return self._file.write(piece)


def _written(path: Path, value: np.ndarray) -> str:
    """The hash of the file, which is made if it is not there."""
    if path.exists():
        with path.open("rb") as file:
            return digest(file)
    with path.open("xb") as file:
        sink = _Sink(file)
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", FAST, cast(BinaryIO, sink), mtime=0) as packed:
                np.lib.format.write_array(packed, value, allow_pickle=False)
        else:
            np.lib.format.write_array(sink, value, allow_pickle=False)
    return sink.hash.hexdigest()


def _require_fits(record: Record) -> None:
    """Raises ValueError unless all fields are of their kind, and sides of one name agree."""
    hints, sides = get_type_hints(type(record)), dict[str, int]()
    for entry in dataclasses.fields(record):
        value, hint = getattr(record, entry.name), hints[entry.name]
        if not _fits(value, hint, sides):
            told = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else repr(value)
            raise ValueError(f"{entry.name} is of another kind: {told[:60]}")


def _fits(value: Any, hint: Any, sides: dict[str, int]) -> bool:
    """Whether a value that was read is what an annotation says; True for one we do not know."""
    origin, inner = get_origin(hint), get_args(hint)
    if hasattr(hint, "dim_str"):
        return isinstance(value, np.ndarray) and _array_fits(value, hint, sides)
    if hint in (int, bool, str, NoneType):
        return type(value) is hint
    if hint is float:
        return type(value) in (int, float)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        known = isinstance(value, tuple) and (inner[-1] is ... or len(value) == len(inner))
        each = (inner[0],) * len(value) if inner[-1] is ... else inner
        return known and all(map(_fits, value, each, repeat(sides)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(one, inner[1], sides) for one in value.values()
        )
    if NoneType in inner:
        return any(_fits(value, kind, sides) for kind in inner)
    return True


def _array_fits(value: np.ndarray, hint: Any, sides: dict[str, int]) -> bool:
    """hint: one of jaxtyping's. A side that is a number or a name must agree; a sum is not
    looked at."""
    if value.dtype.name not in hint.dtypes:
        return False
    names = hint.dim_str.split()
    if "..." in names:
        return True
    wanted = [
        int(name)
        if name.isdecimal()
        else sides.setdefault(name, side)
        if name.isidentifier()
        else side
        for name, side in zip(names, value.shape, strict=False)
    ]
    return value.ndim == len(names) and list(value.shape) == wanted


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
