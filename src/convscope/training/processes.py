"""Processes that train together (DDP): how they meet, and how all end where one does.

Beside gloo or NCCL, which may wait for a lost process for ever, each gives signs of life in the
store (torch's TCPStore) where they met. Whoever fails, or misses another, leaves a note there: all
end with that fault, and one tells it. Also torch's deterministic mode.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, cast
from uuid import uuid4

import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.nn.parallel import DistributedDataParallel

from convscope.core import errors
from convscope.core.errors import ConvscopeError, DataError, EnvironmentFault, Stopped, UsageError


class Tally(NamedTuple):
    """Sums over pictures, which add up over steps and processes."""

    loss: float = 0.0
    correct: float = 0.0
    pictures: float = 0.0

    def __add__(self, other: tuple[float, ...]) -> Tally:  # type: ignore[override]
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))

    def means(self) -> tuple[float, float]:
        """Mean loss, and part of the pictures that were right."""
        return self.loss / max(1.0, self.pictures), self.correct / max(1.0, self.pictures)


ACCELERATORS = {
    "auto": ("cuda", "mps", "cpu"),
    "cpu": ("cpu",),
    "gpu": ("cuda", "mps"),
    "cuda": ("cuda",),
    "mps": ("mps",),
}
"""What may be named, and the kinds of device meant by it, of which the first there is taken."""
AVAILABLE: dict[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "cpu": lambda: True,
}
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
MEETING = ("MASTER_ADDR", "MASTER_PORT")
LAUNCHED = PLACE + MEETING
"""Set by torchrun, and by us, for every process."""
BEAT = 1.0
"""Seconds between two signs of life."""
SILENT = 60
"""Beats without a sign of life after which a process counts as lost. Counted, not timed: those who
sleep together wake together."""
LEAVING = 5.0
"""Seconds that a process has to leave what it does, before it is ended there."""
JOINING = timedelta(minutes=10)
"""How long they wait for each other at the beginning."""
WAITING = timedelta(minutes=30)
"""How long one waits for the others in a step, while all give signs of life."""
Children = dict[int, subprocess.Popen[bytes]]
"""Processes that this one started, by rank."""


@dataclass
class Processes:
    """The processes that train together, and this one's place among them.

    Those of torchrun are taken; else the first starts the others, by the same command as its own.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    here: int = 1
    """How many there are on this machine."""
    local: int = 0
    """This one's number on this machine."""
    watch: Watch | None = field(default=None, init=False, repr=False)
    """There while several are joined."""

    @classmethod
    def of(cls, batch: int, devices: int, nodes: int, accelerator: str) -> Processes:
        """Raises UsageError U306 if the batch cannot be split, U308 where a variable of several
        machines is missing, U378 for an unknown accelerator, EnvironmentFault R641 for one that is
        not there."""
        if accelerator not in ACCELERATORS:
            hint = errors.nearest(accelerator, ACCELERATORS).replace("it has", "there are")
            raise UsageError("U378", accelerator, f"no such accelerator; {hint}")
        kinds = [kind for kind in ACCELERATORS[accelerator] if AVAILABLE[kind]()]
        if not kinds:
            what = "this machine has none that torch can use"
            step = "pass --accelerator cpu, or auto"
            raise EnvironmentFault("R641", accelerator, what, next_step=step)
        rank, local, count, devices = _place(devices, nodes)
        if batch % count:
            raise UsageError("U306", f"batch={batch}", f"cannot be split between {count} processes")
        there = torch.cuda.device_count() if kinds[0] == "cuda" else 1
        if kinds[0] != "cpu" and devices > there:
            what = f"cannot be used by {devices} processes: this machine has {there}"
            raise EnvironmentFault("R641", accelerator, what)
        device = torch.device(kinds[0], local) if kinds[0] == "cuda" else torch.device(kinds[0])
        return cls(device, rank, count, devices, local)

    @property
    def first(self) -> bool:
        """Of all; it alone writes and speaks."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """As long as they train together. Where one ends, all do, with the same fault; it is `told`
        in all but one. Raises Stopped R576 for a lost process, EnvironmentFault R642 for one that
        does not join."""
        if self.count == 1:
            yield
            return
        before = {name: os.environ.get(name) for name in LAUNCHED}
        started = {} if launched() else self._start()
        try:
            with self._watching(started):
                yield
        except BaseException:
            until = time.monotonic() + LEAVING
            for process in started.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
                process.kill()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
            raise

    @contextmanager
    def _watching(self, started: Children) -> Iterator[None]:
        store = _store(self.rank)
        # A connection of its own: the group's may be kept waiting.
        self.watch = Watch(store.clone(), (self.rank, self.count, self.local), started)
        try:
            name = self.watch.join()
            cuda = self.device.type == "cuda"
            if cuda:
                torch.cuda.set_device(self.device)
            distributed.init_process_group(
                "nccl" if cuda else "gloo",
                store=PrefixStore(f"{name}/group", store),
                rank=self.rank,
                world_size=self.count,
                timeout=WAITING,
            )
            yield
        except BaseException as fault:
            if (reason := self.watch.reason(fault)) is fault:
                raise
            raise reason from fault
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
            self.watch.leave()
            self.watch = None

    def _start(self) -> Children:
        """The others on this machine, by rank; from now on this process is one that was started
        like them, also for a second run in the same program."""
        if hasattr(sys, "ps1"):
            what = f"{self.here} processes cannot be started from an interactive session"
            raise EnvironmentFault("R641", f"devices={self.here}", what)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | dict(os.environ)
        where |= {"WORLD_SIZE": str(self.count), "LOCAL_WORLD_SIZE": str(self.here)}
        started = {}
        for local in range(self.here - 1, -1, -1):
            rank = self.rank + local
            where |= {"LOCAL_RANK": str(local), "RANK": str(rank)}
            if local:
                command = [sys.executable, *sys.orig_argv[1:]]
                started[rank] = subprocess.Popen(command, env=where)
                atexit.register(started[rank].wait)
        os.environ.update(where)
        return started

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The network whose gradients are means over all processes."""
        if self.count == 1:
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        # Else torch sorts gradients anew after the first step; with three processes or more their
        # sums, and so the bits of a run that goes on, depend on that order.
        whole = _Whole(model).to(self.device)
        return DistributedDataParallel(whole, device_ids=ids, find_unused_parameters=True)

    @torch.no_grad()
    def align(self, model: nn.Module) -> None:
        """Give all the first one's statistics of normalisation, which each takes of its own
        pictures."""
        for value in model.buffers() if self.count > 1 else ():
            theirs = value.detach().contiguous()
            distributed.broadcast(theirs, 0)
            value.copy_(theirs)

    def require_same(self, what: str, where: str, value: object) -> None:
        """Raises DataError D155 where it is not what the first process has."""
        if self.shared(value) != value:
            said = f"{what} are not those that the first process has"
            step = "give all processes the same command, and the same pictures on every machine"
            raise DataError("D155", where, said, next_step=step)

    def sum(self, tally: Tally) -> Tally:
        """Over all processes."""
        return Tally(*self._reduced(tally, distributed.ReduceOp.SUM))

    def any(self, *here: bool) -> list[bool]:
        """Which of these hold on at least one process?"""
        return [bool(flag) for flag in self._reduced(here, distributed.ReduceOp.MAX)]

    def _reduced(self, here: Sequence[float], how: Any) -> list[float]:
        if self.watch is None:
            return list(here)
        if self.watch.fault is not None:
            raise self.watch.fault
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        values = torch.tensor(here, dtype=kind, device=self.device)
        distributed.all_reduce(values, how)
        return list(values.tolist())

    def shared(self, value: Any) -> Any:
        """The first process's value, on all."""
        values = [value]
        if self.count > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def barrier(self) -> None:
        if self.count > 1:
            distributed.barrier()


class _Whole(nn.Module):
    """A network with a weight that nothing uses: torch warns where it looks for some in vain."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.unused = model, nn.Parameter(torch.zeros(1))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.model(pictures)
        return scores


def launched() -> bool:
    """Is this process one of several that torchrun, or a person by the same variables, started?"""
    return any(name in os.environ for name in PLACE) and os.environ.get("WORLD_SIZE") != "1"


def _place(devices: int, nodes: int) -> tuple[int, ...]:
    """Rank, number on this machine, count of all and of those here. Raises UsageError U308."""
    if not launched():
        if nodes > 1:
            _require(("NODE_RANK", *MEETING), f"--nodes is {nodes}")
        rank = _whole("NODE_RANK") * devices if nodes > 1 else 0
        return rank, 0, devices * nodes, devices
    given = next(name for name in PLACE if name in os.environ)
    _require(LAUNCHED, f"{given} is set, as for several processes")
    rank, local, count, here = (_whole(name) for name in PLACE)
    for name, value, end in (("RANK", rank, count), ("LOCAL_RANK", local, here)):
        if value >= end:
            raise UsageError("U308", f"{name}={value}", f"must be below the count, which is {end}")
    return rank, local, count, here


def _require(names: Sequence[str], why: str) -> None:
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        step = "start it by torchrun, or set all of them for every process; or unset the others"
        raise UsageError("U308", " and ".join(missing), f"not set, but {why}", next_step=step)


def _whole(name: str) -> int:
    value = os.environ[name]
    if not value.isdecimal():
        raise UsageError("U308", f"{name}={value}", "must be a whole number")
    return int(value)


def _store(rank: int) -> distributed.Store:
    """Where all meet: torchrun's, or that of the first. Raises EnvironmentFault R642."""
    _whole("MASTER_PORT")
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    until = time.monotonic() + JOINING.total_seconds()
    host = not rank and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    there = host
    while not there:
        with suppress(OSError), socket.create_connection(place, timeout=BEAT):
            there = True
        if not there and time.monotonic() > until:
            raise _absent(f"the first process, at {place[0]} port {place[1]}")
        time.sleep(0 if there else BEAT / 5)
    try:
        kinds: Any = distributed
        more = {"wait_for_workers": False, "multi_tenant": True}
        return cast(distributed.Store, kinds.TCPStore(*place, None, host, JOINING, **more))
    except RuntimeError as fault:
        raise _absent(f"the meeting place {place[0]} port {place[1]}") from fault


def _absent(who: str) -> EnvironmentFault:
    what = f"cannot be reached, or did not join within {JOINING.seconds // 60} minutes"
    step = "start all with the same MASTER_ADDR and a free MASTER_PORT; is a firewall in between?"
    return EnvironmentFault("R642", who, what, next_step=step)


class Watch:
    """Signs of life of processes that train together, and how one's end becomes that of all."""

    def __init__(
        self, store: distributed.Store, place: tuple[int, int, int], children: Children
    ) -> None:
        """place: rank, count, and number on this machine. children: that this process started."""
        self.fault: ConvscopeError | None = None
        """What ends all, once it is known."""
        self._store, (self._rank, self._count, self._local) = store, place
        self._children = children
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._who = [f"process {number} of {self._count}" for number in range(self._count)]
        self._met = self._joined = False
        self._over, self._noting = threading.Event(), threading.Lock()
        self._beats, self._ticks = [(0, 0)] * self._count, 0
        for work in (self._live, self._guard):
            threading.Thread(target=work, name="watch", daemon=True).start()

    def join(self) -> str:
        """Wait for all, and learn where they are; the name of this meeting, which no other has.
        Raises EnvironmentFault R642."""
        who = f"{self._who[self._rank]} (pid {os.getpid()} on {socket.gethostname()})"
        until = time.monotonic() + JOINING.total_seconds()
        name = self._meet(until)
        self._store = PrefixStore(name, self._store)
        self._store.set(f"who/{self._rank}", who)
        self._met = True
        while missing := self._without([f"who/{n}" for n in range(self._count)]):
            self._pause(until, self._named(missing))
        while missing := self._without([f"beat/{n}" for n in range(self._count)]):
            self._pause(until, self._named(missing))
        self._who = [self._store.get(f"who/{n}").decode() for n in range(self._count)]
        self._joined = True
        return name

    def _meet(self, until: float) -> str:
        """Agree with those that are here now: torchrun's store may hold what an earlier start left.
        The first one tells whom it sees, by names drawn at random, until each has found itself."""
        mine, places = uuid4().hex, [f"here/{n}" for n in range(self._count)]
        self._store.set(places[self._rank], mine)
        missing = list(range(1, self._count))
        while missing:
            if not self._rank:
                absent = self._without(places)
                seen = [
                    "" if n in absent else self._store.get(p).decode() for n, p in enumerate(places)
                ]
                self._store.set("seen", json.dumps(seen))
                missing = self._without([f"{mine}/{n}" for n in range(1, self._count)])
                missing = [n + 1 for n in missing]
            elif self._store.check(["seen"]):
                seen = json.loads(self._store.get("seen"))
                if seen[self._rank] == mine:
                    self._store.add(f"{seen[0]}/{self._rank}", 1)
                    return str(seen[0])
            if missing:
                self._pause(until, self._named(missing if not self._rank else [0]))
        return mine

    def _without(self, keys: Sequence[str]) -> list[int]:
        """Which of these keys are not there?"""
        return [number for number, key in enumerate(keys) if not self._store.check([key])]

    def _pause(self, until: float, missing: str) -> None:
        if self.fault is not None:
            raise self.fault
        if time.monotonic() > until:
            raise _absent(missing)
        time.sleep(BEAT / 5)

    def wait(self, place: str) -> None:
        """For all to be at this place, however long it takes, while all give signs of life."""
        self._store.add(place, 1)
        while self._store.add(place, 0) < self._count:
            if self.fault is not None:
                raise self.fault
            time.sleep(BEAT / 5)

    def reason(self, fault: BaseException) -> BaseException:
        """What to raise for this: the fault that ends all, where it came of that."""
        if isinstance(fault, ConvscopeError):
            return self._end(fault)
        lost = isinstance(fault, distributed.DistError)
        if lost or (isinstance(fault, RuntimeError) and "gloo" in str(fault)):
            return self._missed(fault)
        name, mine = self._who[self._rank], f"{type(fault).__name__}: {fault}"
        bug = isinstance(fault, Exception)
        self._end((ConvscopeError if bug else Stopped)("X070" if bug else "R575", name, mine))
        return fault

    def leave(self) -> None:
        """The end of it; who has the store lets the others read the note first."""
        until = time.monotonic() + 3 * BEAT
        with suppress(RuntimeError):
            going = self.fault is not None and self._met
            left = self._store.add("left", 1) if going else self._count
            while not self._rank and left < self._count and time.monotonic() < until:
                time.sleep(BEAT / 10)
                left = self._store.add("left", 0)
        self._over.set()

    def _live(self) -> None:
        """Give signs of life, and look for those of the others."""
        try:
            while self.fault is None and not self._over.wait(BEAT if self._joined else BEAT / 5):
                self._look()
                self._ticks = 0
        except RuntimeError:
            self._without_store()

    def _look(self) -> None:
        if self._met:
            self._store.add(f"beat/{self._rank}", 1)
        if self._met and self._store.check(["end"]):
            self._end(Stopped("R576", "", ""))  # what is there already counts
        ended = {rank: child.poll() for rank, child in self._children.items()}
        for rank in (rank for rank, status in ended.items() if status):
            self._end(self._lost([rank], ended[rank] or 0))
        if self._orphaned():
            self._end(self._lost([]))
        if self._joined and not self._rank:
            both = zip(self._read(), self._beats, strict=True)
            self._beats = [(new, still + 1 if new == old else 0) for new, (old, still) in both]
            if silent := [n for n, (_, still) in enumerate(self._beats) if still > SILENT]:
                self._end(self._lost(silent))

    def _guard(self) -> None:
        """End this process where it is held up, by one that is lost, though it ought to end."""
        while self.fault is None and self._ticks <= SILENT:
            if self._over.wait(BEAT):
                return
            self._ticks += 1
        if self.fault is None:
            self._without_store()
        if self.fault is not None and not self._over.wait(LEAVING):
            if not self.fault.told:
                print(self.fault.line(), file=sys.stderr, flush=True)  # noqa: T201
            for child in self._children.values():
                child.kill()
            os._exit(self.fault.exit_status)

    def _end(self, fault: ConvscopeError) -> ConvscopeError:
        """Leave a note for all, where there is none; what the note says is the fault of all."""
        with self._noting:
            if self.fault is None:
                said = [fault.code, fault.subject, fault.what, fault.kept, fault.next_step]
                mine = json.dumps([self._rank, type(fault).__name__, *said])
                note = mine
                with suppress(RuntimeError):  # where the store is gone, each tells its own
                    if self._met:
                        note = self._store.compare_set("end", "", mine).decode()
                self.fault = fault if note == mine else _noted(note)
            return self.fault

    def _without_store(self) -> None:
        """The store is gone: its process, or torchrun, is lost. One on each machine says so."""
        if self.fault is None:
            fault = self._lost([] if self._orphaned() else [0])
            beside = self._rank == self._local and not self._orphaned()  # of the first's machine
            fault.told = self._local != (1 if beside else 0)
            self.fault = fault

    def _missed(self, fault: BaseException) -> ConvscopeError:
        """A message did not get through: who is lost?"""
        with suppress(RuntimeError):
            before = self._read()
            until = time.monotonic() + 3 * BEAT
            while self.fault is None and time.monotonic() < until:
                time.sleep(BEAT / 10)
            both = enumerate(zip(before, self._read(), strict=True))
            silent = [n for n, (old, new) in both if old == new and n != self._rank]
            if silent or self.fault is not None:
                return self._end(self._lost(silent))
            first = str(fault).splitlines()[0]
            return self._end(Stopped("R576", "the connection between processes", first))
        self._without_store()
        assert self.fault is not None
        return self.fault

    def _read(self) -> list[int]:
        return [int(n) for n in self._store.multi_get([f"beat/{n}" for n in range(self._count)])]

    def _orphaned(self) -> bool:
        return self._launcher not in (None, os.getppid())

    def _named(self, ranks: Collection[int]) -> str:
        return " and ".join(self._who[rank] for rank in sorted(ranks)[:4])

    def _lost(self, ranks: Collection[int], status: int = 0) -> Stopped:
        """The fault for lost processes, or for torchrun's own. status: as Popen gives it."""
        what = "is lost: killed, often for want of memory, or its machine cannot be reached"
        if status:
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            what = f"was ended by {how}"
        who, step = (
            self._named(ranks) if ranks else "torchrun",
            "the same command goes on from there",
        )
        return Stopped("R576", who, what, kept="all finished epochs", next_step=step)


def _noted(note: str) -> ConvscopeError:
    """The fault that another process left."""
    _, kind, code, subject, what, kept, step = json.loads(note)
    fault: ConvscopeError = getattr(errors, kind)(code, subject, what, kept=kept, next_step=step)
    fault.told = True
    return fault


@contextmanager
def deterministic() -> Iterator[None]:
    """Same numbers, same bits; the caller's random state and settings are given back after.

    An accelerator without a deterministic form of an operation warns, the CPU would refuse.
    """
    was = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"tensorboard.*")
        try:
            torch.use_deterministic_algorithms(True, warn_only=torch.accelerator.is_available())
            # Filling memory that is written anyway costs time and decides nothing.
            settings.fill_uninitialized_memory = False
            yield
        finally:
            torch.use_deterministic_algorithms(was, warn_only=warned)
            settings.fill_uninitialized_memory = filled
