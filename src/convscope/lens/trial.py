"""Which of several ways is the quickest here? A trial of a second, all ways in turn.

What else the machine does hits all ways alike when they are run in turn, and the best run of each
is the one that it hit least.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)

SECONDS = 1.0
"""After which no further round is begun."""
ROUNDS = 4


def fastest_runs(
    ways: Mapping[Name, Callable[[], object]],
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, float]:
    """Seconds of each way's best run; each is run once before, as the first run of anything is
    slow, and then at least once and at most `ROUNDS` times."""
    for run in ways.values():
        run()
    best = dict.fromkeys(ways, float("inf"))
    begin = clock()
    for _ in range(ROUNDS):
        for name, run in ways.items():
            before = clock()
            run()
            best[name] = min(best[name], clock() - before)
        if clock() - begin > seconds:
            break
    return best
