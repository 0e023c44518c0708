"""Prefetch: pictures from elsewhere are fetched by threads, ahead of who needs them, in order.

Nobody waits for these threads at the end: a server that is silent must not keep a command from
stopping. They are used again, as fsspec keeps a connection for each thread.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import lru_cache
from queue import SimpleQueue
from typing import TypeVar

from convscope.core.errors import EnvironmentFault
from convscope.pictures.decode.formats import Limits

Item = TypeVar("Item")
Result = TypeVar("Result")
TOGETHER = 24
"""Fetches at a time: a server answers many at once as fast as one."""
FETCHED_BYTES = 128 << 20
"""No fetch is begun while more than this is fetched and not taken, unless it is needed now."""
UNKNOWN_BYTES = 1 << 20
"""What a picture counts for whose size is not known before."""
SLOWEST = 50_000
"""Bytes a second that a server has to send not to be taken for silent."""


class Elsewhere(ABC):
    """A picture whose bytes this process fetches and sends to a decoding one, which is told neither
    where they lie nor by what right they may be read."""

    name: bytes
    size: int
    """Of what is fetched; 0 where that is not known before."""

    @abstractmethod
    def fetch(self, limits: Limits) -> bytes:
        """The bytes. Raises Fault if this picture cannot be had, EnvironmentFault if no other
        could be had either."""

    def called(self) -> str:
        """What messages call it."""
        return self.name.decode("utf-8", "backslashreplace")


def begun(function: Callable[[Item], Result], item: Item) -> Future[Result]:
    """The function's call in a thread of its own, one that is idle or a new one."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function(item))
        except BaseException as fault:
            future.set_exception(fault)

    try:
        calls = _idle(os.getpid()).pop()
    except IndexError:
        calls = SimpleQueue()
        threading.Thread(target=_serve, args=(calls,), name="convscope-fetch", daemon=True).start()
    calls.put(call)
    return future


@lru_cache
def _idle(_process: int) -> list[SimpleQueue[Callable[[], None]]]:
    """Of the threads of this process that wait for a call; those of a parent are not here."""
    return []


def _serve(calls: SimpleQueue[Callable[[], None]]) -> None:
    """A thread's whole life."""
    while True:
        calls.get()()
        _idle(os.getpid()).append(calls)


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], together: int = TOGETHER
) -> Iterator[Result]:
    """The function's results for the items in their order, some computed at a time."""
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(begun(function, item))
        if len(waiting) >= together:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Prefetch:
    """The bytes of a reading's pictures that lie elsewhere; safe in threads."""

    def __init__(self, sources: Sequence[object], limits: Limits) -> None:
        self._sources, self._limits = sources, limits
        self._lock = threading.Lock()
        self._next = 0
        self._begun: dict[int, Future[bytes]] = {}
        self._bytes = 0
        """Of all that is begun and not taken."""
        self._stopped = False

    def take(self, place: int) -> bytes:
        """The bytes of this picture, each once, in about their order. Raises as `fetch`,
        EnvironmentFault R605 if nothing comes, CancelledError after `stop`."""
        with self._lock:
            self._begin(place)
            future = self._begun.pop(place)
        source = self._sources[place]
        size = source.size if isinstance(source, Elsewhere) else 0
        patience = self._limits.patience + size / SLOWEST
        try:
            while not future.done():
                if self._stopped:
                    raise CancelledError
                if patience <= 0:
                    raise _silent(source, self._limits.patience)
                with suppress(TimeoutError):
                    future.exception(timeout=min(1.0, patience))
                patience -= 1.0
            return future.result()
        finally:
            with self._lock:
                self._bytes -= self._cost(place)

    def stop(self) -> None:
        self._stopped = True

    def _begin(self, place: int) -> None:
        """Fetch on, as far as the bounds allow, and this picture in any case."""
        while self._next < len(self._sources):
            cost = self._cost(self._next)
            full = len(self._begun) >= TOGETHER or self._bytes + cost > FETCHED_BYTES
            if self._next > place and (full or self._stopped):
                return
            source = self._sources[self._next]
            if isinstance(source, Elsewhere):
                self._begun[self._next] = begun(source.fetch, self._limits)
                self._bytes += cost
            self._next += 1

    def _cost(self, place: int) -> int:
        source = self._sources[place]
        if not isinstance(source, Elsewhere):
            return 0
        return min(source.size or UNKNOWN_BYTES, self._limits.max_bytes)


def _silent(source: object, seconds: float) -> EnvironmentFault:
    return EnvironmentFault(
        "R605",
        source.called() if isinstance(source, Elsewhere) else "",
        f"could not be fetched: nothing came in {seconds:g} s",
        next_step="the same command again, when the network is well",
    )
