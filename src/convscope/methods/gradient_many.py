"""What is the gradient like around a picture (SmoothGrad), or on the way to it (integrated
gradients)?

The network runs on many variations of each picture, in batches that fit the memory's fast ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from convscope.errors import UsageError, nearest
from convscope.lens.lens import Lens
from convscope.methods.cam_case import Case, forward, wide
from convscope.methods.gradient_run import Formula, gradients, settle
from convscope.methods.scorecam import batch_size

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
"""How an integral from 0 to 1 becomes a sum. The paper's equation 3 is "right"."""


def smoothed(samples: int, noise: float, seed: int, *, squared: bool = False) -> Formula:
    """The mean gradient (or its square) of noisy copies of the picture."""
    at_least("samples", samples, 1)
    if not isinstance(noise, (int, float)) or not 0 <= noise < math.inf:
        raise UsageError("U361", f"noise {noise}", "must be a number from 0, as 0.15")

    def formula(case: Case) -> Float[Tensor, "b c h w"]:
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

    def formula(case: Case) -> Float[Tensor, "b c h w"]:
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
    case: Case, lens: Lens, start: Float[Tensor, "b c h w"], nodes: Nodes, tell: Told
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
def _scores(case: Case, lens: Lens, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    output = forward(lens, images.to(case.images.dtype))
    return wide(case.aims.scores(case.aims.answer(output)))


def _complete(case: Case, total: Float[Tensor, "b c h w"], at_start: Float[Tensor, "b"]) -> None:
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

    def __init__(self, case: Case, total: int) -> None:
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
