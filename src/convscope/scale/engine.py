"""One pass over any number of pictures: in parts, killed at will, gone on with, in many processes.

A `Job` looks at pictures batch by batch and gives arrays; an engine runs it over parts of the
pictures. With `Run(folder=…)` each finished part is kept there as a segment, and the same call goes
on from these; with `Run(engine=…)` parts are computed elsewhere. Batches are canonical (a picture's
batch is its number // size), so that the result is the same, byte for byte, whichever way it came
about.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch

from convscope.core.errors import Stopped
from convscope.core.run import Run
from convscope.pictures.pictures import Frame, Looked, Picture, Pictures
from convscope.pictures.remote import redacted
from convscope.scale.folder import MOST_LIVE, Kept, RunFolder
from convscope.scale.segments import Arrays, Segment

SECONDS = 20.0
"""After so long the part in hand is kept; that much work is lost at most when we are killed."""
MOST_BYTES = 128 << 20
"""As soon as a part's arrays take up so much it is closed, too."""
PART = 512
"""Pictures in a part that is computed elsewhere."""


class Job(ABC):
    """What is looked at in every picture. It is sent to other processes as it is (pickled)."""

    name: ClassVar[str]
    """Of the pass, and of its folder in the run's."""
    batch: int = 1
    """Pictures computed together."""
    framing: Frame | None = None
    aligned: bool = True
    """Whether batches are cut by the pictures' numbers, see `Pictures.batches`."""
    workers: int | None = None
    """Decoding processes."""
    part: int = PART
    """Pictures in a part that is computed elsewhere; what a kill costs there."""
    may_be_empty: bool = False
    """Whether no usable picture at all is fine."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """All that decides the numbers besides the pictures, in plain JSON."""

    @abstractmethod
    def looking(self) -> AbstractContextManager[Callable[[list[Picture]], object]]:
        """Inside, a function that looks at the pictures of a batch."""

    @abstractmethod
    def take(self) -> Arrays:
        """What was seen since the last time, also of no picture at all."""

    @property
    def pending(self) -> int:
        """Bytes that `take` would give, where these grow with the pictures."""
        return 0

    def told(self) -> Mapping[str, Any]:
        """What a part tells of where it was computed."""
        return {}

    def merge(self, one: Arrays, other: Arrays) -> Arrays:
        """What one pass over both, one after the other, would have given."""
        return {name: np.concatenate([one[name], other[name]]) for name in one}

    def received(self, arrays: Arrays) -> None:  # noqa: B027 - most are not taken along
        """Told all in the end, where another job took this one along."""


@dataclass(frozen=True)
class Work:
    """A pass, as it is sent to other processes."""

    job: Job
    folder: Pictures
    numbers: Sequence[int]
    threads: int
    """Of torch, on which the last bits of its results depend."""
    kept: RunFolder | None = None
    """Where parts are kept, if every machine can write there."""

    def parts(
        self, start: int, stop: int, run: Run, seconds: float | None = None
    ) -> Iterator[Segment]:
        """A range computed here, in order; not all of it if the run is told to stop. seconds: after
        so long a part is closed; None where it is kept nowhere."""
        job, done, total = self.job, start, len(self.numbers)

        def note(some: int, _: int) -> None:
            nonlocal done
            done = start + some
            run.tick(done, total)

        batches = self.folder.batches(
            job.batch,
            job.framing,
            self.numbers[start:stop],
            aligned=job.aligned,
            may_be_empty=True,
            workers=job.workers,
            run=run.telling(note),
        )
        begin, begun, used, kept = start, time.monotonic(), 0, seconds is not None
        with _exactly(self.threads), job.looking() as look:
            for pictures in batches:
                is_due = kept and time.monotonic() - begun > (seconds or 0)
                is_full = job.pending > MOST_BYTES and seconds != float("inf")
                if done > begin and (is_due or is_full or run.is_stopped):
                    yield self._segment(begin, done, used, kept)
                    begin, begun, used = done, time.monotonic(), 0
                if run.is_stopped:
                    return
                look(pictures)
                used += len(pictures)
            if stop > begin:
                yield self._segment(begin, stop, used, kept)

    def _segment(self, start: int, stop: int, used: int, kept: bool) -> Segment:
        looked = self.folder.looked(self.numbers[start:stop]) if kept else Looked()
        return Segment(start, stop, self.job.take(), used, looked, self.job.told())

    def alone(self, start: int, stop: int, word: Callable[[int], None]) -> Segment:
        """A range in one piece, for another process. word: told how many pictures of it are done
        after every batch."""
        run = Run(progress=lambda done, _: word(done - start))
        (segment,) = self.parts(start, stop, run, float("inf"))
        return segment

    def cuts(self, start: int, stop: int, size: int | None = None) -> list[tuple[int, int]]:
        """The range in pieces of about so many pictures (the job's part), never within a batch."""
        job, result = self.job, []
        size = job.part if size is None else size
        while start < stop:
            end = min(start + max(size, job.batch), stop)
            while end < stop and job.aligned and self._same_batch(end - 1, end):
                end += 1
            result.append((start, end))
            start = end
        return result

    def _same_batch(self, one: int, other: int) -> bool:
        return self.numbers[one] // self.job.batch == self.numbers[other] // self.job.batch


@contextmanager
def _exactly(threads: int) -> Iterator[None]:
    """What decides the last bits, the same wherever a part is computed: torch's threads; on a GPU
    no TF32 in the place of float32, and no choice of algorithms by a race."""
    before, cudnn = torch.get_num_threads(), torch.backends.cudnn
    if threads != before:
        torch.set_num_threads(threads)
    flags = {"benchmark": False, "deterministic": True, "allow_tf32": False}
    try:
        with cudnn.flags(enabled=cudnn.enabled, **flags):
            yield
    finally:
        if threads != before:
            torch.set_num_threads(before)


class Engine(Protocol):
    """What computes parts elsewhere, as `processes.Processes` does."""

    def working(self, work: Work) -> AbstractContextManager[Compute]:
        """Inside, what computes the parts of these ranges, which come in any order; its `run` is
        told how many pictures are done."""
        ...


class Computed(NamedTuple):
    """A part that came from elsewhere."""

    segment: Segment
    kept: Kept | None = None
    """If it is kept already, in `Work.kept`, by what computed it."""


Compute = Callable[[Sequence[tuple[int, int]], Run], Iterator[Computed]]


def passed(
    job: Job, folder: Pictures, run: Run, numbers: Sequence[int] | None = None
) -> Iterator[Segment]:
    """The parts of a pass over these pictures (all), in order, each kept before it comes.

    What became of the pictures is in `folder` as if all had been read here and now. Raises
    DataError D118 or D161 if nothing was usable, Stopped R575, as `RunFolder`, and as the engine.
    """
    numbers = range(len(folder)) if numbers is None else numbers
    used = place = 0
    with ExitStack() as stack:
        stack.enter_context(run.listening())
        for segment in _Pass(job, folder, numbers, run, stack).parts():
            used, place = used + segment.used, segment.stop
            yield segment
        # Who listens for signals answers for the time in here alone; what comes next may be long.
        is_over = run.folder is not None and run.is_stopped
    if place < len(numbers) or is_over:
        kept = f"{place:,} of {len(numbers):,} pictures, in " if run.folder and place else ""
        step = "give the same command again to go on" if kept else ""
        kept += redacted(str(run.folder)) if kept else ""
        raise Stopped("R575", job.name, "stopped as asked", kept=kept, next_step=step)
    if not used and not job.may_be_empty:
        folder.require_usable()


def merged(
    job: Job, folder: Pictures, run: Run, numbers: Sequence[int] | None = None
) -> tuple[Arrays, list[Mapping[str, Any]]]:
    """What one pass over all gives, and what its parts tell of where they ran, each once."""
    result: Arrays | None = None
    told: list[Mapping[str, Any]] = []
    for part in passed(job, folder, run, numbers):
        result = part.arrays if result is None else job.merge(result, part.arrays)
        told += [part.facts] if part.facts not in told else []
    return (job.take() if result is None else result), told


class _Pass:
    """One pass, and what is kept of it."""

    def __init__(
        self, job: Job, folder: Pictures, numbers: Sequence[int], run: Run, stack: ExitStack
    ) -> None:
        threads, self.run = run.threads or torch.get_num_threads(), run
        self.kept: RunFolder | None = None
        if run.folder is not None:
            facts = {"method": job.name, **job.facts, **folder.decoding.told()}
            place = f"{run.folder}/{job.name}"
            self.kept = RunFolder.open(place, facts, folder, numbers, threads=threads)
            threads = self.kept.threads
        far = self.kept if self.kept and self.kept.store.is_everywhere else None
        self.work = work = Work(job, folder, numbers, threads, far)
        self._compute: Compute | None = None
        if run.engine is not None:
            self._compute = stack.enter_context(run.engine.working(work))
        self._names: dict[int, Kept] = {}
        self._few = Compaction(self.kept, job.merge) if self.kept else None

    def parts(self) -> Iterator[Segment]:
        """All, in order; fewer if it is told to stop."""
        place, total = 0, len(self.work.numbers)
        there = self.kept.segments() if self.kept else []
        for kept in [*there, Kept(total, total, "")]:
            if place < kept.start:
                yield from self._computed(place, kept.start)
                if self.run.is_stopped:
                    return
            if kept.name:
                yield from self._known(kept)
                if self.run.is_stopped:
                    return
            place = kept.stop

    def _known(self, kept: Kept) -> Iterator[Segment]:
        assert self.kept is not None
        segment = self.kept.load(kept.name)
        if segment is None:
            yield from self._computed(kept.start, kept.stop)
            return
        self.kept.drop(kept.spare)
        self.work.folder.recall(segment.looked)
        self.run.tick(kept.stop, len(self.work.numbers))
        self._names[kept.start] = kept
        self._have(segment)
        yield segment

    def _computed(self, start: int, stop: int) -> Iterator[Segment]:
        if self._compute is None:
            seconds = SECONDS if self.kept else None
            for segment in self.work.parts(start, stop, self.run, seconds):
                self._keep(segment)
                self._have(segment)
                yield segment
            return
        waiting: dict[int, Segment] = {}
        for segment, kept in self._compute(self.work.cuts(start, stop), self.run):
            self._keep(segment, kept)
            self.work.folder.recall(segment.looked)
            waiting[segment.start] = segment
            while start in waiting:
                segment = waiting.pop(start)
                self._have(segment)
                yield segment
                start = segment.stop

    def _keep(self, segment: Segment, already: Kept | None = None) -> None:
        if self.kept is not None:
            self._names[segment.start] = already or self.kept.keep(segment)

    def _have(self, segment: Segment) -> None:
        if self._few is not None:
            self._few.add(self._names.pop(segment.start))


class Compaction:
    """Merges segments that are small and lie side by side, so that few are left in a run folder:
    sixteen into one, sixteen such into one, and so on."""

    def __init__(self, kept: RunFolder, merge: Callable[[Arrays, Arrays], Arrays]) -> None:
        self._kept, self._merge = kept, merge
        self._live: list[tuple[Kept, int]] = []
        """Segments that may be merged, and how often each was already."""

    def add(self, one: Kept) -> None:
        """The next one; they come in order."""
        self._live.append((one, 0))
        while len(self._live) >= MOST_LIVE and self._live[-MOST_LIVE][1] == self._live[-1][1]:
            level = self._live[-1][1]
            last = [kept for kept, _ in self._live[-MOST_LIVE:]]
            if (joined := self._joined([kept.name for kept in last])) is None:
                self._live[-MOST_LIVE:] = []  # these stay as they are
                return
            whole = self._kept.keep(joined)
            self._kept.drop(kept.name for kept in last)
            self._live[-MOST_LIVE:] = [(whole, level + 1)]

    def _joined(self, names: Sequence[str]) -> Segment | None:
        """All of them in one; None where that would be too large, or one is gone."""
        whole, largest = None, 0
        for name in names:
            if (part := self._kept.load(name)) is None:
                return None
            largest = max(largest, 4 * MOST_BYTES, part.nbytes)
            whole = part if whole is None else self._both(whole, part)
            if whole.nbytes > largest:
                return None
        return whole

    def _both(self, one: Segment, other: Segment) -> Segment:
        looked, facts = one.looked | other.looked, {**other.facts, **one.facts}
        arrays, used = self._merge(one.arrays, other.arrays), one.used + other.used
        return Segment(one.start, other.stop, arrays, used, looked, facts)
