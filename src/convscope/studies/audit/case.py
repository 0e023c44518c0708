"""How is a method tried that might take minutes?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convscope.core.errors import TheirCode
from convscope.lens.twin import ShadowModel, is_scripted
from convscope.network.network import Delivered, Network
from convscope.studies.audit.record import Finding, Verdict

ROUNDING = 1e-4
"""Relative to the largest score: what may differ through the order of sums alone."""


@dataclass
class Case:
    """One network under audit. Everything is tried on `model`, a twin in eval mode with buffers
    of its own, so that not even a network that changes itself when it runs is changed."""

    given: nn.Module
    model: nn.Module
    name: str
    network: Network | None
    """What `load` made; None for a bare module."""
    delivered: Delivered
    seconds: float
    """How long each method may be tried."""
    seed: int
    scored: nn.Module | None = None
    """`model` as methods about a class take it, once it is known where its scores are."""
    image: Float[Tensor, "c h w"] = field(default_factory=lambda: torch.zeros(0))
    pictured: str = ""
    """What the picture is, in words."""
    one_pass: float = 0.0
    """Seconds that the network takes for the picture."""
    layer: str | None = None
    """That class activation maps take if nobody names one, once it is known."""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def explained(self) -> nn.Module:
        return self.scored or self.model

    @property
    def batch(self) -> Float[Tensor, "1 c h w"]:
        return self.image[None]

    def scores(self, images: Float[Tensor, "b c h w"]) -> Any:
        """What the network puts out, without gradients. Its faults are ModelError M522, M574."""
        with torch.no_grad(), TheirCode("M574", "the network", [images]):
            return self.model(images)


def private(model: nn.Module) -> nn.Module:
    """A twin in eval mode that shares weights and nothing else. Raises as ShadowModel does."""
    twin = ShadowModel(model).model
    for module in twin.modules():
        if not is_scripted(module):
            state = module.__dict__
            state["_buffers"] = {
                name: value if value is None else value.clone()
                for name, value in state["_buffers"].items()
            }
    return twin


Check = Callable[[Case], Iterator[Finding]]


@dataclass(frozen=True)
class Heading:
    """Findings under one heading."""

    topic: str

    def _find(
        self, verdict: Verdict, question: str, finding: str, advice: str = "", code: str = ""
    ) -> Finding:
        return Finding(self.topic, question, finding, verdict, advice, code)

    def ok(self, question: str, finding: str, advice: str = "") -> Finding:
        return self._find("ok", question, finding, advice)

    def warn(self, question: str, finding: str, advice: str) -> Finding:
        return self._find("warn", question, finding, advice)

    def bad(self, code: str, question: str, finding: str, advice: str) -> Finding:
        return self._find("bad", question, finding, advice, code)


def said(fault: BaseException, most: int = 160) -> str:
    """The first line of a fault's message, cut where it goes on for long."""
    line = (str(fault).splitlines() or [""])[0].strip() or type(fault).__name__
    return line if len(line) <= most else line[: most - 1] + "…"


def some(names: list[str], most: int = 3) -> str:
    """A few of the names, and how many more there are."""
    shown = ", ".join(name or "the network" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


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
