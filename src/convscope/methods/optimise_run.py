"""How does a picture change, step by step, until a goal is reached?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.errors import ModelError, UsageError, nearest
from convscope.lens.lens import gradients_of
from convscope.methods.cam_case import wide
from convscope.methods.optimise_basis import basis
from convscope.methods.optimise_moves import moved, turned
from convscope.methods.optimise_penalties import blurred, penalty
from convscope.methods.optimise_plan import Plan, Range
from convscope.methods.optimise_waking import Waking

SELDOM = 10
"""A unit that is excited in fewer than one of this many steps has not been found."""
SILENT = "is silent: hardly any picture on the way excited it"
OTHERWISE = "try another seed, a picture as start, or the layer before the rectifier"


class Goal(Protocol):
    """A number of a picture that is to become large (or small, where `sign` is −1)."""

    @property
    def name(self) -> str: ...

    @property
    def sign(self) -> int: ...

    def __call__(self, pixels: Float[Tensor, "c h w"]) -> Float[Tensor, ""]: ...


@dataclass
class Climb:
    """A picture on its way; `pixels` are in the units of the network's input."""

    goal: Goal
    plan: Plan
    noise: torch.Generator
    pixels: Float[Tensor, "c h w"]
    values: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    alive: int = 0
    """Steps in which a gradient arrived."""

    def go(self) -> None:
        """All steps, or as many as there are before `stop` says yes.

        Raises ModelError M540 (no gradient is possible), M548 (none arrives), M549 (NaN).
        """
        plan, span = self.plan, Range.of(self.plan, self.pixels)
        way = basis(plan.basis, self.pixels)
        place = way.encode(span.free(self.pixels))
        place = place + plan.noise * drawn(place, self.noise)
        awake, waking = (_rule(plan.rule)(place) for _ in range(2))
        self.pixels = span.bound(way.decode(place))
        for step in range(plan.steps):
            if plan.run.is_stopped:
                return
            before = self.alive
            gradient = self._look(place, lambda here: span.bound(way.decode(here)), span)
            advance = awake if self.alive > before else waking
            place = place + plan.rate(step) * advance(gradient)
            self.pixels = span.bound(way.decode(place))
            blurs = bool(plan.blur) and (step + 1) % plan.blur_every == 0
            if blurs:
                self.pixels = span.input(blurred(span.picture(self.pixels), plan.blur))
            if blurs or span.bounds == "clip":
                place = way.encode(span.free(self.pixels))
            self._tell(step + 1)
        if self.alive * SELDOM < plan.steps:
            raise ModelError("M548", self.goal.name, SILENT, next_step=OTHERWISE)

    def _look(self, place: Tensor, pixels: Callable[[Tensor], Tensor], span: Range) -> Tensor:
        """The objective's gradient at this place; value and objective are written down."""
        place = place.detach().requires_grad_()
        picture = pixels(place)
        seen = picture.detach().requires_grad_()
        varied = turned(moved(seen, self.plan.jitter, self.noise), self.plan.turn, self.noise)
        value, arrived = self._arrived(varied, seen)
        cost = penalty(span.picture(picture), self.plan.regularise)
        self.values.append(value)
        self.objective.append(self.goal.sign * value - float(cost.detach()))
        # What arrives at the picture goes on to the coordinates as the gradient of a product.
        (gradient,) = torch.autograd.grad((picture * arrived).sum() - cost, place)
        if not (math.isfinite(self.objective[-1]) and bool(torch.isfinite(gradient).all())):
            what = f"becomes NaN or infinite at step {len(self.values)}"
            raise ModelError("M549", self.goal.name, what, next_step="lower the learning rate")
        return gradient

    def _arrived(self, varied: Tensor, seen: Tensor) -> tuple[float, Tensor]:
        """The value, and the way up from here (for an error: down).

        A silent unit sends no gradient through its rectifier; see `Waking` for what then helps.
        """
        value = wide(self.goal(varied))
        arrived = _gradient(self.goal.name, self.goal.sign * value, seen)
        if bool(arrived.any()):
            self.alive += 1
            return float(value.detach()), arrived
        with Waking():
            again = self.goal.sign * wide(self.goal(varied))
            arrived = _gradient(self.goal.name, again, seen)
        return float(value.detach()), arrived

    def _tell(self, step: int) -> None:
        if self.plan.observe is not None:
            self.plan.observe(step, self.objective[-1], self.pixels.clone())
        self.plan.run.tick(step, self.plan.steps)


class Adam:
    """Steps of about the same length in every coordinate.

    Source: Kingma and Ba 2015, algorithm 1. Written out, as torch's own take seconds to import.
    """

    def __init__(self, like: Tensor) -> None:
        self._mean, self._square, self._steps = torch.zeros_like(like), torch.zeros_like(like), 0

    def __call__(self, gradient: Tensor) -> Tensor:
        self._steps += 1
        self._mean.lerp_(gradient, 0.1)
        self._square.lerp_(gradient.square(), 0.001)
        mean = self._mean / (1 - 0.9**self._steps)
        square = self._square / (1 - 0.999**self._steps)
        return mean / (square.sqrt() + 1e-20)  # squares of smaller gradients are 0 in float32


class Normalised:
    """The gradient divided by its mean absolute value.

    Source: Mordvintsev, Olah and Tyka 2015, the published notebook.
    """

    def __init__(self, like: Tensor) -> None:
        self._least = torch.finfo(like.dtype).tiny

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient / gradient.abs().mean().clamp_min(self._least)


Rule = Callable[[Tensor], Callable[[Tensor], Tensor]]
RULES: Mapping[str, Rule] = {"adam": Adam, "normalised": Normalised}


def _rule(name: str) -> Rule:
    if name not in RULES:
        raise UsageError("U365", name, f"no such rule; {nearest(name, RULES)}")
    return RULES[name]


def _gradient(name: str, value: Tensor, seen: Tensor) -> Tensor:
    found = None
    if value.requires_grad:
        (found,) = gradients_of(value, [seen], again=True)
    if found is None:
        what = "lets no gradient reach the picture: the way is cut by no_grad, detach or rounding"
        raise ModelError("M540", name, what)
    return found


def drawn(like: Tensor, noise: torch.Generator) -> Tensor:
    """Normal noise, the same on every device."""
    return torch.randn(like.shape, generator=noise, dtype=torch.float64).to(like)
