"""How does a file or a folder appear whole, or not at all?

Write beside the destination under a name of its own, fsync, rename, fsync the folder.
A reader, or a crash at any moment, sees the old state or the new one.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from convscope.errors import EnvironmentFault, OutputError


def publish_file(target: Path, content: bytes) -> None:
    """Put `content` at `target`, replacing what is there in one step.

    Raises EnvironmentFault R602 (disk full) or R603 (not writable); the old file stays then.
    """
    temporary = _beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as fault:
        with suppress(OSError):  # as where a file stands in the place of its folder
            temporary.unlink(missing_ok=True)
        raise environment_fault(fault, target) from fault


def publish_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then give it the name `target`, which must be free or empty.

    Raises OutputError O501 if something is there already, EnvironmentFault R602 or R603.
    """
    require_free(target)
    temporary = _beside(target)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        for path in sorted(temporary.rglob("*")):
            _sync(path)
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as fault:
        raise environment_fault(fault, target) from fault
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_free(target: Path) -> None:
    """Raise OutputError O501 unless nothing, or an empty folder, is at `target`."""
    _require_way(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise OutputError(
            "O501",
            str(target),
            "is there already, and nothing is overwritten",
            next_step="name a new folder with --out, or move the old one away",
        )


def require_folder(target: Path) -> None:
    """Raise OutputError O501 if `target`, where files are to be added, is no folder."""
    _require_way(target)
    if target.exists() and not target.is_dir():
        raise _file_there(target)


def _require_way(target: Path) -> None:
    """Raise OutputError O501 if a file stands where a folder above `target` should be."""
    above = next((place for place in target.parents if place.exists()), None)
    if above is not None and not above.is_dir():
        raise _file_there(above)


def _file_there(place: Path) -> OutputError:
    return OutputError(
        "O501",
        str(place),
        "is a file, where a folder for the results is wanted",
        next_step="name another one with --out",
    )


def environment_fault(fault: OSError, target: Path) -> EnvironmentFault:
    """What an OSError at `target` means, in the user's words."""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentFault(
            "R602", str(target), "the disk is full", next_step="free some space"
        )
    reason = (fault.strerror or str(fault)).lower()
    return EnvironmentFault("R603", str(target), f"cannot be written ({reason})")


def _beside(target: Path) -> Path:
    return target.parent / f".{target.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
