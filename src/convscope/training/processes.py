"""Processes that train together (DDP), their devices, and torch's deterministic mode."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from convscope.core.errors import EnvironmentFault, UsageError, nearest


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
LAUNCHED = ("LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Set by torchrun, and by us, for every process."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together, and this one's place among them.

    Those of torchrun are taken; else the first starts the others, by the same command as its own.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    here: int = 1
    """How many there are on this machine."""

    @classmethod
    def of(cls, batch: int, devices: int, nodes: int, accelerator: str) -> Processes:
        """Raises UsageError U306 if the batch cannot be split, U378 for an unknown accelerator,
        EnvironmentFault R641 for one that is not there."""
        if accelerator not in ACCELERATORS:
            hint = nearest(accelerator, ACCELERATORS).replace("it has", "there are")
            raise UsageError("U378", accelerator, f"no such accelerator; {hint}")
        kinds = [kind for kind in ACCELERATORS[accelerator] if AVAILABLE[kind]()]
        if not kinds:
            what = "this machine has none that torch can use"
            step = "pass --accelerator cpu, or auto"
            raise EnvironmentFault("R641", accelerator, what, next_step=step)
        rank, local, count = int(os.environ.get("NODE_RANK", "0")) * devices, 0, devices * nodes
        if "LOCAL_WORLD_SIZE" in os.environ:
            devices, rank, local, count = (int(os.environ[name]) for name in LAUNCHED)
        if batch % count:
            raise UsageError("U306", f"batch={batch}", f"cannot be split between {count} processes")
        there = torch.cuda.device_count() if kinds[0] == "cuda" else 1
        if kinds[0] != "cpu" and devices > there:
            what = f"cannot be used by {devices} processes: this machine has {there}"
            raise EnvironmentFault("R641", accelerator, what)
        device = torch.device(kinds[0], local) if kinds[0] == "cuda" else torch.device(kinds[0])
        return cls(device, rank, count, devices)

    @property
    def first(self) -> bool:
        """Of all; it alone writes and speaks."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """As long as they train together; the others are ended where this one fails."""
        if self.count == 1:
            yield
            return
        started = [] if "LOCAL_WORLD_SIZE" in os.environ else self._start()
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.set_device(self.device)
        try:
            distributed.init_process_group("nccl" if cuda else "gloo")
            yield
        except BaseException:
            for process in started:
                process.terminate()
            for name in LAUNCHED if started else ():
                os.environ.pop(name, None)
            raise
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()

    def _start(self) -> list[subprocess.Popen[bytes]]:
        """The others on this machine; from now on this process is one that was started like them,
        also for a second run in the same program."""
        if hasattr(sys, "ps1"):
            what = f"{self.here} processes cannot be started from an interactive session"
            raise EnvironmentFault("R641", f"devices={self.here}", what)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | dict(os.environ)
        where |= {"WORLD_SIZE": str(self.count), "LOCAL_WORLD_SIZE": str(self.here)}
        started = []
        for local in range(self.here - 1, -1, -1):
            where |= {"LOCAL_RANK": str(local), "RANK": str(self.rank + local)}
            if local:
                command = [sys.executable, *sys.orig_argv[1:]]
                started.append(subprocess.Popen(command, env=where))
                atexit.register(started[-1].wait)
        os.environ.update(where)
        return started

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The network whose gradients are means over all processes."""
        if self.count == 1:
            return model
        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)

    def sum(self, tally: Tally) -> Tally:
        """Over all processes."""
        return Tally(*self._reduced(tally, distributed.ReduceOp.SUM))

    def any(self, *here: bool) -> list[bool]:
        """Which of these hold on at least one process?"""
        return [bool(flag) for flag in self._reduced(here, distributed.ReduceOp.MAX)]

    def _reduced(self, here: Sequence[float], how: Any) -> list[float]:
        if self.count == 1:
            return list(here)
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
