"""How does a command end well when it is told to stop?

By Ctrl-C, a scheduler or a closed terminal: it leaves whatever it is in, also an import of torch,
removes what is half done, says one line and ends with 75 (130 after Ctrl-C). A command that goes
on where it was stopped ends at its next good moment; told twice, at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from convscope.core.errors import StopAsked

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)
"""SIGUSR1 is what a batch system sends some time before SIGKILL."""
AGAIN = 0.5
"""Seconds after which a stop is asked for once more, where code on the way swallowed it."""
Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a signal to stop raises StopAsked in the main thread, until it comes through."""
    insisting = _Insisting()
    usual = sys.unraisablehook

    def handle(number: int, _: FrameType | None) -> None:
        if _stop_behind(sys.exc_info()[1]) is None:  # else it is on its way, through clean-up
            insisting.on(number)
            raise StopAsked(number)

    def quiet(told: Any) -> None:
        """Where nothing can be raised, as when an object goes: it will be asked again."""
        if not isinstance(told.exc_value, StopAsked):
            usual(told)

    with _handling(handle):
        sys.unraisablehook = quiet
        try:
            yield
        except BaseException as fault:
            if (stop := _stop_behind(fault)) not in (None, fault):
                raise stop from fault
            raise
        finally:
            insisting.end()
            sys.unraisablehook = usual


def past_stopping() -> None:
    """All is done and told, and the status stands: what Python still has to clear up is not to be
    told as a command that was stopped."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopSignals:
    """Whether a signal to stop has come, asked by passes over pictures; it listens only inside a
    `with`, as `stop_on_signals` does."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._asked: Callable[[], bool] = bool

    def __enter__(self) -> StopSignals:
        self._asked = self._stack.enter_context(stop_on_signals())
        return self

    def __exit__(self, *fault: object) -> None:
        self._stack.close()

    def __call__(self) -> bool:
        return self._asked()


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether a signal to stop has come; a second one stops at once.

    Exit status after the first is the command's (75: stopped, go on with the same command),
    after a second Ctrl-C 130.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            before = outer.get(number)
            if callable(before):
                before(number, frame)
            else:
                raise StopAsked(number)
        else:
            os.write(2, b"stopping at the next good moment; once more to stop at once\n")
        asked = True

    outer = {number: signal.getsignal(number) for number in SIGNALS}
    with _handling(handle):
        yield lambda: asked


@contextmanager
def _handling(handle: Handler) -> Iterator[None]:
    """The handler for all signals but those that are to be ignored, as under nohup."""
    before: dict[int, Any] = {}
    with suppress(ValueError):  # another thread than the main one cannot
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _stop_behind(fault: BaseException | None) -> StopAsked | None:
    """The stop that this fault is, or came of."""
    while fault is not None and not isinstance(fault, StopAsked):
        fault = fault.__context__
    return fault


class _Insisting:
    """Sends a signal again and again, as code on the way may swallow what it raises."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def on(self, number: int) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._send, args=(number,), daemon=True)
            self._thread.start()

    def _send(self, number: int) -> None:
        while not self._over.wait(AGAIN):
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
