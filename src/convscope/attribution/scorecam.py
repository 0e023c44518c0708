"""Score-CAM's weights: how sure the network is of the target if it sees only where a map is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from convscope.attribution.base import ForwardPass, Request
from convscope.attribution.cam import Map, weighted
from convscope.lens.lens import Lens
from convscope.network.network import batch_size, forward, wide

Ask = Callable[[Tensor], Any]
"""From pictures to the network's output."""


@dataclass(frozen=True)
class Masking:
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
    "authors": Masking(probabilities=True),
    "paper": Masking(softmax=True),
    "softmax": Masking(softmax=True),
    "pytorch-grad-cam": Masking(corners=True, epsilon=1e-8, softmax=True, flat=True),
}


def by_masks(run: ForwardPass, layer: str, way: Masking) -> Map:
    """ReLU(Σ w_k A_k), w_k from how the masked picture scores in one variant."""
    A, request = run.activation(layer), run.request
    room = batch_size(request.model, request.images)
    with torch.inference_mode(), Lens(request.model, ()) as lens:
        ask = partial(forward, lens)
        weights = [_weights(request, ask, n, maps, way, room) for n, maps in enumerate(A)]
    if way.probabilities:
        spaces = ("probability" if space == "logit" else space for space in request.spaces)
        request.spaces = tuple(spaces)
    return weighted(torch.stack(weights), A)


def _weights(
    request: Request, ask: Ask, number: int, maps: Float[Tensor, "k h w"], way: Masking, room: int
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
        scores[part] = _scores(request, ask, number, kinds[part], way).to(weights.dtype)
        share = number + (int(part[-1]) + 1) / len(kinds)
        request.run.tick(round(share * len(maps)), len(maps) * len(request.images))
    scores = scores[which]
    weights[used] = scores.softmax(0) if way.softmax else scores
    return weights


def _distinct(maps: Float[Tensor, "k h w"]) -> tuple[Float[Tensor, "n h w"], Int[Tensor, "k"]]:
    kinds, which = torch.unique(maps.flatten(1), dim=0, return_inverse=True)
    return kinds.reshape(-1, *maps.shape[1:]), which


def _scores(
    request: Request, ask: Ask, number: int, maps: Float[Tensor, "n h w"], way: Masking
) -> Float[Tensor, "n"]:
    """The target's score with only these parts of the picture seen, the rest 0 (the mean)."""
    image = request.images[number : number + 1]
    target = request.targets.only(number)
    masks = F.interpolate(
        maps[:, None], image.shape[2:], mode="bilinear", align_corners=way.corners
    )
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    masks = ((masks - low) / (high - low + way.epsilon)).to(image.dtype)
    scores = target.answer(ask(image * masks))
    if way.probabilities and not target.has_function:
        scores = request.meaning.probabilities(scores)
    return wide(target.scores(scores))
