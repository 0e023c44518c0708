"""What holds for all tests?"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

# Before torch is imported, here and in the processes that tests start: with several threads each
# operation waits for the slowest, which on a busy machine takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Commands that tests start run the tree in which the tests stand, also where the interpreter has
# another checkout installed.
_ELSE = os.environ.get("PYTHONPATH")
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1] / "src"), *([_ELSE] if _ELSE else [])]
)


# What starts the tests may ignore signals to stop, as a shell does Ctrl-C for what it runs in the
# background, and children inherit that; a command that has ended ignores them too. Tests of
# stopping want them as at a terminal.
def _as_at_a_terminal() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_DFL)


_as_at_a_terminal()


@pytest.fixture(autouse=True)
def _interruptible() -> None:
    _as_at_a_terminal()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that on several cores it is not the one that all wait for."""
    items.sort(key=lambda item: "test_docs" not in item.nodeid)
