"""Feature visualisation: change a picture by gradient ascent until a unit or a class answers most.

Activation maximisation, class images, feature inversion and deep dream. What comes out shows what
a unit *can* be excited by, not what excites it in photographs.
Sources: Erhan, Bengio, Courville and Vincent 2009 (activation maximisation); Simonyan, Vedaldi
and Zisserman 2013, §2 (classes); Yosinski et al. 2015 (regularisers); Mahendran and Vedaldi 2015
(inversion); Mordvintsev, Olah and Tyka 2015, "Inceptionism", and its notebook (dreams); Olah,
Mordvintsev and Schubert 2017 (coordinates).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from convscope.attribution.occlusion import blurred
from convscope.core.errors import ModelError, UsageError, nearest, shown
from convscope.core.units import Unit
from convscope.lens.lens import gradients_of
from convscope.lens.twin import bare
from convscope.network.arguments import Given, Layer, Model, photograph, taking, unit_of
from convscope.network.network import Network, wide
from convscope.network.outputs import Target, Targets, scored
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import recorded
from convscope.records.maps import Kind, OptimisedPicture
from convscope.visualisation.parameterise import (
    OVER,
    ClassGoal,
    FeatureGoal,
    Goal,
    Options,
    Plan,
    Range,
    RedirectedReLU,
    StrengthGoal,
    UnitGoal,
    basis,
    canvas,
    moved,
    penalty,
    turned,
    watched,
)

SELDOM = 10
"""A unit that is excited in fewer than one of this many steps has not been found."""
SILENT = "is silent: hardly any picture on the way excited it"
OTHERWISE = "try another seed, a picture as start, or the layer before the rectifier"


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
                picture = span.picture(self.pixels)
                self.pixels = span.input(blurred(picture, plan.blur, max(1, round(3 * plan.blur))))
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

        A silent unit sends no gradient through its rectifier; see `RedirectedReLU`.
        """
        value = wide(self.goal(varied))
        arrived = _gradient(self.goal.name, self.goal.sign * value, seen)
        if bool(arrived.any()):
            self.alive += 1
            return float(value.detach()), arrived
        with RedirectedReLU():
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


Size = tuple[int, int] | tuple[int, int, int]
DEFAULT_SIZE = (3, 224, 224)
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
        cls, given: nn.Module | Network, usual: Options, said: Options, classes: Sequence[str] = ()
    ) -> Self:
        """A Network brings its preprocessing and class names along."""
        if not isinstance(given, Network):
            return cls(given, Plan.of(usual, said), tuple(classes))
        known: Options = {"preprocess": given.preprocess, **said}
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
        whole = (len(known.mean), *known.size) if isinstance(known, Preprocess) else DEFAULT_SIZE
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


USUAL: Options = {"steps": 128, "learning_rate": 0.04, "noise": 0.02, "jitter": 8, "turn": 0.15}
USUAL_CLASS: Options = {**USUAL, "regularise": {"l2": 1.0}}


@taking(unit=unit_of)
@recorded
def activation_maximisation(
    model: nn.Module | Network,
    unit: Unit | str,
    *,
    size: Size | None = None,
    over: str = "mean",
    natural: float = math.nan,
    **how: Unpack[Options],
) -> OptimisedPicture:
    """A picture that excites a unit.

    model: a Network brings its preprocessing along, which a bare module needs by name. unit:
    "conv5:41" is a feature map, "conv5:41@6,7" one place of it. size: rows and columns, or
    colours, rows and columns; without it what the preprocessing makes, or 3 × 224 × 224. over:
    "mean", "max" or "centre" of the map. natural: the same number of the best natural picture,
    see `unit_values`. how: see `Options`.

    Raises ModelError M500, M502, M503, M530 (see `Lens`), M504, M505, M542 (no such unit), M522
    (size), M540, M548, M549 (no gradient, silent, NaN); UsageError U201 (unit), U365, U366
    (options), U367 (start).
    """
    unit = cast("Unit", unit)
    if not isinstance(over, str) or over not in OVER:
        raise UsageError("U365", shown(over), f"no such part of a map; {nearest(str(over), OVER)}")
    case = Case.of(model, USUAL, how)
    with watched(case.model, unit.layer) as look:
        way = case.begin(UnitGoal(look, unit, over), size)
        way.go()
        return finished(case, way, "unit", natural=natural, over="" if unit.at else over)


def unit_values(
    model: nn.Module | Network,
    unit: Unit | str,
    images: Float[Tensor, "b c h w"],
    *,
    over: str = "mean",
) -> list[float]:
    """What `activation_maximisation` makes large, of pictures that there are: its yardstick.

    images: preprocessed, as the network takes them.
    """
    unit = Unit.parse(unit) if isinstance(unit, str) else unit
    case = Case.of(model, USUAL, {})
    with watched(case.model, unit.layer) as look, torch.no_grad():
        goal = UnitGoal(look, unit, over)
        return [float(goal(canvas(case.model, image))) for image in images]


def class_values(
    model: nn.Module | Network,
    target: Target,
    images: Float[Tensor, "b c h w"],
    *,
    classes: Sequence[str] = (),
) -> list[float]:
    """What `class_image` makes large, of pictures that there are."""
    case = Case.of(model, USUAL, {}, classes)
    aims = Targets.of(target, 1, case.classes)
    size = tuple(images.shape[1:]) if len(images) else None
    case = case.for_scores(model, size, before=not aims.has_function)  # type: ignore[arg-type]
    with watched(case.model, None) as look, torch.no_grad():
        goal = ClassGoal(look, aims, case.classes)
        return [float(goal(canvas(case.model, image))) for image in images]


@taking()
@recorded
def class_image(
    model: nn.Module | Network,
    target: Target,
    *,
    size: Size | None = None,
    classes: Sequence[str] = (),
    natural: float = math.nan,
    **how: Unpack[Options],
) -> OptimisedPicture:
    """A picture with a high score of a class: S_c(I) − λ ‖I‖², with λ = `regularise["l2"]`.

    The score before the softmax, as in the paper, so that it grows by evidence for the class and
    not by the lack of evidence for others. target: class index, name (with `classes`), or a
    function from scores (1, classes) to (1,). The rest as `activation_maximisation`; UsageError
    U352 to U354 for targets.
    Source: Simonyan, Vedaldi and Zisserman 2013, equation 1.
    """
    case = Case.of(model, USUAL_CLASS, how, classes)
    aims = Targets.of(target, 1, case.classes)
    case = case.for_scores(model, size, before=not aims.has_function)
    with watched(case.model, None) as look:
        way = case.begin(ClassGoal(look, aims, case.classes), size)
        way.go()
        return finished(case, way, "class", natural=natural)


USUAL_DREAM: Options = {
    "steps": 10,
    "learning_rate": 0.012,
    "basis": "pixels",
    "rule": "normalised",
    "bounds": "clip",
    "settle": 0.0,
    "jitter": 32,
}
"""As in the notebook, whose step is 1.5 of 255: 0.012 of half the range."""


@taking(image=photograph)
@recorded
def deep_dream(
    model: nn.Module | Network,
    image: Given,
    layer: Layer,
    *,
    octaves: int = 4,
    scale: float = 1.4,
    **how: Unpack[Options],
) -> OptimisedPicture:
    """The photograph with what a layer, or a feature map, sees in it drawn into it.

    image: one preprocessed photograph, of the size that the result is to have; larger than the
    network's own is fine for a layer before any linear one. octaves: sizes, each `scale` times
    the one before. steps: of each octave. `value` is the mean square of the layer's output.

    Raises as `invert`, and UsageError U366 for octaves that cannot be, or a `start`.
    """
    case = Case.of(model, USUAL_DREAM, how)
    if octaves < 1 or not scale > 1 or case.plan.start is not None:
        what = f"octaves={octaves} must be 1 or more, scale={scale} above 1, and no start is taken"
        raise UsageError("U366", "deep dream", what)
    unit = Unit.parse(layer) if isinstance(layer, str) and ":" in layer else layer
    if isinstance(unit, Unit) and unit.at is not None:
        raise UsageError("U366", str(unit), "is one place; a dream takes a whole feature map")
    name, channel = (unit.layer, unit.channel) if isinstance(unit, Unit) else (unit, None)
    with watched(case.model, name) as look:
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


USUAL_INVERT: Options = {
    "steps": 128,
    "learning_rate": 0.03,
    "noise": 0.02,
    "regularise": {"alpha": 0.001, "tv": 0.02},
}


@taking(image=photograph)
@recorded
def invert(
    model: nn.Module | Network,
    image: Given,
    layer: Layer,
    **how: Unpack[Options],
) -> OptimisedPicture:
    """The picture that minimises ‖Φ(x) − Φ0‖² / ‖Φ0‖² + λ_α R_α(x) + λ_V R_V(x).

    image: one preprocessed photograph; Φ0 is what the layer puts out for it. The λ are
    `regularise["alpha"]` and `regularise["tv"]`, per place and in halves of the range from black
    to white, so that they mean the same for every size and network. `value` of the result is the
    first term: the relative error is its root. how: see `Options`.

    Raises ModelError M500, M502, M503, M520, M530 (see `Lens`), M522 (size), M540, M548, M549
    (no gradient, silent, NaN); UsageError U365, U366 (options), U367 (no picture).
    """
    case = Case.of(model, USUAL_INVERT, how)
    with watched(case.model, layer) as look:
        photograph = canvas(case.model, as_tensor(image))
        colours, rows, columns = photograph.shape
        goal = FeatureGoal.of(look, layer, photograph)
        way = case.begin(goal, (colours, rows, columns))
        way.go()
        return finished(case, way, "inversion", original=photograph)


def visualise(
    network: Model, subject: Any, *, image: Given = None, method: str | None = None, **how: Any
) -> OptimisedPicture:
    """A picture made for a unit, a class or, of a photograph, a layer.

    subject: a unit, as "conv5:41" or Unit("conv5", 41); a class index or name; with an image, a
    layer. method: with an image, "inversion" (what the layer keeps of it; the default) or "dream"
    (what the layer sees in it). how: see `Options`, and for the rest `activation_maximisation`,
    `class_image`, `invert` and `deep_dream`, which raise what they raise.

    Raises UsageError U201 (a whole layer without an image), U365 (no such method, or one that
    wants an image), U380 (no subject).
    """
    if method is not None and (not isinstance(method, str) or method not in WITH_IMAGE):
        text = f"no such method; {nearest(method, WITH_IMAGE)}"
        raise UsageError("U365", method if isinstance(method, str) else shown(method), text)
    if image is not None:
        return WITH_IMAGE[method or "inversion"](network, image, subject, **how)
    if method is not None:
        raise UsageError("U365", method, "starts from a photograph", next_step="give image=")
    if subject is None:
        step = 'give a unit, as "LAYER:MAP", or a class'
        raise UsageError("U380", "subject", "None is no unit and no class", next_step=step)
    _refuse_layer(network, subject)
    if isinstance(subject, Unit) or (isinstance(subject, str) and ":" in subject):
        return activation_maximisation(network, subject, **how)
    return class_image(network, subject, **how)


def _refuse_layer(network: Any, subject: Any) -> None:
    """Raises UsageError U201 where a whole layer is in the place of one of its maps."""
    inside = bare(network)
    if subject in getattr(network, "classes", ()) or not isinstance(inside, nn.Module):
        return
    for name, module in inside.named_modules():
        if name and (module is subject or name == subject):
            step = f"write {name}:0 for its first map, or give image= too"
            raise UsageError("U201", name, "is a whole layer, and no unit of it", next_step=step)


WITH_IMAGE: Mapping[str, Callable[..., OptimisedPicture]] = {
    "inversion": invert,
    "dream": deep_dream,
}
"""What `visualise` does with a photograph."""
