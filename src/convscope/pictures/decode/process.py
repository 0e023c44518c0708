"""A decoding process, seen from ours: start it, ask it, notice that it is gone.

Plain subprocesses rather than `multiprocessing`, because the latter runs the user's main script
again. What the other end does stands in child.py.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import UInt8

from convscope.core.errors import EnvironmentFault
from convscope.pictures.decode.child import ANSWER, MEMBER, PATH, PLACE, REQUEST, SETUP, Work

COMMAND = (sys.executable, "-P", "-m", "convscope.pictures.decode.child")
START_PATIENCE = 60.0
"""Seconds in which a process that starts may wait for the disk without a step forward."""
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


Source = bytes | Member
"""Where a picture lies: a file's path, or a place in an archive."""


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
        runs, used = _activity(self.pid)
        before, self.used = self.used, used
        return runs or used != (before or used)


def _activity(pid: int) -> tuple[bool, str]:
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

    def ask(self, source: Source) -> None:
        """Ask for a picture; answers come in the order of the questions."""
        if isinstance(source, bytes):
            self._send(PATH, source)
        else:
            place = PLACE.pack(source.start, source.size, len(source.archive))
            self._send(MEMBER, place + source.archive + source.name)

    def _send(self, kind: bytes, payload: bytes) -> None:
        assert self._process.stdin is not None
        message = memoryview(REQUEST.pack(kind, len(payload)) + payload)
        try:
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
    """Ours, with the same import path, as the package may not be installed."""
    home = str(Path(__file__).parents[3])
    paths = [home, *(entry for entry in sys.path if entry and entry != home)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


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
