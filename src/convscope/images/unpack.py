"""How is an archive opened that may have been made to do harm?"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from convscope.errors import DataError
from convscope.images.cache import publish_many

MOST_BYTES = 2 << 30
MOST_FILES = 100_000
PIECE = 1 << 20


def unpack(archive: Path, target: Path) -> None:
    """Put the content of a .tgz at `target`, whole or not at all, without its top folder.

    Raises DataError D170 (an entry that is absolute,
    climbs out, is a link or a device), D171 (too large), D172 (damaged), OutputError O501 (target
    not free), EnvironmentFault R602 or R603.
    """
    publish_many(target, lambda folder: _unpack(archive, folder))


def _unpack(archive: Path, folder: Path) -> None:
    count = size = 0
    try:
        with gzip.open(archive) as plain, tarfile.open(fileobj=plain, mode="r|") as entries:
            for entry in entries:
                count, size = count + 1, size + max(0, entry.size)
                _require_modest(archive, count, size)
                content = entries.extractfile(entry) if entry.isfile() else None
                _put(folder, entry, content)
            while rest := len(plain.read(PIECE)):  # up to the checksum at the very end
                _require_modest(archive, count, size := size + rest)
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as fault:
        raise DataError("D172", str(archive), f"is damaged ({fault})") from fault


def _put(folder: Path, entry: tarfile.TarInfo, content: IO[bytes] | None) -> None:
    path = _safe(entry)
    if not path.parts:
        return
    target = folder.joinpath(*path.parts)
    if content is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:  # a second entry of the same name is refused
        while piece := content.read(PIECE):
            file.write(piece)


def _safe(entry: tarfile.TarInfo) -> PurePosixPath:
    """The entry's path below the top folder. Modes, owners and times are not taken over."""
    path = PurePosixPath(entry.name)
    climbs = path.is_absolute() or ".." in path.parts or "\\" in entry.name or "\0" in entry.name
    if climbs or not (entry.isfile() or entry.isdir()):
        what = "a path that leads out of it" if climbs else "a link or a device"
        raise DataError("D170", entry.name, f"the archive holds {what}; nothing was unpacked")
    return PurePosixPath(*path.parts[1:])


def _require_modest(archive: Path, count: int, size: int) -> None:
    if count > MOST_FILES or size > MOST_BYTES:
        limit = f"{MOST_FILES:,} files or {MOST_BYTES / 2**30:.0f} GiB"
        raise DataError("D171", str(archive), f"unpacks to more than {limit}")
