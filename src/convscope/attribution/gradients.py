"""Saliency, gradient × input, guided backpropagation, deconvnet of a class, guided Grad-CAM,
SmoothGrad and integrated gradients: which pixels would change the score if they changed?

Each is by its authors' definition. All send a signal from the target's score down to the pixels;
they differ in what rectifiers do to it, in what it is multiplied by, and in whether one picture is
asked or many. `pixels` has a signed number for each colour of each pixel, in units of score per
unit of the network's input (gradients) or of score (gradient × input, integrated gradients);
`values` makes one number a pixel of them, in the way that each docstring names. Nothing is scaled,
smoothed or clipped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.attribution.base import AUTHORS, Method, Options, Request, variant_of
from convscope.attribution.formulas import METHODS as CAMS
from convscope.core.errors import ModelError, UsageError, nearest
from convscope.core.run import PLAIN
from convscope.lens.lens import Lens, gradients_of
from convscope.lens.twin import refuse_scripted
from convscope.network.arguments import Given, Layers, Model, several, taking
from convscope.network.network import Network, batch_size, finite, forward, wide
from convscope.network.provenance import recorded
from convscope.records.maps import Attribution
from convscope.trace.backward_rule import BackwardRule, Other, Rule

PIXELS = "pixels"
Pictures = Float[Tensor, "b c h w"]
Formula = Callable[[Request], Pictures]
"""From a request to what arrives at the pixels, signed; it may leave notes and facts there."""
INCOMPLETE = 0.05
"""Integrated gradients whose sum is further off than this want more steps."""
MORE_STEPS = (
    "incomplete: the pixels add up to {:.4g}, but from the baseline the score rises by {:.4g}; "
    "take more steps"
)
Baseline = Float[Tensor, "*shape"]
Nodes = tuple[np.ndarray, np.ndarray]
"""Places between 0 and 1, and their weights."""


class Colours(NamedTuple):
    """How the colours of a pixel become one number."""

    words: str
    reduce: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b h w"]]


STRONGEST = Colours("the largest |number| of the colours; has no sign", lambda p: p.abs().amax(1))
SIZES = Colours("the sum of the colours' |numbers|; has no sign", lambda p: p.abs().sum(1))
SUM = Colours("the sum of the colours", lambda p: p.sum(1))


def explain(
    title: str,
    variants: Mapping[str, Formula],
    colours: Colours,
    model: nn.Module | Network,
    images: Pictures,
    **how: Unpack[Options],
) -> list[Attribution]:
    """One attribution for each picture; see `Options`.

    Raises ModelError M522 (pictures of another size), M520 (no scores), M540 (no gradient), M543
    (NaN); UsageError U350 (no such variant), U351 to U354 (targets), U355 (no pictures).
    """
    variant = how.pop("variant", AUTHORS)
    formula = variant_of(title, variants, variant)
    with torch.inference_mode(False):
        request = Request.of(model, images, **how)
        pixels = finite("the gradient", formula(request).detach())
        values = colours.reduce(pixels)
    origin = {
        "method": title,
        "variant": variant,
        "layer": PIXELS,
        "colours": colours.words,
        "target chosen": "the likeliest class" if how.get("target") is None else "by the user",
        "epsilon": 0.0,
        "precision": str(values.dtype).removeprefix("torch."),
    }
    empty = "0 everywhere: this map says nothing about the picture"
    return [
        request.result(n, values[n], origin, notes=[empty] * (not one.any()), pixels=one)
        for n, one in enumerate(pixels)
    ]


def _down(request: Request, rule: AbstractContextManager[Any] | None = None) -> Pictures:
    """What the target's score of each picture sends to its pixels; the targets are known then."""
    pixels = request.images.clone().requires_grad_()
    with torch.enable_grad(), Lens(request.model, ()) as lens, rule or nullcontext():
        score = request.settle(forward(lens, pixels))
        return _arrived(score, pixels)


def _settle(request: Request) -> None:
    """Run the network on the pictures as they are: from now on the targets are known."""
    with torch.no_grad(), Lens(request.model, ()) as lens:
        request.settle(forward(lens, request.images))


def _gradients(
    request: Request, lens: Lens, number: int, images: Float[Tensor, "n c h w"]
) -> Float[Tensor, "n c h w"]:
    """Of one picture's target, at these variations of the picture."""
    pixels = images.to(request.images.dtype).detach().clone().requires_grad_()
    targets = request.targets.only(number).times(len(images))
    score = targets.scores(targets.answer(forward(lens, pixels)))
    return _arrived(score, pixels)


def _arrived(score: Float[Tensor, "b"], pixels: Pictures) -> Pictures:
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


@taking(images=several)
@recorded
def saliency(model: Model, images: Given, **how: Unpack[Options]) -> list[Attribution]:
    """∂y/∂x: how much the score changes with each colour of each pixel.

    `values` is the largest absolute value of the colours, as the authors draw it; it has no sign.
    Source: Simonyan, Vedaldi and Zisserman 2013, "Deep Inside Convolutional Networks", §3.1.
    """
    return explain(TITLES["saliency"], {AUTHORS: _down}, STRONGEST, model, images, **how)


@taking(images=several)
@recorded
def gradient_x_input(model: Model, images: Given, **how: Unpack[Options]) -> list[Attribution]:
    """∂y/∂x · x: to first order, how much the score falls if a colour is set to 0.

    `values` is the sum of the colours: positive speaks for the target, negative against it. x is
    what the network takes, so 0 is the mean colour where pictures are centred.
    Source: Shrikumar et al. 2016, "Not Just a Black Box", §2.
    """

    def formula(request: Request) -> Pictures:
        return _down(request) * wide(request.images)

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

    def formula(request: Request) -> Pictures:
        pixels = guided(request)
        maps = CAMS["gradcam"](
            request.model, request.images, target=request.targets.each, layer=layer
        )
        for number, one in enumerate(maps):
            request.fact(number, **{key: one.origin[key] for key in ("layer", "layer chosen")})
            if not one.positive:
                request.note(number, "Grad-CAM finds no positive evidence for this target")
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
    _require_count("samples", samples, 1)
    if not isinstance(noise, (int, float)) or not 0 <= noise < math.inf:
        raise UsageError("U361", f"noise {noise}", "must be a number from 0, as 0.15")
    seed = how.get("run", PLAIN).seed

    def formula(request: Request, *, squared: bool = False) -> Pictures:
        _settle(request)
        total = torch.zeros_like(wide(request.images))
        tick, room = _Ticks(request, samples), batch_size(request.model, request.images)
        with torch.enable_grad(), Lens(request.model, ()) as lens:
            for number, image in enumerate(wide(request.images)):
                sigma = noise * (image.max() - image.min())
                drawn = itertools.islice(drawing(image, seed), samples)
                while part := list(itertools.islice(drawn, room)):
                    slopes = _gradients(request, lens, number, image + sigma * torch.stack(part))
                    total[number] += (slopes.square() if squared else slopes).sum(0)
                    tick(len(part))
                request.fact(number, samples=samples, noise=noise, sigma=float(sigma), seed=seed)
        return total / samples

    variants: Mapping[str, Formula] = {AUTHORS: formula, "squared": partial(formula, squared=True)}
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
    if quadrature not in RULES:
        raise UsageError("U362", quadrature, f"is no quadrature; {nearest(quadrature, RULES)}")
    _require_count("steps", steps, 2 if quadrature == "trapezoid" else 1)

    def formula(request: Request) -> Pictures:
        starts = _starts(baseline, wide(request.images))
        _settle(request)
        tick = _Ticks(request, steps * len(starts))
        with torch.enable_grad(), Lens(request.model, ()) as lens:
            total = torch.zeros_like(starts[0])
            for start in starts:
                total += _along(request, lens, start, RULES[quadrature](steps), tick) / len(starts)
            base = torch.stack([_scores(request, lens, one) for one in starts]).mean(0)
        zero = "0, the mean picture if the network's pictures are centred"
        named = zero if baseline is None else f"{len(starts)} given"
        _compare_with_rise(request, total, base)
        for number in range(len(total)):
            request.fact(number, baseline=named, steps=steps, quadrature=quadrature)
        return total

    return explain(TITLES["integrated-gradients"], {AUTHORS: formula}, SUM, model, images, **how)


def _by_rule(name: Rule, other: Other) -> Formula:
    BackwardRule(name, other=other)  # to refuse a wrong option before anything runs

    def formula(request: Request) -> Pictures:
        for part, module in request.model.named_modules():
            refuse_scripted(part, module)
        rule = BackwardRule(name, other=other)
        pixels = _down(request, rule)
        coverage = f"{rule.rewritten} of {rule.rectifiers} rectifiers rewritten"
        for number in range(len(pixels)):
            request.fact(number, rule=name, coverage=coverage, plain_gradient=list(rule.plain))
            if rule.rectifiers == 0:
                text = "there is no rectifier on the way: this is the plain gradient"
                request.note(number, text)
            elif rule.rewritten < rule.rectifiers:
                request.note(number, f"{coverage}; the others pass the plain gradient")
        return pixels

    return formula


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
"""How an integral from 0 to 1 becomes a sum. The paper's equation 3 is "right"."""


def drawing(image: Float[Tensor, "c h w"], seed: int) -> Iterator[Float[Tensor, "c h w"]]:
    """Normal noise, drawn one sample after the other on the CPU: the same for every division into
    batches, device and precision, and for a picture alone and among others."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(image.shape, generator=generator, dtype=torch.float32).to(image)


def _compare_with_rise(request: Request, total: Pictures, base: Float[Tensor, "b"]) -> None:
    """Note where the pixels together are not the score's rise from the baseline's, `base`."""
    for number, result in enumerate(total.cpu().double().flatten(1).sum(1)):
        rise = float(request.scores[number]) - float(base[number])
        text = {"baseline score": float(base[number])}
        request.completeness(number, result, rise, INCOMPLETE, MORE_STEPS, **text)


def _along(request: Request, lens: Lens, start: Pictures, nodes: Nodes, tick: _Ticks) -> Pictures:
    """The mean gradient on the straight way from a baseline, times the way."""
    places, weights = (start.new_tensor(values)[:, None, None, None] for values in nodes)
    total, room = torch.zeros_like(start), batch_size(request.model, request.images)
    for number, (origin, image) in enumerate(zip(start, wide(request.images), strict=True)):
        for at, weight in zip(torch.split(places, room), torch.split(weights, room), strict=True):
            slopes = _gradients(request, lens, number, origin + at * (image - origin))
            total[number] += (weight * slopes).sum(0)
            tick(len(at))
    return total * (wide(request.images) - start)


@torch.no_grad()
def _scores(request: Request, lens: Lens, images: Pictures) -> Float[Tensor, "b"]:
    output = forward(lens, images.to(request.images.dtype))
    return wide(request.targets.scores(request.targets.answer(output)))


def _starts(baseline: Baseline | Sequence[Baseline] | None, images: Pictures) -> list[Pictures]:
    """Raises UsageError U360 for a baseline that does not fit the pictures."""
    if baseline is None:
        return [torch.zeros_like(images)]
    every = list(baseline) if isinstance(baseline, (list, tuple)) else [baseline]
    if not every:
        raise UsageError("U360", "baseline", "is an empty list", next_step="leave it out")
    return [_fitting(one, images) for one in every]


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


class _Ticks:
    """Tells the progress of runs, so many for each picture."""

    def __init__(self, request: Request, each: int) -> None:
        self._run, self._done, self._total = request.run, 0, each * len(request.images)

    def __call__(self, more: int) -> None:
        self._done += more
        self._run.tick(self._done, self._total)


def _require_count(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise UsageError("U361", f"{name} {value}", f"must be a whole number from {least}")


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
