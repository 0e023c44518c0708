"""Score-CAM's question: how sure is the network of the target if it sees only where a map is?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from convscope.attribution.base import Request
from convscope.attribution.formulas import Map, weighted
from convscope.lens.lens import Lens, run_with_hooks
from convscope.network.forward import forward, wide

BYTES = 24e6
"""What the largest activation of one batch may take: more and the system pages (measured)."""
Run = Callable[[Tensor], Any]
"""From pictures to the network's output."""


@dataclass(frozen=True)
class Way:
    """What a variant does differently."""

    corners: bool = False
    """Whether the enlarged map's corners lie on the picture's corners."""
    epsilon: float = 0.0
    """Added to the range by which a map is divided."""
    probabilities: bool = False
    """Whether a map's score is the class probability, or the target's own score."""
    softmax: bool = False
    """Whether the maps' scores are put through a softmax over the maps."""
    flat: bool = False
    """Whether maps without any contrast take part."""


WAYS = {
    "authors": Way(probabilities=True),
    "paper": Way(softmax=True),
    "softmax": Way(softmax=True),
    "pytorch-grad-cam": Way(corners=True, epsilon=1e-8, softmax=True, flat=True),
}


def scorecam(way: Way) -> Callable[[Request, str], Map]:
    """The formula of one variant: ReLU(Σ w_k A_k), w_k from how the masked picture scores."""

    def formula(case: Request, layer: str) -> Map:
        A = case.look((layer,)).activation(layer)
        room = batch_size(case)
        with torch.inference_mode(), Lens(case.model, ()) as lens:
            run = partial(forward, lens)
            done = [_weights(case, run, n, maps, way, room) for n, maps in enumerate(A)]
        if way.probabilities:
            case.spaces = tuple("probability" if s == "logit" else s for s in case.spaces)
        return weighted(torch.stack(done), A)

    return formula


def batch_size(case: Request) -> int:
    """Pictures at once so that no activation is too large for the memory's fast ways."""
    seen, _ = run_with_hooks(case.model, case.images[:1], lambda _, output: output.numel())
    largest = max((count for _, count in seen), default=1)
    return max(1, min(64, int(BYTES // (4 * largest))))


def _weights(
    case: Request, run: Run, number: int, maps: Float[Tensor, "k h w"], way: Way, room: int
) -> Float[Tensor, "k"]:
    """One picture's weights. Equal maps are tried once; flat ones not at all."""
    contrast = maps.flatten(1).amax(1) > maps.flatten(1).amin(1)
    used = torch.ones_like(contrast) if way.flat else contrast
    weights = maps.new_zeros(len(maps))
    if not bool(used.any()):
        return weights
    kinds, which = _distinct(maps[used])
    scores = torch.empty(len(kinds), dtype=weights.dtype, device=weights.device)
    for part in torch.split(torch.arange(len(kinds), device=weights.device), room):
        scores[part] = _scores(case, run, number, kinds[part], way).to(weights.dtype)
        share = number + (int(part[-1]) + 1) / len(kinds)
        case.run.tick(round(share * len(maps)), len(maps) * len(case.images))
    scores = scores[which]
    weights[used] = scores.softmax(0) if way.softmax else scores
    return weights


def _distinct(maps: Float[Tensor, "k h w"]) -> tuple[Float[Tensor, "n h w"], Int[Tensor, "k"]]:
    kinds, which = torch.unique(maps.flatten(1), dim=0, return_inverse=True)
    return kinds.reshape(-1, *maps.shape[1:]), which


def _scores(
    case: Request, run: Run, number: int, maps: Float[Tensor, "n h w"], way: Way
) -> Float[Tensor, "n"]:
    """The target's score with only these parts of the picture seen, the rest 0 (the mean)."""
    image = case.images[number : number + 1]
    aim = case.aims.only(number)
    masks = F.interpolate(
        maps[:, None], image.shape[2:], mode="bilinear", align_corners=way.corners
    )
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    masks = ((masks - low) / (high - low + way.epsilon)).to(image.dtype)
    scores = aim.answer(run(image * masks))
    if way.probabilities and not aim.has_function:
        scores = case.meaning.probabilities(scores)
    return wide(aim.scores(scores))
