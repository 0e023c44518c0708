"""Target layer of a CAM, where none is named: the last one with maps before pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convscope.attribution.base import ForwardPass, Request
from convscope.attribution.reshape import has_maps
from convscope.core.errors import ModelError
from convscope.network.network import Network, prepared
from convscope.network.outputs import Targets, meaning, scored
from convscope.trace.layers import run_seen

WHY = "the last layer with spatial extent before pooling"
WHY_REACHING = f"{WHY} from which the score is reached"
WHY_TOKENS = "the last normalisation whose patch tokens still influence the score"


@dataclass(frozen=True)
class Stop:
    """What matters of a layer's output for the choice."""

    name: str
    kind: str
    shape: tuple[int, ...]
    same: bool
    """Whether this is the very tensor that the layer before put out."""
    totals: tuple[Tensor, ...]
    """Mean of each map, plain and rectified."""
    reaches: bool
    """Whether it is seen that the scores depend on it."""
    is_scores: bool
    """Whether its maps are but the scores before their places were joined."""


def stops(model: nn.Module, image: Tensor) -> tuple[list[Stop], Tensor]:
    """What all layers put out, in order, and the scores of a network that is `scored`."""
    before: list[Tensor | None] = [None]

    def see(module: nn.Module, output: Tensor) -> tuple[str, tuple[int, ...], bool, Any]:
        same, before[0] = output is before[0], output
        spatial = output.dim() == 4 and output.is_floating_point()
        totals = (output.mean((2, 3)), output.relu().mean((2, 3))) if spatial else ()
        return type(module).__name__, tuple(output.shape), same, totals

    run = run_seen(model, image, see)
    reaching, scores = run.reaching(run.output), run.scores(run.output)
    found = [
        Stop(name, kind, shape, same, totals, name in reaching, name in scores)
        for name, (kind, shape, same, totals) in run.seen
    ]
    return found, run.output


def candidates(found: list[Stop], scores: Tensor, size: tuple[int, int]) -> list[Stop]:
    """Layers with feature maps, first to last: no pooling, no dropout, none whose maps are but
    the classes' scores spread out. Names of one and the same tensor count once, by the last."""
    kept: list[Stop] = []
    pooled = joined = False
    for stop in found:
        pooled = pooled if stop.same else "Pool" in stop.kind
        idle = "Dropout" in stop.kind or stop.kind == "Identity"
        if pooled or idle or _spread(stop, scores) or not has_maps(stop.shape, size):
            joined = joined and stop.same
            continue
        if stop.same and joined:
            kept.pop()
        kept.append(stop)
        joined = True
    return kept


def _spread(stop: Stop, scores: Tensor) -> bool:
    return stop.is_scores or any(
        total.shape == scores.shape and torch.allclose(total, scores, 1e-3, 1e-6)
        for total in stop.totals
    )


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
        run = ForwardPass(Request(model, image, Targets((None,))), names)
        try:
            alive = [name for name in names if run.reaches(name)]
        except ModelError as fault:
            if fault.code != "M540":
                raise
            break  # it computes without gradients, and so will the method
        if alive:
            return alive[-1]
    return layers[-1]
