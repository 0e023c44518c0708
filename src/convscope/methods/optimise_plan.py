"""How is a picture to be made: in how many steps, how large, and under what rules?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from convscope.errors import UsageError, nearest
from convscope.network.preprocess import Preprocess
from convscope.run import PLAIN, Run

Observe = Callable[[int, float, Tensor], None]
BOUNDS = ("soft", "clip")
SETTINGS = (
    "steps", "learning_rate", "basis", "rule", "bounds", "noise", "settle", "jitter", "turn",
    "blur", "blur_every",
)  # fmt: skip
NOT_NEGATIVE = ("jitter", "turn", "blur", "noise", "settle")
NEAREST = 0.999
"""How near black or white a pixel may start where the bounds are soft and never reach them."""
Greys = Preprocess | tuple[float, float] | None


class How(TypedDict, total=False):
    """What may be said to every function of this page, by name; all of it may be left out."""

    preprocess: Greys
    """The network's own; or what black and white are in the units of its input, as for grey
    networks. Pixels stay between the two. Without it nothing holds them but penalties, and the
    units of the input stand for halves of the range."""
    steps: int
    learning_rate: float
    """About how far one step goes, in halves of the range from black to white."""
    regularise: Mapping[str, float]
    """Weights of penalties: "l2", "alpha" and "tv", see `optimise_penalties`."""
    basis: str
    """"fourier" or "pixels", see `optimise_basis`."""
    rule: str
    """"adam", or "normalised": the gradient divided by its mean absolute value."""
    bounds: str
    """How pixels are kept between black and white: "soft", by a tanh, or "clip"."""
    noise: float
    """Standard deviation of the noise on the start, in halves of the range; none on a `start`."""
    settle: float
    """The last part of the steps (0 to 1), over which they become shorter and shorter."""
    jitter: int
    """The network sees the picture moved by up to this many pixels, round its border, …"""
    turn: float
    """… turned by up to this angle (radians), and larger or smaller by up to exp(turn)."""
    blur: float
    """Standard deviation in pixels of a blur after every `blur_every` steps; 0 for none."""
    blur_every: int
    start: Float[Tensor, "c h w"] | np.ndarray | None
    """Where to begin, e.g. the `pixels` of a picture that was stopped; without it faint noise."""
    observe: Observe | None
    """Called after each step with (steps done, objective before it, the picture so far)."""
    run: Run
    """Seed of the noise and the moves; progress in steps; stop is asked before each step, and once
    it says yes, the picture so far is the result."""


@dataclass(frozen=True)
class Plan:
    """All of `How`, decided."""

    preprocess: Greys = None
    steps: int = 256
    learning_rate: float = 0.05
    regularise: Mapping[str, float] = field(default_factory=dict)
    basis: str = "fourier"
    rule: str = "adam"
    bounds: str = "soft"
    noise: float = 0.0
    settle: float = 0.5
    jitter: int = 0
    turn: float = 0.0
    blur: float = 0.0
    blur_every: int = 4
    start: Tensor | np.ndarray | None = None
    observe: Observe | None = None
    run: Run = PLAIN

    @classmethod
    def of(cls, usual: How, said: How) -> Self:
        """Raises UsageError U365 (no such bounds), U366 for numbers that cannot be meant."""
        options: dict[str, Any] = {**usual, **said}
        if said.get("start") is not None:
            options["noise"] = said.get("noise", 0.0)
        plan = cls(**options)
        for name in ("steps", "learning_rate", "blur_every", *NOT_NEGATIVE):
            value = getattr(plan, name)
            if not (value >= 0 if name in NOT_NEGATIVE else value > 0):
                least = "0 or more" if name in NOT_NEGATIVE else "above 0"
                raise UsageError("U366", name, f"is {value}, and must be {least}")
        if plan.bounds not in BOUNDS:
            raise UsageError("U365", plan.bounds, f"no such bounds; {nearest(plan.bounds, BOUNDS)}")
        return plan

    def rate(self, step: int) -> float:
        """How far step `step` goes, counted from 0."""
        left = (self.steps - step) / self.steps
        return self.learning_rate * (min(1.0, left / self.settle) if self.settle else 1.0)

    def settings(self) -> dict[str, Any]:
        """What decides the numbers, for a record's origin."""
        told = {name: getattr(self, name) for name in SETTINGS} | {"seed": self.run.seed}
        start = "noise" if self.start is None else "a picture"
        return {**told, "regularise": dict(self.regularise), "start": start}


@dataclass(frozen=True)
class Range:
    """From black to white in the units of a network's input."""

    black: Float[Tensor, "c #h #w"]
    white: Float[Tensor, "c #h #w"]
    bounds: str
    """"soft", "clip" or, where black and white are not known, "none"."""

    @classmethod
    def of(cls, plan: Plan, like: Float[Tensor, "c h w"]) -> Self:
        """Raises UsageError U366, U367 if the preprocessing is not for such pictures."""
        given = plan.preprocess
        if given is None:
            one = like.new_ones(len(like), 1, 1)
            return cls(-one, one, "none")
        if isinstance(given, Preprocess):
            mean, std = (_fitting(numbers, like) for numbers in (given.mean, given.std))
            return cls((0 - mean) / std, (255 * given.scale - mean) / std, plan.bounds)
        black, white = (like.new_full((len(like), 1, 1), float(value)) for value in given)
        if not bool((white > black).all()):
            raise UsageError("U366", "preprocess", "white must be more than black")
        return cls(black, white, plan.bounds)

    @property
    def half(self) -> Tensor:
        return (self.white - self.black) / 2

    @property
    def grey(self) -> Tensor:
        return (self.white + self.black) / 2

    def input(self, u: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
        """From the picture less grey in halves of the range to what the network takes."""
        return self.grey + u * self.half

    def picture(self, pixels: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
        """The opposite of `input`."""
        return (pixels - self.grey) / self.half

    def bound(self, free: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
        """What the network takes, between black and white, for any numbers."""
        if self.bounds == "none":
            return self.input(free)
        return self.input(free.clamp(-1, 1) if self.bounds == "clip" else torch.tanh(free))

    def free(self, pixels: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
        """The opposite of `bound`, for pixels between black and white."""
        u = self.picture(pixels)
        return torch.atanh(u.clamp(-NEAREST, NEAREST)) if self.bounds == "soft" else u


def _fitting(numbers: Any, like: Float[Tensor, "c h w"]) -> Float[Tensor, "c #h #w"]:
    """One number a colour; one a pixel only where the size is that of the picture."""
    values = np.asarray(numbers, dtype=np.float64)
    if len(values) != len(like):
        what = f"is of {len(values)} colours, and the picture has {len(like)}"
        raise UsageError("U367", "preprocess", what)
    if values.ndim == 3 and values.shape != tuple(like.shape):
        values = values.mean((1, 2))
    return torch.from_numpy(values.reshape(len(values), *(values.shape[1:] or (1, 1)))).to(like)
