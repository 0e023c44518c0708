"""How does a method of the gradient family get from a network and pictures to records?

A formula says what arrives at each colour of each pixel; the colours of a pixel then become one
number, in the way of the method's authors. What decided the numbers goes into the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ModelError, UsageError, nearest
from convscope.lens.lens import Lens, gradients_of
from convscope.methods.cam_case import Case, finite, forward, prepared, wide
from convscope.methods.targets import Aims, Target
from convscope.network.network import Network
from convscope.network.outputs import scored
from convscope.records.maps import Attribution
from convscope.run import PLAIN, Run

AUTHORS = "authors"
PIXELS = "pixels"
Formula = Callable[[Case], Float[Tensor, "b c h w"]]
"""From a case to what arrives at the pixels, signed; it may leave notes and facts there."""


class Colours(NamedTuple):
    """How the colours of a pixel become one number."""

    words: str
    reduce: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b h w"]]


STRONGEST = Colours("the largest |number| of the colours; has no sign", lambda p: p.abs().amax(1))
SIZES = Colours("the sum of the colours' |numbers|; has no sign", lambda p: p.abs().sum(1))
SUM = Colours("the sum of the colours", lambda p: p.sum(1))


class How(TypedDict, total=False):
    """What may be said to every method of the family, by name; all of it may be left out."""

    target: Target | Iterable[Target] | None
    """Class index, class name, function from scores (b, classes) to (b,), or one of these for
    each picture. Without it the likeliest class."""
    variant: str
    """Whose definition: "authors" without it."""
    classes: Sequence[str]
    """The classes' names, so that a target may be one and the result can name it."""
    run: Run
    """Progress is that of runs, told by the methods that run the network many times."""


def explain(
    title: str,
    variants: Mapping[str, Formula],
    colours: Colours,
    model: nn.Module | Network,
    images: Float[Tensor, "b c h w"],
    *,
    target: Target | Iterable[Target] | None = None,
    variant: str = AUTHORS,
    classes: Sequence[str] = (),
    run: Run = PLAIN,
) -> list[Attribution]:
    """One attribution for each picture; see `How` for the options.

    Raises ModelError M522 (pictures of another size), M520 (no scores), M540 (no gradient), M543
    (NaN); UsageError U350 (no such variant), U351 to U354 (targets), U355 (no pictures).
    """
    if variant not in variants:
        there = nearest(variant, variants)
        raise UsageError("U350", variant, f"no such variant of {title}; {there}")
    with torch.inference_mode(False):
        images = prepared(model, images)
        aims = Aims.of(target, len(images), classes)
        case = Case(scored(model, images), images, aims, run=run)
        pixels = finite("the gradient", variants[variant](case).detach())
        values = colours.reduce(pixels)
    origin = {
        "method": title,
        "variant": variant,
        "layer": PIXELS,
        "colours": colours.words,
        "target chosen": "the likeliest class" if target is None else "by the user",
        "epsilon": 0.0,
        "precision": str(values.dtype).removeprefix("torch."),
    }
    return [_record(case, n, pixels[n], values[n], classes, origin) for n in range(len(images))]


def down(case: Case, rule: AbstractContextManager[Any] | None = None) -> Float[Tensor, "b c h w"]:
    """What the target's score of each picture sends to its pixels; the case is settled then."""
    pixels = case.images.clone().requires_grad_()
    with torch.enable_grad(), Lens(case.model, ()) as lens, rule or nullcontext():
        score = case.settle(forward(lens, pixels))
        return arrived(score, pixels)


def settle(case: Case) -> None:
    """Run the network on the pictures as they are: from now on it is known who is meant."""
    with torch.no_grad(), Lens(case.model, ()) as lens:
        case.settle(forward(lens, case.images))


def gradients(
    case: Case, lens: Lens, number: int, images: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c h w"]:
    """Of one picture's target, at these variations of the picture."""
    pixels = images.to(case.images.dtype).detach().clone().requires_grad_()
    aims = case.aims.only(number).times(len(images))
    score = aims.scores(aims.answer(forward(lens, pixels)))
    return arrived(score, pixels)


def arrived(score: Float[Tensor, "b"], pixels: Float[Tensor, "b c h w"]) -> Tensor:
    """Sent down from the scores, each 1; nothing is computed for weights.

    Raises ModelError M540 (no way down), M532 (parts of the network are computed anew there).
    """
    gradient = None
    if score.requires_grad:
        (gradient,) = gradients_of(wide(score).sum(), [pixels])
    if gradient is None:
        what = "has no gradient with respect to the picture: no_grad, detach or rounding is between"
        step = "remove that from the network, or take a method without gradients"
        raise ModelError("M540", "the score", what, next_step=step)
    return wide(gradient)


def _record(
    case: Case,
    number: int,
    pixels: Float[Tensor, "c h w"],
    values: Float[Tensor, "h w"],
    classes: Sequence[str],
    origin: Mapping[str, Any],
) -> Attribution:
    said = {**origin, **case.facts.get(number, {})}
    notes = case.warnings(number)
    if not bool(pixels.any()):
        notes.insert(0, "0 everywhere: this map says nothing about the picture")
    own = {
        "target": case.aims.words(number, classes),
        "peaks": {said["layer"]: float(values.max())},
        "notes": notes,
    }
    return Attribution(
        values=_array(values),
        target=case.aims.indices[number],
        method=said["method"],
        variant=said["variant"],
        layer=said["layer"],
        space=case.spaces[number],
        score=float(case.scores[number]),
        pixels=_array(pixels),
        origin={**said, **own},
    )


def _array(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.cpu().numpy())
