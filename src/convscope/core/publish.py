"""How does a file or a folder appear whole, or not at all?

Write beside the destination under a name of its own, fsync, rename, fsync the folder.
A reader, or a crash at any moment, sees the old state or the new one. What a killed process left
beside is removed by the next one that writes there: its name says who made it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Literal

from convscope.core.errors import ConvscopeError, EnvironmentFault, OutputError

Sync = Literal["each", "together", "none"]
"""How a folder's files reach the disk before it gets its name: one by one, as needs be where they
count; all at once, for thousands that can be had again; or when the system likes."""
FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_SAID = re.compile(
    r"no space left|quota exceeded|os error (28|122)\b|requested and \d+ written"
    r"|encoder error -?\d+ when writing|inline_container.*(write|fail)",
    re.IGNORECASE,
)
"""Of a full disk by words alone: safetensors, NumPy, Pillow and torch keep the number back."""
FORGOTTEN = 14 * 24 * 3600
"""Seconds after which the unfinished work of another machine is taken for dead."""
WORK = re.compile(
    r"\..*\.convscope-(?P<host>[0-9a-f]{6})-(?P<boot>[0-9a-f]{6})"
    r"-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}",
    re.DOTALL,
)
"""A name of unfinished work: the machine, its start and process numbers, the process."""
LOCK = ".convscope-lock"
TRIES = 5


def publish_file(target: Path, content: bytes) -> None:
    """Put `content` at `target`, replacing what is there in one step.

    Raises EnvironmentFault R602 (disk full) or R603 (not writable); the old file stays then.
    """
    temporary = _beside(target)
    try:
        _make(target.parent)
        temporary.write_bytes(content)
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as fault:
        raise environment_fault(fault, target) from fault
    finally:
        with suppress(OSError):  # as where a file stands in the place of its folder
            temporary.unlink(missing_ok=True)


def publish_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then give it the name `target`, which must be free or empty.

    Raises OutputError O501 if something is there already, EnvironmentFault R602 or R603.
    """
    with publishing(target) as folder:
        write(folder)


@contextmanager
def publishing(
    target: Path, *, sync: Sync = "each", instead: Sequence[Path] = ()
) -> Iterator[Path]:
    """A new folder that gets the name `target` when the block ends well, and else is gone.

    instead: folders that are of no use once `target` is there; they go when it is safely there, so
    that a crash at any moment leaves them, or it, or for a moment both.
    Raises as `publish_folder`, also for a full disk that a library told in words of its own.
    """
    require_free(target)
    real = _real(target)
    temporary = _beside(real)
    try:
        _make(real.parent)
        temporary.mkdir()
        yield temporary
        _flush(temporary, sync)
        temporary.replace(real)
        _sync(real.parent)
        _discard(instead)
    except Exception as fault:
        told = _unpublished(fault, target, temporary)
        if told is fault:
            raise
        raise told from fault
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """Hold `target` for this process, to be published at the block's end.

    Another process that claims it meanwhile is told at once; a claim goes with its process.
    Raises OutputError O501 (taken, or claimed by another), EnvironmentFault R602 or R603.
    """
    real = _real(target)
    sweep(real.parent)
    require_free(target)
    place = real.with_name(_short(real.name, LOCK))
    with ExitStack() as undo:
        try:
            undo.callback(_remove_empty, _make(real.parent))
            lock = undo.enter_context(_locked(place, target))
            undo.callback(_unlink_own, place, lock)
        except OSError as fault:
            raise environment_fault(fault, target) from fault
        require_free(target)  # the one before us may have been about to publish
        yield


def publish_many(target: Path, write: Callable[[Path], None], *, sync: bool = True) -> None:
    """Like publish_folder, for thousands of small files that can be had again.

    They reach the disk together (not at all, unless `sync`), as a call for each would take half
    a minute. Raises OutputError O501, EnvironmentFault R602 or R603.
    """
    with publishing(target, sync="together" if sync else "none") as folder:
        write(folder)


def cache_folder(given: Path | str | None = None) -> Path:
    """`given`, or else convscope's folder in the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    if given is not None:
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "convscope"


def require_free(target: Path) -> None:
    """Raise OutputError O501 unless nothing, or an empty folder, is at `target`."""
    _require_way(target)
    step = "name a new folder with --out"
    if not target.is_dir():
        if target.exists():
            what = "is there already, and nothing is overwritten"
            raise OutputError("O501", str(target), what, next_step=f"{step}, or move it away")
        return
    sweep(target)
    if any(target.iterdir()):
        what = "is there already, and nothing is overwritten"
        raise OutputError("O501", str(target), what, next_step=f"{step}, or move the old one away")
    if target.is_mount() or target.samefile(Path.cwd()):
        what = "is a mount, or where you stand, and cannot be replaced as a whole"
        raise OutputError("O501", str(target), what, next_step=f"{step} inside it")


def require_folder(target: Path) -> None:
    """Raise OutputError O501 if `target`, where files are to be added, is no folder."""
    _require_way(target)
    if target.exists() and not target.is_dir():
        raise _file_there(target)


def sweep(folder: Path) -> None:
    """Remove the unfinished work that dead processes left in this folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[:1] == "." and entry.name.endswith(LOCK):
                _drop_lock(Path(entry.path))
            found = WORK.fullmatch(entry.name)
            if found is not None and _dead(found, entry):
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        path.unlink()


def unfinished(name: str) -> bool:
    """Whether a file of that name is somebody's work in hand, and so no result."""
    return WORK.fullmatch(name) is not None or (name[:1] == "." and name.endswith(LOCK))


def is_full(fault: BaseException) -> bool:
    """Whether a disk or a quota was full, by the fault's number or else its words."""
    number = getattr(fault, "errno", None)
    return number in FULL if number is not None else bool(FULL_SAID.search(str(fault)))


def environment_fault(fault: BaseException, target: Path) -> EnvironmentFault:
    """What an OSError at `target` means, in the user's words."""
    if is_full(fault):
        return EnvironmentFault(
            "R602", str(target), "the disk is full", next_step="free some space"
        )
    reason = (getattr(fault, "strerror", None) or str(fault)).lower()
    return EnvironmentFault("R603", str(target), f"cannot be written ({reason})")


def _unpublished(fault: Exception, target: Path, temporary: Path) -> Exception:
    """Why `target`, which was being made in `temporary`, is not there."""
    number, about = getattr(fault, "errno", None), getattr(fault, "filename", None)
    if isinstance(fault, ConvscopeError) or (number is None and not is_full(fault)):
        return fault
    if number in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and target.exists():
        what = "was made by somebody else meanwhile, and nothing is overwritten"
        return OutputError("O501", str(target), what, next_step="name a new folder with --out")
    place = target if about is None else Path(os.fsdecode(about))
    if number in FULL or place == target or temporary in (place, *place.parents):
        return environment_fault(fault, target)
    reason = str(getattr(fault, "strerror", fault)).lower()
    return EnvironmentFault("R603", str(place), f"cannot be used ({reason})")


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


def _real(target: Path) -> Path:
    """Where a link leads: a folder cannot take a link's name."""
    return Path(os.path.realpath(target))


def _make(folder: Path) -> list[Path]:
    """Make the folder and those above; those that were not there, the lowest first.

    One that is there already is rid of what dead processes left in it, once a process.
    """
    if folder.is_dir():
        _sweep_once(folder.absolute())
        return []
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in made:
        _sync(place.parent)
    return made


@cache
def _sweep_once(folder: Path) -> None:
    sweep(folder)


def _remove_empty(folders: Sequence[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _flush(folder: Path, sync: Sync) -> None:
    if sync == "together":
        os.sync()
    elif sync == "each":
        for path in sorted(folder.rglob("*")):
            _sync(path)
        _sync(folder)


def _discard(folders: Sequence[Path]) -> None:
    """Remove folders, each seen whole or not at all. What cannot be removed stays: it is of no use,
    and does no harm."""
    for folder in folders:
        with suppress(OSError):
            folder.replace(away := _beside(folder))
            shutil.rmtree(away, ignore_errors=True)


@contextmanager
def _locked(place: Path, target: Path) -> Iterator[IO[bytes]]:
    """A lock that ends with the process. Where a disk knows no locks, none is held: to publish
    is one step all the same."""
    tries = 0
    while True:
        with place.open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as fault:
                tries += 1
                if tries < TRIES:  # somebody may only look whether its holder is dead
                    time.sleep(0.02)
                    continue
                what = "another convscope is making this very result now"
                step = "wait for it, or name a new folder with --out"
                raise OutputError("O501", str(target), what, next_step=step) from fault
            except OSError as fault:
                if fault.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
            if not _same(place, lock):  # its holder removed it while we opened it
                continue
            yield lock
            return


def _drop_lock(place: Path) -> None:
    """Remove a lock that nobody holds: its process is dead."""
    with suppress(OSError):
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(place, flags), "r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _unlink_own(place, lock)


def _same(place: Path, lock: IO[bytes]) -> bool:
    with suppress(OSError):
        return os.path.samestat(place.stat(), os.fstat(lock.fileno()))
    return False


def _unlink_own(place: Path, lock: IO[bytes]) -> None:
    with suppress(OSError):
        if _same(place, lock):
            place.unlink()


def _beside(target: Path) -> Path:
    host, boot = _machine()
    pid = os.getpid()
    own = f".convscope-{host}-{boot}-{pid}-{_started(pid) or 0}-{uuid.uuid4().hex[:8]}"
    return target.with_name(_short(target.name, own))


def _short(name: str, ending: str) -> str:
    """A hidden name of at most 255 bytes, as long as disks allow."""
    most = 254 - len(ending)
    if len(os.fsencode(name)) > most:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = os.fsdecode(os.fsencode(name)[: most - 16]) + digest
    return f".{name}{ending}"


@cache
def _machine() -> tuple[str, str]:
    """Tags of this machine, and of its present start together with its process numbers."""
    name = socket.gethostname() + _said(Path("/etc/machine-id"))
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    start = _said(Path("/proc/sys/kernel/random/boot_id")) + space
    return _tag(name), _tag(start)


def _said(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _tag(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None if it is not there."""
    *_, rest = _said(Path(f"/proc/{pid}/stat")).rpartition(")")
    fields = rest.split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else None


def _dead(found: re.Match[str], entry: os.DirEntry[str]) -> bool:
    """Whether the process that made this cannot be at it any more; ours alone can be."""
    try:
        if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
            return False
        if (found["host"], found["boot"]) == _machine():
            return not _lives(int(found["pid"]), int(found["start"]))
        newest = _newest(Path(entry.path))
    except OSError:  # gone meanwhile
        return False
    if found["host"] == _machine()[0] and (up := _said(Path("/proc/uptime"))):
        return newest < time.time() - float(up.split()[0])
    return newest < time.time() - FORGOTTEN


def _lives(pid: int, start: int) -> bool:
    """A process of that number lives, and is the one that began then."""
    if _started(os.getpid()) is not None:
        return _started(pid) == start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _newest(place: Path) -> float:
    return max(path.lstat().st_mtime for path in (place, *place.rglob("*")))


def _sync(path: Path) -> None:
    """Files and folders; anything else has nothing to be written."""
    if not (stat.S_ISREG(mode := path.lstat().st_mode) or stat.S_ISDIR(mode)):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
