"""What lies where in a tar archive that may be damaged, or made to do harm?

Only headers are read; nothing is unpacked, and no name becomes a path on disk. Python's tarfile
takes a damaged header for the archive's end and a missing end for none: here both are told.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from convscope.errors import DataError, EnvironmentFault
from convscope.images.files import TRANSIENT, kind
from convscope.images.listing import shown

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


@dataclass
class Contents:
    """What a tar archive holds, in its own order."""

    entries: list[Entry] = field(default_factory=list)
    left_out: list[tuple[bytes, str]] = field(default_factory=list)
    """Names of members that are not used, and why."""
    damage: str = ""
    """Why members may be missing; empty for a whole archive."""


class _Damaged(Exception):
    """The rest of the archive cannot be read."""


class _Header(tarfile.TarInfo):
    """Refuses sizes that would fill the memory before anyone can look at them."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in LONG and found.size > MOST_HEADER):
            raise _Damaged(f"a header claims {found.size:,} bytes")
        return found


def contents(path: Path) -> Contents:
    """The archive's regular files.

    Raises DataError D205 if it is no plain tar archive, EnvironmentFault R605 if the disk fails.
    """
    found = Contents()
    try:
        status = path.stat()  # before it is opened: opening a FIFO waits for ever
        if not stat.S_ISREG(status.st_mode):
            raise DataError("D205", str(path), f"is a {kind(status.st_mode)}, no tar archive")
        with path.open("rb") as file:
            _require_plain(path, file.read(BLOCK))
            file.seek(0)
            try:
                _list(file, status.st_size, found)
            except (_Damaged, tarfile.TarError, RecursionError, ValueError) as fault:
                if not found.entries:
                    raise DataError("D205", str(path), f"is no tar archive ({fault})") from fault
                found.damage = found.damage or str(fault)
    except OSError as fault:
        raise _unreadable(path, fault) from fault
    return found


def _require_plain(path: Path, head: bytes) -> None:
    for start, name in COMPRESSED.items():
        if head.startswith(start):
            what = f"is compressed ({name}), so its pictures cannot be found without unpacking all"
            raise DataError("D205", str(path), what, next_step="give a plain .tar")
    if not head:
        raise DataError("D205", str(path), "is empty")


def _list(file: BinaryIO, size: int, found: Contents) -> None:
    names: set[bytes] = set()
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
        for member in _members(archive):
            name = member.name.encode("utf-8", "surrogateescape")
            why = _refused(member, name, names)
            if why:
                found.left_out.append((name, why))
            elif member.isreg():
                names.add(name)
                found.entries.append(Entry(name, member.offset_data, member.size))
            if member.offset_data + member.size > size and member.isreg():
                raise _Damaged(f"it ends within {shown(name)}")
        found.damage = _end(file, archive.offset)


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


def _unreadable(path: Path, fault: OSError) -> DataError | EnvironmentFault:
    reason = (fault.strerror or str(fault)).lower()
    if fault.errno in TRANSIENT:
        return EnvironmentFault("R605", str(path), f"could not be read ({reason})")
    return DataError("D205", str(path), f"cannot be read ({reason})")


def read_member(path: Path, entries: list[Entry], most: int) -> Iterator[tuple[Entry, bytes]]:
    """The content of small members; empty for those of more than `most` bytes."""
    try:
        with path.open("rb") as file:
            for entry in entries:
                found = b""
                if entry.size <= most:
                    found = os.pread(file.fileno(), entry.size, entry.start)
                yield entry, found
    except OSError as fault:
        raise _unreadable(path, fault) from fault
