"""Base class of all results: a frozen dataclass of arrays and plain fields, saved with checksums.

A record is a folder: `record.json` and one `.npy` per array. Nothing in it is believed that the
files do not bear out, and nothing outside of it is read, whatever stands there.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, ClassVar, Self, cast, get_args, get_type_hints

import numpy as np

from convscope.core.errors import DataError, printable, shown
from convscope.core.publish import publish_folder
from convscope.core.text import as_path, brief, checked, decoded, parsed

SCHEMA = 2
"""1: without checksums; `arrays` a list of names. 2: `arrays` has the SHA-256 of each file, and
`sha256` is that of the rest."""
INDEX = "record.json"
FAST = 1
"""Of zlib: photographs get hardly smaller by its slower ways."""
HEAD = 20_000
"""Bytes in which an array's header ends; NumPy takes one of 10,000."""
INDEX_MOST = 1 << 30
"""Bytes of a JSON file: an index with the names of ten million pictures."""


def summary(record: Any) -> str:
    """A result in one line: sizes of arrays, short values, and how many of the long ones."""
    told = []
    for entry in dataclasses.fields(record):
        value = getattr(record, entry.name)
        if isinstance(value, np.ndarray):
            text = f"<{'×'.join(map(str, value.shape))} {value.dtype}>"
        elif isinstance(value, Mapping | Sequence) and not isinstance(value, str):
            text = f"<{len(value):,}>"
        else:
            text = shown(value)
        if entry.name != "origin":
            told.append(f"{entry.name}={text}")
    return f"{type(record).__name__}({', '.join(told)})"


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

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in vars(cls):
            cls.__repr__ = summary  # type: ignore[method-assign]  # else the decorator's dumps all

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
            names = {*index["arrays"], *index["plain"]}
            if strange := names - {entry.name for entry in dataclasses.fields(cls)}:
                raise ValueError(f"it has a field {min(strange)}")
            sums = index["arrays"] if isinstance(index["arrays"], dict) else {}
            arrays: dict[str, Any] = {
                name: cls._array(place, name, sums.get(name), whole) for name in index["arrays"]
            }
            result = cls(**arrays, **cls._revive(index["plain"]))
            _require_fits(result)
        except DataError:
            raise
        except MemoryError:  # sizes are borne out by the files
            raise
        except Exception as fault:  # a damaged file shows in whatever reads it
            raise _damaged(place, cls.__name__, fault) from fault
        return result

    @classmethod
    def part(cls, folder: Path | str, name: str) -> Any:
        """One field of a record, where the rest is not needed. Raises DataError D140."""
        place = Path(folder)
        try:
            index = cls._index(place)
            if name in index["arrays"]:
                return cls._array(place, name, index["arrays"][name], whole=True)
            return cls._revive({name: index["plain"][name]})[name]
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
    def _array(cls, place: Path, name: str, checksum: str | None, whole: bool) -> np.ndarray:
        mapped = name in cls.mapped
        packed = name in cls.packed and (place / f"{name}.npy.gz").exists()
        file_name = f"{name}.npy.gz" if packed else f"{name}.npy"
        try:
            with open_inside(place, [file_name]) as file:
                values = read_packed(file) if packed else read_array(file, mapped=mapped)
                if checksum is not None and (whole or not mapped) and digest(file) != checksum:
                    raise ValueError("its content is not what was written")
        except ValueError as fault:
            raise ValueError(f"{file_name}: {fault}") from fault
        return values

    @classmethod
    def _revive(cls, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Values as their fields' annotations say: JSON knows only lists. Raises ValueError."""
        hints, made = get_type_hints(cls), {}
        for name, value in plain.items():
            try:
                made[name] = checked(value, hints[name])
            except ValueError as fault:
                raise ValueError(f"{name} is of another kind: {fault}") from fault
        return made


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
    """Raises ValueError unless arrays are of their kind, and sides of one name agree."""
    sides: dict[str, int] = {}
    for name, hint in get_type_hints(type(record)).items():
        kinds = [kind for kind in (hint, *get_args(hint)) if hasattr(kind, "dim_str")]
        value = getattr(record, name)
        if isinstance(value, np.ndarray):
            if not kinds or not _array_fits(value, kinds[0], sides):
                raise ValueError(f"{name} is of another kind: {value.dtype} {value.shape}")
        elif kinds and not (value is None and NoneType in get_args(hint)):
            raise ValueError(f"{name} is of another kind: {brief(value)}")


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


def open_inside(root: Path, parts: Sequence[str], *, most: int | None = None) -> BufferedReader:
    """Open `root/part/part/…` for reading. `root` may be a link, what lies below may not.

    Raises ValueError for a name that leads elsewhere, a link, something that is no regular file,
    or one of more than `most` bytes; OSError if it cannot be opened.
    """
    if any(part in ("", ".", "..") or "/" in part or "\0" in part for part in parts):
        raise ValueError(f"{'/'.join(parts)} leads out of the folder")
    shown = "/".join(parts)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            _refuse_link(part, folder, shown)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner = os.open(part, flags, dir_fd=folder)
            os.close(folder)
            folder = inner
        _refuse_link(parts[-1], folder, shown)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.fdopen(os.open(parts[-1], flags, dir_fd=folder), "rb")
    finally:
        os.close(folder)
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise ValueError(f"{shown} is not a regular file")
    if most is not None and status.st_size > most:
        file.close()
        raise ValueError(f"{shown} has {status.st_size:,} bytes, more than {most:,}")
    return file


def read_inside(root: Path, parts: Sequence[str], *, most: int = INDEX_MOST) -> bytes:
    """All of such a file. Raises as `open_inside`."""
    with open_inside(root, parts, most=most) as file:
        return file.read(most + 1)[:most]


def read_array(file: BufferedReader, *, mapped: bool = False) -> np.ndarray:
    """The array of a `.npy` file, of which nothing is believed that the file does not bear out.

    mapped: left on the disk. Raises ValueError for anything but an array of plain numbers whose
    header agrees with the file's size.
    """
    file.seek(0)
    shape, fortran, kind, offset = _header(file.read(HEAD))
    count = int(np.prod(shape, dtype=object)) if shape else 1
    size = os.fstat(file.fileno()).st_size
    if size != offset + count * kind.itemsize:
        raise ValueError(f"{size:,} bytes, where {offset + count * kind.itemsize:,} are told")
    order: Any = "F" if fortran else "C"
    if mapped and count:
        return np.memmap(file, kind, "r", offset, shape, order)
    file.seek(offset)
    values = np.fromfile(file, kind, count)
    if len(values) != count:
        raise ValueError("it was cut while it was read")
    return values.reshape(shape, order=order)


def read_packed(file: BufferedReader) -> np.ndarray:
    """The array of a `.npy.gz` file. Raises ValueError as `read_array`."""
    file.seek(0)
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as inside:
            data = inside.read(HEAD)
            shape, fortran, kind, offset = _header(data)
            count = int(np.prod(shape, dtype=object)) if shape else 1
            size = offset + count * kind.itemsize
            data += inside.read(max(0, size + 1 - len(data)))
    except (EOFError, gzip.BadGzipFile, zlib.error) as fault:
        raise ValueError(str(fault)) from fault
    if len(data) != size:
        raise ValueError(f"not the {size:,} bytes that are told")
    values = np.frombuffer(data, kind, count, offset)
    return values.reshape(shape, order="F" if fortran else "C")


def digest(file: BufferedReader) -> str:
    """SHA-256 of all of an open file."""
    file.seek(0)
    result = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return result


def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    head = BytesIO(data[:HEAD])
    try:
        version = np.lib.format.read_magic(head)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, fortran, kind = readers[version](head)
    except Exception as fault:  # parsers tell of nonsense in many ways, MemoryError among them
        raise ValueError(f"not an array: {type(fault).__name__}") from fault
    if kind.hasobject or kind.fields is not None or kind.subdtype is not None:
        raise ValueError("not an array of plain numbers")
    if any(side < 0 for side in shape):
        raise ValueError("not an array: a side is negative")
    return shape, fortran, kind, head.tell()


def _refuse_link(part: str, folder: int, shown: str) -> None:
    if stat.S_ISLNK(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode):
        raise ValueError(f"{shown} is a link, and what it leads to is not taken")
