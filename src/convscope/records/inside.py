"""How is a file in somebody's folder read, and nothing outside it, whatever stands there?"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import zlib
from collections.abc import Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np

HEAD = 20_000
"""Bytes in which an array's header ends; NumPy takes one of 10,000."""
INDEX_MOST = 1 << 30
"""Bytes of a JSON file: an index with the names of ten million pictures."""


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
    told = os.fstat(file.fileno())
    if not stat.S_ISREG(told.st_mode):
        file.close()
        raise ValueError(f"{shown} is not a regular file")
    if most is not None and told.st_size > most:
        file.close()
        raise ValueError(f"{shown} has {told.st_size:,} bytes, more than {most:,}")
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
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return found


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
