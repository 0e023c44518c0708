"""In which form does every benchmark say what it found, to people and to `results.py`?"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quiet import Samples, interleaved, machine, ratio

MB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One job, ours against one peer. Ratios above 1 mean that ours takes less."""

    job: str
    peer: str
    ratio: float
    low: float
    high: float
    """What the single runs allow."""
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    """Raw: all runs, in `unit`."""
    unit: str = "s"
    noisy: int = 0
    """Runs kept though others were at work."""
    ours_mb: float | None = None
    theirs_mb: float | None = None
    """Peak of memory of one run, beyond what was there before."""
    note: str = ""
    floor: float | None = None
    goal: float | None = None


def row(job: str, peer: str, ours: Samples, theirs: Samples, **more: Any) -> Row:
    """From two series of runs, in seconds."""
    return Row(
        job,
        peer,
        theirs.median / ours.median,
        min(theirs.seconds) / max(ours.seconds),
        max(theirs.seconds) / min(ours.seconds),
        tuple(ours.seconds),
        tuple(theirs.seconds),
        noisy=ours.noisy + theirs.noisy,
        **more,
    )


@dataclass
class Report:
    """What one run of a benchmark found; printed as it comes, and kept with `--json`."""

    rounds: int
    patience: float
    json: Path | None
    rows: list[Row] = field(default_factory=list)

    def race(
        self,
        job: str,
        ours: Callable[[], object],
        peers: Mapping[str, Callable[[], object]],
        goals: Mapping[str, tuple[float, float]],
        *,
        note: str = "",
        rounds: int | None = None,
    ) -> dict[str, Samples]:
        """Ours and all peers in turn. The run before, which warms up, tells the memory."""
        jobs = {"ours": ours, **peers}
        memory = {name: peak(run) for name, run in jobs.items()}
        samples = interleaved(jobs, rounds or self.rounds, patience=self.patience, warm=False)
        print(f"{job}: ours {samples['ours']}  +{memory['ours']:.0f} MB", flush=True)
        for peer in peers:
            print(f"    {peer}: {samples[peer]}  +{memory[peer]:.0f} MB", flush=True)
            print(f"    ratio {ratio(samples['ours'], samples[peer])}", flush=True)
            floor, goal = goals.get(peer, (None, None))
            self.rows.append(
                row(
                    job,
                    peer,
                    samples["ours"],
                    samples[peer],
                    ours_mb=memory["ours"],
                    theirs_mb=memory[peer],
                    note=note,
                    floor=floor,
                    goal=goal,
                )
            )
        return samples

    def save(self) -> None:
        if self.json is None:
            return
        told = {
            "command": command(),
            "machine": machine(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "rows": [asdict(row) for row in self.rows],
        }
        self.json.parent.mkdir(parents=True, exist_ok=True)
        self.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def options(parser: argparse.ArgumentParser, rounds: int = 5) -> None:
    """Those that all benchmarks have."""
    parser.add_argument("--rounds", type=int, default=rounds, help="good runs of each job")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for quiet")
    parser.add_argument("--json", type=Path, help="file to keep the rows in, for results.py")


def report(given: argparse.Namespace) -> Report:
    print(machine(), flush=True)
    return Report(given.rounds, given.patience, given.json)


def command() -> str:
    """The one that was given, but for where its rows go and how long it waits for quiet."""
    kept, words = [], iter(sys.argv[1:])
    for word in words:
        if word in ("--json", "--patience"):
            next(words)
        elif not word.startswith(("--json=", "--patience=")):
            kept.append(shlex.quote(word))
    return " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *kept])


def peak(run: Callable[[], object]) -> float:
    """Megabytes that a run adds at its peak to what the process has; NaN where unknown."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs left would hide what this one takes
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
    except OSError:
        run()
        return float("nan")
    run()
    return (_status("VmHWM") - before) / MB


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
