"""List a folder's pictures in a fixed order, with their classes."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from convscope.core.errors import DataError, EnvironmentFault, UsageError, printable
from convscope.core.errors import shown as told
from convscope.core.text import one_line, unusable
from convscope.pictures.decode.formats import ENDINGS, HEAD, TRANSIENT, claimed, ending, reason_of
from convscope.pictures.notes import Skipped

IGNORED = frozenset(
    [b"__MACOSX", b"@eaDir", b"lost+found", b"Thumbs.db", b"desktop.ini", b"$RECYCLE.BIN"]
)
"""What operating systems leave behind; names that begin with a dot are ignored too."""
FILE, MISSING = "is a file, not a folder of pictures", "does not exist"


class Listing:
    """The pictures below a folder by path in byte order; nothing is decoded yet.

    Symbolic links are followed, no folder is entered twice.
    """

    def __init__(self, root: bytes) -> None:
        """Raises DataError D100 if it is no folder, EnvironmentFault R605 if the disk fails."""
        place = Path(os.fsdecode(root))
        if not place.is_dir():
            raise DataError("D100", str(place), FILE if place.exists() else MISSING)
        self._empty()
        self._given, self._root = root, os.path.realpath(root)
        self._visited: dict[tuple[int, int], bytes] = {}
        self._walk()
        self.files.sort()

    def _empty(self) -> None:
        self.files: list[tuple[bytes, int]] = []
        """(path below the root, bytes in the file)."""
        self.folders: list[bytes] = []
        """The class folders' names, the empty ones too."""
        self.findings: list[Skipped] = []
        """Folders that could not be followed (D120) or read (D122); their number is -1."""
        self.others = 0
        """Files that are no pictures by their name and content."""
        self.hidden = 0
        """Hidden files and folders, and those an operating system left behind."""

    @property
    def classes(self) -> list[bytes]:
        """Names of the class folders in byte order; none if all pictures lie in the root."""
        return sorted(self.folders) if any(b"/" in path for path, _ in self.files) else []

    def labels(self) -> list[int | None]:
        """The class of every file; None for what lies beside the class folders."""
        index = {name: number for number, name in enumerate(self.classes)}
        return [index.get(path.split(b"/")[0]) if b"/" in path else None for path, _ in self.files]

    def _walk(self) -> None:
        todo = [b""]
        while todo:
            here = todo.pop()
            for entry in self._entries(here):
                below = here + b"/" + entry.name if here else entry.name
                if is_hidden(entry.name):
                    self.hidden += 1
                elif _is_folder(entry):
                    if not here:
                        self.folders.append(below)
                    if self._new(entry, below):
                        todo.append(below)
                else:
                    self._file(entry, below)

    def _entries(self, folder: bytes) -> list[os.DirEntry[bytes]]:
        try:
            with os.scandir(self._given + b"/" + folder) as inside:
                return sorted(inside, key=lambda entry: entry.name)
        except OSError as fault:
            if fault.errno in TRANSIENT:
                raise _failing(folder, fault) from fault
            self._note(folder, "D122", f"folder that cannot be read ({reason_of(fault)})")
            return []

    def _new(self, entry: os.DirEntry[bytes], below: bytes) -> bool:
        """Whether a folder is to be entered: not a link to what the walk meets anyway."""
        if not entry.is_symlink():
            return True
        target = os.path.realpath(entry.path)
        if (target + b"/").startswith(self._root + b"/"):
            self._note(below, "D120", "link back into the folder itself; not followed")
            return False
        status = entry.stat()
        first = self._visited.setdefault((status.st_dev, status.st_ino), below)
        if first != below:
            again = os.fsdecode(first)
            self._note(below, "D120", f"link to the same folder as {again}; not followed")
        return first == below

    def _file(self, entry: os.DirEntry[bytes], below: bytes) -> None:
        try:
            status = entry.stat()
        except OSError as fault:
            if fault.errno in TRANSIENT:
                raise _failing(below, fault) from fault
            status = None
        if ending(entry.name) in ENDINGS or _looks_like_picture(entry.path, status):
            self.files.append((below, status.st_size if status else 0))
        else:
            self.others += 1

    def _note(self, below: bytes, code: str, text: str) -> None:
        self.findings.append(Skipped(-1, shown(below), below, 0, "", code, text))


def manifest(
    classes: Iterable[str], files: Iterable[tuple[bytes, int]], ways: Mapping[str, str]
) -> str:
    """SHA-256 of class names, paths and sizes, another if a file is added, renamed or resized;
    and of unusual ways of reading them."""
    digest = hashlib.sha256("\0".join(classes).encode())
    for path, size in files:
        digest.update(b"\n%s\0%d" % (path, size))
    for name, value in ways.items():
        digest.update(f"\n\n{name}\0{value}".encode())
    return digest.hexdigest()


def require_name(path: Path | str) -> Path | str:
    """The path, unless it is empty: that would mean the working folder. Raises UsageError U375,
    U377 for what is no name, DataError D121 where no file can be called so."""
    if not isinstance(path, str | Path):
        step = "give a name; functions take pictures in memory as they are"
        raise UsageError("U377", "", f"{told(path)} is no name of pictures", next_step=step)
    if why := unusable(path):
        raise DataError("D121", told(str(path)), why)
    if not os.fspath(path):
        raise UsageError("U375", "''", "is an empty name, which names no pictures")
    return path


def is_hidden(name: bytes) -> bool:
    """Whether a name is of no interest to a reader of pictures."""
    return name.startswith(b".") or name in IGNORED


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _looks_like_picture(path: bytes, status: os.stat_result | None) -> bool:
    """By content, for files whose name does not say; only regular files are opened."""
    if status is None or not stat.S_ISREG(status.st_mode):
        return False
    try:
        with Path(os.fsdecode(path)).open("rb", buffering=0) as file:
            return begins_as_picture(file.read(HEAD))
    except OSError:
        return False


def begins_as_picture(head: bytes) -> bool:
    """Whether a content begins as a picture's does."""
    kind = claimed(head)
    return kind is not None and not kind.is_document


def _failing(path: bytes, fault: OSError) -> EnvironmentFault:
    return EnvironmentFault("R605", shown(path), f"could not be listed ({reason_of(fault)})")


def shown(path: bytes) -> str:
    """A path as text of one line that every encoder takes: undecodable bytes as \\xff, control
    letters and those that turn the text around as \\n, \\x1b, \\u202e."""
    return one_line(path.decode("utf-8", "backslashreplace"))


def remarks(listing: Listing) -> list[str]:
    """What a reader of the results should know about the folder; one clause each."""
    said = []
    counts = Counter(label for label in listing.labels() if label is not None)
    for number, name in enumerate(listing.classes):
        if not counts[number]:
            said.append(f"class {printable(shown(name))} has no pictures")
    loose = sum(b"/" not in path for path, _ in listing.files)
    if listing.classes and loose:
        said.append(f"without a class, beside the class folders: {many(loose, 'picture')}")
    if listing.others:
        said.append(f"{many(listing.others, 'file')} ignored: no picture by name or content")
    if listing.hidden:
        said.append(f"{many(listing.hidden, 'hidden or system item')} ignored")
    return said + _wrapped(listing) + _odd_classes([shown(name) for name in listing.classes])


def _wrapped(listing: Listing) -> list[str]:
    """Whether all pictures lie below one folder, whose own folders look like the classes."""
    if len(listing.classes) != 1:
        return []
    inside = {path.split(b"/")[1] for path, _ in listing.files if path.count(b"/") > 1}
    if len(inside) < 2:
        return []
    few = ", ".join(shown(name) for name in sorted(inside)[:3])
    one = shown(listing.classes[0])
    return [f"all pictures are of one class, {one}, of folders {few} …: is {one} the folder meant?"]


def many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _odd_classes(names: list[str]) -> list[str]:
    said = []
    if names != sorted(names, key=_by_number):
        said.append(f"class numbers follow byte order, not counting: {', '.join(names[:5])} …")
    for folded, same in _alike(names):
        if len(same) > 1:
            said.append(f"{len(same)} class names differ only in case, space or form: {folded}")
    if {name.lower() for name in names} & {"train", "val", "valid", "validation", "test"}:
        said.append(f"the classes are {', '.join(names[:5])}: is one of these the folder meant?")
    return said


def _by_number(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.isdecimal() and name.isascii() else (1, 0, name)


def _alike(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        folded = "".join(unicodedata.normalize("NFKC", name).casefold().split())
        groups.setdefault(folded, []).append(name)
    return list(groups.items())
