"""Objectives of feature visualisation: a unit, a class, a layer; redirected ReLU gradients.

A rectifier that lets nothing through sends no gradient back, so a silent unit does not say what
would excite it. Under `RedirectedReLU` closed rectifiers send back the part of a signal that asks
for more, and open ones all of it; so the way leads to where the unit opens, if there is one.
Source: the code published with Olah, Mordvintsev and Schubert 2017. There all closed places of a
map count alike; here the nearer one is to opening the more it counts, as what is good for all
places at once is a flat picture, which excites few units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convscope.attribution.base import as_maps
from convscope.core.errors import ModelError, UsageError
from convscope.core.units import Unit
from convscope.lens.lens import Lens
from convscope.network.network import forward, wide
from convscope.network.outputs import Targets
from convscope.trace.backward_rule import Masks, recognise
from convscope.trace.operations import name_of

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
