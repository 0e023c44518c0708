"""Parameterisation of an optimised picture: coordinates, range, penalties, transformations.

Coordinates: the same picture and the same optimum, but other ways there. One pixel at a time, a
gradient finds noise first, as high frequencies are what networks with strides let through; if each
coordinate is a wave, weighed as waves are in photographs, large shapes grow as fast as small ones.
Source: Olah, Mordvintsev and Schubert 2017, "Feature Visualization", on preconditioning.

Transformations: in each step the network sees another variation of the picture. What excites only
at one place, one size and one angle is noise to the network's strides, and does not last.

Penalties take u (c, h, w): the picture less mid-grey, in halves of the range from black to white,
so that black is −1 and white 1. Each is a mean over the places, so a weight means the same at
every size; a paper's weight of a sum is ours divided by their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.core.errors import UsageError, nearest
from convscope.core.run import PLAIN, Run
from convscope.network.preprocess import Preprocess

OPPONENT = (
    (0.94, 0.94, 0.94),
    (0.33, 0.0, -0.33),
    (0.10, -0.20, 0.10),
)
"""Three directions in which colours of photographs vary, each as long as its standard deviation:
grey, red against blue, green against both. Measured on 702 photographs of ImageNet's classes:
0.431, 0.125 and 0.064 of the range from black to white; scaled so that the mean over the colours
of their sums of squares is 1."""


@dataclass(frozen=True)
class Basis:
    """There and back: `decode(encode(picture))` is the picture."""

    encode: Callable[[Float[Tensor, "c h w"]], Tensor]
    decode: Callable[[Tensor], Float[Tensor, "c h w"]]


def pixels(like: Float[Tensor, "c h w"]) -> Basis:  # noqa: ARG001
    """Each pixel and colour by itself."""
    return Basis(Tensor.clone, Tensor.clone)


def fourier(like: Float[Tensor, "c h w"]) -> Basis:
    """Waves, each as strong as 1 / frequency; three colours as they vary in photographs.

    Coordinates of unit variance make a picture of unit variance.
    """
    height, width = like.shape[1:]
    strength = _falling(height, width).to(like)
    colours = torch.tensor(OPPONENT, dtype=like.dtype, device=like.device)
    mixed = len(like) == 3
    back = torch.linalg.inv(colours)

    def encode(picture: Tensor) -> Tensor:
        if mixed:
            picture = torch.einsum("khw,kc->chw", picture, back)
        waves = torch.fft.rfft2(picture, norm="ortho") / strength
        return torch.view_as_real(waves).clone()

    def decode(coordinates: Tensor) -> Tensor:
        waves = torch.view_as_complex(coordinates) * strength
        picture = torch.fft.irfft2(waves, s=(height, width), norm="ortho")
        return torch.einsum("khw,kc->chw", picture, colours) if mixed else picture

    return Basis(encode, decode)


def _falling(height: int, width: int) -> Float[Tensor, "h _"]:
    """1 / frequency, the mean's as of the longest wave, for unit variance."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)[None]
    strength = 1 / torch.hypot(rows, columns).clamp_min(1 / max(height, width))
    # Waves across are stored once for left and right, but for the first and, if even, the last.
    twice = torch.full_like(columns, 2.0)
    twice[0, 0] = 1
    if width % 2 == 0:
        twice[0, -1] = 1
    total = (strength**2 * twice).sum() * 2  # a wave has two coordinates
    return strength * math.sqrt(height * width / float(total))


BASES: Mapping[str, Callable[[Tensor], Basis]] = {"fourier": fourier, "pixels": pixels}


def basis(name: str, like: Float[Tensor, "c h w"]) -> Basis:
    """Raises UsageError U365 if there is no such basis."""
    if name not in BASES:
        raise UsageError("U365", name, f"no such basis; {nearest(name, BASES)}")
    return BASES[name](like)


def moved(
    pixels: Float[Tensor, "c h w"], jitter: int, noise: torch.Generator
) -> Float[Tensor, "c h w"]:
    """By up to `jitter` pixels down and right; what leaves comes in on the other side.

    Source: Mordvintsev, Olah and Tyka 2015, the published notebook.
    """
    if not jitter:
        return pixels
    down, right = torch.randint(-jitter, jitter + 1, (2,), generator=noise).tolist()
    return pixels.roll((down, right), (1, 2))


def turned(
    pixels: Float[Tensor, "c h w"], turn: float, noise: torch.Generator
) -> Float[Tensor, "c h w"]:
    """About the middle by up to `turn` (radians), and enlarged or shrunk by up to exp(turn); the
    border is mirrored. Source: Olah, Mordvintsev and Schubert 2017, transformation robustness.
    """
    if not turn:
        return pixels
    angle, zoom = (turn * (2 * torch.rand(2, generator=noise, dtype=torch.float64) - 1)).tolist()
    height, width = pixels.shape[1:]
    cosine, sine = math.cos(angle) * math.exp(zoom), math.sin(angle) * math.exp(zoom)
    # Coordinates go from −1 to 1 along each side, whatever its length.
    way = [[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]
    places = F.affine_grid(pixels.new_tensor([way]), [1, *pixels.shape], align_corners=False)
    whole = F.grid_sample(pixels[None], places, padding_mode="reflection", align_corners=False)
    return whole[0]


Penalty = Callable[[Float[Tensor, "c h w"]], Float[Tensor, ""]]


def alpha_norm(u: Float[Tensor, "c h w"], alpha: float = 6) -> Float[Tensor, ""]:
    """Σ |u|^α over the colours: a wall around what pixels can be, the steeper the larger α.

    Source: Mahendran and Vedaldi 2015, §2, R_α. With α = 2 that of Simonyan, Vedaldi and
    Zisserman 2013, equation 1.
    """
    return u.abs().pow(alpha).sum() / u[0].numel()


def total_variation(u: Float[Tensor, "c h w"], beta: float = 2) -> Float[Tensor, ""]:
    """Σ ((u_right − u)² + (u_below − u)²)^(β/2) over the colours; none beyond the border.

    Source: Mahendran and Vedaldi 2015, §2, R_Vβ.
    """
    right = F.pad(u[:, :, 1:] - u[:, :, :-1], (0, 1))
    below = F.pad(u[:, 1:] - u[:, :-1], (0, 0, 0, 1))
    squares = right.square() + below.square()
    if beta != 2:
        # Where nothing varies the root has no derivative; a hair's breadth gives it one.
        squares = (squares + torch.finfo(u.dtype).eps).pow(beta / 2)
    return squares.sum() / u[0].numel()


PENALTIES: Mapping[str, Penalty] = {
    "l2": lambda u: alpha_norm(u, 2),
    "alpha": alpha_norm,
    "tv": total_variation,
}
"""‖u‖², ‖u‖⁶ with exponent 6, and total variation with β = 2."""


def penalty(u: Float[Tensor, "c h w"], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """Σ weight × penalty. Raises UsageError U365 if there is no such penalty."""
    total = u.new_zeros(())
    for name, weight in weights.items():
        if name not in PENALTIES:
            raise UsageError("U365", name, f"no such penalty; {nearest(name, PENALTIES)}")
        total = total + weight * PENALTIES[name](u)
    return total


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


class Options(TypedDict, total=False):
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
    """All of `Options`, decided."""

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
    def of(cls, usual: Options, said: Options) -> Self:
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
