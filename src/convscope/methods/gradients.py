"""Which pixels would change the score if they changed?

Seven methods with one signature, each by its authors' definition. All send a signal from the
target's score down to the pixels; they differ in what rectifiers do to it, in what it is
multiplied by, and in whether one picture is asked or many. `pixels` has a signed number for each
colour of each pixel, in units of score per unit of the network's input (gradients) or of score
(gradient × input, integrated gradients); `values` makes one number a pixel of them, in the way
that each docstring names. Nothing is scaled, smoothed or clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.lens.twin import refuse_scripted
from convscope.methods.cam import gradcam
from convscope.methods.cam_case import Case, wide
from convscope.methods.given import Given, Layers, Model, several, taking
from convscope.methods.gradient_many import Baseline, integrated, smoothed
from convscope.methods.gradient_run import (
    AUTHORS,
    SIZES,
    STRONGEST,
    SUM,
    Formula,
    How,
    down,
    explain,
)
from convscope.network.provenance import recorded
from convscope.records.maps import Attribution
from convscope.run import PLAIN
from convscope.trace.backward_rule import BackwardRule, Other, Rule

Pictures = Float[Tensor, "b c h w"]
Method = Callable[..., list[Attribution]]
"""`(model, images, **How) -> list[Attribution]`, one for each picture."""


@taking(images=several)
@recorded
def saliency(model: Model, images: Given, **how: Unpack[How]) -> list[Attribution]:
    """∂y/∂x: how much the score changes with each colour of each pixel.

    `values` is the largest absolute value of the colours, as the authors draw it; it has no sign.
    Source: Simonyan, Vedaldi and Zisserman 2013, "Deep Inside Convolutional Networks", §3.1.
    """
    return explain(TITLES["saliency"], {AUTHORS: down}, STRONGEST, model, images, **how)


@taking(images=several)
@recorded
def gradient_x_input(model: Model, images: Given, **how: Unpack[How]) -> list[Attribution]:
    """∂y/∂x · x: to first order, how much the score falls if a colour is set to 0.

    `values` is the sum of the colours: positive speaks for the target, negative against it. x is
    what the network takes, so 0 is the mean colour where pictures are centred.
    Source: Shrikumar et al. 2016, "Not Just a Black Box", §2.
    """

    def formula(case: Case) -> Pictures:
        return down(case) * wide(case.images)

    return explain(TITLES["gradient-x-input"], {AUTHORS: formula}, SUM, model, images, **how)


@taking(images=several)
@recorded
def guided_backprop(
    model: Model, images: Given, *, other: Other = "refuse", **how: Unpack[How]
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
    model: Model, images: Given, *, other: Other = "refuse", **how: Unpack[How]
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
    **how: Unpack[How],
) -> list[Attribution]:
    """Guided backpropagation times the Grad-CAM of the same target, enlarged bilinearly.

    `values` is the largest absolute value of the colours. layer: of the Grad-CAM, without it the
    last layer with spatial extent before pooling. other: see `guided_backprop`.
    Source: Selvaraju et al. 2017, "Grad-CAM", §3.2.
    """
    guided = _by_rule("guided", other)

    def formula(case: Case) -> Pictures:
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
    **how: Unpack[How],
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
    **how: Unpack[How],
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

    def formula(case: Case) -> Pictures:
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
