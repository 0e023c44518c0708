"""Limits on what one picture may cost, and reading a file within them."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one picture may cost. Above it, it is left out under the code named here."""

    max_pixels: int = 64_000_000
    """Width × height by the header, before anything is decoded: D103."""
    min_side: int = 8
    """Shortest side in pixels: D107."""
    max_aspect: float = 100.0
    """Longer side / shorter side: D107."""
    max_bytes: int = 512 << 20
    """Size of the file: D110. (64 Mpx of 16-bit RGBA, uncompressed.)"""
    seconds: float = 20.0
    """Processor time from opening the file to the finished pixels: D108."""
    memory: int = 2 << 30
    """Address space of a decoding process, in bytes: D130. (64 Mpx cost up to 1.2 GB.)"""
    patience: float = 120.0
    """Seconds on end without an answer in which the process neither runs nor waits for a
    processor, after which a disk is taken to hang: R605. (The picture is not to blame, so it is
    not left out; a machine that is busy is no reason either.)"""


class Fault(Exception):
    """Why a picture cannot be used: a code of docs/errors.md and one clause."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


TRANSIENT = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN")
)
"""These pass: a picture is never left out because of them, or a bad minute of a network
disk would change the result."""
KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
PAUSES = (0.1, 0.4, 1.6)
"""Seconds before the second, third and last attempt."""


Part = tuple[int, int]
"""First byte and number of bytes: a file inside an archive."""


def read_file(
    path: bytes, limits: Limits, wait: Callable[[float], object], part: Part | None = None
) -> bytes:
    """The content, or a part of it. Transient errors are tried again three times, then raised as
    OSError.

    Raises Fault D104 (the part ends too early), D109 (not a regular file), D110 (too large), D121
    (leads nowhere), D122 (may not be read).
    """
    for pause in (*PAUSES, None):
        try:
            return _read(path, limits, part)
        except OSError as fault:
            if fault.errno not in TRANSIENT:
                raise _fault(fault) from None
            if pause is None:
                raise
            wait(pause)
    raise AssertionError


def _read(path: bytes, limits: Limits, part: Part | None) -> bytes:
    # Asked before it is opened: opening a FIFO waits for ever, opening a device may do anything.
    _check(os.stat(path), limits, part)  # noqa: PTH116 - a path is bytes here
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        _check(os.fstat(descriptor), limits, part)
        return file.readall() if part is None else _part(file, *part)


def _part(file: io.FileIO, start: int, size: int) -> bytes:
    file.seek(start)
    content = bytearray()
    while piece := file.read(size - len(content)):
        content += piece
    if len(content) < size:
        raise Fault("D104", f"the archive ends after {len(content):,} of its {size:,} bytes")
    return bytes(content)


def _check(status: os.stat_result, limits: Limits, part: Part | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Fault("D109", f"not a regular file but a {kind(status.st_mode)}")
    size = status.st_size if part is None else part[1]
    if size > limits.max_bytes:
        there, most = size / 2**20, limits.max_bytes / 2**20
        raise Fault("D110", f"a file of {there:,.0f} MiB exceeds {most:,.0f} MiB")


def kind(mode: int) -> str:
    """What a file is when it is not a regular one."""
    return KINDS.get(stat.S_IFMT(mode), "special file")


def reason_of(fault: OSError) -> str:
    """What the system says."""
    return (fault.strerror or str(fault)).lower()


def _fault(fault: OSError) -> Fault:
    reason = reason_of(fault)
    if fault.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return Fault("D121", f"leads nowhere: a dangling link, or gone since ({reason})")
    if fault.errno in (errno.ENXIO, errno.ENODEV, errno.EISDIR):
        return Fault("D109", f"not a regular file ({reason})")
    return Fault("D122", f"cannot be read ({reason})")
