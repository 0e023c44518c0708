"""Which layer does a CAM take, and how was it chosen?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.methods.cam_case import Case, Sight, prepared
from convscope.methods.cam_layer import WHY, WHY_REACHING, WHY_TOKENS, candidates, stops
from convscope.methods.targets import Aims
from convscope.network.network import Network
from convscope.network.outputs import meaning, scored

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


def default_layer(model: nn.Module | Network, images: Tensor) -> str:
    """The layer that a CAM takes if none is named: the last one with spatial extent before
    pooling; in a transformer the last normalisation whose patch tokens still influence the score.

    It is found by running the network on the first picture. Who explains many pictures one by
    one may ask once and pass the name.
    """
    with torch.inference_mode(False):
        return _last(model, prepared(model, images)[:1]).layers[0]


def _last(model: nn.Module | Network, image: Tensor) -> Choice:
    model = scored(model, image, before=True)
    found, scores = stops(model, image)
    size, known = (image.shape[2], image.shape[3]), meaning(model)
    kept = candidates(found, scores[:, 1:] if known.is_single else scores, size)
    every, kept = kept, [stop for stop in kept if stop.reaches] or kept
    if not kept:
        step = "name a layer, and pass reshape= if its output is no maps"
        raise ModelError("M542", "the network", "has no layer with maps", next_step=step)
    if len(kept[-1].shape) != 4:
        norms = [stop.name for stop in kept if "Norm" in stop.kind] or [kept[-1].name]
        return Choice((_influential(model, image, norms),), WHY_TOKENS)
    if len(kept) < len(every) or not kept[-1].reaches:
        return Choice((_influential(model, image, [stop.name for stop in kept]),), WHY_REACHING)
    return Choice((kept[-1].name,), WHY)


def _influential(model: nn.Module, image: Tensor, layers: list[str]) -> str:
    """The last of these from which a gradient of the likeliest class's score arrives.

    In a transformer only the class token counts after the last mixing of tokens, if there is one;
    in a network of several branches a box or a region may be seen by one of them alone.
    """
    for last in (LOOKED_AT, len(layers)):
        names = tuple(layers[-last:])
        sight = Sight.of(Case(model, image, Aims((None,))), names, from_start=False)
        try:
            alive = [name for name in names if sight.reaches(name)]
        except ModelError as fault:
            if fault.code != "M540":
                raise
            break  # it computes without gradients, and so will the method
        if alive:
            return alive[-1]
    return layers[-1]
