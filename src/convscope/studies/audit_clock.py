"""How is a method tried that might take minutes?"""

from __future__ import annotations

import time
from typing import Any, Self

from torch.overrides import TorchFunctionMode

LEAST, PASSES = 3.0, 8
"""Seconds, and passes of the network, that every method may take: it chooses a layer, and goes up
and down at least once."""


class OutOfTime(Exception):
    """The method has been tried for as long as it may be: it runs, and takes longer."""


class Clock(TorchFunctionMode):
    """Ends what is computed inside its block when the time is over.

    Given to a method as its `progress`, it ends the work politely and knows how long all of it
    would take; else at the next call of torch after as many seconds more as some passes take.
    """

    def __init__(self, seconds: float, one_pass: float) -> None:
        super().__init__()
        self.seconds, self.most = seconds, seconds + max(LEAST, PASSES * one_pass)
        self.share = 0.0
        """Of the whole work that is done."""
        self.started = time.perf_counter()
        self._has_rung = False

    def __enter__(self) -> Self:
        self.started = time.perf_counter()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __call__(self, done: int, total: int) -> None:
        self.share = done / total
        if self.passed > self.seconds and done < total:
            raise OutOfTime

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Once only, and not where a block is left: what it undoes is a call of torch, too.
        name = str(getattr(func, "__name__", ""))
        if self.passed > self.most and not self._has_rung and "grad_enabled" not in name:
            self._has_rung = True
            raise OutOfTime
        return func(*args, **(kwargs or {}))

    @property
    def passed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def needs(self) -> str:
        """How long all of it takes, in words."""
        if not self.share:
            return f"more than {self.passed:.0f} s a picture"
        return f"about {self.passed / self.share:.0f} s a picture"
