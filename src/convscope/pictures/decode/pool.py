"""Worker pool of decoding processes: many pictures at once, and still in order.

One thread and one decoding process a worker. The threads fetch ahead while the consumer works,
within a window; whatever happens to a process, every picture gets exactly one answer.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from convscope.core.errors import EnvironmentFault
from convscope.pictures.decode.child import FAULT, MEMORY, UNREAD, Work
from convscope.pictures.decode.process import COMMAND, Answer, Child, ChildLost, Source

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
        """End all work; processes that owe answers are killed."""
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
        except _Stopped:
            pass
        except BaseException as fault:
            with self._change:
                self._fault = self._fault or fault
                self._stopped = True
                self._change.notify_all()

    def _serve(self, child: Child) -> Child:
        """Ask and take answers until no picture is left; the process that lives at the end."""
        held: deque[int] = deque()
        while True:
            while len(held) < DEPTH and (place := self._claim(wait=not held)) is not None:
                child.ask(self._sources[place])
                held.append(place)
            if not held:
                return child
            try:
                answer = self._answer(child)
            except ChildLost as loss:
                self._lose(child)
                answer = self._alone(self._sources[held[0]], loss)
                child = self._start()
                for place in list(held)[1:]:
                    child.ask(self._sources[place])
            self._deliver(held.popleft(), answer)

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

    def _alone(self, source: Source, loss: ChildLost) -> Answer:
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


def _unread(source: Source, what: str) -> EnvironmentFault:
    path = source if isinstance(source, bytes) else source.archive
    return EnvironmentFault(
        "R605",
        path.decode("utf-8", "backslashreplace"),
        f"could not be read, {what}",
        next_step="the same command again, when the disk or the network is well",
    )


def _faulty(text: str) -> Answer:
    return Answer(FAULT, text, 0, b"", np.empty((0, 0, 3), np.uint8))
