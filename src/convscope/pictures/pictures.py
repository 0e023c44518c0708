"""A folder of pictures: their order, labels, pixels, and what had to be left out."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from convscope.core.errors import DataError, UsageError, printable
from convscope.core.publish import publish_file
from convscope.core.run import PLAIN, Run
from convscope.pictures.decode.child import FAULT, Work
from convscope.pictures.decode.decode import NOTES, Decoding, Ways
from convscope.pictures.decode.formats import Limits
from convscope.pictures.decode.pool import Answer, Reading, Source, WorkerPool
from convscope.pictures.framing import Framing
from convscope.pictures.listing import Listing, manifest, remarks, require_name, shown
from convscope.pictures.notes import (
    Noted,
    Report,
    Skipped,
    counted_notes,
    notes_table,
    table,
)
from convscope.pictures.remote import FarFile, RemoteListing, Store, is_url, last_of, local

Pixels = UInt8[np.ndarray, "h w 3"]
Frame = Callable[[Image.Image], UInt8[np.ndarray, "_ _ 3"]]
"""From an RGB picture to the pixels wanted; a Framing is applied where the picture is decoded,
any other function in this process."""


class Options(Ways, total=False):
    """What may be told wherever pictures are opened, besides how values become RGB (`Ways`)."""

    limits: Limits | None
    """What one picture may cost."""
    workers: int
    """Decoding processes of one reading: 1."""
    max_bad: float
    """The share of pictures that may be unusable, see `Pictures.check_bad`: 0.01."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded picture of a folder."""

    number: int
    name: str
    label: int | None
    pixels: UInt8[np.ndarray, "h w 3"]
    notes: tuple[str, ...] = ()
    """What was changed when it was read, and not asked for: `EXIF orientation 6 not applied …`."""
    framing: Frame | None = None
    """By what these pixels were framed; None for the whole picture."""
    sha256: bytes = b""
    """Of its file; empty if it came from none."""

    @property
    def content(self) -> bytes:
        """A hash by which copies are known: that of the file, or else of the pixels."""
        return self.sha256 or hashlib.sha256(self.pixels.tobytes()).digest()

    def within(self, framing: Frame | None) -> Picture:
        """The same picture in this framing; as it is without one.

        Framed once only: raises UsageError U379 where it was framed already, in another way.
        """
        pixels = self.pixels
        if framing is None or framing == self.framing:
            framing = self.framing
        elif self.framing is None:
            pixels = np.asarray(framing(Image.fromarray(np.ascontiguousarray(pixels))))
        else:
            what = f"was framed already, by {self.framing}; what is wanted is {framing}"
            raise UsageError("U379", self.name, what, next_step="give the whole picture")
        return replace(self, pixels=pixels, framing=framing)


@dataclass(frozen=True, eq=False)
class Looked:
    """What became of pictures that were read, by whom ever: what `Pictures.recall` takes."""

    number: Int64[np.ndarray, "n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Of the pictures whose files could be read, and below the SHA-256 of these."""
    digest: UInt8[np.ndarray, "n 32"] = field(default_factory=lambda: np.zeros((0, 32), np.uint8))
    notes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Of the pictures used, what was changed in those in which something was."""
    skipped: Sequence[tuple[int, int, str, str]] = ()
    """Number, bytes, code and text of each that could not be used."""

    def __or__(self, other: Looked) -> Looked:
        return Looked(
            np.concatenate([self.number, other.number]),
            np.concatenate([self.digest, other.digest]),
            {**self.notes, **other.notes},
            [*self.skipped, *other.skipped],
        )


class Pictures:
    """The pictures below a folder, here or behind a URL, in byte order of their paths: number i is
    always the same.

    Folders in the root are classes (folders inside these belong to them); without any, the
    pictures have no class. Pictures are decoded in processes of their own, and one that cannot
    be used is left out and recorded in `skipped`, never passed over in silence. Safe in
    threads; a copy in another process starts its own decoders.
    """

    numbered = False
    """Whether labels are class indices as the network counts them, and no class folders."""
    classes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    """What a reader of the results should know: empty classes, ignored files and the like."""
    report: Report
    """What became of the pictures in all readings, those of its parts too."""
    root: Path
    """The folder; an empty path for single files and pictures that are not on this machine."""
    place: str
    """What the folder is called, as everybody may read it: its path, or its URL without secrets."""
    loose = False
    """Whether the pictures are single ones, whose names are their own paths."""
    stamp = ""
    """Elsewhere: hash of what the place tells of the files' contents."""

    def __init__(self, root: Path | str, **options: Unpack[Options]) -> None:
        """Raises DataError D100 if there is no such folder or no picture in it, UsageError U480,
        as `require_name`, and of a URL as `Store` and `RemoteListing`."""
        if is_url(root := local(root) if isinstance(root, str) else root):
            self._begin(Path(), Store(str(root)), **options)
            assert self._store is not None
            listing: Listing = (far := RemoteListing(self._store))
            self.stamp = far.stamp()
        else:
            self._begin(Path(require_name(root)), **options)
            listing = Listing(os.fsencode(self.root))
        self.classes = tuple(shown(name) for name in listing.classes)
        self.remarks = tuple(remarks(listing))
        if not listing.files:
            unseen = "".join(f"; {remark}" for remark in self.remarks)
            raise DataError("D100", self.place, f"holds no pictures{unseen}")
        self.report = Report(listing.findings)
        self._contain(listing.files, listing.labels())

    def _begin(
        self,
        root: Path,
        store: Store | None = None,
        *,
        limits: Limits | None = None,
        workers: int = 1,
        max_bad: float = 0.01,
        **ways: Unpack[Ways],
    ) -> None:
        self.root, self._store, self.decoding = root, store, Decoding(**ways)
        self.place = str(root) if store is None else store.shown
        self.limits, self.workers, self.max_bad = limits or Limits(), workers, max_bad
        self.report, self._pool = Report(), WorkerPool()
        self._alone: dict[bytes, Store] = {}
        """Single pictures elsewhere, by what they are called."""

    def _contain(
        self,
        files: Sequence[tuple[bytes, int]],
        labels: Sequence[int | None],
        numbers: Sequence[int] | None = None,
    ) -> None:
        """files: (path below the root, bytes), of which nothing has been read yet. numbers: those
        of the pictures in the folder that this is a part of."""
        self._numbers = range(len(files)) if numbers is None else numbers
        here = os.fsencode(self.place) if self._store else os.fsencode(self.root)
        self.files, self.labels = tuple(files), tuple(labels)
        """Paths below the root as the file system has them, and bytes; labels."""
        self.names = tuple(shown(path) for path, _ in files)
        """Paths below the root as valid text, undecodable bytes escaped."""
        self.paths = tuple(posixpath.join(here, path) for path, _ in files)
        """Paths as the file system has them, with the root."""
        self.sources: tuple[Source, ...] = self.paths
        if self._store is not None or self._alone:
            self.sources = tuple(map(self._source, self.files))
        """Where the pictures' bytes lie."""
        self.sha256 = manifest(self.classes, self.files, self.decoding.told())
        """Hash of the classes, of all paths and sizes, and of an unusual way of reading them;
        content does not enter."""
        self.readings = 0
        """How often `read` was called."""
        self._own = Report(self.report.findings)
        self._digests: dict[int, bytes] = {}
        self._last: dict[int, int] = {}
        """After how many readings each was read last."""

    def _source(self, file: tuple[bytes, int]) -> Source:
        if self._store is not None:
            return self._store.file(*file)
        alone = self._alone.get(file[0])
        return file[0] if alone is None else alone.file(b"", file[1])

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"Pictures({self.place!r}: {len(self):,} pictures{classes})"

    def read(
        self,
        framing: Frame | None = None,
        numbers: Sequence[int] | None = None,
        *,
        workers: int | None = None,
    ) -> Iterator[Picture]:
        """The usable ones of the pictures with these numbers (all), in this order.

        framing: from the decoded picture to the pixels wanted (the whole picture). workers:
        decoding processes of this reading (those of the folder). Raises EnvironmentFault R604 to
        R606 if decoding is impossible or the disk fails.
        """
        wanted = range(len(self)) if numbers is None else numbers
        self.readings += 1
        inside = framing if isinstance(framing, Framing) else None
        work = Work(self.limits, inside, self.decoding)
        sources = [self.sources[number] for number in wanted]
        reading = Reading(self._pool, sources, work, workers or self.workers)
        try:
            for number, answer in zip(wanted, reading, strict=True):
                if answer.kind == FAULT:
                    self._skip(number, answer)
                else:
                    yield self._picture(number, answer, framing)
        finally:
            reading.stop()

    def batches(
        self,
        size: int = 1,
        framing: Frame | None = None,
        numbers: Sequence[int] | None = None,
        *,
        aligned: bool = False,
        may_be_empty: bool = False,
        workers: int | None = None,
        run: Run = PLAIN,
    ) -> Iterator[list[Picture]]:
        """The same, `size` at a time: the one pass under all that looks at many pictures.

        aligned: the batch of a picture is its number // size, whatever was left out; batches of
        which nothing is usable do not come, and numbers are given in their order. Progress is told
        of a batch when the next one is asked for. Raises DataError D118 or D161 at the end if
        nothing was usable, unless it `may_be_empty`.
        """
        wanted = range(len(self)) if numbers is None else numbers
        place = {number: done for done, number in enumerate(wanted, start=1)}
        pictures, done = self.read(framing, wanted, workers=workers), 0
        if aligned:
            groups = groupby(pictures, lambda picture: picture.number // size)
            cut: Iterator[list[Picture]] = (list(members) for _, members in groups)
        else:
            cut = iter(lambda: list(islice(pictures, size)), [])
        for batch in cut:
            yield batch
            last = batch[-1].number
            done = bisect_left(wanted, last - last % size + size) if aligned else place[last]
            run.tick(done, len(wanted))
        if not done and not may_be_empty:
            self.require_usable()
        if done < len(wanted):
            run.tick(len(wanted), len(wanted))

    def require_usable(self, used: int = 0) -> None:
        """Raise DataError D118, or else D161, unless something could be used."""
        if not used:
            self.check_bad()  # which says why
            raise DataError("D161", self.place, "holds no usable picture")

    def _picture(self, number: int, answer: Answer, framing: Frame | None) -> Picture:
        told = (line.partition(" ") for line in answer.text.splitlines())
        notes = tuple(f"{text or NOTES[code]} ({code})" for code, _, text in told)
        pixels = answer.pixels
        if framing is not None and not isinstance(framing, Framing):  # that is applied already
            pixels = np.asarray(framing(Image.fromarray(pixels)))
        self._use(number, answer.sha256, notes)
        name, label = self.names[number], self.labels[number]
        return Picture(number, name, label, pixels, notes, framing, answer.sha256)

    def _use(self, number: int, digest: bytes, notes: Sequence[str]) -> None:
        """Remember that a picture could be used, and what was changed in it."""
        self._digests[number], self._last[number] = digest, self.readings
        name, (path, _) = self.names[number], self.files[number]
        for report, place in ((self._own, number), (self.report, self._numbers[number])):
            report.use(place, [Noted.of(place, name, path, note) for note in notes])

    def _skip(self, number: int, answer: Answer) -> None:
        """Remember why a picture could not be used."""
        code, _, text = printable(answer.text).partition(" ")
        was_read = bool(answer.size)
        size = answer.size if was_read else self.files[number][1]
        self._leave(number, size, answer.sha256 if was_read else b"", code, text)

    def _leave(self, number: int, size: int, digest: bytes, code: str, text: str) -> None:
        if digest:
            self._digests[number], self._last[number] = digest, self.readings
        name, (path, _) = self.names[number], self.files[number]
        for report, place in ((self._own, number), (self.report, self._numbers[number])):
            report.skip(Skipped(place, name, path, size, digest.hex(), code, text))

    def looked(self, numbers: Iterable[int]) -> Looked:
        """What became of these pictures, of those that were read."""
        read = [number for number in numbers if number in self._digests]
        digests = b"".join(self._digests[number] for number in read)
        skipped = [one for number in numbers if (one := self._own.left(number)) is not None]
        return Looked(
            np.array(read, np.int64),
            np.frombuffer(digests, np.uint8).reshape(-1, 32),
            {number: told for number in read if (told := self._own.notes(number))},
            [(one.number, one.size, one.code, one.text) for one in skipped],
        )

    def recall(self, looked: Looked) -> None:
        """Take what another process, or an earlier run, told of pictures for a reading of these."""
        self.readings += 1
        left = {number for number, *_ in looked.skipped}
        digests = dict(zip(looked.number.tolist(), map(bytes, looked.digest), strict=True))
        for number, digest in digests.items():
            if number not in left:
                self._use(number, digest, looked.notes.get(number, ()))
        for number, size, code, text in looked.skipped:
            self._leave(number, size, digests.get(number, b""), code, text)

    def one(self, number: int, framing: Frame | None = None) -> Picture:
        """One picture. Raises DataError with the fault's code if it cannot be used."""
        for picture in self.read(framing, [number]):
            return picture
        raise self._fault(number)

    def _fault(self, number: int) -> DataError:
        entry = self._own.left(number)
        assert entry is not None
        where = entry.name if self.loose else posixpath.join(self.place, entry.name)
        return DataError(entry.code, where, entry.text)

    def subset(self, chosen: Callable[[str], bool] | Sequence[int]) -> Self:
        """Some of the pictures, numbered anew from 0; the classes stay as they are.

        chosen: their numbers here, or whether a name is wanted.
        """
        if callable(chosen):
            chosen = [number for number, name in enumerate(self.names) if chosen(name)]
        part = object.__new__(type(self))
        part.__dict__.update(self.__dict__)
        part._contain(
            [self.files[i] for i in chosen],
            [self.labels[i] for i in chosen],
            [self._numbers[i] for i in chosen],
        )
        return part

    def beside(self, name: str) -> Path | FarFile:
        """A file in the folder that is no picture, whether it is there or not."""
        return self.root / name if self._store is None else FarFile(self._store, name)

    def sibling(self, name: str) -> Pictures | None:
        """The folder of this name beside this one, if it is there and has pictures."""
        place: Path | str = self.root.parent / name
        if self._store is not None:
            place = self._store.sibling(name)
        elif not Path(place).is_dir():
            return None
        options = {"limits": self.limits, "workers": self.workers, "max_bad": self.max_bad}
        try:
            return Pictures(place, **options)  # type: ignore[arg-type]
        except DataError:
            if self._store is None:
                raise
            return None

    @property
    def title(self) -> str:
        """The last part of what the folder is called; empty for single pictures."""
        if self._store is not None:
            return last_of(self.place)
        return "" if self.loose else self.root.resolve().name

    @property
    def skipped(self) -> list[Skipped]:
        """What could not be used of what was read so far; folders that could not come first."""
        return self._own.skipped

    @property
    def changes(self) -> list[Noted]:
        """What was changed in the pictures read so far, in their order."""
        return self._own.noted

    @property
    def notes(self) -> Counter[str]:
        """How many of the pictures read were changed, by code (decode.NOTES)."""
        return self.noted_since(0)

    def noted_since(self, reading: int) -> Counter[str]:
        """The same, of the pictures read after so many readings."""
        return Counter(one.code for one in self.changes if self._last[one.number] > reading)

    def noted(self, code: str) -> list[str]:
        """The names of the pictures that were changed in this way."""
        return [entry.name for entry in self.changes if entry.code == code]

    def notes_line(self) -> str:
        """What was changed in how many of the pictures read so far, the worst first; empty if
        nothing was."""
        return counted_notes(self.changes)

    def digest(self, number: int) -> bytes:
        """SHA-256 of a picture's file, once it has been read. Raises KeyError before."""
        return self._digests[number]

    def contents(self, since: int = 0) -> str:
        """Hash of the contents of all files read after so many readings; empty if none was."""
        return contents({n: self._digests[n] for n, last in self._last.items() if last > since})

    def duplicates(self) -> dict[int, int]:
        """Of the pictures read: number → lowest number with the same content, where not itself."""
        first: dict[bytes, int] = {}
        same = {n: first.setdefault(self._digests[n], n) for n in sorted(self._digests)}
        return {number: lowest for number, lowest in same.items() if number != lowest}

    def summary(self) -> str:
        """`12 of 13 pictures used; 1 skipped (1 D104 truncated)`, of what was read so far."""
        return self._own.summary()

    def write_skipped(self, path: Path | str) -> None:
        """Write skipped.csv. Raises EnvironmentFault R602 or R603."""
        publish_file(Path(path), table(self.skipped))

    def write_notes(self, path: Path | str) -> None:
        """Write notes.csv. Raises EnvironmentFault R602 or R603."""
        publish_file(Path(path), notes_table(self.changes))

    def check_bad(self) -> None:
        """Raise DataError D118 if more than `max_bad` of what was read could not be used, if
        nothing could, or if a folder or archive could not be read: who knows what is missing?

        A single picture's own fault is raised.
        """
        if len(self) == 1 and self._own and not self._own.used and self.max_bad < 1:
            raise self._fault(0)
        self._own.check(self.max_bad, self.place)

    def check_all(self) -> None:
        """As `check_bad`, of all readings of this folder and of its parts."""
        if len(self) == 1:
            self.check_bad()
        self.report.check(self.max_bad, self.place)

    def close(self) -> None:
        """End the decoders at rest; reading again starts new ones. Also the end of a `with`."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pool=WorkerPool())


def contents(digests: Mapping[int, bytes]) -> str:
    """Hash of files' numbers and contents, these by their hashes; empty if there is none."""
    digest = hashlib.sha256()
    for number in sorted(digests):
        digest.update(b"%d\0%s\n" % (number, digests[number]))
    return digest.hexdigest() if digests else ""


def some_pictures(paths: Sequence[Path | str], **options: Unpack[Options]) -> Pictures:
    """Single files as one folder, in the order given; their names are the paths.

    Raises DataError D121 if there is no such file, UsageError U480, and as `require_name` and, of a
    URL, `Store` and `Store.size`.
    """
    loose = object.__new__(Pictures)
    loose._begin(Path(), **options)
    loose.loose, loose.place = True, ""
    files: list[tuple[bytes, int]] = []
    for path in paths:
        if is_url(path := local(path) if isinstance(path, str) else path):
            store = Store(str(path))
            files.append((os.fsencode(store.shown), store.size() or 0))
            loose._alone[files[-1][0]] = store
            continue
        files.append((os.fsencode(require_name(path)), 0))
        if not os.path.lexists(files[-1][0]):
            raise DataError("D121", shown(files[-1][0]), "there is no such file")
    loose._contain(files, [None] * len(files))
    return loose


def one_picture(
    path: Path | str, framing: Frame | None = None, **options: Unpack[Options]
) -> Picture:
    """A single file, decoded as a folder's pictures are; its name is the file's own.

    Raises DataError with the fault's code if it cannot be used, and as `some_pictures`.
    """
    with some_pictures([path], **options) as alone:
        picture = alone.one(0, framing)
    return replace(picture, name=last_of(picture.name))


def validation(name: str | bytes) -> bool:
    """Whether a picture of that name is one of the tenth kept for validation.

    Decided by the file's own name alone, whatever else is in the folder or which class it is
    in: it never moves, and every class gives about a tenth.
    """
    last = os.fsencode(name).rsplit(b"/", 1)[-1]
    return int.from_bytes(hashlib.sha256(last).digest()[:8], "big") % 10 == 0


def split(folder: Pictures) -> tuple[Pictures, Pictures]:
    """(training, validation) of a folder, 9:1 by name.

    A folder `train` with a folder `val` beside it is divided already, as the built-in
    photographs are. Raises DataError D119 if a part would be empty.
    """
    if folder.title == "train" and (kept := folder.sibling("val")) is not None:
        return folder, kept
    chosen = [validation(path) for path in folder.paths]
    if all(chosen) or not any(chosen):
        raise DataError(
            "D119", folder.place, f"{len(folder)} pictures are too few to keep a tenth back"
        )
    parts = ([n for n, held in enumerate(chosen) if held is part] for part in (False, True))
    training, held_back = (folder.subset(numbers) for numbers in parts)
    return training, held_back


def write_class_indices(path: Path | str, classes: Sequence[str]) -> None:
    """class_indices.json as the tutorials write it: {"0": "daisy", …}, indented by 4."""
    told = {str(number): name for number, name in enumerate(classes)}
    publish_file(Path(path), json.dumps(told, indent=4).encode("utf-8"))
