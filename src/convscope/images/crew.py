"""Where do decoding processes rest between two readings, and how many may die?"""

from __future__ import annotations

import os
import threading
import time
from collections import deque

from convscope.errors import EnvironmentFault
from convscope.images import decoder
from convscope.images.decode import Decoding
from convscope.images.decoder import Child
from convscope.images.framing import Framing
from convscope.images.limits import Limits

MOST_DEATHS, DEATHS_WITHIN = 20, 60.0
"""More processes lost than this in so many seconds is not the pictures' fault."""


class Crew:
    """Decoding processes at rest, shared by all readings of a folder; safe in threads."""

    def __init__(self) -> None:
        self._command = decoder.COMMAND
        self._idle: list[Child] = []
        self._owner = os.getpid()
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS + 1)
        self._lock = threading.Lock()

    def take(self, limits: Limits, framing: Framing | None, decoding: Decoding) -> Child:
        """A process that is told its work: one at rest, or a new one.

        Raises EnvironmentFault R604 if none can be started.
        """
        with self._lock:
            if self._owner != os.getpid():  # after a fork these are the parent's
                self._idle, self._owner = [], os.getpid()
            child = self._idle.pop() if self._idle else None
        child = child or Child(self._command)
        child.set_up(limits, framing, decoding)
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
