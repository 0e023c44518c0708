"""Worker processes on this machine that compute parts of a pass; dead and hung ones are replaced.

Each is started like a command of its own and sent the pass once (pickled). It answers with finished
parts, and a word after every batch. A part whose process dies is given to another one, a second
time batch by batch, so that a picture that ends its process can be named: see `Parts`.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convscope.core import errors
from convscope.core.errors import ConvscopeError, EnvironmentFault, UsageError, printable
from convscope.core.run import Run
from convscope.pictures.decode.pool import activity
from convscope.scale.engine import Compute, Computed, Work
from convscope.scale.segments import Segment

PATIENCE = 120.0
"""Seconds without a word from a process that does nothing, after which it is taken for hung."""
LONGEST = 3600.0
"""Seconds without a word, whatever it does."""
AHEAD = 4
"""Parts that may be begun for each process beyond the oldest unfinished one."""
MOST_DEATHS = 20
"""Of processes within a minute: then something is wrong with the machine, and no picture."""
WORD = b"."


@dataclass(frozen=True)
class Processes:
    """Compute the parts of passes in so many processes: `Run(engine=Processes(4))`.

    count: processes, each with a copy of the network and `Run.threads` threads. The network's
    classes must be importable there, not made in a script.
    """

    count: int
    part: int | None = None
    """Pictures in a part; by default the job's, or fewer where all would have too little to do."""

    def __post_init__(self) -> None:
        if not self.count >= 1:
            raise UsageError("U221", f"count={self.count}", "there is at least one process")

    @contextmanager
    def working(self, work: Work) -> Iterator[Compute]:
        """Raises UsageError U222 if the network cannot be sent to another process."""
        crew = _Crew(self.count, packed(work), work.threads)

        def compute(ranges: Sequence[tuple[int, int]], run: Run) -> Iterator[Computed]:
            return crew.compute(Parts(work, ranges, self.count, self.part), run)

        try:
            yield compute
        finally:
            crew.end()


def packed(work: Work) -> bytes:
    """A pass as it is sent elsewhere. Raises UsageError U222 if that cannot be done."""
    step = "take a network whose classes stand in a file that can be imported, or one process"
    try:
        torch.save(work, written := BytesIO())
    except Exception as fault:  # of whatever the network is made of
        what = f"cannot be sent to another process ({printable(str(fault))})"
        raise UsageError("U222", "the network", what, next_step=step) from fault
    content = written.getvalue()
    if b"__main__" in content:
        what = "is made by the script that runs, which other processes cannot import"
        raise UsageError("U222", "the network", what, next_step=step)
    return pickle.dumps((list(sys.path), _homes(work), content))


def unpacked(content: bytes, device: str | None = None) -> Work:
    """What was `packed`, by another process of ours. device: where its tensors are from then on."""
    paths, homes, inside = pickle.loads(content)
    sys.path.extend(path for path in [*paths, *homes] if path not in sys.path)
    result: Work = torch.load(BytesIO(inside), map_location=device, weights_only=False)
    return result


def networks_of(work: Work) -> list[nn.Module]:
    """The networks that the pass runs."""
    holders = [work.job, *vars(work.job).values()]
    models = [getattr(one, "model", None) for one in holders]
    return [model for model in models if isinstance(model, nn.Module)]


def _homes(work: Work) -> list[str]:
    """Folders of the modules that the network's classes are from, as it was loaded."""
    result = []
    for part in (part for model in networks_of(work) for part in model.modules()):
        name = type(part).__module__
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            depth = name.count(".") + (Path(file).name == "__init__.py")
            result.append(str(Path(file).resolve().parents[depth]))
    return list(dict.fromkeys(result))


class Lost(Exception):
    """A process ended, or is taken for hung."""


class _Worker:
    """One process, and the line to it."""

    def __init__(self, pass_: bytes, threads: int) -> None:
        ours, theirs = socket.socketpair()
        told = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        home = str(Path(__file__).parents[2])
        paths = os.pathsep.join([home, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "convscope.scale.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **told, "PYTHONPATH": paths},
                process_group=0,  # Ctrl-C is for us to handle; it ends with its line
            )
        self._line, self._ending = Connection(ours.detach()), threading.Lock()
        self._send(pass_)

    def compute(self, start: int, stop: int, word: queue.SimpleQueue[Any]) -> bytes:
        """The part, as bytes. Raises Lost, and what the part raised."""
        self._send(pickle.dumps((start, stop)))
        while True:
            kind, content = self._receive()
            if kind == WORD:
                word.put((start, int(content)))
            elif kind == b"S":
                return content
            else:
                raise fault_of(content)

    def _send(self, content: bytes) -> None:
        with suppress(OSError):  # it is dead: `_receive` says so
            self._line.send_bytes(content)

    def _receive(self) -> tuple[bytes, bytes]:
        begun, before = time.monotonic(), ""
        while not self._line.poll(PATIENCE):
            runs, used = activity(self._process.pid)
            silent = time.monotonic() - begun
            if silent > LONGEST or not (runs or used != before):
                self.end()
                raise Lost(f"gave no word in {silent:.0f} s")
            before = used
        try:
            content = self._line.recv_bytes()
        except (EOFError, OSError):
            status = self._process.wait()
            name = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise Lost(f"was ended by {name}") from None
        return content[:1], content[1:]

    def end(self) -> None:
        """Also twice, by its own thread and by whoever ends all."""
        with self._ending:
            self._process.kill()
            self._process.wait()
            self._line.close()


def told(fault: Exception) -> bytes:
    """A fault, for another process: names and text, as an object may not be picklable, or not be
    there."""
    parts: tuple[str, ...] = ()
    if isinstance(fault, ConvscopeError):
        parts = (fault.code, fault.subject, fault.what, fault.kept, fault.next_step)
    return pickle.dumps((type(fault).__name__, parts, traceback.format_exc()))


def fault_of(content: bytes) -> Exception:
    """What a process told of a fault."""
    kind, parts, text = pickle.loads(content)
    made = getattr(errors, kind, None)
    if made is None or not issubclass(made, ConvscopeError):
        return RuntimeError(text)
    code, subject, what, kept, step = parts
    return made(code, subject, what, kept=kept, next_step=step)  # type: ignore[no-any-return]


@dataclass
class Task:
    start: int
    stop: int
    deaths: int = 0
    done: int = 0
    """Pictures, by its process's word."""


class Parts:
    """What is left of a pass while others compute it: which parts wait, which are begun, and what
    follows when one is lost."""

    def __init__(
        self, work: Work, ranges: Sequence[tuple[int, int]], count: int, size: int | None
    ) -> None:
        """count: processes. size: pictures in a part; by default the ranges as they are, or smaller
        where there are too few of them for so many processes."""
        self.work = work
        cuts = [cut for one in ranges for cut in self._cuts(one, len(ranges), count, size)]
        self.waiting, self.begun = deque(Task(*cut) for cut in cuts), dict[int, Task]()
        self._window = AHEAD * count * max((stop - start for start, stop in cuts), default=0)
        self._done = len(work.numbers) - sum(stop - start for start, stop in cuts)
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS)

    def _cuts(
        self, one: tuple[int, int], parts: int, count: int, size: int | None
    ) -> list[tuple[int, int]]:
        if size is None and parts >= 4 * count:
            return [one]
        fair = -(-(one[1] - one[0]) * parts // (4 * count))
        return self.work.cuts(*one, size or max(1, fair))

    def next(self) -> Task | None:
        """Another one to begin; none as long as it would be too far ahead of the oldest one."""
        if not self.waiting:
            return None
        if self.begun and self.waiting[0].start > min(self.begun) + self._window:
            return None
        task = self.waiting.popleft()
        task.done = 0
        self.begun[task.start] = task
        return task

    def finished(self, start: int) -> None:
        task = self.begun.pop(start)
        self._done += task.stop - task.start

    def tick(self, run: Run) -> None:
        done = self._done + sum(task.done for task in self.begun.values())
        run.tick(min(len(self.work.numbers), done), len(self.work.numbers))

    def lost(self, start: int, loss: Lost, *, counts: bool = True) -> None:
        """It is to be computed again. counts: whether its pictures may be to blame. Raises
        EnvironmentFault R651."""
        task = self.begun.pop(start)
        if counts:
            self.waiting.extendleft(reversed(self._again(task, loss)))
        else:
            self.waiting.appendleft(task)

    def _again(self, task: Task, loss: Lost) -> list[Task]:
        self._deaths.append(time.monotonic())
        often = len(self._deaths) == MOST_DEATHS and self._deaths[-1] - self._deaths[0] < 60
        pieces, work = self.work.cuts(task.start, task.stop, 1), self.work
        if often or (task.deaths and len(pieces) == 1):
            names = [work.folder.names[work.numbers[n]] for n in range(task.start, task.stop)]
            which = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            what = f"the process that ran the network on it {loss}, time after time"
            step = "look at that picture and at free memory, or take fewer processes"
            raise EnvironmentFault("R651", which, what, next_step=step)
        if not task.deaths:
            return [Task(task.start, task.stop, 1)]
        return [Task(start, stop, 1) for start, stop in pieces]


@dataclass
class _Crew:
    """The processes, each with a thread that waits for it."""

    count: int
    pass_: bytes
    threads: int
    _idle: list[_Worker] = field(default_factory=list)
    _all: set[_Worker] = field(default_factory=set)
    _over: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """For these two."""

    def compute(self, parts: Parts, run: Run) -> Iterator[Computed]:
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        while parts.waiting or parts.begun:
            while len(parts.begun) < self.count and not run.is_stopped and (task := parts.next()):
                threading.Thread(target=self._one, args=(task, results), daemon=True).start()
            if not parts.begun:
                return  # told to stop
            start, result = results.get()
            if isinstance(result, int):
                parts.begun[start].done = result
            elif isinstance(result, bytes):
                parts.finished(start)
                yield Computed(Segment.from_bytes(result, ""))
            elif isinstance(result, Lost):
                parts.lost(start, result)
            else:
                raise result
            parts.tick(run)

    def _one(self, task: Task, results: queue.SimpleQueue[Any]) -> None:
        worker: _Worker | None = None
        try:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            worker = worker or self._started()
            content = worker.compute(task.start, task.stop, results)
            with self._lock:
                self._idle.append(worker)
            results.put((task.start, content))
        except BaseException as fault:
            if worker is not None:
                with self._lock:
                    self._all.discard(worker)
                worker.end()
            results.put((task.start, fault))

    def _started(self) -> _Worker:
        try:
            worker = _Worker(self.pass_, self.threads)
        except OSError as fault:
            what = f"does not start ({fault.strerror or fault})"
            raise EnvironmentFault("R651", "a process for the network", what) from fault
        with self._lock:
            self._all.add(worker)
            is_over = self._over
        if is_over:
            worker.end()
            raise Lost("is not needed any more")
        return worker

    def end(self) -> None:
        with self._lock:
            self._over, workers = True, list(self._all)
        for worker in workers:
            worker.end()
