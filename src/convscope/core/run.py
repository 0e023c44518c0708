"""Context of a computation: seed, progress bar, memory limit and cancelling, in one argument."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from inspect import Signature, signature
from typing import Any, ParamSpec, TypeVar

from convscope.core.errors import UsageError, require_options, shown

Progress = Callable[[int, int], None]
"""Told how much is done, and of how much."""

KINDS = {
    "seed": ("__index__", "a whole number"),
    "memory": ("__float__", "a number"),
    "progress": ("__call__", "a function of (done, total)"),
    "stop": ("__call__", "a function without arguments"),
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
    """Asked now and then by what gives a result when it is stopped before its end."""

    def __post_init__(self) -> None:
        for name, (wanted, words) in KINDS.items():
            value = getattr(self, name)
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

    def telling(self, progress: Progress | None) -> Run:
        """The same with another progress, or none."""
        return replace(self, progress=progress)


PLAIN = Run()
"""Seed 0, in silence."""
OLD = {field.name for field in fields(Run)}


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
