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
from convscope.methods.cam_case import wide
from convscope.methods.optimise_basis import basis
from convscope.methods.optimise_penalties import blurred, penalty
from convscope.methods.optimise_plan import Plan, Range

STIR = 1.5
"""Growth of the noise with each step for which there is no gradient."""


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
    alive: bool = False
    """Whether a gradient has ever arrived."""

    def go(self) -> None:
        """All steps, or as many as there are before `stop` says yes.

        Raises ModelError M540 (no gradient is possible), M548 (none arrives), M549 (NaN).
        """
        plan, span = self.plan, Range.of(self.plan, self.pixels)
        way = basis(plan.basis, self.pixels)
        place = way.encode(span.free(self.pixels))
        place = place + plan.noise * drawn(place, self.noise)
        advance, stir = _rule(plan.rule)(place), plan.noise
        for step in range(plan.steps):
            self.pixels = span.bound(way.decode(place))
            if plan.stop is not None and plan.stop():
                return
            gradient = self._look(place, lambda here: span.bound(way.decode(here)), span)
            if self.alive:
                place = place + plan.rate(step) * advance(gradient)
            else:  # where nothing leads anywhere, wander
                stir = STIR * max(stir, plan.learning_rate)
                place = place + stir * drawn(place, self.noise)
            self.pixels = span.bound(way.decode(place))
            blurs = bool(plan.blur) and (step + 1) % plan.blur_every == 0
            if blurs:
                self.pixels = span.input(blurred(span.picture(self.pixels), plan.blur))
            if blurs or span.bounds == "clip":
                place = way.encode(span.free(self.pixels))
            self._tell(step + 1)
        if not self.alive:
            raise ModelError("M548", self.goal.name, "is silent: no picture on the way excited it")

    def _look(self, place: Tensor, pixels: Callable[[Tensor], Tensor], span: Range) -> Tensor:
        """The objective's gradient at this place; value and objective are written down."""
        place = place.detach().requires_grad_()
        picture = pixels(place)
        seen = picture.detach().requires_grad_()
        value = wide(self.goal(moved(seen, self.plan.jitter, self.noise)))
        arrived = _gradient(self.goal.name, value, seen)
        self.alive = self.alive or bool(arrived.any())
        cost = penalty(span.picture(picture), self.plan.regularise)
        # What arrives at the picture goes on to the coordinates as the gradient of a product.
        goes_on = (picture * arrived).sum() * self.goal.sign - cost
        (gradient,) = torch.autograd.grad(goes_on, place)
        self.values.append(float(value.detach()))
        self.objective.append(self.goal.sign * self.values[-1] - float(cost.detach()))
        if not (math.isfinite(self.objective[-1]) and bool(torch.isfinite(gradient).all())):
            what = f"becomes NaN or infinite at step {len(self.values)}"
            raise ModelError("M549", self.goal.name, what, next_step="lower the learning rate")
        return gradient

    def _tell(self, step: int) -> None:
        if self.plan.observe is not None:
            self.plan.observe(step, self.objective[-1], self.pixels.clone())
        if self.plan.progress is not None:
            self.plan.progress(step, self.plan.steps)


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
        return mean / (square.sqrt() + torch.finfo(gradient.dtype).tiny)


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
        (found,) = torch.autograd.grad(value, seen, allow_unused=True)
    if found is None:
        what = "lets no gradient reach the picture: the way is cut by no_grad, detach or rounding"
        raise ModelError("M540", name, what)
    return found


def drawn(like: Tensor, noise: torch.Generator) -> Tensor:
    """Normal noise, the same on every device."""
    return torch.randn(like.shape, generator=noise, dtype=torch.float64).to(like)


def moved(
    pixels: Float[Tensor, "c h w"], jitter: int, noise: torch.Generator
) -> Float[Tensor, "c h w"]:
    """The picture moved by up to `jitter` pixels down and right; what leaves comes in again."""
    if not jitter:
        return pixels
    down, right = torch.randint(-jitter, jitter + 1, (2,), generator=noise).tolist()
    return pixels.roll((down, right), (1, 2))
