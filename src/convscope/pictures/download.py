"""Downloads that resume and are checked by SHA-256, and safe unpacking of a .tgz.

What has arrived lies in `NAME.part`, and `NAME.part.json` says of which file it is a part; the
rest is asked for by HTTP Range. A file is given its name only when its SHA-256 is right. By hand,
because pooch and torch.hub begin anew when a connection breaks, and because tarfile's data filter
lets links in and is not there before Python 3.11.4.
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

from convscope.core.errors import DataError, EnvironmentFault, UsageError
from convscope.core.publish import environment_fault, publish_many
from convscope.core.text import parsed

Progress = Callable[[int, int], None]
PIECE = 1 << 18
ATTEMPTS = 5
"""In a row without getting further than before."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
LOST = (http.client.HTTPException, ConnectionError, TimeoutError)
"""What a connection that breaks in the middle raises."""
MOST_BYTES = 2 << 30
MOST_FILES = 100_000
"""That an archive may unpack to."""


@dataclass(frozen=True)
class Source:
    """A file that is known before it is fetched."""

    url: str
    size: int | None
    """In bytes; None where the server has to tell it."""
    sha256: str
    """In hexadecimal, or how it begins; empty if nobody knows it."""

    def check(self, file: Path) -> None:
        """Raise EnvironmentFault R613 unless the file has the right content."""
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if not digest.startswith(self.sha256):
            raise EnvironmentFault(
                "R613",
                str(file),
                f"has the wrong content (SHA-256 {digest[:12]}…, not {self.sha256[:12]}…)",
                next_step="delete it and try again; if it stays so, something on the way alters it",
            )


def fetch(
    source: Source,
    target: Path,
    *,
    progress: Progress | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Fetch `source` to `target`; an interrupted download goes on where it stopped.

    progress: bytes that are there, and of how many (0 where nobody knows). Raises EnvironmentFault
    R602 (disk full), R603 (not writable), R610 (connection lost), R611 (server not reached), R612
    (server refuses), R613 (wrong content), UsageError U212 (not an http address).
    """
    if not source.url.startswith(("http://", "https://")):
        raise UsageError("U212", source.url, "is not an http or https address")
    part = _Part(source, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.complete(progress, wait)
        source.check(part.path)
        part.path.replace(target)
        part.label.unlink(missing_ok=True)
    except EnvironmentFault as fault:
        if fault.code == "R613":  # what is wrong from the start is not to be continued
            fault.kept, fault.next_step = "nothing", "try again, perhaps over another network"
            part.drop()
        raise
    except OSError as fault:
        told = environment_fault(fault, part.path)
        told.kept = part.kept()
        raise told from fault


class _Lost(Exception):
    """The connection broke, or the server is busy; trying again may help."""


class _Part:
    """What has arrived of a file."""

    def __init__(self, source: Source, target: Path) -> None:
        self.source, self.size = source, source.size
        self.path = target.with_name(target.name + ".part")
        self.label = target.with_name(target.name + ".part.json")

    @property
    def there(self) -> int:
        """Bytes."""
        return self.path.stat().st_size if self.path.exists() else 0

    def kept(self) -> str:
        return f"{self.there:,} bytes, from which it goes on" if self.there else ""

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.label.unlink(missing_ok=True)

    def complete(self, progress: Progress | None, wait: Callable[[float], object]) -> None:
        """Get the rest, over as many connections as it takes."""
        idle, best = 0, self.there
        while self.size is None or self.there < self.size:
            try:
                for done in self._connection():
                    if progress is not None:
                        progress(done, self.size or 0)
                self.size = self.size or self.there
            except _Lost as loss:
                idle, best = (0 if self.there > best else idle + 1), max(best, self.there)
                if idle >= ATTEMPTS:
                    what = f"the connection was lost {ATTEMPTS} times in a row ({loss})"
                    raise self._fault("R610", what, "give the same command again") from loss
                wait(min(2.0**idle, 30.0) / 2)

    def _connection(self) -> Iterator[int]:
        """One connection's worth: bytes there after every piece."""
        with self._opened() as answer:
            start = self.there if answer.status == 206 and self._goes_on(answer) else 0
            if answer.status == 206 and not start:
                self.path.unlink(missing_ok=True)  # the server means another file: anew
                raise _Lost("the file has changed on the server")
            length = answer.headers.get("Content-Length", "")
            if self.size is None and length.isdecimal():
                self.size = start + int(length)
            self._require_room(start)
            with self.path.open("ab" if start else "wb") as file:
                if not start:
                    mark = {"url": self.source.url, "mark": _mark(answer)}
                    self.label.write_text(json.dumps(mark), encoding="utf-8")
                yield from self._pour(answer, file, start)

    def _pour(self, answer: http.client.HTTPResponse, file: IO[bytes], done: int) -> Iterator[int]:
        while self.size is None or done < self.size:
            try:
                piece = answer.read1(PIECE if self.size is None else min(PIECE, self.size - done))
            except LOST as fault:
                raise _Lost(str(fault) or type(fault).__name__) from fault
            if not piece and self.size is None:
                return
            if not piece:
                raise _Lost("the server stopped sending")
            file.write(piece)
            done += len(piece)
            yield done

    @contextlib.contextmanager
    def _opened(self) -> Iterator[http.client.HTTPResponse]:
        url = self.source.url
        headers = {"Accept-Encoding": "identity", "User-Agent": "convscope", **self._range()}
        try:
            answer = urllib.request.urlopen(
                urllib.request.Request(url, headers=headers), timeout=TIMEOUT
            )
        except urllib.error.HTTPError as fault:
            fault.close()
            if fault.code == 416:
                self.path.unlink(missing_ok=True)
            what = f"the server answers {fault.code} {fault.reason}"
            if fault.code in (408, 416, 429) or fault.code >= 500:
                raise _Lost(what) from fault
            raise EnvironmentFault("R612", url, what) from fault
        except urllib.error.URLError as fault:
            if isinstance(fault.reason, TimeoutError):
                raise _Lost("no answer") from fault
            reason = getattr(fault.reason, "strerror", None) or str(fault.reason)
            step = "check the network or the proxy and give the same command again"
            raise self._fault("R611", f"cannot be reached ({reason.lower()})", step) from fault
        except LOST as fault:
            raise _Lost(str(fault) or type(fault).__name__) from fault
        with answer:
            yield answer

    def _fault(self, code: str, what: str, next_step: str) -> EnvironmentFault:
        kept = self.kept()
        return EnvironmentFault(code, self.source.url, what, kept=kept, next_step=next_step)

    def _range(self) -> dict[str, str]:
        """Headers that ask for the rest, if it is known to be the rest of the same file."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = parsed(self.label.read_text(encoding="utf-8"))
            if told["url"] == self.source.url and told["mark"] and self.there:
                return {"Range": f"bytes={self.there}-", "If-Range": told["mark"]}
        return {}

    def _goes_on(self, answer: http.client.HTTPResponse) -> bool:
        """Whether a partial answer begins where we stopped."""
        told = answer.headers.get("Content-Range", "")
        ends = (f"/{self.size}", "/*") if self.size is not None else ""
        return told.startswith(f"bytes {self.there}-") and told.endswith(ends)

    def _require_room(self, start: int) -> None:
        missing = (self.size or 0) - start - shutil.disk_usage(self.path.parent).free
        if missing > 0:
            raise EnvironmentFault(
                "R602",
                str(self.path.parent),
                f"the disk is full: {missing / 1e6:,.0f} MB more are needed",
                kept=self.kept(),
                next_step="free some space and give the same command again",
            )


def _mark(answer: http.client.HTTPResponse) -> str:
    """Which file it is: a strong ETag, or a date, may be used with If-Range."""
    tag = answer.headers.get("ETag", "")
    return answer.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag


def unpack(archive: Path, target: Path) -> None:
    """Put the content of a .tgz at `target`, whole or not at all, without its top folder.

    Raises DataError D170 (an entry that is absolute, climbs out, is a link or a device), D171 (too
    large), D172 (damaged), OutputError O501 (target not free), EnvironmentFault R602 or R603.
    """
    publish_many(target, lambda folder: _unpack(archive, folder))


def _unpack(archive: Path, folder: Path) -> None:
    count = size = 0
    try:
        with gzip.open(archive) as plain, tarfile.open(fileobj=plain, mode="r|") as entries:
            for entry in entries:
                count, size = count + 1, size + max(0, entry.size)
                _require_modest(archive, count, size)
                _put(folder, entry, entries.extractfile(entry) if entry.isfile() else None)
            while rest := len(plain.read(PIECE)):  # up to the checksum at the very end
                _require_modest(archive, count, size := size + rest)
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as fault:
        raise DataError("D172", str(archive), f"is damaged ({fault})") from fault


def _put(folder: Path, entry: tarfile.TarInfo, content: IO[bytes] | None) -> None:
    """Modes, owners and times are not taken over."""
    path = PurePosixPath(entry.name)
    climbs = path.is_absolute() or ".." in path.parts or "\\" in entry.name or "\0" in entry.name
    if climbs or not (entry.isfile() or entry.isdir()):
        what = "a path that leads out of it" if climbs else "a link or a device"
        raise DataError("D170", entry.name, f"the archive holds {what}; nothing was unpacked")
    if len(path.parts) < 2:  # the top folder, or a file beside it
        return
    target = folder.joinpath(*path.parts[1:])
    (target if content is None else target.parent).mkdir(parents=True, exist_ok=True)
    if content is not None:
        with target.open("xb") as file:  # a second entry of the same name is refused
            shutil.copyfileobj(content, file)


def _require_modest(archive: Path, count: int, size: int) -> None:
    if count > MOST_FILES or size > MOST_BYTES:
        limit = f"{MOST_FILES:,} files or {MOST_BYTES / 2**30:.0f} GiB"
        raise DataError("D171", str(archive), f"unpacks to more than {limit}")
