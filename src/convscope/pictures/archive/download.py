"""Downloads that resume and are checked by SHA-256, and safe unpacking of a .tgz.

What has arrived lies in `NAME.part`, and `NAME.part.json` says of which file it is a part; the
rest is asked for by HTTP Range. A file is given its name only when its SHA-256 is right.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from convscope.errors import DataError, EnvironmentFault, UsageError
from convscope.publish import environment_fault, publish_many
from convscope.texts import parsed

Progress = Callable[[int, int], None]
PIECE = 1 << 18
ATTEMPTS = 5
"""In a row without getting further than before."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
LOST = (http.client.HTTPException, ConnectionError, TimeoutError)
"""What a connection that breaks in the middle raises."""


@dataclass(frozen=True)
class Source:
    """A file that is known before it is fetched."""

    url: str
    size: int
    """In bytes."""
    sha256: str


def fetch(
    source: Source,
    target: Path,
    *,
    progress: Progress | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Fetch `source` to `target`; an interrupted download goes on where it stopped.

    Raises EnvironmentFault R602 (disk full), R603 (not writable), R610 (connection lost), R611
    (server not reached), R612 (server refuses), R613 (wrong content), UsageError U212 (not an
    http address).
    """
    if not source.url.startswith(("http://", "https://")):
        raise UsageError("U212", source.url, "is not an http or https address")
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _rest(source, part, progress, wait)
        check(source, part)
        part.replace(target)
        _label(part).unlink(missing_ok=True)
    except EnvironmentFault as fault:
        if fault.code == "R613":  # what is wrong from the start is not to be continued
            fault.kept, fault.next_step = "nothing", "try again, perhaps over another network"
            part.unlink(missing_ok=True)
            _label(part).unlink(missing_ok=True)
        raise
    except OSError as fault:
        raise _on_disk(fault, part) from fault


def _rest(
    source: Source, part: Path, progress: Progress | None, wait: Callable[[float], object]
) -> None:
    idle, best = 0, _there(part)
    while _there(part) < source.size:
        _require_room(source, part)
        try:
            for done in _transfer(source, part):
                if progress is not None:
                    progress(done, source.size)
        except _Lost as loss:
            idle, best = (0 if _there(part) > best else idle + 1), max(best, _there(part))
            if idle >= ATTEMPTS:
                raise _lost(source, part, loss) from loss
            wait(min(2.0**idle, 30.0) / 2)


class _Lost(Exception):
    """The connection broke, or the server is busy; trying again may help."""


def _transfer(source: Source, part: Path) -> Iterator[int]:
    """One connection's worth: bytes there after every piece."""
    with _opened(source, part) as answer:
        start = _there(part) if answer.status == 206 and _fits(answer, part, source) else 0
        if answer.status == 206 and not start:
            part.unlink(missing_ok=True)  # the server means another file: from the beginning
            raise _Lost("the file has changed on the server")
        with part.open("ab" if start else "wb") as file:
            if not start:
                _label(part).write_text(json.dumps(_identity(source, answer)), encoding="utf-8")
            yield from _pour(answer, file, start, source)


def _pour(
    answer: http.client.HTTPResponse, file: IO[bytes], done: int, source: Source
) -> Iterator[int]:
    while done < source.size:
        try:
            piece = answer.read1(min(PIECE, source.size - done))
        except LOST as fault:
            raise _Lost(str(fault) or type(fault).__name__) from fault
        if not piece:
            raise _Lost("the server stopped sending")
        file.write(piece)
        done += len(piece)
        yield done


@contextlib.contextmanager
def _opened(source: Source, part: Path) -> Iterator[http.client.HTTPResponse]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "convscope", **_range(source, part)}
    request = urllib.request.Request(source.url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as fault:
        fault.close()
        if fault.code == 416:
            part.unlink(missing_ok=True)
        if fault.code in (408, 416, 429) or fault.code >= 500:
            raise _Lost(f"the server answers {fault.code} {fault.reason}") from fault
        raise EnvironmentFault(
            "R612", source.url, f"the server answers {fault.code} {fault.reason}"
        ) from fault
    except urllib.error.URLError as fault:
        if isinstance(fault.reason, TimeoutError):
            raise _Lost("no answer") from fault
        raise EnvironmentFault(
            "R611",
            source.url,
            f"cannot be reached ({_reason(fault)})",
            kept=_kept(part),
            next_step="check the network or the proxy and give the same command again",
        ) from fault
    except LOST as fault:
        raise _Lost(str(fault) or type(fault).__name__) from fault
    with answer:
        yield answer


def _range(source: Source, part: Path) -> dict[str, str]:
    """Headers that ask for the rest, if it is known to be the rest of the same file."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = parsed(_label(part).read_text(encoding="utf-8"))
        if told["url"] == source.url and told["mark"] and _there(part):
            return {"Range": f"bytes={_there(part)}-", "If-Range": told["mark"]}
    return {}


def _identity(source: Source, answer: http.client.HTTPResponse) -> dict[str, str]:
    """Which file the part is of: a strong ETag, or a date, may be used with If-Range."""
    tag = answer.headers.get("ETag", "")
    mark = answer.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag
    return {"url": source.url, "mark": mark}


def _fits(answer: http.client.HTTPResponse, part: Path, source: Source) -> bool:
    """Whether a partial answer begins where we stopped."""
    told = answer.headers.get("Content-Range", "")
    return told.startswith(f"bytes {_there(part)}-") and told.endswith((f"/{source.size}", "/*"))


def check(source: Source, file: Path) -> None:
    """Raise EnvironmentFault R613 unless `file` has the content that `source` is known by."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != source.sha256:
        raise EnvironmentFault(
            "R613",
            str(file),
            f"has the wrong content (SHA-256 {digest[:12]}…, not {source.sha256[:12]}…)",
            next_step="delete it and try again; if it stays so, something on the way alters it",
        )


def _require_room(source: Source, part: Path) -> None:
    needed = source.size - _there(part)
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise EnvironmentFault(
            "R602",
            str(part.parent),
            f"the disk is full: {(needed - free) / 1e6:,.0f} MB more are needed",
            kept=_kept(part),
            next_step="free some space and give the same command again",
        )


def _there(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _label(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _kept(part: Path) -> str:
    return f"{_there(part):,} bytes, from which it goes on" if _there(part) else ""


def _lost(source: Source, part: Path, loss: _Lost) -> EnvironmentFault:
    return EnvironmentFault(
        "R610",
        source.url,
        f"the connection was lost {ATTEMPTS} times in a row ({loss})",
        kept=_kept(part),
        next_step="give the same command again",
    )


def _on_disk(fault: OSError, part: Path) -> EnvironmentFault:
    told = environment_fault(fault, part)
    told.kept = _kept(part)
    return told


def _reason(fault: urllib.error.URLError) -> str:
    reason = fault.reason
    text = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return text.lower()


MOST_BYTES = 2 << 30
MOST_FILES = 100_000


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
