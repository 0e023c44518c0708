"""Which pictures lie in WebDataset shards, and of which classes are they?

A shard is a tar archive; the files of one sample lie in it under one name but for their endings:
`0001.jpg` with `0001.cls`, a whole number, or `0001.json` with the number as its "label". Pictures
are read where they lie, by the same decoding processes and limits as files are.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple, Unpack

from convscope.errors import DataError, UsageError, printable
from convscope.images.crew import Crew
from convscope.images.decode import Decoding, Ways
from convscope.images.decoder import Member, Source
from convscope.images.folder import Folder
from convscope.images.formats import ENDINGS, ending
from convscope.images.limits import Limits
from convscope.images.listing import many, require_name, shown
from convscope.images.skipped import Report, Skipped
from convscope.images.tar import Contents, Entry, contents, read_member
from convscope.texts import decoded, parsed

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
    return bool(ARCHIVE.search(name)) and not Path(name).is_dir()


def expanded(spec: str) -> list[str]:
    """`val-{000..002}.tar` as three names, digits as wide as in the range.

    Raises UsageError U405 on what is no such name, or one of a place elsewhere.
    """
    if "://" in spec or spec.startswith("pipe:"):
        what = "shards are files of this machine"
        raise UsageError("U405", spec, what, next_step="download them, and name the files")
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


class Shards(Folder):
    """The pictures in tar archives, in the order in which they lie there.

    Labels are class indices as the network counts them, and the classes' names are these numbers.
    Names are `SHARD/MEMBER`; a picture's limits, faults and records are those of a folder.
    """

    numbered = True

    def __init__(
        self,
        spec: Path | str,
        *,
        limits: Limits | None = None,
        workers: int = 1,
        max_bad: float = 0.01,
        **ways: Unpack[Ways],
    ) -> None:
        """spec: `val.tar`, or `val-{000000..000049}.tar` for several. Others: as `Folder`.

        Raises UsageError U375, U405 (no such name), DataError D100 (no pictures), D205 (a shard is
        not there, or is no plain tar archive), EnvironmentFault R605.
        """
        require_name(spec)
        self.root, self.decoding = Path(spec), Decoding.of(ways)
        self.limits, self.workers, self.max_bad = limits or Limits(), workers, max_bad
        self._findings: list[Skipped] = []
        self._crew = Crew()
        self._shards = [Path(name) for name in expanded(os.fspath(spec))]
        self._place: dict[bytes, tuple[int, int]] = {}
        labels: list[int | None] = []
        files: list[tuple[bytes, int]] = []
        unlabelled, others = [], 0
        for number, shard in enumerate(self._shards):
            found = contents(shard)
            self._tell(shard, found)
            samples, rest = _samples(shard, found.entries)
            others += rest
            for sample in samples:
                name = os.fsencode(shard.name) + b"/" + sample.picture.name
                self._place[name] = (number, sample.picture.start)
                files.append((name, sample.picture.size))
                labels.append(sample.label)
                unlabelled += [f"{shown(name)} ({sample.why})"] if sample.why else []
        if not files:
            raise DataError("D100", str(self.root), "holds no pictures")
        self.remarks = tuple(_remarks(unlabelled, others))
        self.report = Report(self._findings)
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
        here = os.fsencode(self.root.parent)
        self.paths = tuple(posixpath.join(here, name) for name, _ in self._files)

    def _source(self, name: bytes, size: int) -> Source:
        number, start = self._place[name]
        return Member(os.fsencode(self._shards[number]), start, size, name)

    def _tell(self, shard: Path, found: Contents) -> None:
        where = os.fsencode(shard.name)
        for name, why in found.left_out:
            path = where + b"/" + name
            self._findings.append(Skipped(-1, shown(path), path, 0, "", "D207", why))
        if found.damage:
            size = shard.stat().st_size
            self._findings.append(Skipped(-1, shown(where), where, size, "", "D206", found.damage))


def _samples(shard: Path, entries: list[Entry]) -> tuple[list[_Sample], int]:
    """The pictures with their labels, and how many other files there are."""
    pictures: dict[bytes, Entry] = {}
    sides: dict[bytes, dict[bytes, Entry]] = {b".cls": {}, b".json": {}}
    for entry in entries:
        key, end = _key(entry.name), ending(entry.name)
        if end in ENDINGS and key not in pictures:
            pictures[key] = entry
        elif end in sides:
            sides[end].setdefault(key, entry)
    label = {key: _read_json(data) for key, data in _contents(shard, sides[b".json"])}
    label |= {key: _read_cls(data) for key, data in _contents(shard, sides[b".cls"])}
    found = [
        _Sample(entry, *label.get(key, (None, "no .cls or .json")))
        for key, entry in pictures.items()
    ]
    used = sum(key in pictures for side in sides.values() for key in side)
    return found, len(entries) - len(found) - used


def _contents(shard: Path, side: dict[bytes, Entry]) -> Iterator[tuple[bytes, bytes]]:
    read = read_member(shard, list(side.values()), MOST_LABEL)
    for key, (_, data) in zip(side, read, strict=True):
        yield key, data


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
