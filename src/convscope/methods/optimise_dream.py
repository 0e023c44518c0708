"""What does a layer see in this photograph, if what it sees is drawn into it?

The photograph is changed so that the layer's output grows, first as a small picture and then,
with what came of that, as larger and larger ones: an octave at a time.
Source: Mordvintsev, Olah and Tyka 2015, "Inceptionism", and the notebook published with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ModelError, UsageError
from convscope.methods.cam_case import wide
from convscope.methods.given import Given, Layer, photograph, taking
from convscope.methods.optimise_plan import How, Plan, Range
from convscope.methods.optimise_record import Case, as_tensor, finished
from convscope.methods.optimise_run import Climb
from convscope.methods.optimise_sight import Look, canvas, maps, sight
from convscope.network.network import Network
from convscope.network.provenance import recorded
from convscope.records.optimise import OptimisedPicture
from convscope.units import Unit

USUAL: How = {
    "steps": 10,
    "learning_rate": 0.012,
    "basis": "pixels",
    "rule": "normalised",
    "bounds": "clip",
    "settle": 0.0,
    "jitter": 32,
}
"""As in the notebook, whose step is 1.5 of 255: 0.012 of half the range."""


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
        if self.channel >= len(of_layer):
            there = f"has {len(of_layer)} feature maps (0 to {len(of_layer) - 1})"
            raise ModelError("M504", self.layer, f"{there}, no {self.channel}")
        return wide(of_layer[self.channel]).square().mean()


@taking(image=photograph)
@recorded
def deep_dream(
    model: nn.Module | Network,
    image: Given,
    layer: Layer,
    *,
    octaves: int = 4,
    scale: float = 1.4,
    **how: Unpack[How],
) -> OptimisedPicture:
    """The photograph with what a layer, or a feature map, sees in it drawn into it.

    image: one preprocessed photograph, of the size that the result is to have; larger than the
    network's own is fine for a layer before any linear one. octaves: sizes, each `scale` times
    the one before. steps: of each octave. `value` is the mean square of the layer's output.

    Raises as `invert`, and UsageError U366 for octaves that cannot be, or a `start`.
    """
    case = Case.of(model, USUAL, how)
    if octaves < 1 or not scale > 1 or case.plan.start is not None:
        what = f"octaves={octaves} must be 1 or more, scale={scale} above 1, and no start is taken"
        raise UsageError("U366", "deep dream", what)
    unit = Unit.parse(layer) if isinstance(layer, str) and ":" in layer else layer
    if isinstance(unit, Unit) and unit.at is not None:
        raise UsageError("U366", str(unit), "is one place; a dream takes a whole feature map")
    name, channel = (unit.layer, unit.channel) if isinstance(unit, Unit) else (unit, None)
    with sight(case.model, name) as look:
        photograph = canvas(case.model, as_tensor(image))
        noise = torch.Generator().manual_seed(case.plan.run.seed)
        way = Climb(StrengthGoal(look, name, channel), case.plan, noise, photograph)
        _octaves(way, photograph, [scale ** -(octaves - 1 - n) for n in range(octaves)])
        told = {"octaves": octaves, "scale": scale}
        return finished(case, way, "dream", original=photograph, **told)


def _octaves(way: Climb, photograph: Float[Tensor, "c h w"], factors: list[float]) -> None:
    """Climb at each size. What was drawn is carried over, so that the photograph stays sharp."""
    plan, span = way.plan, Range.of(way.plan, photograph)
    drawn = photograph * 0
    for number, factor in enumerate(factors):
        if plan.run.is_stopped:
            break
        base = resized(photograph, factor)
        way.pixels = base + fitted(drawn, base)
        way.plan = _part(plan, number * plan.steps, len(factors) * plan.steps)
        way.go()
        drawn = way.pixels - base
    way.pixels = span.bound(span.free(photograph + fitted(drawn, photograph)))


def _part(plan: Plan, before: int, asked: int) -> Plan:
    """The same plan for one octave, which tells of all of them."""
    observe, run = plan.observe, plan.run
    return replace(
        plan,
        observe=observe and (lambda step, value, pixels: observe(before + step, value, pixels)),
        run=run.telling(lambda done, _: run.tick(before + done, asked)),
    )


def resized(picture: Float[Tensor, "c h w"], factor: float) -> Float[Tensor, "c _ _"]:
    """Smaller by the factor, without aliases."""
    rows, columns = (max(1, round(side * factor)) for side in picture.shape[1:])
    return _to(picture, (rows, columns), antialias=True)


def fitted(picture: Float[Tensor, "c h w"], like: Tensor) -> Tensor:
    return _to(picture, (like.shape[1], like.shape[2]), antialias=False)


def _to(picture: Tensor, size: tuple[int, int], *, antialias: bool) -> Tensor:
    if tuple(picture.shape[1:]) == size:
        return picture
    whole = F.interpolate(picture[None], size, mode="bilinear", antialias=antialias)
    return whole[0]
