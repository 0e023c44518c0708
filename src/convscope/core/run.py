"""Context of a computation: seed, progress bar, memory limit and cancelling, in one argument."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from convscope.core.errors import UsageError, require_options, shown

Progress = Callable[[int, int], None]
"""Told how much is done, and of how much."""

KINDS = {
    "seed": ("__index__", "a whole number"),
    "memory": ("__float__", "a number"),
    "progress": ("__call__", "a function of (done, total)"),
    "stop": ("__call__", "a function without arguments"),
    "folder": ("casefold", "a folder's name or a URL"),
    "engine": ("working", "an engine"),
    "threads": ("__index__", "a whole number"),
}


@dataclass(frozen=True)
class Run:
    """How something is computed, whatever it is: `convscope.topk(network, pictures, run=Run(…))`.

    Raises UsageError U380 for a part of another type.
    """

    seed: int = 0
    """Of all that is drawn at random."""
    progress: Progress | None = None
    """Called with (done, total) now and then; it may raise, to stop the work."""
    memory: float | None = None
    """Bytes that may be taken up where a method can do with less; by default its usual."""
    stop: Callable[[], bool] | None = None
    """Asked now and then by what gives a result when it is stopped before its end, and by passes
    over pictures, which then keep what is done."""
    folder: Path | str | None = None
    """Where finished parts of passes over pictures are kept: a folder, or a URL as s3://… The same
    call goes on from there, also after a kill."""
    engine: Any = None
    """What computes the parts of passes over pictures, as `convscope.Processes(4)` or
    `convscope.RayEngine(…)`; by default this process."""
    threads: int | None = None
    """Of torch in each process of a pass: the last bits of results depend on it. By default those
    that torch has here, and where a pass goes on, those that it was begun with."""

    def __post_init__(self) -> None:
        for name, (wanted, words) in KINDS.items():
            value = getattr(self, name)
            if name == "folder" and isinstance(value, Path):
                continue
            is_fine = hasattr(value, wanted) and not isinstance(value, bool)
            if not is_fine and (value is not None or name == "seed"):
                raise UsageError("U380", name, f"{shown(value)} is not {words}")

    def tick(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)

    @property
    def is_stopped(self) -> bool:
        return self.stop is not None and self.stop()

    def room(self, usual: float) -> float:
        """Bytes: those allowed, or else the usual ones."""
        return usual if self.memory is None else self.memory

    def part(self, number: int, parts: int) -> Run:
        """For one of several equal parts of the work."""
        tick = self.progress
        if tick is None:
            return self
        return replace(
            self, progress=lambda done, total: tick(number * total + done, parts * total)
        )

    def inside(self, name: str) -> Run:
        """For one of several passes: their parts are kept in folders of their own."""
        return self if self.folder is None else replace(self, folder=f"{self.folder}/{name}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While a pass runs: a `stop` that listens for signals does so only then."""
        with self.stop if isinstance(self.stop, AbstractContextManager) else nullcontext():
            yield

    def telling(self, progress: Progress | None) -> Run:
        """The same with another progress, or none."""
        return replace(self, progress=progress)


PLAIN = Run()
"""Seed 0, in silence."""
OLD = {"seed", "progress", "memory", "stop"}


def with_run(
    function: Callable[..., Any], known: Signature, told: Mapping[str, Any]
) -> dict[str, Any]:
    """The keywords of a call, those that came before `Run` in a `run`: taken for one release."""
    old = told.keys() & OLD - known.parameters.keys()
    if not old:
        return dict(told)
    names = ", ".join(f"{name}=…" for name in sorted(old))
    said = f"{function.__name__}({names}) was the way before; give run=convscope.Run({names})"
    warnings.warn(said, DeprecationWarning, stacklevel=3)
    parts = {name: told[name] for name in old}
    kept = {name: value for name, value in told.items() if name not in old}
    return {**kept, "run": replace(told.get("run", PLAIN), **parts)}


P = ParamSpec("P")
R = TypeVar("R")


def with_old_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which takes what came before `Run` too."""
    known = signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        named = with_run(function, known, kwargs)
        require_options(function.__name__, named, known.parameters)
        return function(*args, **named)

    return call
