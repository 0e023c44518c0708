"""Which picture excites this unit, or this class, most?

A picture is changed, step by step along the gradient, until the network answers more strongly.
What comes out shows what the unit *can* be excited by, not what excites it in photographs.
Sources: Erhan, Bengio, Courville and Vincent 2009 (activation maximisation); Simonyan, Vedaldi
and Zisserman 2013, §2 (classes); Yosinski et al. 2015 (regularisers); Olah, Mordvintsev and
Schubert 2017 (coordinates).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ModelError, UsageError, nearest, shown
from convscope.methods.given import taking, unit_of
from convscope.methods.optimise_plan import How
from convscope.methods.optimise_record import Case, Size, finished
from convscope.methods.optimise_sight import Look, canvas, maps, sight
from convscope.methods.targets import Aims, Target
from convscope.network.network import Network
from convscope.network.provenance import recorded
from convscope.records.optimise import OptimisedPicture
from convscope.units import Unit

OVER: Mapping[str, Callable[[Float[Tensor, "h w"]], Float[Tensor, ""]]] = {
    "mean": torch.mean,
    "max": torch.amax,
    "centre": lambda of_unit: of_unit[of_unit.shape[0] // 2, of_unit.shape[1] // 2],
}
"""What of a feature map is to be large: its texture everywhere, its strongest place, or its
middle, where one example of what it sees appears."""
USUAL: How = {"steps": 128, "learning_rate": 0.04, "noise": 0.02, "jitter": 8, "turn": 0.15}
USUAL_CLASS: How = {**USUAL, "regularise": {"l2": 1.0}}


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
        if self.unit.channel >= len(of_layer):
            there = f"has {len(of_layer)} feature maps (0 to {len(of_layer) - 1})"
            raise ModelError("M504", self.unit.layer, f"{there}, no {self.unit.channel}")
        of_unit = of_layer[self.unit.channel]
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
    aims: Aims
    classes: tuple[str, ...]
    sign: int = 1

    @property
    def name(self) -> str:
        return self.aims.words(0, self.classes)

    def __call__(self, pixels: Float[Tensor, "c h w"]) -> Float[Tensor, ""]:
        scores = self.aims.answer(self.look(pixels))
        return self.aims.settled(scores).scores(scores)[0]


@taking(unit=unit_of)
@recorded
def activation_maximisation(
    model: nn.Module | Network,
    unit: Unit | str,
    *,
    size: Size | None = None,
    over: str = "mean",
    natural: float = math.nan,
    **how: Unpack[How],
) -> OptimisedPicture:
    """A picture that excites a unit.

    model: a Network brings its preprocessing along, which a bare module needs by name. unit:
    "conv5:41" is a feature map, "conv5:41@6,7" one place of it. size: rows and columns, or
    colours, rows and columns; without it what the preprocessing makes, or 3 × 224 × 224. over:
    "mean", "max" or "centre" of the map. natural: the same number of the best natural picture,
    see `unit_values`. how: see `How`.

    Raises ModelError M500, M502, M503, M530 (see `Lens`), M504, M505, M542 (no such unit), M522
    (size), M540, M548, M549 (no gradient, silent, NaN); UsageError U201 (unit), U365, U366
    (options), U367 (start).
    """
    unit = cast("Unit", unit)
    if not isinstance(over, str) or over not in OVER:
        raise UsageError("U365", shown(over), f"no such part of a map; {nearest(str(over), OVER)}")
    case = Case.of(model, USUAL, how)
    with sight(case.model, unit.layer) as look:
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
    with sight(case.model, unit.layer) as look, torch.no_grad():
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
    aims = Aims.of(target, 1, case.classes)
    size = tuple(images.shape[1:]) if len(images) else None
    case = case.for_scores(model, size, before=not aims.has_function)  # type: ignore[arg-type]
    with sight(case.model, None) as look, torch.no_grad():
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
    **how: Unpack[How],
) -> OptimisedPicture:
    """A picture with a high score of a class: S_c(I) − λ ‖I‖², with λ = `regularise["l2"]`.

    The score before the softmax, as in the paper, so that it grows by evidence for the class and
    not by the lack of evidence for others. target: class index, name (with `classes`), or a
    function from scores (1, classes) to (1,). The rest as `activation_maximisation`; UsageError
    U352 to U354 for targets.
    Source: Simonyan, Vedaldi and Zisserman 2013, equation 1.
    """
    case = Case.of(model, USUAL_CLASS, how, classes)
    aims = Aims.of(target, 1, case.classes)
    case = case.for_scores(model, size, before=not aims.has_function)
    with sight(case.model, None) as look:
        way = case.begin(ClassGoal(look, aims, case.classes), size)
        way.go()
        return finished(case, way, "class", natural=natural)
