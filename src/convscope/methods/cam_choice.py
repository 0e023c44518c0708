"""Which layer does a CAM take, and how was it chosen?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.methods.cam_case import Case, Sight, prepared
from convscope.methods.cam_layer import WHY, WHY_TOKENS, Stop, candidates, stops
from convscope.methods.targets import Aims, answer

LOOKED_AT = 6
"""Normalisations at the end of a transformer among which the choice is first made."""


@dataclass(frozen=True)
class Choice:
    """Layers, and why these."""

    layers: tuple[str, ...]
    why: str


def choice(model: nn.Module, images: Tensor, layer: str | Sequence[str] | None) -> Choice:
    """The layers that are asked for, or the one that fits.

    Raises ModelError M542 where no layer has maps of the picture.
    """
    if isinstance(layer, str):
        return Choice((layer,), "by name")
    if layer:
        return Choice(tuple(dict.fromkeys(layer)), "by name")
    return _last(model, images[:1])


def default_layer(model: nn.Module, images: Tensor) -> str:
    """The layer that a CAM takes if none is named: the last one with spatial extent before
    pooling; in a transformer the last normalisation whose patch tokens still influence the score.

    It is found by running the network on the first picture. Who explains many pictures one by
    one may ask once and pass the name.
    """
    with torch.inference_mode(False):
        return _last(model, prepared(model, images)[:1]).layers[0]


def _last(model: nn.Module, image: Tensor) -> Choice:
    found, output = stops(model, image)
    aims = Aims((lambda scores: scores.flatten(1).amax(1),))
    size = (image.shape[2], image.shape[3])
    kept = candidates(found, answer(output, aims), size)
    if not kept:
        step = "name a layer, and pass reshape= if its output is no maps"
        raise ModelError("M542", "the network", "has no layer with maps", next_step=step)
    if len(kept[-1].shape) == 4:
        return Choice((kept[-1].name,), WHY)
    return Choice((_influential(model, image, kept),), WHY_TOKENS)


def _influential(model: nn.Module, image: Tensor, kept: list[Stop]) -> str:
    """After the last mixing of tokens only the class token counts, if there is one; so look for
    the last normalisation before that, where the gradient still reaches the patches."""
    norms = [stop.name for stop in kept if "Norm" in stop.kind] or [kept[-1].name]
    for last in (LOOKED_AT, len(norms)):
        names = tuple(norms[-last:])
        sight = Sight.of(Case(model, image, Aims((None,))), names, from_start=False)
        alive = [name for name in names if bool(sight.gradient(name).abs().amax() > 0)]
        if alive:
            return alive[-1]
    return norms[-1]
