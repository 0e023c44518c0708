"""Run folders: the finished parts of a pass over pictures, to go on from after a kill.

    RUN.json        what is computed, and its key: written once
    data.manifest   the pictures: place, size, time of change, path
    seg/            a segment a part, each with its checksum; never changed
    log/events.jsonl  what happened when; nothing depends on it

All is written by `Store.put`, whole or not at all, in a folder of this machine or behind a URL of
fsspec (`s3://…`). What cannot be believed is told, put aside and computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import msgspec

from convscope.core.errors import EnvironmentFault, OutputError, printable, shown
from convscope.core.publish import publish_file
from convscope.pictures import remote
from convscope.pictures.decode.pool import Member
from convscope.pictures.pictures import Pictures
from convscope.pictures.remote import GONE, reason, retried
from convscope.scale.segments import NewerSchema, Segment

SCHEMA = 1
SEGMENT = re.compile(r"seg/(\d{9,})-(\d{9,})\.[0-9a-f]{32}\.seg")
NEW = "give the same command and pictures as then, another folder with --out, or --new"
MOST_LIVE = 16
"""Segments that one pass leaves side by side, where they can be merged."""


class Store(Protocol):
    """Named bytes, each written whole or not at all."""

    place: str
    is_everywhere: bool
    """Whether other machines have it under the same name."""

    def put(self, name: str, content: bytes) -> None: ...
    def get(self, name: str) -> bytes | None: ...
    def names(self, below: str) -> list[str]: ...
    def drop(self, name: str) -> None: ...
    def set_aside(self, name: str) -> None: ...


class Local:
    """A folder of this machine. Raises EnvironmentFault R602 or R603."""

    def __init__(self, root: Path) -> None:
        self._root, self.place, self.is_everywhere = root, str(root), False

    def put(self, name: str, content: bytes) -> None:
        publish_file(self._root / name, content)

    def get(self, name: str) -> bytes | None:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as fault:
            raise self._unread(name, fault) from fault

    def names(self, below: str) -> list[str]:
        try:
            return [f"{below}/{name}" for name in os.listdir(self._root / below)]  # noqa: PTH208
        except FileNotFoundError:
            return []
        except OSError as fault:
            raise self._unread(below, fault) from fault

    def drop(self, name: str) -> None:
        with suppress(OSError):
            (self._root / name).unlink()

    def set_aside(self, name: str) -> None:
        with suppress(OSError):
            (self._root / name).replace(self._root / f"{name}.bad")

    def _unread(self, name: str, fault: OSError) -> EnvironmentFault:
        reason = (fault.strerror or str(fault)).lower()
        return EnvironmentFault("R603", str(self._root / name), f"cannot be read ({reason})")


class Remote:
    """A place behind a URL; an object there is put in one step. Raises EnvironmentFault R603, R605
    or R608, and as `remote.Store` UsageError U375 or U483, EnvironmentFault R624."""

    def __init__(self, url: str) -> None:
        self._far = remote.Store(url)
        self.place = self._far.shown
        self.is_everywhere = not url.startswith("memory:")

    def put(self, name: str, content: bytes) -> None:
        key = self._far.key(name.encode())
        try:
            retried(lambda: self._far.system.pipe_file(key, content))
        except GONE as fault:
            where = f"{self.place}/{name}"
            raise EnvironmentFault("R603", where, f"cannot be written ({reason(fault)})") from fault
        except Exception as fault:  # of whatever library is behind it
            raise self._far.outage(fault, "could not be written", name.encode()) from fault

    def get(self, name: str) -> bytes | None:
        try:
            return self._far.read(name.encode())
        except GONE:
            return None
        except Exception as fault:
            raise self._far.outage(fault, "could not be read", name.encode()) from fault

    def names(self, below: str) -> list[str]:
        try:
            return [
                f"{below}/{os.fsdecode(entry.name)}" for entry in self._far.entries(below.encode())
            ]
        except GONE:
            return []
        except Exception as fault:
            raise self._far.outage(fault, "could not be listed", below.encode()) from fault

    def drop(self, name: str) -> None:
        with suppress(Exception):
            self._far.system.rm_file(self._far.key(name.encode()))

    def set_aside(self, name: str) -> None:
        with suppress(Exception):
            key = self._far.key(name.encode())
            self._far.system.mv(key, f"{key}.bad")


def store(place: Path | str) -> Store:
    """Raises as `Remote`."""
    text = remote.local(os.fspath(place))
    return Remote(text) if remote.is_url(text) else Local(Path(text))


class _Told(msgspec.Struct, forbid_unknown_fields=False):
    schema: int
    min_reader: int
    run_key: str
    facts: dict[str, Any]
    threads: int


class Kept(NamedTuple):
    """A segment that is there: its range and name, and the names of those that it makes needless,
    left by a process that was killed."""

    start: int
    stop: int
    name: str
    spare: tuple[str, ...] = ()


class RunFolder:
    """The parts of one pass that are kept."""

    def __init__(self, store: Store, key: str, threads: int) -> None:
        self.store, self.key, self.threads = store, key, threads

    @classmethod
    def open(
        cls,
        place: Path | str,
        facts: Mapping[str, Any],
        folder: Pictures,
        numbers: Sequence[int],
        *,
        threads: int,
    ) -> Self:
        """The folder of that pass, new or to go on with. facts: all that decides its numbers.
        threads: of torch, for a new one; one that goes on keeps those that it was begun with.

        Raises OutputError O514 (parts of another run, or other pictures), O515 (of a newer
        convscope, or damaged), EnvironmentFault R602, R603.
        """
        where = store(place)
        listed = manifest(folder, numbers)
        told = {**json.loads(json.dumps(facts)), "pictures": _sha256(listed)}
        key = _sha256(json.dumps(told, sort_keys=True).encode("ascii"))
        before = _before(where)
        if before is None:
            where.put("data.manifest", listed)
            index: dict[str, Any] = {
                "schema": SCHEMA,
                "min_reader": SCHEMA,
                "run_key": key,
                "facts": told,
            }
            index["threads"] = threads
            where.put("RUN.json", json.dumps(index, indent=1, sort_keys=True).encode("ascii"))
        elif before.run_key != key:
            what = _differing(before.facts, told, where.get("data.manifest") or b"", listed)
            what = f"holds parts of another run: {what}"
            raise OutputError("O514", where.place, what, next_step=NEW)
        result = cls(where, key, before.threads if before else threads)
        result.event("opened", pictures=len(numbers))
        return result

    def segments(self) -> list[Kept]:
        """Those that make up as much as possible from the beginning on, in order and without
        overlap. Where one range was computed twice, both must be the same."""
        there: dict[tuple[int, int], list[str]] = {}
        for name in self.store.names("seg"):
            if match := SEGMENT.fullmatch(name):
                there.setdefault((int(match[1]), int(match[2])), []).append(name)
        result, place = list[Kept](), 0
        for start, stop in sorted(there, key=lambda pair: (pair[0], -pair[1])):
            names = there[start, stop]
            if start >= place and (name := self._believed(names)):
                rest = tuple(one for one in names if one != name)
                result.append(Kept(start, stop, name, rest))
                place = stop
            elif start < place and stop <= place:
                last = result.pop()
                result.append(last._replace(spare=(*last.spare, *names)))
        return result

    def load(self, name: str) -> Segment | None:
        """None where it is gone, or cannot be believed, which is told and put aside."""
        content = self.store.get(name)
        if content is None:
            return None
        try:
            return Segment.from_bytes(content, self.key)
        except NewerSchema:
            what = "was written by a newer convscope"
            step = "update convscope, or name a new folder with --out"
            raise OutputError("O515", f"{self.store.place}/{name}", what, next_step=step) from None
        except (ValueError, TypeError) as fault:
            self.store.set_aside(name)
            self.event("damaged", segment=name, why=str(fault))
            return None

    def keep(self, segment: Segment) -> Kept:
        """Raises EnvironmentFault R602 or R603; what is there stays as it is."""
        return self.publish(segment.start, segment.stop, segment.to_bytes(self.key))

    def publish(self, start: int, stop: int, content: bytes) -> Kept:
        name = f"seg/{start:09d}-{stop:09d}.{uuid.uuid4().hex}.seg"
        self.store.put(name, content)
        return Kept(start, stop, name)

    def drop(self, names: Iterable[str]) -> None:
        """Those that another one holds."""
        for name in names:
            self.store.drop(name)

    def event(self, what: str, **more: Any) -> None:
        """Into the log of a local folder."""
        if not isinstance(self.store, Local):
            return
        line = json.dumps({"time": round(time.time(), 3), "event": what, **more})
        with suppress(OSError):
            place = Path(self.store.place) / "log"
            place.mkdir(exist_ok=True)
            with (place / "events.jsonl").open("ab", buffering=0) as log:
                log.write(f"{line}\n".encode())

    def _believed(self, names: Sequence[str]) -> str:
        """One of these, of the same range; "" if there is none that is whole."""
        if len(names) == 1:
            return names[0]
        whole = {name: part for name in sorted(names) if (part := self.load(name)) is not None}
        contents = {part.to_bytes(self.key) for part in whole.values()}
        if len(contents) > 1:
            what = f"the same pictures gave two results, {' and '.join(whole)}; both are kept"
            step = "look which machine or version differs, and start again in a new folder"
            raise EnvironmentFault("R650", self.store.place, what, next_step=step)
        return next(iter(whole), "")


def manifest(folder: Pictures, numbers: Sequence[int]) -> bytes:
    """A line for each of these pictures: number, bytes, time of change where the file system has
    one, path with %-escapes. Elsewhere a place tells only whether any of its files has changed."""
    lines = []
    stamp = getattr(folder, "stamp", "")
    others = int(_sha256(stamp.encode())[:12], 16) if stamp else 0
    archives: dict[bytes, int] = {}
    for number in numbers:
        path, size = folder.files[number]
        changed = others
        source = folder.sources[number]
        if isinstance(source, bytes):
            with suppress(OSError):
                status = os.stat(source)  # noqa: PTH116
                size, changed = status.st_size, status.st_mtime_ns
        elif isinstance(source, Member):
            if source.archive not in archives:
                archives[source.archive] = 0
                with suppress(OSError):
                    archives[source.archive] = os.stat(source.archive).st_mtime_ns  # noqa: PTH116
            changed = archives[source.archive]
        lines.append(f"{number}\t{size}\t{changed}\t{urllib.parse.quote_from_bytes(path)}\n")
    return "".join(lines).encode("ascii")


def _before(where: Store) -> _Told | None:
    """What RUN.json says, if it is there."""
    content = where.get("RUN.json")
    if content is None:
        return None
    step = "update convscope, or name a new folder with --out"
    try:
        told = msgspec.json.decode(content, type=_Told)
    except msgspec.DecodeError as fault:
        what = f"RUN.json is damaged ({fault})"
        raise OutputError("O515", where.place, what, next_step=NEW) from fault
    if told.min_reader > SCHEMA:
        what = "the run was begun by a newer convscope"
        raise OutputError("O515", where.place, what, next_step=step)
    return told


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], listed: bytes, listing: bytes
) -> str:
    """In words: the first few of what differs."""
    said = list(_differences(before, now, "pictures"))
    if before.get("pictures") != now.get("pictures"):
        said.append(_changed(listed, listing))
    return "; ".join(said[:4]) + (f" and {len(said) - 4} more" if len(said) > 4 else "")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], *but: str) -> Iterator[str]:
    """Each in words, those inside of nested facts by their own names."""
    for name in sorted((before.keys() | now.keys()) - set(but)):
        then, this = before.get(name), now.get(name)
        if isinstance(then, dict) and isinstance(this, dict):
            yield from (f"{name} {inside}" for inside in _differences(then, this))
        elif then != this:
            yield f"{name} was {shown(then)}, is {shown(this)}"


def _changed(before: bytes, now: bytes) -> str:
    old, new = (_by_path(one) for one in (before, now))
    counts = {
        "new": [path for path in new if path not in old],
        "gone": [path for path in old if path not in new],
        "changed": [path for path in new if path in old and old[path] != new[path]],
    }
    said = [
        f"{len(paths):,} {kind} ({printable(urllib.parse.unquote(paths[0]))}"
        + (", …)" if len(paths) > 1 else ")")
        for kind, paths in counts.items()
        if paths
    ]
    return "the pictures: " + (", ".join(said) or "in another order")


def _by_path(listed: bytes) -> dict[str, tuple[str, str]]:
    """Bytes and time of each."""
    fields = [line.split("\t") for line in listed.decode("ascii", "replace").splitlines()]
    return {one[3]: (one[1], one[2]) for one in fields if len(one) == 4}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
