"""With which picture does it begin, and what is written down in the end?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from convscope.errors import UsageError
from convscope.methods.optimise_plan import How, Plan, Range
from convscope.methods.optimise_run import Climb, Goal
from convscope.methods.optimise_sight import canvas
from convscope.network.network import Network
from convscope.network.outputs import scored
from convscope.network.preprocess import Preprocess
from convscope.records.optimise import Kind, OptimisedPicture

Size = tuple[int, int] | tuple[int, int, int]
DEFAULT = (3, 224, 224)
METHOD: Mapping[Kind, str] = {
    "unit": "activation maximisation",
    "class": "class image",
    "inversion": "feature inversion",
    "dream": "deep dream",
}


@dataclass(frozen=True)
class Case:
    """One call: a network, what is known of its pictures, and how the picture is to be made."""

    model: nn.Module
    plan: Plan
    classes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, given: nn.Module | Network, usual: How, said: How, classes: Sequence[str] = ()
    ) -> Self:
        """A Network brings its preprocessing and class names along."""
        if not isinstance(given, Network):
            return cls(given, Plan.of(usual, said), tuple(classes))
        known: How = {"preprocess": given.preprocess, **said}
        return cls(given.model, Plan.of(usual, known), tuple(classes or given.classes))

    def begin(self, goal: Goal, size: Size | None) -> Climb:
        """At the plan's start, or at grey of this size; the noise is seeded.

        Raises UsageError U366 (no such size), U367 (no picture to start from).
        """
        noise = torch.Generator().manual_seed(self.plan.run.seed)
        start = self._first(size)
        if self.plan.start is None:
            start = Range.of(self.plan, start).input(start)
        return Climb(goal, self.plan, noise, start)

    def _first(self, size: Size | None) -> Tensor:
        told = self.plan.start
        return canvas(
            self.model, torch.zeros(self._shape(size)) if told is None else as_tensor(told)
        )

    def for_scores(
        self, given: nn.Module | Network, size: Size | None = None, *, before: bool = True
    ) -> Self:
        """The same case, whose network puts out its scores."""
        return replace(self, model=scored(given, self._first(size)[None], before=before))

    def _shape(self, size: Size | None) -> tuple[int, ...]:
        """Colours, rows, columns."""
        known = self.plan.preprocess
        whole = (len(known.mean), *known.size) if isinstance(known, Preprocess) else DEFAULT
        size = whole if size is None else size
        if len(size) not in (2, 3) or min(size) < 1:
            what = f"is {size}; it must be rows and columns, or colours, rows and columns"
            raise UsageError("U366", "size", what)
        return (*whole[: 3 - len(size)], *size)


def as_tensor(picture: Tensor | np.ndarray) -> Tensor:
    return picture if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture))


def finished(
    case: Case,
    way: Climb,
    kind: Kind,
    *,
    natural: float = math.nan,
    original: Tensor | None = None,
    **more: Any,
) -> OptimisedPicture:
    """The record of a way that is over. Works inside the `with` of the goal's sight."""
    with torch.no_grad():
        value = float(way.goal(way.pixels))
    span = Range.of(way.plan, way.pixels)
    known = span.bounds != "none"
    origin = {
        "method": METHOD[kind],
        **case.plan.settings(),
        **more,
        "size": list(way.pixels.shape),
    }
    return OptimisedPicture(
        pixels=way.pixels.detach().cpu().numpy(),
        kind=kind,
        subject=way.goal.name,
        value=value,
        values=np.array(way.values),
        objective=np.array(way.objective),
        asked=case.plan.steps * int(more.get("octaves", 1)),
        natural=natural,
        black=span.black.cpu().numpy() if known else np.zeros(0, np.float32),
        white=span.white.cpu().numpy() if known else np.zeros(0, np.float32),
        original=None if original is None else original.detach().cpu().numpy(),
        origin=origin,
    )
