"""Ray clusters: parts of a pass over pictures, computed by a pool of actors on many machines.

Each actor holds a copy of the pass and computes part after part. A part whose actor or node is lost
is given to another one (`processes.Parts`); where the run's folder is behind a URL, actors write
their parts there themselves. Nothing here is needed to go on after the driver was killed: the same
call finds what is kept.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from convscope.core.errors import EnvironmentFault, UsageError, shown
from convscope.core.run import Run
from convscope.core.text import one_line
from convscope.pictures.decode.pool import Member, activity

if TYPE_CHECKING:  # an actor imports torch when its number of threads is told
    from convscope.scale.engine import Compute, Computed, Work
    from convscope.scale.processes import Parts, Task

POLL = 1.0
"""Seconds between two questions to each actor how far it is."""
FIRST = 600.0
"""Seconds until some actor must have started."""
MOST_FAILED = 5
"""Actors that may fail before they begin."""
AGAIN = "give the same command again when it is well"
TRIED = 10.0
"""Seconds for a connection to the cluster."""
HEADLESS = 30.0
"""Seconds that its head may be away; after 60 Ray itself would end this process without a word."""
PLACE = re.compile(r"(?:ray://)?(.+):(\d+)")
SAMPLE = 5
"""Pictures of which each node is asked whether it has them."""


@dataclass(frozen=True)
class RayEngine:
    """Compute the parts of passes on a Ray cluster: `Run(engine=RayEngine("10.0.0.1:6379"))`.

    Every node needs the same versions of convscope and torch, the modules of the network's classes,
    and the pictures: in a folder that all machines share, or behind a URL. A script that has
    connected to Ray itself keeps its connection.

    Raises UsageError U221 for impossible numbers.
    """

    address: str | None = None
    """The cluster's, HOST:PORT; `auto` for that of this machine; by default that of the variable
    RAY_ADDRESS, or else a Ray on this machine only."""
    workers: int | None = None
    """Actors; by default as many as there is room for now."""
    num_gpus: float = 0
    """Of each actor, which moves the network there; 0.5 for two actors on one."""
    num_cpus: float | None = None
    """Of each actor; by default as many as a pass has threads."""
    part: int | None = None
    """Pictures in a part, as of `Processes`."""

    def __post_init__(self) -> None:
        if not (self.workers is None or self.workers >= 1):
            raise UsageError("U221", f"workers={self.workers}", "there is at least one actor")
        for name in ("num_gpus", "num_cpus"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise UsageError("U221", f"{name}={shown(value)}", "is 0 or more")

    @contextmanager
    def working(self, work: Work) -> Iterator[Compute]:
        """Raises UsageError U222 if the network cannot be sent to another process, U223 if it is on
        a GPU and the actors have none, EnvironmentFault R626 without Ray, R655 if there is no such
        cluster, or it is lost, R656 for a node that cannot compute this, R657 without room."""
        from convscope.scale.processes import Parts, networks_of, packed

        ray, content = _ray(), packed(work)
        weights = [one for model in networks_of(work) for one in model.parameters()]
        devices = {one.device.type for one in weights} - {"cpu"}
        if devices and not self.num_gpus:
            what = f"the network is on {min(devices)}, and the actors have no GPU"
            step = "RayEngine(num_gpus=1), or move the network to the CPU"
            raise UsageError("U223", "num_gpus=0", what, next_step=step)
        with _connected(ray, self.address):
            actors = _Actors(ray, self, work, content)

            def compute(ranges: Sequence[tuple[int, int]], run: Run) -> Iterator[Computed]:
                return actors.compute(Parts(work, ranges, actors.count, self.part), run)

            try:
                yield compute
            except (ray.exceptions.RayError, ConnectionError) as fault:
                raise _gone(self.address, f"was lost ({_said(fault)})") from fault
            finally:
                actors.end()


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as fault:
        step = "pip install 'convscope[ray]'"
        what = "which clusters need, is not installed"
        raise EnvironmentFault("R626", "Ray", what, next_step=step) from fault
    return ray


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connected to the cluster; what its nodes print is no result, and goes to stderr."""
    if ray.is_initialized():
        yield
        return
    _require_there(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    told: dict[str, Any] = {} if "://" in (address or "") else {"include_dashboard": False}
    told |= {"log_to_driver": False, "logging_level": logging.ERROR}
    with redirect_stdout(sys.stderr):
        try:
            ray.init(address=address, **told)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as fault:
            raise _gone(address, f"cannot be reached or used ({_said(fault)})") from fault
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
        try:
            yield
        finally:
            ray.shutdown()


def _require_there(address: str | None) -> None:
    """Ray itself would try for minutes."""
    if fault := _unreached(address or os.environ.get("RAY_ADDRESS", "")):
        raise _gone(address, f"cannot be reached ({_said(fault)})") from fault


def _unreached(address: str) -> Exception | None:
    """Why nothing answers there; None where this is no place either."""
    place = PLACE.fullmatch(address)
    try:
        if place is not None:
            socket.create_connection((place[1].strip("[]"), int(place[2])), TRIED).close()
    except (OSError, OverflowError) as fault:
        return fault
    return None


def _gone(address: str | None, what: str) -> EnvironmentFault:
    return EnvironmentFault("R655", f"Ray at {address or 'this machine'}", what, next_step=AGAIN)


def _said(fault: BaseException) -> str:
    """What Ray says, on one line."""
    said = one_line(" ".join(str(fault).split()))
    return (said if len(said) <= 200 else f"{said[:199]}…") or type(fault).__name__


class _Told(NamedTuple):
    """What an actor must be able to do, and is asked before its first part."""

    device: str | None
    versions: Mapping[str, str]
    pictures: Sequence[tuple[bytes, int]]
    """Files that all machines have, and bytes."""


def _versions() -> dict[str, str]:
    import numpy as np
    import PIL
    import torch

    from convscope import __version__

    told = {"convscope": __version__, "torch": str(torch.__version__)}
    return told | {"numpy": np.__version__, "pillow": PIL.__version__}


def _sample(work: Work) -> list[tuple[bytes, int]]:
    """A few of the pictures' files that are there on this machine."""
    numbers, result = work.numbers, []
    for number in numbers[:: max(1, len(numbers) // SAMPLE)]:
        source = work.folder.sources[number]
        path = source.archive if isinstance(source, Member) else source
        if isinstance(path, bytes):
            with suppress(OSError):
                result.append((os.path.abspath(path), os.stat(path).st_size))  # noqa: PTH100, PTH116
    return result


class Actor:
    """A process of the cluster. It answers with a part's bytes and the name by which it is kept,
    or with the names and text of a fault."""

    def __init__(self, threads: int) -> None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)  # Ray has put there its number of processors
        self._done = 0

    def begin(self, content: bytes, told: _Told) -> tuple[str, bytes]:
        """Unpack the pass. Gives the node's id, and a fault."""
        from ray import get_runtime_context

        from convscope.scale import processes

        try:
            self._require(told)
            try:
                self._work = processes.unpacked(content, told.device)
            except (ImportError, AttributeError) as fault:
                raise _unfit(
                    f"cannot import what the network is made of ({_said(fault)})"
                ) from fault
        except Exception as fault:
            return "", processes.told(fault)
        return str(get_runtime_context().get_node_id()), b""

    def _require(self, told: _Told) -> None:
        import torch

        here = _versions()
        other = [f"{name} {here[name]}" for name in here if here[name] != told.versions[name]]
        if other:
            wanted = ", ".join(told.versions[name.split()[0]] for name in other)
            raise _unfit(f"has {', '.join(other)}, while the command has {wanted}")
        if told.device is not None and not torch.cuda.is_available():
            raise _unfit("has no GPU that torch can use")
        for path, size in told.pictures:
            name = shown(os.fsdecode(path), 200)
            try:
                there = os.stat(path).st_size  # noqa: PTH116
            except OSError as fault:
                raise _unfit(f"does not have {name} ({fault.strerror})") from fault
            if there != size:
                raise _unfit(f"has another {name}, of {there:,} bytes and not {size:,}")

    def part(self, start: int, stop: int) -> tuple[bytes, str, bytes]:
        from convscope.scale.processes import told

        try:
            self._done = 0
            segment, kept = self._work.alone(start, stop, self._word), self._work.kept
            if kept is None:
                return segment.to_bytes(""), "", b""
            content = segment.to_bytes(kept.key)
            return content, kept.publish(start, stop, content).name, b""
        except Exception as fault:
            return b"", "", told(fault)

    def _word(self, done: int) -> None:
        self._done = done

    def word(self) -> tuple[int, str]:
        """How many pictures of the part are done, and the processor time used."""
        return self._done, activity(os.getpid())[1]


def _unfit(what: str) -> EnvironmentFault:
    step = "install and share the same on all nodes"
    return EnvironmentFault("R656", f"node {socket.gethostname()}", what, next_step=step)


@dataclass(eq=False)
class _One:
    """An actor, as we see it."""

    actor: Any
    node: str = ""
    """Its id, as soon as it has begun."""
    task: Task | None = None
    question: Any = None
    """How far it is, not answered yet."""
    last: tuple[int, str] = (-1, "")
    heard: float = 0.0
    """When it told something new, and below that it had looked at more pictures."""
    looked: float = 0.0


class _Actors:
    """The pool, looked after by one thread."""

    def __init__(self, ray: Any, engine: RayEngine, work: Work, content: bytes) -> None:
        self._ray, self._key = ray, work.kept.key if work.kept else ""
        self._work, self._engine, self._failed = work, engine, 0
        cpus = work.threads if engine.num_cpus is None else engine.num_cpus
        self._needs = {"CPU": float(cpus), "GPU": float(engine.num_gpus)}
        self.count = engine.workers or self._room()
        self._content = ray.put(content)
        device = "cuda" if engine.num_gpus else None
        self._told = ray.put(_Told(device, _versions(), _sample(work)))
        self._class = ray.remote(
            num_cpus=cpus,
            num_gpus=engine.num_gpus,
            max_restarts=0,
            scheduling_strategy="SPREAD",
            concurrency_groups={"words": 1},
        )(Actor)
        self._all: list[_One] = []
        self._asked: dict[Any, _One] = {}
        """Answers that are waited for, of whom."""
        self._since = self._head_seen = time.monotonic()
        self._head = str(getattr(ray.get_runtime_context(), "gcs_address", ""))

    def _room(self) -> int:
        """Actors that the nodes can hold."""
        room = 0
        for node in self._ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                fits = [has.get(kind, 0) // n for kind, n in self._needs.items() if n > 0]
                room += int(min(fits, default=1))
        if not room:
            raise self._no_room("no node has them")
        return room

    def _no_room(self, what: str) -> EnvironmentFault:
        needs = ", ".join(f"{n:g} {kind}" for kind, n in self._needs.items() if n)
        step = "ask for less with num_cpus, num_gpus or threads, or start such nodes"
        where = f"Ray at {self._engine.address or 'this machine'}"
        return EnvironmentFault("R657", where, f"an actor needs {needs}: {what}", next_step=step)

    def compute(self, parts: Parts, run: Run) -> Iterator[Computed]:
        while parts.waiting or parts.begun:
            if not run.is_stopped:
                self._hire(min(self.count, len(parts.waiting) + len(parts.begun)))
                self._share_out(parts)
            elif not parts.begun:
                return
            answers, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=POLL)
            for answer in answers:
                yield from self._take(answer, parts)
            self._listen(parts)
            self._require_head()
            parts.tick(run)

    def _require_head(self, *, now: bool = False) -> None:
        """Ask now and then whether the cluster's head is there. now: wait until it is."""
        while now or time.monotonic() - self._head_seen > TRIED:
            fault = _unreached(self._head)
            if fault is None:
                self._head_seen = time.monotonic()
                return
            if time.monotonic() - self._head_seen > HEADLESS:
                self._all = []  # nobody is there to end them
                raise _gone(self._engine.address, f"has lost its head ({_said(fault)})") from fault
            if not now:
                return
            time.sleep(POLL)

    def _hire(self, count: int) -> None:
        while len(self._all) < count:
            one = _One(self._class.remote(self._work.threads), heard=time.monotonic())
            self._asked[one.actor.begin.remote(self._content, self._told)] = one
            self._all.append(one)
        if any(one.node for one in self._all):
            self._since = time.monotonic()
        elif time.monotonic() - self._since > FIRST:
            raise self._no_room(f"none has started in {FIRST:.0f} s")

    def _share_out(self, parts: Parts) -> None:
        for one in self._all:
            if one.node and one.task is None:
                one.task = parts.next()
                if one.task is None:
                    return
                one.heard = one.looked = time.monotonic()
                one.last = (-1, "")
                self._asked[one.actor.part.remote(one.task.start, one.task.stop)] = one

    def _take(self, answer: Any, parts: Parts) -> Iterator[Computed]:
        from convscope.scale.engine import Computed
        from convscope.scale.folder import Kept
        from convscope.scale.processes import fault_of
        from convscope.scale.segments import Segment

        one = self._asked.pop(answer)
        try:
            got = self._ray.get(answer)
        except self._ray.exceptions.RayError as fault:
            self._lose(one, parts, f"ended ({_said(fault)})")
            return
        if got[-1]:
            raise fault_of(got[-1])
        if one.task is None:
            one.node = got[0]
            return
        (content, name, _), task = got, one.task
        one.task = None
        parts.finished(task.start)
        kept = Kept(task.start, task.stop, name) if name else None
        yield Computed(Segment.from_bytes(content, self._key), kept)

    def _lose(self, one: _One, parts: Parts, what: str) -> None:
        """Its part is for another one."""
        from convscope.scale.processes import Lost

        self._require_head(now=True)
        self._all.remove(one)
        self._end(one)
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        if one.task is not None:
            parts.lost(one.task.start, Lost(what), counts=one.node in alive)
            return
        self._failed += 1
        if self._failed > MOST_FAILED:
            what = f"actors fail before they begin: the last one {what}"
            step = "install and share the same on all nodes"
            raise EnvironmentFault("R656", "the nodes", what, next_step=step)

    def _listen(self, parts: Parts) -> None:
        """Ask those at work how far they are; who says nothing new is taken for hung."""
        from convscope.scale.processes import LONGEST, PATIENCE

        now = time.monotonic()
        for one in [one for one in self._all if one.task is not None]:
            assert one.task is not None
            if one.question is not None:
                self._hear(one, one.task, now)
            elif now - max(one.heard, one.looked) > POLL:
                one.question = one.actor.word.options(concurrency_group="words").remote()
            if now - one.heard > PATIENCE or now - one.looked > LONGEST:
                self._asked = {ref: who for ref, who in self._asked.items() if who is not one}
                self._lose(one, parts, f"gave no word in {now - one.looked:.0f} s")

    def _hear(self, one: _One, task: Task, now: float) -> None:
        answers, _ = self._ray.wait([one.question], timeout=0)
        if not answers:
            return
        one.question = None
        with suppress(self._ray.exceptions.RayError):  # the part's own answer says so too
            told = self._ray.get(answers[0])
            if told[0] > max(one.last[0], 0):
                one.looked = now
                task.done = told[0]
            if told != one.last:
                one.heard, one.last = now, told

    def _end(self, one: _One) -> None:
        with suppress(Exception):
            self._ray.kill(one.actor)

    def end(self) -> None:
        for one in self._all:
            self._end(one)
