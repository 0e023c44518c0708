"""Optimised pictures: their parameterisation, penalties, transformations, and objectives.

Coordinates: the same picture and the same optimum, but other ways there. One pixel at a time, a
gradient finds noise first, as high frequencies are what networks with strides let through; if each
coordinate is a wave, weighed as waves are in photographs, large shapes grow as fast as small ones.
Source: Olah, Mordvintsev and Schubert 2017, "Feature Visualization", on preconditioning.

Transformations: in each step the network sees another variation of the picture. What excites only
at one place, one size and one angle is noise to the network's strides, and does not last.

Penalties take u (c, h, w): the picture less mid-grey, in halves of the range from black to white,
so that black is −1 and white 1. Each is a mean over the places, so a weight means the same at
every size; a paper's weight of a sum is ours divided by their number.

A rectifier that lets nothing through sends no gradient back, so a silent unit does not say what
would excite it. Under `RedirectedReLU` closed rectifiers send back the part of a signal that asks
for more, and open ones all of it; so the way leads to where the unit opens, if there is one.
Source: the code published with Olah, Mordvintsev and Schubert 2017. There all closed places of a
map count alike; here the nearer one is to opening the more it counts, as what is good for all
places at once is a flat picture, which excites few units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convscope.attribution.base import as_maps
from convscope.core.errors import ModelError, UsageError, nearest
from convscope.core.run import PLAIN, Run
from convscope.core.units import Unit
from convscope.lens.lens import Lens
from convscope.network.network import forward, wide
from convscope.network.outputs import Targets
from convscope.network.preprocess import Preprocess
from convscope.trace.backward_rule import Masks, recognise
from convscope.trace.operations import name_of

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


Look = Callable[[Float[Tensor, "c h w"]], Any]


@contextmanager
def watched(model: nn.Module, layer: str | None) -> Iterator[Look]:
    """Gives a function from one picture to the layer's output, or without a layer to the
    network's. The network runs no further than it must, in eval mode, on a twin; gradients go
    to the picture alone. Raises as Lens and `forward` do.
    """
    layers = () if layer is None else (layer,)
    with torch.inference_mode(False), torch.enable_grad(), Lens(model, layers) as lens:

        def look(picture: Tensor) -> Any:
            entering = fitted(model, picture)
            if layer is None:
                return forward(lens, entering)
            forward(lens.reach, entering)
            return lens[layer]

        yield look


def fitted(model: nn.Module, picture: Float[Tensor, "c h w"]) -> Float[Tensor, "1 c h w"]:
    """The picture where and in the precision in which the network computes."""
    like = next((weight for weight in model.parameters() if weight.is_floating_point()), picture)
    return picture[None].to(like.device, like.dtype)


def canvas(model: nn.Module, picture: Tensor) -> Float[Tensor, "c h w"]:
    """A picture to work on: where the network is, in float64 if it computes so, else float32.

    Raises UsageError U367 unless it is one picture (c, h, w) of finite numbers.
    """
    if picture.dim() == 4 and len(picture) == 1:
        picture = picture[0]
    if picture.dim() != 3 or 0 in picture.shape or not picture.is_floating_point():
        what = f"{tuple(picture.shape)} is not one preprocessed picture (colours, height, width)"
        raise UsageError("U367", "picture", what)
    if not bool(torch.isfinite(picture).all()):
        raise UsageError("U367", "picture", "has NaN or infinite numbers")
    like = next((weight for weight in model.parameters() if weight.is_floating_point()), picture)
    kind = torch.float64 if like.dtype == torch.float64 else torch.float32
    return picture.detach().clone().to(like.device, kind)


def maps(layer: str, output: Tensor, picture: Tensor) -> Float[Tensor, "k h w"]:
    """A layer's feature maps; the units of a fully connected layer are maps of one place.

    Raises ModelError M542 where there are no maps of the picture.
    """
    if output.dim() == 2:
        return output[0, :, None, None]
    try:
        return as_maps(tuple(output.shape), (picture.shape[1], picture.shape[2]))(output)[0]
    except ModelError as fault:
        raise ModelError("M542", layer, fault.what, next_step="name another layer") from fault


class Goal(Protocol):
    """A number of a picture that is to become large (or small, where `sign` is −1)."""

    @property
    def name(self) -> str: ...

    @property
    def sign(self) -> int: ...

    def __call__(self, pixels: Float[Tensor, "c h w"]) -> Float[Tensor, ""]: ...


OVER: Mapping[str, Callable[[Float[Tensor, "h w"]], Float[Tensor, ""]]] = {
    "mean": torch.mean,
    "max": torch.amax,
    "centre": lambda of_unit: of_unit[of_unit.shape[0] // 2, of_unit.shape[1] // 2],
}
"""What of a feature map is to be large: its texture everywhere, its strongest place, or its
middle, where one example of what it sees appears."""


@dataclass(frozen=True)
class UnitGoal:
    """A unit's activation."""

    look: Look
    unit: Unit
    over: str
    sign: int = 1

    @property
    def name(self) -> str:
        return str(self.unit)

    def __call__(self, pixels: Float[Tensor, "c h w"]) -> Float[Tensor, ""]:
        of_layer = maps(self.unit.layer, self.look(pixels), pixels)
        of_unit = _channel(of_layer, self.unit.layer, self.unit.channel)
        if self.unit.at is None:
            return OVER[self.over](of_unit)
        rows, columns = of_unit.shape
        if self.unit.at[0] >= rows or self.unit.at[1] >= columns:
            there = f"has {rows} rows and {columns} columns, counted from 0"
            raise ModelError("M505", str(self.unit), there)
        return of_unit[self.unit.at]


@dataclass(frozen=True)
class ClassGoal:
    """A class's score."""

    look: Look
    aims: Targets
    classes: tuple[str, ...]
    sign: int = 1

    @property
    def name(self) -> str:
        return self.aims.words(0, self.classes)

    def __call__(self, pixels: Float[Tensor, "c h w"]) -> Float[Tensor, ""]:
        scores = self.aims.answer(self.look(pixels))
        return self.aims.settled(scores).scores(scores)[0]


@dataclass(frozen=True)
class StrengthGoal:
    """The mean square of a layer's output, or of one of its feature maps."""

    look: Look
    layer: str
    channel: int | None
    sign: int = 1

    @property
    def name(self) -> str:
        return self.layer if self.channel is None else str(Unit(self.layer, self.channel))

    def __call__(self, pixels: Float[Tensor, "c h w"]) -> Float[Tensor, ""]:
        output = self.look(pixels)
        if self.channel is None:
            return wide(output).square().mean()
        of_layer = maps(self.layer, output, pixels)
        return wide(_channel(of_layer, self.layer, self.channel)).square().mean()


@dataclass(frozen=True)
class FeatureGoal:
    """How far a layer's output is from that for the photograph: ‖Φ − Φ0‖² / ‖Φ0‖²."""

    look: Look
    name: str
    wanted: Tensor
    size: Float[Tensor, ""]
    sign: int = -1

    @classmethod
    def of(cls, look: Look, layer: str, image: Float[Tensor, "c h w"]) -> FeatureGoal:
        """Raises ModelError M543 (NaN), M548 where the layer puts out nothing but zeros."""
        with torch.no_grad():
            wanted = wide(look(image))
        size = wanted.square().sum()
        if not bool(torch.isfinite(size)):
            raise ModelError("M543", layer, "has NaN or infinite numbers")
        if not bool(size > 0):
            raise ModelError("M548", layer, "is silent: it puts out only zeros for this picture")
        return cls(look, layer, wanted, size)

    def __call__(self, pixels: Float[Tensor, "c h w"]) -> Float[Tensor, ""]:
        return (wide(self.look(pixels)) - self.wanted).square().sum() / self.size


def _channel(of_layer: Float[Tensor, "k h w"], layer: str, channel: int) -> Float[Tensor, "h w"]:
    """Raises ModelError M504 where the layer has no such feature map."""
    if channel >= len(of_layer):
        there = f"has {len(of_layer)} feature maps (0 to {len(of_layer) - 1})"
        raise ModelError("M504", layer, f"{there}, no {channel}")
    return of_layer[channel]


class RedirectedReLU(TorchFunctionMode):
    """A context in which closed rectifiers send back what would open them.

    Values on the way up stay the same. A rectifier in place whose result the network does not
    take is left as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._masks = Masks()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        found = recognise(name, args, kwargs, self._masks)
        if found is None or not found.x.requires_grad:
            result = func(*args, **kwargs)
            self._masks.note(name, args, result)
            return result
        below = found.x.clone()  # the call may be in place
        above = func(*args, **kwargs)
        closed = below.masked_fill(above > 0, 0)
        near = _nearness(below.detach())
        closed.register_hook(lambda signal: signal.relu() * near)  # type: ignore[no-untyped-call]
        return above + (closed - closed.detach())


def _nearness(below: Tensor) -> Tensor:
    """1 where a map comes nearest to opening, e times less with each standard deviation less."""
    if below.dim() != 4:
        return torch.ones_like(below)
    spread = below.std((2, 3), keepdim=True, correction=0)
    short = below - below.amax((2, 3), keepdim=True)
    return torch.exp(short / spread.clamp_min(torch.finfo(below.dtype).tiny))
