"""Pictures elsewhere: `s3://`, `gs://`, `hf://`, `https://` and what else fsspec reads.

Bytes are fetched here, and decoded where those of a disk are (decode/pool.py). The listing
follows the rules of a folder's, so that the same pictures have the same numbers and the same hash
wherever they lie. What may open a place (a key, a password, a token) comes from the environment or
stands in the URL, which nobody is shown as it is.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from convscope.core.errors import (
    ConvscopeError,
    DataError,
    EnvironmentFault,
    UsageError,
    nearest,
)
from convscope.core.text import one_line
from convscope.pictures.decode.formats import (
    ENDINGS,
    HEAD,
    PAUSES,
    Fault,
    Limits,
    ending,
    require_bytes,
    require_whole,
)
from convscope.pictures.decode.prefetch import Elsewhere, in_order
from convscope.pictures.listing import FILE, MISSING, Listing, begins_as_picture, is_hidden

Result = TypeVar("Result")
URL = re.compile(r"[A-Za-z][\w+.-]*(::[A-Za-z][\w+.-]*)*://")
LOCAL = re.compile(r"(file|local)://")
"""What fsspec reads as a name of this machine."""
USER = re.compile(r"(?<=://)[^/?#\s]*@")
QUERY = re.compile(r"(://[^\s\"'?#]*[?#])[^\s\"']+")
GONE = (FileNotFoundError, NotADirectoryError)
FINAL: tuple[type[Exception], ...] = (
    *(*GONE, PermissionError, IsADirectoryError),
    *(ImportError, ValueError, NotImplementedError, ConvscopeError, Fault),
)
"""Nothing changes if these are tried again."""
MALFORMED = ("ParamValidationError",)
"""What botocore calls a name that no bucket can have."""
MOST_MISSED, MISSED_WITHIN = 20, 60.0
"""More pictures that cannot be had than this in so many seconds is no fault of theirs."""
BLOCK = 16 << 10
"""Bytes of an archive that are asked for at a time: the headers of a sample, and its label."""
NO_PARTS = "its server does not give parts of a file"
STAMPS = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "created")
"""What S3, Google, Azure, Hugging Face and others say of a file that changes with its content."""
LATE = 10.0
"""Seconds of trying after which no other try is begun."""
AGAIN = "the same command again, when the network is well"
WEB = ("http://", "https://")
"""Where names are quoted."""
EXTRA = "'convscope[remote]'"
PACKAGES = dict.fromkeys(("s3", "s3a", "http", "https"), EXTRA)
"""What pip is told, where it is not the name that fsspec's own message has."""


def is_url(name: object) -> bool:
    """Whether a name means a place that fsspec reads."""
    return isinstance(name, str) and bool(URL.match(name))


def local(name: str) -> str:
    """A name without the `file://` of one of this machine."""
    return LOCAL.sub("", name, count=1) if LOCAL.match(name) else name


def redacted(text: str) -> str:
    """A URL, or words with URLs in them, without user, password and query."""
    return QUERY.sub(r"\1***", USER.sub("***@", text)) if "://" in text else text


def last_of(url: str) -> str:
    """The last part of a path, or of a URL without its query."""
    return (re.split(r"[?#]", url)[0] if is_url(url) else url).rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class FarFile:
    """A small file elsewhere, read as a Path is."""

    store: Store
    name: str

    def __str__(self) -> str:
        return f"{self.store.shown}/{self.name}"

    def is_file(self) -> bool:
        """Raises EnvironmentFault R605."""
        try:
            self.open("rb")
        except FileNotFoundError:
            return False
        return True

    def open(self, _mode: Literal["rb"]) -> io.BytesIO:
        """Raises FileNotFoundError, EnvironmentFault R605."""
        try:
            return io.BytesIO(self.store.read(os.fsencode(self.name)))
        except Exception as fault:
            if isinstance(fault, GONE) or is_refusal(fault):
                raise FileNotFoundError(errno.ENOENT, "no such file or directory") from fault
            raise self.store.outage(fault, "could not be read") from fault


class Found(NamedTuple):
    """One entry of a folder elsewhere."""

    name: bytes
    is_folder: bool
    size: int | None
    """None where the place does not tell."""
    stamp: str
    """What changes with the content, as far as the place tells: a tag or a time."""


@dataclass(eq=False)
class Store:
    """A folder or a file elsewhere. A copy in another process connects for itself."""

    url: str = field(repr=False)
    shown: str = ""
    """As everybody may read it."""
    others: tuple[bytes, ...] = ()
    """Paths that are asked for to tell a fault of one picture from one of the place."""

    def __post_init__(self) -> None:
        """Raises UsageError U375 (no place), U483 (no such protocol), EnvironmentFault R624 (a
        package is missing)."""
        self.shown = one_line(redacted(self.url)).rstrip("/")
        if not self.url.partition("://")[2].strip("/") and "::" not in self.url:
            raise UsageError("U375", self.shown, "names no place, only a protocol")
        self._root = self._connect()[1].rstrip("/")
        self.__setstate__(self.__dict__)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("url", "shown", "others", "_root")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._missed: deque[float] = deque(maxlen=MOST_MISSED + 1)

    @property
    def system(self) -> Any:
        """fsspec's file system, of this process and thread."""
        return self._connect()[0]

    def _connect(self) -> tuple[Any, str]:
        protocol = self.url.partition("://")[0].rpartition("::")[2]
        try:
            from fsspec.core import url_to_fs

            system, root = retried(lambda: url_to_fs(self.url, use_listings_cache=False))
        except ImportError as fault:
            raise _missing(self.shown, protocol, fault) from fault
        except ValueError as fault:
            raise _no_protocol(self.shown, protocol, fault) from None
        except GONE:
            raise DataError("D100", self.shown, MISSING) from None
        except Exception as fault:  # an archive elsewhere is opened for it
            raise self.outage(fault, "could not be opened") from fault
        return system, str(root)

    def key(self, path: bytes) -> str:
        """Of a path below the root."""
        quotes = self._root.startswith(WEB)
        below = urllib.parse.quote_from_bytes(path) if quotes else os.fsdecode(path)
        return f"{self._root}/{below}" if self._root and below else self._root or below

    def file(self, path: bytes, size: int) -> Fetched:
        """A picture below the root; the root itself, where the path is empty."""
        return Fetched(path or os.fsencode(last_of(self.url)), size, self, path)

    def part(self, start: int, size: int, name: bytes) -> Fetched:
        """A member of the archive that this is."""
        return Fetched(name, size, self, b"", start)

    def size(self) -> int | None:
        """Of the file that this is; None where that is not told. Raises DataError D121 if it is not
        there, EnvironmentFault R605 or R608."""
        try:
            told = retried(lambda: self.system.info(self._root))
        except GONE:
            raise DataError("D121", self.shown, "there is no such file") from None
        except Exception as fault:
            raise self.outage(fault, "could not be read") from fault
        return None if told.get("size") is None else int(told["size"])

    def blocks(self) -> tuple[io.BufferedReader, int]:
        """The archive that this is, to be read in blocks, and its size.

        Raises DataError D205 if it is not there, or its server gives no parts of it,
        EnvironmentFault R605 or R608.
        """
        try:
            size = self.size()
        except DataError as fault:
            what = "cannot be read (no such file or directory)"
            raise DataError("D205", self.shown, what) from fault
        if size is None:
            raise DataError("D205", self.shown, NO_PARTS, next_step="download it")
        return io.BufferedReader(_Blocks(self, size), BLOCK), size

    def block(self, start: int, end: int) -> bytes:
        """Some bytes of the file that this is. Raises as `blocks`."""
        try:
            data: bytes = retried(lambda: self.system.cat_file(self._root, start=start, end=end))
        except Exception as fault:
            raise self.outage(fault, "could not be read") from fault
        if len(data) > end - start:
            raise DataError("D205", self.shown, NO_PARTS, next_step="download it")
        return data

    def inside(self, name: str) -> str:
        """The URL of a folder in this; nothing if there is none. Raises EnvironmentFault R605 or
        R608."""
        try:
            entries = self.entries(b"")
        except GONE:
            return ""
        except Exception as fault:
            raise self.outage(fault, "could not be listed") from fault
        is_there = any(entry.is_folder and entry.name == os.fsencode(name) for entry in entries)
        return re.sub(r"/*(?=([?#].*)?$)", f"/{name}", self.url, count=1) if is_there else ""

    def sibling(self, name: str) -> str:
        """The URL of what lies beside this."""
        last = last_of(self.url)
        return re.sub(rf"{re.escape(last)}(?=/*([?#].*)?$)", lambda _: name, self.url, count=1)

    def entries(self, path: bytes) -> list[Found]:
        """What is right in a folder. Raises as fsspec does after several tries."""
        key = self.key(path)
        listed = retried(lambda: self.system.ls(key, detail=True))
        if len(listed) == 1 and listed[0]["type"] == "file" and listed[0]["name"] == key:
            raise NotADirectoryError(key)
        return list(_inside(key, listed))

    def read(self, path: bytes = b"", start: int | None = None, end: int | None = None) -> bytes:
        """A file's bytes, or some of them. Raises as fsspec does after several tries."""
        key = self.key(path)
        return retried(lambda: _bytes(self.system, key, start, end))

    def fetch(self, one: Fetched, limits: Limits) -> bytes:
        """A picture's bytes. Raises Fault D104, D110, D121, D122, D123; EnvironmentFault R605 or
        R608 if it is not this picture's fault."""
        require_bytes(one.size, limits)
        span = () if one.start is None else (one.start, one.start + one.size)
        try:
            try:
                data = self.read(one.path, *span)
            except MemoryError:
                raise
            except Exception as fault:
                self._require_well(one, fault)
                data = self.read(one.path, *span)  # it may have been a bad minute
        except GONE:
            raise Fault("D121", "leads nowhere: gone since it was listed") from None
        except Exception as fault:
            if isinstance(fault, ConvscopeError | Fault | MemoryError):
                raise
            raise self._missing(one, fault) from fault
        require_bytes(len(data), limits)
        if one.start is not None:
            require_whole(data, one.size)
        return data

    def _require_well(self, one: Fetched, fault: Exception) -> None:
        """Raise unless another picture can be fetched at this moment."""
        others = [path for path in self.others if path != one.path or one.start is not None]
        if others or not isinstance(fault, GONE):
            try:
                retried(lambda: self._any(others, fault))
            except Exception as again:
                raise self.outage(again, "could not be read", one.name) from fault

    def _any(self, paths: Sequence[bytes], fault: Exception) -> None:
        """Raise unless one of these can be fetched."""
        for path in paths:
            try:
                _bytes(self.system, self.key(path), 0, 1)
                return
            except Exception as again:
                fault = again
        raise fault

    def called(self, name: bytes) -> str:
        """What messages call a picture in it."""
        below = name.decode("utf-8", "backslashreplace").removeprefix(last_of(self.url))
        return f"{self.shown}/{below.removeprefix('/')}" if below else self.shown

    def outage(self, fault: Exception, what: str, path: bytes = b"") -> ConvscopeError:
        """What to say when it is the place's fault, or that of the way to it."""
        where = self.called(path)
        if type(fault).__name__ in MALFORMED:
            return UsageError("U483", where, f"is no such URL ({reason(fault)})")
        if is_refusal(fault):
            step = "check the credentials, which the environment or a configuration file has"
            said = f"{what}: access is refused ({reason(fault)})"
            return EnvironmentFault("R608", where, said, next_step=step)
        said = f"{what}, tried again and again ({reason(fault)})"
        return EnvironmentFault("R605", where, said, next_step=AGAIN)

    def _missing(self, one: Fetched, fault: Exception) -> Fault | ConvscopeError:
        """What to say of a picture that cannot be had while others can."""
        if is_refusal(fault):
            return Fault("D122", f"cannot be read ({reason(fault)})")
        now = time.monotonic()
        with self._lock:
            self._missed.append(now)
            many = len(self._missed) > MOST_MISSED and now - self._missed[0] < MISSED_WITHIN
        if many:
            what = f"more than {MOST_MISSED} pictures within a minute could not be read"
            return self.outage(fault, what, one.name)
        return Fault("D123", f"could not be fetched, tried again and again ({reason(fault)})")


@dataclass(frozen=True, slots=True)
class Fetched(Elsewhere):
    """A picture elsewhere: a file, or a part of one."""

    name: bytes
    size: int
    store: Store
    path: bytes
    """Below the store's root."""
    start: int | None = None
    """First byte in the file; None for all of it."""

    def fetch(self, limits: Limits) -> bytes:
        return self.store.fetch(self, limits)

    def called(self) -> str:
        return self.store.called(self.name)


class _Blocks(io.RawIOBase):
    """A file elsewhere; what reads from it keeps a block."""

    def __init__(self, store: Store, size: int) -> None:
        self._store, self._size, self._at = store, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._at = place + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, space: Any) -> int:
        data = b""
        if (end := min(self._at + len(space), self._size)) > self._at:
            data = self._store.block(self._at, end)
        space[: len(data)] = data
        self._at += len(data)
        return len(data)


class RemoteListing(Listing):
    """The pictures below a folder elsewhere, by the rules of `Listing`."""

    def __init__(self, store: Store) -> None:
        """Raises DataError D100 if it is no folder, EnvironmentFault R605 or R608 if it cannot be
        listed."""
        self._empty()
        self._store = store
        self._stamps: dict[bytes, str] = {}
        self._walk()
        self.files.sort()
        spread = range(0, len(self.files), max(1, len(self.files) // 4))
        store.others = tuple(self.files[number][0] for number in spread if self.files[number][1])

    def stamp(self) -> str:
        """Hash of the files' tags or times."""
        told = "\n".join(self._stamps.get(path, "") for path, _ in self.files)
        return hashlib.sha256(told.encode()).hexdigest()

    def _walk(self) -> None:
        unsure: list[tuple[bytes, int | None]] = []
        level = [b""]
        while level:
            deeper: list[bytes] = []
            for here, entries in zip(level, in_order(self._listed, level), strict=True):
                for entry in entries:
                    below = here + b"/" + entry.name if here else entry.name
                    if is_hidden(entry.name):
                        self.hidden += 1
                    elif entry.is_folder:
                        deeper.append(below)
                        self.folders += [] if here else [below]
                    else:
                        known = ending(entry.name) in ENDINGS
                        if known:
                            self.files.append((below, entry.size or 0))
                        else:
                            unsure.append((below, entry.size))
                        self._stamps[below] = entry.stamp
            level = deeper
        for file, is_one in zip(unsure, in_order(self._looks_like_one, unsure), strict=True):
            self.files += [(file[0], file[1] or 0)] if is_one else []
            self.others += not is_one

    def _listed(self, folder: bytes) -> list[Found]:
        try:
            return self._store.entries(folder)
        except GONE as fault:
            if folder:
                return []
            what = FILE if isinstance(fault, NotADirectoryError) else MISSING
            raise DataError("D100", self._store.shown, what) from None
        except Exception as fault:
            if folder and is_refusal(fault):
                self._note(folder, "D122", f"folder that cannot be read ({reason(fault)})")
                return []
            raise self._store.outage(fault, "could not be listed", folder) from fault

    def _looks_like_one(self, file: tuple[bytes, int | None]) -> bool:
        path, size = file
        try:
            end = HEAD if size is None else min(size, HEAD)
            return begins_as_picture(self._store.read(path, 0, end))
        except Exception as fault:
            if isinstance(fault, FINAL) or is_refusal(fault):
                return False
            raise self._store.outage(fault, "could not be read", path) from fault


def retried(ask: Callable[[], Result]) -> Result:
    """What this gives; faults that may pass are tried again three times, unless the library below
    has done so already."""
    begin = time.monotonic()
    for pause in (*PAUSES, None):
        try:
            return ask()
        except MemoryError:
            raise
        except Exception as told:
            fault = _meant(told)
            final = isinstance(fault, FINAL) or type(fault).__name__ in MALFORMED
            is_late = time.monotonic() - begin > LATE
            if pause is None or is_late or final or is_refusal(fault):
                raise fault from None
            time.sleep(pause)
    raise AssertionError


def _meant(fault: Exception) -> Exception:
    """The fault itself: fsspec calls a file missing of which a server does not say anything."""
    cause = fault.__cause__
    if isinstance(fault, FileNotFoundError) and isinstance(cause, Exception):
        unreached = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
        return cause if unreached or getattr(cause, "status", 404) != 404 else fault
    return fault


def is_refusal(fault: BaseException) -> bool:
    """Whether access is refused, or the credentials for it are not there."""
    status = getattr(fault, "status", getattr(fault, "code", None))
    named = type(fault).__name__.endswith("CredentialsError")
    return isinstance(fault, PermissionError) or named or status in (401, 403, 407)


def reason(fault: BaseException) -> str:
    """What a library says, on one line and without secrets."""
    said = redacted(" ".join(str(fault).split()))
    return one_line(said if len(said) <= 200 else f"{said[:199]}…") or type(fault).__name__


def _bytes(system: Any, key: str, start: int | None, end: int | None) -> bytes:
    if start is not None and start == end:
        return b""  # which some servers refuse to give
    data: bytes = system.cat_file(key, start=start, end=end)
    if start is not None and end is not None and len(data) > end - start:
        data = data[start:end]  # a server that sends everything, whatever is asked
    return data


def _inside(key: str, listed: list[dict[str, Any]]) -> Iterator[Found]:
    for told in listed:
        name = str(told["name"])
        below = name.removeprefix(f"{key}/" if key else "").strip("/")
        is_below = name.startswith(f"{key}/") if key else True
        raw = urllib.parse.unquote_to_bytes(below) if key.startswith(WEB) else os.fsencode(below)
        if not is_below or not raw or b"/" in raw or below.startswith(("?", "#")):
            continue  # the folder itself, or what a web page links to
        stamp = next((told[name] for name in STAMPS if told.get(name)), "")
        size = told.get("size")
        is_folder = told["type"] == "directory"
        yield Found(raw, is_folder, None if size is None else int(size), str(stamp))


def _missing(shown: str, protocol: str, fault: ImportError) -> EnvironmentFault:
    try:
        from fsspec.registry import known_implementations

        advice = str(known_implementations.get(protocol, {}).get("err", fault))
        needed = re.search(r"(?:install|requires) (?:the )?[\"']?([\w-]+)", advice, re.I)
        package = PACKAGES.get(protocol, needed[1] if needed else "")
        step = f"pip install {package}" if package else one_line(advice)
        what = f"a package that reads {protocol}:// is not installed"
    except ImportError:
        what, step = "fsspec, which reads URLs, is not installed", f"pip install {EXTRA}"
    return EnvironmentFault("R624", shown, what, next_step=step)


def _no_protocol(shown: str, protocol: str, fault: ValueError) -> UsageError:
    from fsspec.registry import available_protocols

    known = available_protocols()
    if protocol in known:
        return UsageError("U483", shown, f"is no URL of {protocol} ({reason(fault)})")
    return UsageError("U483", shown, f"no such protocol; {nearest(protocol, known)}")
