"""WebDataset shards: which pictures lie in tar archives, and of which classes are they?

A shard is a tar archive; the files of one sample lie in it under one name but for their endings:
`0001.jpg` with `0001.cls`, a whole number, or `0001.json` with the number as its "label". Pictures
are read where they lie, by the same decoding processes and limits as files are.

Of an archive only headers are read; nothing is unpacked, and no name becomes a path on disk.
Python's tarfile takes a damaged header for the archive's end and a missing end for none: here both
are told.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self, Unpack

from convscope.core.errors import DataError, EnvironmentFault, UsageError, printable
from convscope.core.text import decoded, parsed
from convscope.pictures.decode.formats import ENDINGS, TRANSIENT, ending, kind, reason_of
from convscope.pictures.decode.pool import Member
from convscope.pictures.decode.prefetch import in_order
from convscope.pictures.listing import many, require_name, shown
from convscope.pictures.notes import Report, Skipped
from convscope.pictures.pictures import Options, Pictures
from convscope.pictures.remote import Store, is_url, last_of, local, redacted

LABEL_KEYS = ("label", "cls", "class_id", "class_index")
"""Of a sample's .json; the first that is there counts."""
MOST_LABEL = 1 << 20
"""Bytes of a .cls or .json that are looked at."""
MOST_CLASSES = 1_000_000
MOST_SHARDS = 100_000
ARCHIVE = re.compile(r"\.(tar(\.\w+)?|tgz)$", re.I)
RANGE = re.compile(r"\{(\d{1,12})\.\.(\d{1,12})\}")


def is_shards(name: str) -> bool:
    """Whether a name means tar archives and no folder."""
    return bool(ARCHIVE.search(last_of(name))) and (is_url(name) or not Path(name).is_dir())


def expanded(spec: str) -> list[str]:
    """`val-{000..002}.tar` as three names, digits as wide as in the range.

    Raises UsageError U405 on what is no such name, or a command.
    """
    if spec.startswith("pipe:"):
        what = "shards are files, here or behind URLs"
        raise UsageError("U405", spec, what, next_step="name the files")
    parts = RANGE.split(spec)  # text, first, last, text, …
    plain = "".join(parts[0::3])
    ranges = list(zip(parts[1::3], parts[2::3], strict=True))
    count = 1
    for first, last in ranges:
        count *= max(0, int(last) - int(first) + 1)
    if "{" in plain or "}" in plain or not 0 < count <= MOST_SHARDS:
        what = f"is no range of 1 to {MOST_SHARDS:,} shards"
        raise UsageError("U405", spec, what, next_step="write it as val-{000000..000049}.tar")
    return list(map("".join, product(*_choices(parts))))


def _choices(parts: list[str]) -> Iterator[list[str]]:
    for place in range(0, len(parts), 3):
        yield [parts[place]]
        if place + 1 < len(parts):
            first, last = parts[place + 1 : place + 3]
            yield [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]


class _Sample(NamedTuple):
    picture: Entry
    label: int | None
    why: str
    """Why there is no label."""


class Shards(Pictures):
    """The pictures in tar archives, in the order in which they lie there.

    Labels are class indices as the network counts them, and the classes' names are these numbers.
    Names are `SHARD/MEMBER`; a picture's limits, faults and records are those of a folder.
    """

    numbered = True

    def __init__(self, spec: Path | str, **options: Unpack[Options]) -> None:
        """spec: `val.tar`, or `val-{000000..000049}.tar` for several.

        Raises UsageError U375, U405 (no such name), DataError D100 (no pictures), D205 (a shard is
        not there, or is no plain tar archive), EnvironmentFault R605.
        """
        spec, findings = local(str(spec)), list[Skipped]()
        far = is_url(spec)
        self._begin(Path() if far else Path(require_name(spec)), **options)
        self.place = redacted(spec)
        names = expanded(spec)
        self._shards: list[Path | Store] = [
            Store(name, others=(b"",)) if far else Path(name) for name in names
        ]
        self._place: dict[bytes, tuple[int, int]] = {}
        labels: list[int | None] = []
        files: list[tuple[bytes, int]] = []
        unlabelled, others = [], 0
        inside = in_order(contents, self._shards) if far else map(contents, self._shards)
        for number, (shard, result) in enumerate(zip(self._shards, inside, strict=True)):
            findings += _findings(shard, result)
            samples, rest = _samples(result.entries)
            others += rest
            for sample in samples:
                name = _name(shard) + b"/" + sample.picture.name
                self._place[name] = (number, sample.picture.start)
                files.append((name, sample.picture.size))
                labels.append(sample.label)
                unlabelled += [f"{shown(name)} ({sample.why})"] if sample.why else []
        if not files:
            raise DataError("D100", self.place, "holds no pictures")
        self.remarks = tuple(_remarks(unlabelled, others))
        self.report = Report(findings)
        known = [label for label in labels if label is not None]
        self.classes = tuple(str(n) for n in range(max(known) + 1)) if known else ()
        self._contain(files, labels)

    def _contain(
        self,
        files: Sequence[tuple[bytes, int]],
        labels: Sequence[int | None],
        numbers: Sequence[int] | None = None,
    ) -> None:
        super()._contain(files, labels, numbers)
        told = f"{self.sha256} {' '.join(map(str, self.labels))}"
        self.sha256 = hashlib.sha256(told.encode()).hexdigest()
        far = is_url(self.place)
        here = os.fsencode(posixpath.dirname(self.place) if far else self.root.parent)
        self.paths = tuple(posixpath.join(here, name) for name, _ in self.files)
        places = ((*self._place[name], size, name) for name, size in self.files)
        self.sources = tuple(
            shard.part(start, size, name)
            if isinstance(shard := self._shards[number], Store)
            else Member(os.fsencode(shard), start, size, name)
            for number, start, size, name in places
        )


def _name(shard: Path | Store) -> bytes:
    return os.fsencode(shard.name if isinstance(shard, Path) else last_of(shard.shown))


def _findings(shard: Path | Store, inside: Contents) -> Iterator[Skipped]:
    """What of an archive is not used."""
    where = _name(shard)
    for name, why in inside.left_out:
        path = where + b"/" + name
        yield Skipped(-1, shown(path), path, 0, "", "D207", why)
    if inside.damage:
        yield Skipped(-1, shown(where), where, inside.size, "", "D206", inside.damage)


def _samples(entries: list[Entry]) -> tuple[list[_Sample], int]:
    """The pictures with their labels, and how many other files there are."""
    pictures: dict[bytes, Entry] = {}
    sides: dict[bytes, dict[bytes, Entry]] = {end: {} for end in READ}
    for entry in entries:
        key, end = _key(entry.name), ending(entry.name)
        if end in ENDINGS and key not in pictures:
            pictures[key] = entry
        elif end in sides:
            sides[end].setdefault(key, entry)
    label: dict[bytes, tuple[int | None, str]] = {}
    for end in (b".json", b".cls"):
        label |= {key: entry.label for key, entry in sides[end].items() if entry.label}
    result = [
        _Sample(entry, *label.get(key, (None, "no .cls or .json")))
        for key, entry in pictures.items()
    ]
    used = sum(key in pictures for side in sides.values() for key in side)
    return result, len(entries) - len(result) - used


def _key(name: bytes) -> bytes:
    """A sample's name: up to the first dot after the last slash, as WebDataset has it."""
    folder, slash, file = name.rpartition(b"/")
    return folder + slash + file.partition(b".")[0]


def _read_cls(data: bytes) -> tuple[int | None, str]:
    text = data.decode("ascii", "replace").strip()
    return _checked(int(text) if re.fullmatch(r"\d{1,9}", text) else None, ".cls")


def _read_json(data: bytes) -> tuple[int | None, str]:
    try:
        told = parsed(decoded(data))
        given = next((told[key] for key in LABEL_KEYS if key in told), None)
    except (ValueError, TypeError, RecursionError):
        given = None
    return _checked(given if type(given) is int else None, ".json")


READ = {b".cls": _read_cls, b".json": _read_json}


def _checked(label: int | None, source: str) -> tuple[int | None, str]:
    if label is None or not 0 <= label < MOST_CLASSES:
        return None, f"no class index in its {source}"
    return label, ""


def _remarks(unlabelled: list[str], others: int) -> list[str]:
    said = []
    if unlabelled:
        more = ", …" if len(unlabelled) > 3 else ""
        few = ", ".join(map(printable, unlabelled[:3]))
        said.append(f"{many(len(unlabelled), 'picture')} without a class: {few}{more}")
    if others:
        said.append(f"{many(others, 'file')} ignored: of no picture, or a second of a sample")
    return said


BLOCK = 512
MOST_HEADER = 1 << 20
"""Bytes of a long name or of a member's own records; real ones have hundreds."""
MOST_MEMBERS = 2_000_000
LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"x", b"g", tarfile.SOLARIS_XHDTYPE)
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class Entry(NamedTuple):
    """A regular file in the archive."""

    name: bytes
    start: int
    """First byte of its content."""
    size: int
    label: tuple[int | None, str] | None = None
    """Of a .cls or .json: the class index, or why there is none."""


@dataclass
class Contents:
    """What a tar archive holds, in its own order."""

    entries: list[Entry] = field(default_factory=list)
    left_out: list[tuple[bytes, str]] = field(default_factory=list)
    """Names of members that are not used, and why."""
    size: int = 0
    """Bytes of the archive."""
    damage: str = ""
    """Why members may be missing; empty for a whole archive."""


class _Damaged(Exception):
    """The rest of the archive cannot be read."""


class _Header(tarfile.TarInfo):
    """Refuses sizes that would fill the memory before anyone can look at them."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in LONG and header.size > MOST_HEADER):
            raise _Damaged(f"a header claims {header.size:,} bytes")
        return header


def contents(path: Path | Store) -> Contents:
    """The archive's regular files.

    Raises DataError D205 if it is no plain tar archive, EnvironmentFault R605 if the disk fails, as
    `Store.blocks` of one elsewhere.
    """
    inside = Contents()
    where = str(path) if isinstance(path, Path) else path.shown
    try:
        with _opened(path, inside) as file:
            _require_plain(where, file.read(BLOCK))
            file.seek(0)
            try:
                _list(file, inside)
            except (_Damaged, tarfile.TarError, RecursionError, ValueError) as fault:
                if not inside.entries:
                    raise DataError("D205", where, f"is no tar archive ({fault})") from fault
                inside.damage = inside.damage or str(fault)
    except OSError as fault:
        raise _unreadable(where, fault) from fault
    return inside


def _opened(path: Path | Store, inside: Contents) -> BinaryIO:
    if isinstance(path, Store):
        file, inside.size = path.blocks()
        return file
    status = path.stat()  # before it is opened: opening a FIFO waits for ever
    if not stat.S_ISREG(status.st_mode):
        raise DataError("D205", str(path), f"is a {kind(status.st_mode)}, no tar archive")
    inside.size = status.st_size
    return path.open("rb")


def _require_plain(where: str, head: bytes) -> None:
    for start, name in COMPRESSED.items():
        if head.startswith(start):
            what = f"is compressed ({name}), so its pictures cannot be found without unpacking all"
            raise DataError("D205", where, what, next_step="give a plain .tar")
    if not head:
        raise DataError("D205", where, "is empty")


def _list(file: BinaryIO, inside: Contents) -> None:
    names: set[bytes] = set()
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
        for member in _members(archive):
            name = member.name.encode("utf-8", "surrogateescape")
            why = _refused(member, name, names)
            if why:
                inside.left_out.append((name, why))
            elif member.isreg():
                names.add(name)
                label = _label(file, member, ending(name))
                inside.entries.append(Entry(name, member.offset_data, member.size, label))
            if member.offset_data + member.size > inside.size and member.isreg():
                raise _Damaged(f"it ends within {shown(name)}")
        inside.damage = _end(file, archive.offset)


def _label(file: BinaryIO, member: tarfile.TarInfo, end: bytes) -> tuple[int | None, str] | None:
    """What a .cls or .json says; nothing else is looked at, nor one that is too large."""
    if end not in READ:
        return None
    file.seek(member.offset_data)
    return READ[end](file.read(member.size if member.size <= MOST_LABEL else 0))


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    last = -1
    for _ in range(MOST_MEMBERS):
        member = archive.next()
        archive.members = []  # type: ignore[attr-defined]  # else they stay in memory
        if member is None:
            return
        if member.offset <= last or member.size < 0:  # a size in records may be negative
            raise _Damaged("its headers lead in a circle")
        last = member.offset
        yield member
    raise _Damaged(f"it holds more than {MOST_MEMBERS:,} members")


def _refused(member: tarfile.TarInfo, name: bytes, names: set[bytes]) -> str:
    if member.isdir():
        return ""
    if not member.isreg() or member.issparse():
        return "a link, a device or a sparse file"
    if name.startswith(b"/") or b".." in name.split(b"/") or b"\\" in name or b"\0" in name:
        return "its path leads out of the archive"
    if posixpath.normpath(name) != name.removeprefix(b"./"):
        return "its path is not in its shortest form"
    return "a second member of this name" if name in names else ""


def _end(file: BinaryIO, place: int) -> str:
    """What is wrong with the end of an archive whose last header is followed by `place`."""
    file.seek(place)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        return "it ends without an end mark, so it may be truncated"
    if any(block):
        return f"a damaged header at byte {place:,}; what follows is lost"
    if any(file.read(MOST_HEADER)):
        return "more data follows its end mark"
    return ""


def _unreadable(where: str, fault: OSError) -> DataError | EnvironmentFault:
    reason = reason_of(fault)
    if fault.errno in TRANSIENT:
        return EnvironmentFault("R605", where, f"could not be read ({reason})")
    return DataError("D205", where, f"cannot be read ({reason})")
