"""Which pixels would change the score if they changed?

Seven methods with one signature, each by its authors' definition. All send a signal from the
target's score down to the pixels; they differ in what rectifiers do to it, in what it is
multiplied by, and in whether one picture is asked or many. `pixels` has a signed number for each
colour of each pixel, in units of score per unit of the network's input (gradients) or of score
(gradient × input, integrated gradients); `values` makes one number a pixel of them, in the way
that each docstring names. Nothing is scaled, smoothed or clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.attribution.base import Request
from convscope.attribution.cam_methods import gradcam
from convscope.attribution.scorecam import batch_size
from convscope.errors import ModelError, UsageError, nearest
from convscope.lens.lens import Lens, gradients_of
from convscope.lens.twin import refuse_scripted
from convscope.network.arguments import Given, Layers, Model, several, taking
from convscope.network.forward import finite, forward, prepared, wide
from convscope.network.network import Network
from convscope.network.outputs import scored
from convscope.network.provenance import recorded
from convscope.network.targets import Target, Targets
from convscope.records.maps import Attribution
from convscope.run import PLAIN, Run
from convscope.trace.backward_rule import BackwardRule, Other, Rule

AUTHORS = "authors"
PIXELS = "pixels"
Formula = Callable[[Request], Float[Tensor, "b c h w"]]
"""From a case to what arrives at the pixels, signed; it may leave notes and facts there."""


class Colours(NamedTuple):
    """Options the colours of a pixel become one number."""

    words: str
    reduce: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b h w"]]


STRONGEST = Colours("the largest |number| of the colours; has no sign", lambda p: p.abs().amax(1))
SIZES = Colours("the sum of the colours' |numbers|; has no sign", lambda p: p.abs().sum(1))
SUM = Colours("the sum of the colours", lambda p: p.sum(1))


class Options(TypedDict, total=False):
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
    """One attribution for each picture; see `Options` for the options.

    Raises ModelError M522 (pictures of another size), M520 (no scores), M540 (no gradient), M543
    (NaN); UsageError U350 (no such variant), U351 to U354 (targets), U355 (no pictures).
    """
    if variant not in variants:
        there = nearest(variant, variants)
        raise UsageError("U350", variant, f"no such variant of {title}; {there}")
    with torch.inference_mode(False):
        images = prepared(model, images)
        aims = Targets.of(target, len(images), classes)
        case = Request(scored(model, images), images, aims, run=run)
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


def down(
    case: Request, rule: AbstractContextManager[Any] | None = None
) -> Float[Tensor, "b c h w"]:
    """What the target's score of each picture sends to its pixels; the case is settled then."""
    pixels = case.images.clone().requires_grad_()
    with torch.enable_grad(), Lens(case.model, ()) as lens, rule or nullcontext():
        score = case.settle(forward(lens, pixels))
        return arrived(score, pixels)


def settle(case: Request) -> None:
    """Run the network on the pictures as they are: from now on it is known who is meant."""
    with torch.no_grad(), Lens(case.model, ()) as lens:
        case.settle(forward(lens, case.images))


def gradients(
    case: Request, lens: Lens, number: int, images: Float[Tensor, "n c h w"]
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
    case: Request,
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


INCOMPLETE = 0.05
"""Integrated gradients whose sum is further off than this want more steps."""
Baseline = Float[Tensor, "*shape"]
Nodes = tuple[np.ndarray, np.ndarray]
"""Places between 0 and 1, and their weights."""


def _gauss(steps: int) -> Nodes:
    places, weights = np.polynomial.legendre.leggauss(steps)
    return (places + 1) / 2, weights / 2


def _evenly(shift: float) -> Callable[[int], Nodes]:
    return lambda steps: ((np.arange(steps) + shift) / steps, np.full(steps, 1 / steps))


def _trapezoid(steps: int) -> Nodes:
    ends = np.full(steps, 1 / (steps - 1))
    ends[[0, -1]] /= 2
    return np.linspace(0, 1, steps), ends


RULES: Mapping[str, Callable[[int], Nodes]] = {
    "gauss-legendre": _gauss,
    "midpoint": _evenly(0.5),
    "trapezoid": _trapezoid,
    "right": _evenly(1.0),
    "left": _evenly(0.0),
}
"""Options an integral from 0 to 1 becomes a sum. The paper's equation 3 is "right"."""


def smoothed(samples: int, noise: float, seed: int, *, squared: bool = False) -> Formula:
    """The mean gradient (or its square) of noisy copies of the picture."""
    at_least("samples", samples, 1)
    if not isinstance(noise, (int, float)) or not 0 <= noise < math.inf:
        raise UsageError("U361", f"noise {noise}", "must be a number from 0, as 0.15")

    def formula(case: Request) -> Float[Tensor, "b c h w"]:
        settle(case)
        total = torch.zeros_like(wide(case.images))
        with torch.enable_grad(), Lens(case.model, ()) as lens:
            tell = Told(case, samples * len(case.images))
            for number, image in enumerate(wide(case.images)):
                sigma = noise * (image.max() - image.min())
                drawn = drawing(image, seed)
                for part in parts(samples, batch_size(case)):
                    noisy = image + sigma * torch.stack([next(drawn) for _ in part])
                    found = gradients(case, lens, number, noisy)
                    total[number] += (found.square() if squared else found).sum(0)
                    tell(len(part))
                case.fact(number, samples=samples, noise=noise, sigma=float(sigma), seed=seed)
        return total / samples

    return formula


def drawing(image: Float[Tensor, "c h w"], seed: int) -> Iterator[Float[Tensor, "c h w"]]:
    """Normal noise, drawn one sample after the other on the CPU: the same for every division into
    batches, device and precision, and for a picture alone and among others."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(image.shape, generator=generator, dtype=torch.float32).to(image)


def integrated(
    baseline: Baseline | Sequence[Baseline] | None, steps: int, quadrature: str
) -> Formula:
    """The mean gradient on the straight way from the baseline, times the way."""
    if quadrature not in RULES:
        raise UsageError("U362", quadrature, f"is no quadrature; {nearest(quadrature, RULES)}")
    at_least("steps", steps, 2 if quadrature == "trapezoid" else 1)

    def formula(case: Request) -> Float[Tensor, "b c h w"]:
        starts = _starts(baseline, case.images)
        settle(case)
        total = torch.zeros_like(wide(case.images))
        with torch.enable_grad(), Lens(case.model, ()) as lens:
            tell = Told(case, steps * len(starts) * len(case.images))
            for start in starts:
                total += _along(case, lens, start, RULES[quadrature](steps), tell) / len(starts)
            _complete(case, total, torch.stack([_scores(case, lens, s) for s in starts]).mean(0))
        for number in range(len(total)):
            zero = "0, the mean picture if the network's pictures are centred"
            named = zero if baseline is None else f"{len(starts)} given"
            case.fact(number, baseline=named, steps=steps, quadrature=quadrature)
        return total

    return formula


def _along(
    case: Request, lens: Lens, start: Float[Tensor, "b c h w"], nodes: Nodes, tell: Told
) -> Float[Tensor, "b c h w"]:
    places, weights = (start.new_tensor(values)[:, None, None, None] for values in nodes)
    found = torch.zeros_like(start)
    room = batch_size(case)
    for number, (origin, image) in enumerate(zip(start, wide(case.images), strict=True)):
        for part in parts(len(places), room):
            at = slice(part.start, part.stop)
            slopes = gradients(case, lens, number, origin + places[at] * (image - origin))
            found[number] += (weights[at] * slopes).sum(0)
            tell(len(part))
    return found * (wide(case.images) - start)


@torch.no_grad()
def _scores(case: Request, lens: Lens, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    output = forward(lens, images.to(case.images.dtype))
    return wide(case.aims.scores(case.aims.answer(output)))


def _complete(case: Request, total: Float[Tensor, "b c h w"], at_start: Float[Tensor, "b"]) -> None:
    """Write the completeness of each picture into the case, with a note where it fails."""
    sums = total.cpu().double().flatten(1).sum(1)
    for number, (score, start, found) in enumerate(zip(case.scores, at_start, sums, strict=True)):
        rise = float(score) - float(start)
        gap = abs(float(found) - rise) / max(abs(rise), 1e-12)
        facts = {"score": float(score), "baseline score": float(start), "sum": float(found)}
        case.fact(number, completeness={**facts, "relative gap": gap})
        if gap > INCOMPLETE:
            text = (
                f"incomplete: the pixels add up to {float(found):.4g}, but from the baseline the "
                f"score rises by {rise:.4g}; take more steps"
            )
            case.note(number, text)


def _starts(
    baseline: Baseline | Sequence[Baseline] | None, images: Float[Tensor, "b c h w"]
) -> list[Float[Tensor, "b c h w"]]:
    """Raises UsageError U360 for a baseline that does not fit the pictures."""
    if baseline is None:
        return [torch.zeros_like(wide(images))]
    several = list(baseline) if isinstance(baseline, (list, tuple)) else [baseline]
    if not several:
        raise UsageError("U360", "baseline", "is an empty list", next_step="leave it out")
    return [_fitting(one, wide(images)) for one in several]


def _fitting(baseline: Any, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    shape = " × ".join(map(str, images.shape))
    step = f"give a tensor that fits {shape} (pictures, channels, height, width), or a list of such"
    if not isinstance(baseline, Tensor):
        raise UsageError("U360", "baseline", f"is a {type(baseline).__name__}", next_step=step)
    try:
        fits = np.broadcast_shapes(baseline.shape, images.shape) == images.shape
    except ValueError:
        fits = False
    if not fits:
        what = f"has the shape {tuple(baseline.shape)}"
        raise UsageError("U360", "baseline", what, next_step=step)
    if not bool(torch.isfinite(baseline).all()):
        raise UsageError("U360", "baseline", "has NaN or infinite numbers", next_step=step)
    return baseline.detach().clone().to(images).expand_as(images)


class Told:
    """Tells the progress of runs."""

    def __init__(self, case: Request, total: int) -> None:
        self._run, self._done, self._total = case.run, 0, total

    def __call__(self, more: int) -> None:
        self._done += more
        self._run.tick(self._done, self._total)


def parts(count: int, size: int) -> Iterator[range]:
    """0 to count - 1, so many at once."""
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise UsageError("U361", f"{name} {value}", f"must be a whole number from {least}")


Pictures = Float[Tensor, "b c h w"]
Method = Callable[..., list[Attribution]]
"""`(model, images, **Options) -> list[Attribution]`, one for each picture."""


@taking(images=several)
@recorded
def saliency(model: Model, images: Given, **how: Unpack[Options]) -> list[Attribution]:
    """∂y/∂x: how much the score changes with each colour of each pixel.

    `values` is the largest absolute value of the colours, as the authors draw it; it has no sign.
    Source: Simonyan, Vedaldi and Zisserman 2013, "Deep Inside Convolutional Networks", §3.1.
    """
    return explain(TITLES["saliency"], {AUTHORS: down}, STRONGEST, model, images, **how)


@taking(images=several)
@recorded
def gradient_x_input(model: Model, images: Given, **how: Unpack[Options]) -> list[Attribution]:
    """∂y/∂x · x: to first order, how much the score falls if a colour is set to 0.

    `values` is the sum of the colours: positive speaks for the target, negative against it. x is
    what the network takes, so 0 is the mean colour where pictures are centred.
    Source: Shrikumar et al. 2016, "Not Just a Black Box", §2.
    """

    def formula(case: Request) -> Pictures:
        return down(case) * wide(case.images)

    return explain(TITLES["gradient-x-input"], {AUTHORS: formula}, SUM, model, images, **how)


@taking(images=several)
@recorded
def guided_backprop(
    model: Model, images: Given, *, other: Other = "refuse", **how: Unpack[Options]
) -> list[Attribution]:
    """The gradient, of which each rectifier lets pass only what is positive, and only where it
    was open itself.

    `values` is the largest absolute value of the colours: the authors draw colours, whose signs
    say darker or brighter, not for or against. `origin["coverage"]` says how many rectifiers
    followed the rule. other: "refuse" activations that are no rectifiers (GELU, SiLU, …), or let
    their plain "gradient" through. Raises besides ModelError M530 (scripted parts), M531, M532
    (see `BackwardRule`). Source: Springenberg et al. 2015, "Striving for Simplicity", §3.4.
    """
    formula = _by_rule("guided", other)
    return explain(TITLES["guided-backprop"], {AUTHORS: formula}, STRONGEST, model, images, **how)


@taking(images=several)
@recorded
def deconvnet_class(
    model: Model, images: Given, *, other: Other = "refuse", **how: Unpack[Options]
) -> list[Attribution]:
    """A class score taken down as by a deconvnet: each rectifier lets pass what is positive of
    the signal, whether it was open or not.

    Zeiler and Fergus project units, `deconvnet` does that; a class score starts from 1 in the
    place of a unit's activation. The rest as `guided_backprop`.
    Source: Zeiler and Fergus 2014, §2.1; of class scores Simonyan et al. 2013, §4.
    """
    formula = _by_rule("deconvnet", other)
    return explain(TITLES["deconvnet"], {AUTHORS: formula}, STRONGEST, model, images, **how)


@taking(images=several)
@recorded
def guided_gradcam(
    model: Model,
    images: Given,
    layer: Layers = None,
    *,
    other: Other = "refuse",
    **how: Unpack[Options],
) -> list[Attribution]:
    """Guided backpropagation times the Grad-CAM of the same target, enlarged bilinearly.

    `values` is the largest absolute value of the colours. layer: of the Grad-CAM, without it the
    last layer with spatial extent before pooling. other: see `guided_backprop`.
    Source: Selvaraju et al. 2017, "Grad-CAM", §3.2.
    """
    guided = _by_rule("guided", other)

    def formula(case: Request) -> Pictures:
        pixels = guided(case)
        maps = gradcam(case.model, case.images, target=case.aims.each, layer=layer)  # type: ignore[arg-type]
        for number, found in enumerate(maps):
            case.fact(number, **{key: found.origin[key] for key in ("layer", "layer chosen")})
            if not found.positive:
                case.note(number, "Grad-CAM finds no positive evidence for this target")
        return pixels * torch.stack([pixels.new_tensor(one.values) for one in maps])[:, None]

    return explain(TITLES["guided-gradcam"], {AUTHORS: formula}, STRONGEST, model, images, **how)


@taking(images=several)
@recorded
def smoothgrad(
    model: Model,
    images: Given,
    *,
    samples: int = 50,
    noise: float = 0.15,
    **how: Unpack[Options],
) -> list[Attribution]:
    """The mean of the signed gradients at noisy copies of the picture, for the target that the
    picture has without noise.

    `values` is the sum of the colours' absolute values, as in the authors' code. noise: standard
    deviation, as a share of the range from the picture's smallest to its largest number; the
    same for every picture, of the run's seed. Variant "squared": the mean of the squared gradients.
    Raises besides UsageError U361 (samples below 1, noise below 0).
    Source: Smilkov et al. 2017, "SmoothGrad", §2; squared: Hooker et al. 2019.
    """
    seed = how.get("run", PLAIN).seed
    variants: Mapping[str, Formula] = {
        AUTHORS: smoothed(samples, noise, seed),
        "squared": smoothed(samples, noise, seed, squared=True),
    }
    return explain(TITLES["smoothgrad"], variants, SIZES, model, images, **how)


@taking(images=several)
@recorded
def integrated_gradients(
    model: Model,
    images: Given,
    *,
    baseline: Baseline | Sequence[Baseline] | None = None,
    steps: int = 50,
    quadrature: str = "gauss-legendre",
    **how: Unpack[Options],
) -> list[Attribution]:
    """(x − baseline) · ∫ ∂y/∂x along the straight way from the baseline to the picture.

    `values` is the sum of the colours. All pixels together are the score's rise from the
    baseline: `origin["completeness"]` says how well that holds, with a note if it is more than
    5 % off. baseline: preprocessed, of a picture's or the batch's shape, or a list of such, over
    which the mean is taken; without it 0. quadrature: the integral's points and weights, by
    Gauss and Legendre, or "midpoint", "trapezoid", "right" (the paper's equation 3), "left".
    Raises besides UsageError U360 (baseline), U361 (steps), U362 (quadrature).
    Source: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution", equation 1.
    """
    formula = integrated(baseline, steps, quadrature)
    return explain(TITLES["integrated-gradients"], {AUTHORS: formula}, SUM, model, images, **how)


def _by_rule(name: Rule, other: Other) -> Formula:
    BackwardRule(name, other=other)  # to refuse a wrong option before anything runs

    def formula(case: Request) -> Pictures:
        for part, module in case.model.named_modules():
            refuse_scripted(part, module)
        rule = BackwardRule(name, other=other)
        pixels = down(case, rule)
        coverage = f"{rule.rewritten} of {rule.rectifiers} rectifiers rewritten"
        for number in range(len(pixels)):
            case.fact(number, rule=name, coverage=coverage, plain_gradient=list(rule.plain))
            if rule.rectifiers == 0:
                case.note(number, "there is no rectifier on the way: this is the plain gradient")
            elif rule.rewritten < rule.rectifiers:
                case.note(number, f"{coverage}; the others pass the plain gradient")
        return pixels

    return formula


TITLES: Mapping[str, str] = {
    "saliency": "Saliency",
    "gradient-x-input": "Gradient × input",
    "guided-backprop": "Guided backpropagation",
    "deconvnet": "Deconvnet of a class score",
    "guided-gradcam": "Guided Grad-CAM",
    "smoothgrad": "SmoothGrad",
    "integrated-gradients": "Integrated gradients",
}
"""Names in print."""

METHODS: Mapping[str, Method] = {
    "saliency": saliency,
    "gradient-x-input": gradient_x_input,
    "guided-backprop": guided_backprop,
    "deconvnet": deconvnet_class,
    "guided-gradcam": guided_gradcam,
    "smoothgrad": smoothgrad,
    "integrated-gradients": integrated_gradients,
}
"""The family by the names that commands and pages use."""
