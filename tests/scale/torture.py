"""A small pass that is killed, or whose disk fails, at a chosen call, or that is killed at random.

`python -m tests.scale.torture JSON`; for chosen calls with `shim.c` preloaded. torch is imported
once; each trial is a fork that does what a command does: claim the result's place, pass over the
pictures with parts kept beside it, publish. Gives a line of JSON: how many trials, and what was
wrong with which.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convscope.core.errors import ConvscopeError
from convscope.core.publish import claimed, publish_file, publishing, unfinished
from convscope.core.run import Run
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.representations.topk import topk
from convscope.scale import engine, processes, worker
from convscope.scale.folder import SEGMENT
from convscope.scale.processes import Processes
from convscope.scale.segments import Segment
from tests.nets import Residual, Slow

READY = Preprocess(Framing(None, (40, 40)), (0, 0, 0), (1, 1, 1), scale=1.0)
COUNT, BEFORE, HALF, FAIL, FAIL_FROM, SHORT, LATE, READ = range(1, 9)
MODES: dict[str, tuple[int, int]] = {
    "killed before": (BEFORE, 0),
    "killed half done": (HALF, 0),
    "full once": (FAIL, errno.ENOSPC),
    "full from then on": (FAIL_FROM, errno.ENOSPC),
    "quota from then on": (FAIL_FROM, errno.EDQUOT),
    "input/output error": (FAIL, errno.EIO),
    "short write": (SHORT, 0),
    "done, and called failed": (LATE, errno.EIO),
    "cannot be read": (READ, errno.EIO),
}
KILLED = 137
GAVE_UP = "convscope: error[R651]"
OLD = b"as it was before"


def small(work: Path, pictures: Path, run: Run, model: nn.Module, strict: bool = True) -> None:
    """What a command does, with two files that are there already: one is replaced."""
    with claimed(work / "out"), Pictures(pictures, max_bad=0.2) as folder:
        kept = work / "out-run"
        with publishing(work / "out", instead=[kept]) as new:
            result = topk(model, folder, k=3, batch=2, preprocess=READY, run=run)
            if strict and (left := [*unfinished_below(kept), *needless(kept)]):
                raise AssertionError(f"left by a dead process: {left}")
            result.write(new)
            folder.write_skipped(new / "skipped.csv")
        publish_file(work / "latest", folder.summary().encode())


def unfinished_below(place: Path) -> list[str]:
    return [str(path) for path in place.rglob("*") if unfinished(path.name)]


def contents(place: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def ranges(kept: Path) -> list[tuple[int, int]]:
    """Of the segments in a run folder."""
    names = list[str]()
    with suppress(OSError):  # not there yet, or no more
        names = [f"seg/{name}" for name in os.listdir(kept / "topk" / "seg")]  # noqa: PTH208
    return [(int(at[1]), int(at[2])) for name in names if (at := SEGMENT.fullmatch(name))]


def needless(kept: Path) -> list[str]:
    """Segments that another one holds."""
    there = sorted(ranges(kept), key=lambda pair: (pair[0], -pair[1]))
    pairs = itertools.pairwise(there)
    return [f"segment {b} beside {a}" for a, b in pairs if a[0] <= b[0] and b[1] <= a[1]]


class Torture:
    """All trials in one folder."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.work, self.pictures = Path(told["work"]), Path(told["pictures"])
        self.every, self.modes = told["every"], told["modes"]
        self.shim = ctypes.CDLL(told["shim"])
        self.trials, self.wrong = Counter[str](), list[str]()
        self.calls, self.reads = list[list[str]](), list[list[str]]()
        self.expected, self.summary = dict[str, bytes](), b""

    def run(self) -> None:
        self.calls = self.counted(COUNT)
        self.expected = contents(self.work / "out")
        self.summary = (self.work / "latest").read_bytes()
        self.reads = self.counted(READ)
        for mode in self.modes:
            calls = list(enumerate(self.reads if "read" in mode else self.calls, start=1))
            if "write" in mode:
                calls = [(at, call) for at, call in calls if call[0] == "write"]
            for at, (sort, *_) in calls[len(mode) % self.every :: self.every]:
                self.trials[mode] += 1
                for fault in self.trial(mode, at):
                    self.wrong.append(f"{mode}, call {at} ({sort}): {fault}")

    def counted(self, how: int) -> list[list[str]]:
        """The calls of an undisturbed run, or of one that goes on just before it publishes."""
        self.lay()
        if how == READ:
            self.forked(BEFORE, self.published, 0)
        log = self.work.parent / "calls"
        status, said = self.forked(how, -1, 0, log)
        assert (status, said) == (0, "")
        return [line.split("\t") for line in log.read_text().splitlines()]

    @property
    def published(self) -> int:
        """Which call gives the result its name."""
        return 1 + [call[-1] for call in self.calls].index(str(self.work / "out"))

    def lay(self) -> None:
        """The folder as it was before."""
        shutil.rmtree(self.work, ignore_errors=True)
        (self.work / "old").mkdir(parents=True)
        (self.work / "old" / "result").write_bytes(OLD)
        (self.work / "latest").write_bytes(OLD)

    def trial(self, mode: str, at: int) -> Iterator[str]:
        """What was wrong."""
        self.lay()
        how, number = MODES[mode]
        if how == READ:
            self.forked(BEFORE, self.published, 0)
        status, said = self.forked(how, at, number)
        yield from self.torn()
        yield from self.lost(self.published if how == READ else at)
        if how in (BEFORE, HALF):
            if (status, said) != (KILLED, ""):
                yield f"status {status}: {said}"
        elif status == 6:
            if not said.startswith("convscope: error[R60") or said.count("\n") != 1:
                yield f"said {said!r}"
            if number != errno.EIO and (left := unfinished_below(self.work)):
                yield f"left {left}"
        elif status or said:
            yield f"status {status}: {said}"
        yield from self.gone_on()

    def gone_on(self) -> Iterator[str]:
        """The same again, undisturbed: what is wrong with the result."""
        was_there = (self.work / "out").exists()
        status, said = self.forked(0, 0, 0)
        if was_there:
            if status != 5:
                yield f"a result was there, and status {status}: {said}"
        elif status or said:
            yield f"when it went on: status {status}: {said}"
        elif (self.work / "latest").read_bytes() != self.summary:
            yield "the last file is not there"
        if contents(self.work / "out") != self.expected:
            yield "another result"
        left = {path.name for path in self.work.iterdir()} - {"out", "old", "latest"}
        # Killed between two renames, whole parts may be left beside the whole result.
        if left - ({"out-run"} if was_there else set()):
            yield f"left at the end: {sorted(left)}"

    def torn(self) -> Iterator[str]:
        """What can be seen, and is not whole."""
        if (self.work / "old" / "result").read_bytes() != OLD:
            yield "an old result is changed"
        if (self.work / "latest").read_bytes() not in (OLD, self.summary):
            yield "a file is neither old nor new"
        if (self.work / "out").exists() and contents(self.work / "out") != self.expected:
            yield "half a result"
        kept = self.work / "out-run" / "topk"
        key = ""
        if (kept / "RUN.json").exists():
            key = json.loads((kept / "RUN.json").read_bytes())["run_key"]
        for path in (kept / "seg").glob("*"):
            if SEGMENT.fullmatch(f"seg/{path.name}"):
                Segment.from_bytes(path.read_bytes(), key)
            elif not unfinished(path.name):
                yield f"unknown {path.name}"

    def lost(self, at: int) -> Iterator[str]:
        """Pictures that were kept before this call, and are not any more."""
        if (self.work / "out").exists():
            return
        before = [call[-1].rpartition("/seg/")[2] for call in self.calls[: at - 1]]
        names = (SEGMENT.fullmatch(f"seg/{name}") for name in before)
        kept = {n for name in names if name for n in range(int(name[1]), int(name[2]))}
        there = {n for start, stop in ranges(self.work / "out-run") for n in range(start, stop)}
        if kept - there:
            yield f"pictures {sorted(kept - there)} have to be computed again"

    def forked(self, how: int, at: int, number: int, log: Path | None = None) -> tuple[int, str]:
        """How a process ended in which that call was done ill, and what it said."""
        said = self.work.parent / "said"

        def task() -> None:
            to = -1 if log is None else os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            self.shim.shim_arm(os.fsencode(self.work), how, at, number, to)
            run = Run(folder=self.work / "out-run")
            small(self.work, self.pictures, run, Residual(), strict=how <= COUNT)

        pid = begun(task, said)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.read_text()


def begun(task: Callable[[], None], said: Path) -> int:
    """A fork that does this as a command would; its number."""
    if pid := os.fork():
        return pid
    status = 70
    with said.open("w") as words:
        os.dup2(words.fileno(), 2)
    try:
        task()
        status = 0
    except ConvscopeError as fault:
        sys.stderr.write(f"{fault.line()}\n")
        status = fault.exit_status
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Kills:
    """The same pass again and again, by worker processes, in which something is killed."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.work, self.pictures = Path(told["work"]), Path(told["pictures"])
        self.wanted, self.dice = told["kills"], random.Random(told["seed"])
        self.said = self.work.parent / "said"
        self.counts, self.wrong, self.most = Counter[str](), list[str](), 0
        self.longest = 0.0
        """Seconds until the last worker of one that was killed had ended."""

    @property
    def kills(self) -> int:
        return self.counts["workers killed"] + self.counts["commands killed"]

    def run(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        pid = begun(lambda: small(self.work, self.pictures, self.kept(None), Slow(0)), self.said)
        assert os.waitpid(pid, 0)[1] == 0, self.said.read_text()
        expected = contents(self.work / "out")
        while self.kills < self.wanted:
            shutil.rmtree(self.work)
            self.work.mkdir()
            self.most = min(self.wanted, self.kills + self.dice.randint(10, 40))
            while not (self.work / "out").exists() and len(self.wrong) < 10:
                self.counts["commands"] += 1
                self.command(self.dice.randint(1, 4))
            self.counts["runs"] += 1
            if contents(self.work / "out") != expected:
                self.wrong.append(f"run {self.counts['runs']}: another result")
            sys.stderr.write(f"{dict(self.counts)}\n")

    def kept(self, engine: Processes | None) -> Run:
        return Run(folder=self.work / "out-run", engine=engine)

    def command(self, count: int) -> None:
        """One command with so many worker processes, to its end or until it is killed."""
        run = self.kept(Processes(count, part=4))
        pid = begun(lambda: small(self.work, self.pictures, run, Slow(0.1)), self.said)
        while not self.left_alone(pid):
            family = descendants(pid)
            if ranges(self.work / "out-run"):
                self.counts["kills with parts there"] += 1
            if self.dice.random() < 0.3:
                os.kill(pid, signal.SIGKILL)
                self.counts["commands killed"] += 1
                os.waitpid(pid, 0)
                self.require_ended(family)
                return
            if workers := workers_of(pid):
                with suppress(ProcessLookupError):
                    os.kill(self.dice.choice(workers), signal.SIGKILL)
                    self.counts["workers killed"] += 1
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = self.said.read_text()
        self.counts[f"ended with status {status}"] += 1
        if (status, said) != (0, "") and not (status == 6 and said.startswith(GAVE_UP)):
            self.wrong.append(f"status {status}: {said}")

    def left_alone(self, pid: int) -> bool:
        """Whether it ends by itself before it is time for another kill: at any moment, or soon
        after one more part is kept; none after so many in a run that one in hundreds would end."""
        if self.kills >= self.most:
            if ended(pid, 300):
                return True
            self.wrong.append("hangs")
        elif self.dice.random() < 0.4:
            before, until = ranges(self.work / "out-run"), time.monotonic() + 10
            while ranges(self.work / "out-run") == before and time.monotonic() < until:
                if ended(pid, 0):
                    return True
            return ended(pid, self.dice.random() * 0.3)
        return ended(pid, self.dice.random() ** 2 * 3)

    def require_ended(self, family: list[tuple[int, str]]) -> None:
        begin = time.monotonic()
        while left := [one for one in family if one in everybody()]:
            if time.monotonic() - begin > 10:
                self.wrong.append(f"{len(left)} processes go on without the command")
                for pid, _ in left:
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.02)
        self.longest = max(self.longest, time.monotonic() - begin)


class Forked:
    """In the place of `subprocess.Popen`: a worker process that has torch from the beginning, which
    else takes it seconds in which it is killed most of the time."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int], **_: object) -> None:
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setpgid(0, 0)
            for other in os.listdir("/proc/self/fd"):  # noqa: PTH208
                if int(other) > 2 and int(other) not in pass_fds:
                    with suppress(OSError):
                        os.close(int(other))
            worker.main(*pass_fds)
        finally:
            os._exit(0)

    def kill(self) -> None:
        with self._lock:
            if self.returncode is None:
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        with self._lock:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            return self.returncode


def ended(pid: int, seconds: float) -> bool:
    """Whether it ends by itself within so long."""
    until = time.monotonic() + seconds
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def everybody() -> dict[tuple[int, str], int]:
    """Processes that live, by number and time of start, and their parents."""
    result = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent, *rest = place.read_text().rpartition(")")[2].split()
            if state not in "ZX":
                result[int(place.parent.name), rest[17]] = int(parent)
    return result


def descendants(pid: int) -> list[tuple[int, str]]:
    parents, family = everybody(), [pid]
    for parent in family:
        family += [one for (one, _), above in parents.items() if above == parent]
    return [one for one in parents if one[0] in family[1:]]


def workers_of(pid: int) -> list[int]:
    """Its processes that decode no pictures."""
    return [one for (one, _), above in everybody().items() if above == pid and not decodes(one)]


def decodes(pid: int) -> bool:
    with suppress(OSError):
        return b"decode.child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return True


def main(told: dict[str, Any]) -> None:
    os.environ.pop("LD_PRELOAD", None)
    torch.set_num_threads(1)
    engine.SECONDS, engine.MOST_LIVE = -1.0, 3
    if told.get("forked"):
        processes.subprocess = types.SimpleNamespace(Popen=Forked, DEVNULL=None)
    if "kills" in told:
        kills = Kills(told)
        kills.run()
        answer = {"counts": kills.counts, "longest": kills.longest, "wrong": kills.wrong}
    else:
        torture = Torture(told)
        torture.run()
        answer = {"calls": torture.calls, "trials": torture.trials, "wrong": torture.wrong}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
