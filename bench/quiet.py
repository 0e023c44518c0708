"""How long does each of several jobs take, if nobody else is at the machine?

Jobs are interleaved, so that what changes slowly hits all of them alike. A sample begins only when
other processes use less than 15 % of one CPU and is thrown away if they used more than 20 % of one
while it ran: a single noisy neighbour makes an operation on all cores 10 to 30 times slower. What
others use is read from `/proc/stat`; without it (not on Linux) nothing is gated, and the report
says so. One benchmark at a time: a lock file in the folder for temporary files.
"""

from __future__ import annotations

import fcntl
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import sysconf, times
from pathlib import Path

BEFORE, DURING = 0.15, 0.20
"""Shares of one CPU that others may use before and during a sample."""
WAIT = 0.25
"""Seconds between two looks at the machine."""
STAT = Path("/proc/stat")


@dataclass
class Samples:
    """Seconds of one job's good runs, and how often a run was thrown away."""

    seconds: list[float] = field(default_factory=list)
    thrown: int = 0
    noisy: int = 0
    """Runs that were kept though others were at work, as patience ran out."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the way from the fastest to the slowest run, relative to the median."""
        return (max(self.seconds) - min(self.seconds)) / 2 / self.median

    def __str__(self) -> str:
        noisy = f", {self.noisy} noisy" if self.noisy else ""
        count = f"{len(self.seconds)} runs{noisy}, {self.thrown} thrown away"
        return f"{self.median * 1000:10.2f} ms ±{self.spread:4.0%} ({count})"


class Others:
    """What share of one CPU did other processes use since the last look? None: not known."""

    def __init__(self) -> None:
        self._last = self._now()

    def share(self) -> float | None:
        before, self._last = self._last, self._now()
        if before is None or self._last is None:
            return None
        wall, busy, own = (b - a for a, b in zip(before, self._last, strict=True))
        return max(0.0, (busy - own) / wall) if wall > 0 else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        if not STAT.exists():
            return None
        names = STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal = (int(name) for name in names[:8])
        busy = (user + nice + system + irq + softirq + steal) / sysconf("SC_CLK_TCK")
        own = times()
        return time.monotonic(), busy, own.user + own.system + own.children_user


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other benchmark of ours runs, and keep others waiting."""
    with (Path(tempfile.gettempdir()) / "convscope-bench.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def interleaved(
    jobs: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    *,
    patience: float = 60.0,
    warm: bool = True,
) -> dict[str, Samples]:
    """Run all jobs in turn, `rounds` good samples each.

    patience: seconds to wait for quiet, and to spend on throwing away, for each sample; then a
    sample is kept and counted as noisy. warm: run each job once before, unmeasured.
    """
    samples = {name: Samples() for name in jobs}
    with alone():
        for job in jobs.values() if warm else ():
            job()
        for _ in range(rounds):
            for name, job in jobs.items():
                _sample(samples[name], job, time.monotonic() + patience)
    return samples


def _sample(samples: Samples, job: Callable[[], object], deadline: float) -> None:
    while True:
        quiet = _wait_for_quiet(deadline)
        others = Others()
        begin = time.perf_counter()
        job()
        seconds = time.perf_counter() - begin
        share = others.share()
        # Clock ticks of 10 ms say nothing about a run of a few: there the wait before must do.
        good = share is None or share < DURING or (seconds < 0.1 and quiet)
        if good or time.monotonic() > deadline:
            samples.seconds.append(seconds)
            samples.noisy += not good
            return
        samples.thrown += 1


def _wait_for_quiet(deadline: float) -> bool:
    others = Others()
    while time.monotonic() < deadline:
        time.sleep(WAIT)
        share = others.share()
        if share is None or share < BEFORE:
            return True
    return False


def ratio(ours: Samples, peer: Samples) -> str:
    """How many times faster we are, with the range that the single runs allow."""
    low = min(peer.seconds) / max(ours.seconds)
    high = max(peer.seconds) / min(ours.seconds)
    return f"{peer.median / ours.median:.2f}x ({low:.2f} to {high:.2f})"


def machine() -> str:
    """One line on where this was measured."""
    import platform

    import torch

    gate = "gated" if STAT.exists() else "not gated: no /proc/stat"
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {threads} threads, torch {torch.__version__}, {gate}"
