"""Worker pool of decoding processes: start, ask, restart; many pictures at once, in order.

Plain subprocesses rather than `multiprocessing`, because the latter runs the user's main script
again. What the other end does stands in child.py.

One thread and one decoding process a worker. The threads fetch ahead while the consumer works,
within a window; whatever happens to a process, every picture gets exactly one answer.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import UInt8

from convscope.core.errors import EnvironmentFault
from convscope.pictures.decode.child import (
    ANSWER,
    CONTENT,
    FAULT,
    LENGTH,
    MEMBER,
    MEMORY,
    PATH,
    PLACE,
    REQUEST,
    SETUP,
    UNREAD,
    Work,
)
from convscope.pictures.decode.formats import Fault
from convscope.pictures.decode.prefetch import Elsewhere, Prefetch

COMMAND = (sys.executable, "-P", "-m", "convscope.pictures.decode.child")
START_PATIENCE = 60.0
"""Seconds in which a process that starts may wait for the disk without a step forward."""
SECRETS = re.compile(
    "(AWS|AZURE|GOOGLE|GCP|GCS|HF|HUGGING|S3|FSSPEC|RAY|GIT|GITHUB|GITLAB|SSH|NETRC|CI)_?.*"
    "|.*(KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|PROXY|COOKIE|SESSION|CONNECTION|DSN|_URL|_URI).*"
)
"""Names of variables that may hold keys and the like: no decoding process inherits them."""
PIPE_BYTES = 1 << 20
"""A whole framed picture fits, so that a process can begin the next one."""


class ChildLost(Exception):
    """A decoding process ended or fell silent before it answered."""

    def __init__(self, reason: str, *, overtime: bool = False, silent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.overtime = overtime
        """Whether it was stopped for using too much processor time."""
        self.silent = silent
        """Whether it lives but does not answer: it waits for a disk, or is not let run."""


class Member(NamedTuple):
    """A file inside an archive that is not compressed."""

    archive: bytes
    start: int
    """First byte."""
    size: int
    name: bytes


class Content(NamedTuple):
    """What was fetched from elsewhere."""

    data: bytes
    name: bytes


Here = bytes | Member | Content
"""What a decoding process reads by itself, or is given."""
Source = bytes | Member | Elsewhere
"""Where a picture lies: a file's path, a place in an archive, or elsewhere."""


@dataclass(frozen=True)
class Answer:
    """What a decoding process said about one picture."""

    kind: bytes
    text: str
    size: int
    sha256: bytes
    pixels: UInt8[np.ndarray, "h w 3"]


class _Patience:
    """Seconds that a process may do nothing: neither use a processor nor wait for one.

    The clock on the wall alone would call a process hung that a busy machine does not let run,
    or that reads a large file from a slow disk. Seconds in which we were stopped ourselves do
    not count.
    """

    def __init__(self, seconds: float, pid: int) -> None:
        self.all = self.left = seconds
        self.pid = pid
        self.used: str | None = None
        """What the process had used of the processor when it was last looked at."""

    def wait(self, selector: selectors.BaseSelector) -> None:
        """Return when something can be read. Raises ChildLost when patience is at its end."""
        while True:
            turn = min(1.0, max(0.0, self.left))
            before = time.monotonic()
            if selector.select(turn):
                return
            self.left -= min(time.monotonic() - before, turn)
            if self._is_alive():
                self.left = self.all
            elif self.left <= 0:
                raise ChildLost(f"gave no answer in {self.all:g} s", silent=True)

    def _is_alive(self) -> bool:
        """Whether it runs, waits for a processor, or did run since the last look."""
        runs, used = activity(self.pid)
        before, self.used = self.used, used
        return runs or used != (before or used)


def activity(pid: int) -> tuple[bool, str]:
    """Whether a process runs or could run if it were let, and the processor time it has used."""
    try:
        told = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
        return told[0] == b"R", f"{told[11]!r} {told[12]!r}"
    except (OSError, IndexError):
        pass  # it has just ended, or this is no Linux
    try:
        asked = ("ps", "-o", "state=,time=", "-p", str(pid))
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False).stdout
        return said.strip().startswith("R"), said.partition(" ")[2].strip()
    except (OSError, subprocess.SubprocessError):
        return False, ""


class Child:
    """One decoding process; killed when this object goes."""

    def __init__(self, command: Sequence[str]) -> None:
        """Raises EnvironmentFault R604 if it does not start."""
        with tempfile.TemporaryFile() as complaints:
            try:
                self._process = _started(command, complaints)
            except OSError as fault:
                raise _not_started(str(fault)) from fault
            self._end = weakref.finalize(self, _end, self._process, os.getpid())
            _widen(self._process)
            try:
                self.receive(START_PATIENCE)
            except ChildLost as loss:
                self.kill()
                complaints.seek(0)
                said = complaints.read().decode("utf-8", "replace").strip().split("\n")[-1]
                raise _not_started(said or loss.reason) from None

    def set_up(self, work: Work) -> None:
        self._send(SETUP, work.packed())

    def ask(self, source: Here) -> None:
        """Ask for a picture; answers come in the order of the questions. A content only of a
        process that owes no answer: both would wait for the other to read."""
        if isinstance(source, bytes):
            self._send(PATH, source)
        elif isinstance(source, Content):
            self._send(CONTENT, LENGTH.pack(len(source.data)) + source.name, source.data)
        else:
            place = PLACE.pack(source.start, source.size, len(source.archive))
            self._send(MEMBER, place + source.archive + source.name)

    def _send(self, kind: bytes, payload: bytes, content: bytes = b"") -> None:
        assert self._process.stdin is not None
        try:
            for part in (REQUEST.pack(kind, len(payload)) + payload, content):
                message = memoryview(part)
                while message:
                    message = message[self._process.stdin.write(message) or 0 :]
        except OSError:
            pass  # it is dead: `receive` says so, and why

    def receive(self, patience: float) -> Answer:
        """The next answer. Raises ChildLost if the process ended, or after `patience` seconds in
        which it neither ran nor waited for a processor."""
        left = _Patience(patience, self._process.pid)
        header = bytearray(ANSWER.size)
        self._fill(memoryview(header), left)
        kind, height, width, digest, size, length = ANSWER.unpack(header)
        text = bytearray(length)
        self._fill(memoryview(text), left)
        pixels = np.empty(height * width * 3, np.uint8)
        self._fill(pixels.data, left)
        return Answer(kind, text.decode("utf-8"), size, digest, pixels.reshape(height, width, 3))

    def _fill(self, space: memoryview, left: _Patience) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while space:
                left.wait(selector)
                count = pipe.readinto(space)  # type: ignore[attr-defined]  # it is unbuffered
                if not count:
                    raise self._loss()
                space = space[count:]

    def _loss(self) -> ChildLost:
        status = self._process.wait()
        if status >= 0:
            return ChildLost(f"ended with status {status}")
        name = signal.Signals(-status).name
        return ChildLost(f"was ended by {name}", overtime=-status == signal.SIGPROF)

    def interrupt(self) -> None:
        """Make a `receive` that another thread waits in end; that thread cleans up."""
        self._process.kill()

    def kill(self) -> None:
        """End the process and reap it; harmless if it has ended."""
        self._end()


def _started(command: Sequence[str], complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        bufsize=0,
        env=_environment(),
        process_group=0,  # Ctrl-C is for us to handle; the process ends with its input
    )


def _not_started(why: str) -> EnvironmentFault:
    return EnvironmentFault("R604", "decoding process", f"does not start ({why})")


def _environment() -> dict[str, str]:
    """Ours without what may hold keys; with the same import path, as the package may not be
    installed."""
    told = os.environ.items()
    kept = {name: value for name, value in told if not SECRETS.fullmatch(name.upper())}
    home = str(Path(__file__).parents[3])
    paths = [home, *(entry for entry in sys.path if entry and entry != home)]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def _widen(process: subprocess.Popen[bytes]) -> None:
    try:
        import fcntl

        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except (ImportError, AttributeError, OSError):
        pass  # only speed: not every system has it


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if owner != os.getpid():  # a fork of us is not to kill our children
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


MOST_DEATHS, DEATHS_WITHIN = 20, 60.0
"""More processes lost than this in so many seconds is not the pictures' fault."""


class WorkerPool:
    """Decoding processes at rest, shared by all readings of a folder; safe in threads."""

    def __init__(self) -> None:
        self._command = COMMAND
        self._idle: list[Child] = []
        self._owner = os.getpid()
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS + 1)
        self._lock = threading.Lock()

    def take(self, work: Work) -> Child:
        """A process that is told its work: one at rest, or a new one.

        Raises EnvironmentFault R604 if none can be started.
        """
        with self._lock:
            if self._owner != os.getpid():  # after a fork these are the parent's
                self._idle, self._owner = [], os.getpid()
            child = self._idle.pop() if self._idle else None
        child = child or Child(self._command)
        child.set_up(work)
        return child

    def give_back(self, child: Child) -> None:
        """Lay a process to rest that owes no answer."""
        with self._lock:
            self._idle.append(child)

    def lose(self, child: Child) -> None:
        """Bury a process. Raises EnvironmentFault R606 if too many die."""
        child.kill()
        now = time.monotonic()
        with self._lock:
            self._deaths.append(now)
            many = len(self._deaths) > MOST_DEATHS and now - self._deaths[0] < DEATHS_WITHIN
        if many:
            raise EnvironmentFault(
                "R606",
                "decoding processes",
                f"more than {MOST_DEATHS} were lost within a minute",
                next_step="free memory, or look at skipped.csv for a folder of hostile files",
            )

    def close(self) -> None:
        """End the processes at rest; the next reading starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.kill()


AHEAD = 32
"""Pictures that a worker may have fetched or begun before the consumer asks for them."""
AHEAD_BYTES = 256 << 20
"""No new picture is begun while more than this waits to be consumed."""
DEPTH = 2
"""Questions a process holds: one in hand and one for the moment in which it answers."""


class Reading:
    """One pass over some pictures. Iterate over it once; `stop` ends it at any point."""

    def __init__(
        self,
        pool: WorkerPool,
        sources: Sequence[Source],
        work: Work,
        workers: int,
    ) -> None:
        self._pool, self._sources = pool, sources
        self._work = work
        far = any(isinstance(source, Elsewhere) for source in sources)
        self._ahead = Prefetch(sources, work.limits) if far else None
        self._depth = 1 if far else DEPTH
        self._change = threading.Condition()
        self._next = 0
        self._wanted = 0
        self._window = AHEAD * workers
        self._waiting: dict[int, Answer] = {}
        self._bytes = 0
        self._busy: set[Child] = set()
        self._stopped = False
        self._fault: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, name="convscope-decode", daemon=True)
            for _ in range(min(workers, len(sources)))
        ]

    def __iter__(self) -> Iterator[Answer]:
        """The answers, in the order of the sources."""
        try:
            for thread in self._threads:
                thread.start()
            for place in range(len(self._sources)):
                yield self._fetch(place)
        finally:
            self.stop()

    def _fetch(self, place: int) -> Answer:
        with self._change:
            self._wanted = place
            self._change.notify_all()
            while place not in self._waiting:
                if self._fault is not None:
                    raise self._fault
                self._change.wait()
            answer = self._waiting.pop(place)
            self._bytes -= answer.pixels.nbytes
            return answer

    def stop(self) -> None:
        """End all work; processes that owe answers are killed, and fetching is not waited for."""
        if self._ahead is not None:
            self._ahead.stop()
        with self._change:
            self._stopped = True
            self._change.notify_all()
            busy = list(self._busy)
        for child in busy:
            child.interrupt()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for child in self._busy:
            child.kill()

    def _run(self) -> None:
        """A thread's whole life."""
        try:
            child = self._start()
            child = self._serve(child)
            self._release(child)
        except (_Stopped, CancelledError):
            pass
        except BaseException as fault:
            with self._change:
                self._fault = self._fault or fault
                self._stopped = True
                self._change.notify_all()

    def _serve(self, child: Child) -> Child:
        """Ask and take answers until no picture is left; the process that lives at the end."""
        held: deque[tuple[int, Here]] = deque()
        while True:
            while len(held) < self._depth and (place := self._claim(wait=not held)) is not None:
                source = self._brought(place)
                if source is not None:
                    child.ask(source)
                    held.append((place, source))
            if not held:
                return child
            try:
                answer = self._answer(child)
            except ChildLost as loss:
                self._lose(child)
                answer = self._alone(held[0][1], loss)
                child = self._start()
                for _, source in list(held)[1:]:
                    child.ask(source)
            self._deliver(held.popleft()[0], answer)

    def _brought(self, place: int) -> Here | None:
        """What a decoding process can read; None if it cannot be had, which is answered then."""
        source = self._sources[place]
        if not isinstance(source, Elsewhere):
            return source
        assert self._ahead is not None
        try:
            return Content(self._ahead.take(place), source.name)
        except Fault as fault:
            self._deliver(place, _faulty(f"{fault.code} {fault.text}"))
            return None

    def _claim(self, *, wait: bool) -> int | None:
        """The next picture to ask for; None if there is none (for now, unless `wait`)."""
        with self._change:
            while True:
                if self._stopped:
                    raise _Stopped
                if self._next >= len(self._sources):
                    return None
                near = self._next - self._wanted < self._window and self._bytes < AHEAD_BYTES
                if near or self._next == self._wanted:
                    self._next += 1
                    return self._next - 1
                if not wait:
                    return None
                self._change.wait()

    def _deliver(self, place: int, answer: Answer) -> None:
        if answer.kind == UNREAD:
            raise _unread(self._sources[place], f"four times ({answer.text.lower()})")
        with self._change:
            self._waiting[place] = answer
            self._bytes += answer.pixels.nbytes
            self._change.notify_all()

    def _alone(self, source: Here, loss: ChildLost) -> Answer:
        """Second and last chance of the picture in hand, with a process to itself."""
        if not loss.overtime:
            child = self._start()
            child.ask(source)
            try:
                answer = self._answer(child)
            except ChildLost as again:
                self._lose(child)
                loss = again
            else:
                self._release(child)
                return answer
        if loss.silent:
            raise _unread(source, f"twice (the decoding process {loss.reason})")
        if loss.overtime:
            return _faulty(f"D108 took more than {self._work.limits.seconds:g} s of processor time")
        return _faulty(f"D130 the decoding process {loss.reason}, twice")

    def _answer(self, child: Child) -> Answer:
        answer = child.receive(self._work.limits.patience)
        if answer.kind == MEMORY:
            raise ChildLost(f"needed more than {self._work.limits.memory / 2**30:.1f} GiB")
        return answer

    def _start(self) -> Child:
        child = self._pool.take(self._work)
        with self._change:
            self._busy.add(child)
            if not self._stopped:
                return child
        self._release(child)
        raise _Stopped

    def _release(self, child: Child) -> None:
        with self._change:
            self._busy.discard(child)
        self._pool.give_back(child)

    def _lose(self, child: Child) -> None:
        with self._change:
            self._busy.discard(child)
            stopped = self._stopped
        if stopped:
            child.kill()
            raise _Stopped
        self._pool.lose(child)


class _Stopped(Exception):
    """The consumer has gone."""


def _unread(source: Source | Here, what: str) -> EnvironmentFault:
    path = source if isinstance(source, bytes) else getattr(source, "archive", source.name)
    return EnvironmentFault(
        "R605",
        path.decode("utf-8", "backslashreplace"),
        f"could not be read, {what}",
        next_step="the same command again, when the disk or the network is well",
    )


def _faulty(text: str) -> Answer:
    return Answer(FAULT, text, 0, b"", np.empty((0, 0, 3), np.uint8))
