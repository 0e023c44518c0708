"""Options does a CAM get from a network and pictures to records, whichever formula it has?

Layer, target, one or more runs, the formula's raw maps; then, for showing alongside the picture,
joined if there are several layers and enlarged. What decided the numbers goes into the origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from convscope.attribution.base import ForwardPass, Request
from convscope.attribution.layer import Choice, Reshape, choice
from convscope.errors import ModelError, UsageError, nearest
from convscope.network.forward import prepared
from convscope.network.network import Network
from convscope.network.outputs import scored
from convscope.network.targets import Target, Targets
from convscope.records.maps import Attribution
from convscope.run import PLAIN, Run

AUTHORS, PGC = "authors", "pytorch-grad-cam"
EVERY_BIAS = Choice(("every bias",), "it takes no layer")

Maps = Callable[[Request, tuple[str, ...]], dict[str, Tensor]]
"""From a case and layers to the raw maps (b, h, w) by layer, in the order of their runs."""
Enlarge = Callable[[Tensor], Tensor]
"""From maps (b, h, w) to the picture's size."""
Fuse = Callable[[list[Tensor], Enlarge], Tensor]
"""From several layers' raw maps (b, h, w), the deepest layer's last, to one at full size."""


class Options(TypedDict, total=False):
    """What may be said to every method of the family, by name; all of it may be left out.

    layer, which comes third: a layer's name as in `model.named_modules()`, the module itself, or
    several. Without it the last layer with spatial extent before pooling, found by running the
    network on the first picture.
    """

    target: Target | Iterable[Target] | None
    """Class index, class name, function from scores (b, classes) to (b,), or one of these for
    each picture. Without it the likeliest class."""
    variant: str
    """Whose definition: "authors" without it."""
    classes: Sequence[str]
    """The classes' names, so that a target may be one and the result can name it."""
    reshape: Reshape | None
    """From the layer's output to maps (b, maps, h, w), where that cannot be told by its shape."""
    run: Run
    """Progress is that of maps, told by the methods that run the network many times."""


def mean_of_maxima(raws: list[Tensor], enlarge: Enlarge) -> Float[Tensor, "b height width"]:
    """The mean of the maps, each divided by its maximum."""
    return torch.stack([enlarge(_to_one(raw)) for raw in raws]).mean(0)


def layercam_fused(raws: list[Tensor], enlarge: Enlarge) -> Float[Tensor, "b height width"]:
    """Source: Jiang et al. 2021, equation 8, with γ = 2."""
    *shallow, deepest = (_to_one(raw) for raw in raws)
    return torch.stack(
        [enlarge(one) for one in (*(torch.tanh(2 * s) for s in shallow), deepest)]
    ).amax(0)


@dataclass(frozen=True)
class Definition:
    """What makes a method."""

    title: str
    """Its name in print."""
    variants: Mapping[str, Maps]
    fuse: Fuse = mean_of_maxima
    fusion: str = "mean of the maps, each divided by its maximum"
    takes_layers: bool = True
    epsilon: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """What a variant adds to a denominator."""


def seen(formula: Callable[[ForwardPass, str], Tensor]) -> Maps:
    """One run of the network shows all layers."""

    def maps(case: Request, layers: tuple[str, ...]) -> dict[str, Tensor]:
        sight = case.look(layers)
        return {layer: formula(sight, layer) for layer in sight.layers}

    return maps


def layer_by_layer(formula: Callable[[Request, str], Tensor]) -> Maps:
    """The formula runs the network as it likes."""

    def maps(case: Request, layers: tuple[str, ...]) -> dict[str, Tensor]:
        return {layer: formula(case, layer) for layer in layers}

    return maps


def explain(
    definition: Definition,
    model: nn.Module | Network,
    images: Float[Tensor, "b c h w"],
    *,
    target: Target | Iterable[Target] | None = None,
    layer: str | Sequence[str] | None = None,
    variant: str = AUTHORS,
    classes: Sequence[str] = (),
    reshape: Reshape | None = None,
    run: Run = PLAIN,
) -> list[Attribution]:
    """One attribution for each picture; see `Options` for the options.

    Raises ModelError M500 (no such layer), M503 (it runs several times), M520 (no scores), M522
    (pictures of another size), M540, M541 (no gradient), M542 (no maps), M543 (NaN); UsageError
    U350 (no such variant), U351 to U354 (targets), U355 (no pictures), U358 (it takes no layer).
    """
    maps = _variant(definition, variant)
    with torch.inference_mode(False):
        images = prepared(model, images)
        aims = Targets.of(target, len(images), classes)
        case = Request(scored(model, images), images, aims, reshape, run)
        chosen = _choice(definition, case, layer)
        raws = {name: _sound(name, raw.detach()) for name, raw in maps(case, chosen.layers).items()}
        values = _values(definition, variant, list(raws.values()), images.shape[2:])
    origin = {
        "method": definition.title,
        "variant": variant,
        "layer": " + ".join(raws),
        "layer chosen": chosen.why,
        "target chosen": "the likeliest class" if target is None else "by the user",
        "epsilon": definition.epsilon.get(variant, 0.0),
        "fusion": _fusion(definition, variant) if len(raws) > 1 else "",
        "precision": str(values.dtype).removeprefix("torch."),
    }
    return [_record(case, n, raws, values, classes, origin) for n in range(len(images))]


def _variant(definition: Definition, variant: str) -> Maps:
    if variant not in definition.variants:
        there = nearest(variant, definition.variants)
        raise UsageError("U350", variant, f"no such variant of {definition.title}; {there}")
    return definition.variants[variant]


def _choice(definition: Definition, case: Request, layer: str | Sequence[str] | None) -> Choice:
    if definition.takes_layers:
        return choice(case.model, case.images, layer)
    if layer is not None:
        what = f"{definition.title} takes no layer, as every bias of the network counts"
        raise UsageError("U358", str(layer), what)
    return EVERY_BIAS


def _sound(layer: str, raw: Tensor) -> Tensor:
    if not bool(torch.isfinite(raw).all()):
        raise ModelError("M543", layer, "gives a map with NaN or infinite numbers")
    return raw


def _fusion(definition: Definition, variant: str) -> str:
    return "mean of the maps, each scaled to [0, 1]" if variant == PGC else definition.fusion


def _values(
    definition: Definition, variant: str, raws: list[Tensor], size: torch.Size
) -> Float[Tensor, "b height width"]:
    enlarge = partial(enlarged, size=size)
    if variant == PGC:
        scaled = [enlarge(_stretched(F.relu(raw))) for raw in raws]
        return _stretched(F.relu(torch.stack(scaled).mean(0)))
    return enlarge(raws[0]) if len(raws) == 1 else definition.fuse(raws, enlarge)


def enlarged(maps: Float[Tensor, "b h w"], size: Sequence[int]) -> Float[Tensor, "b height width"]:
    """Bilinear, pixel centres at the half (align_corners=False)."""
    height, width = size
    return F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]


def _stretched(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """To [0, 1] as pytorch-grad-cam does it: whatever there is looks confident."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax((1, 2), keepdim=True))


def _to_one(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    top = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(top > 0, top, 1)


def _record(
    case: Request,
    number: int,
    raws: Mapping[str, Tensor],
    values: Tensor,
    classes: Sequence[str],
    origin: Mapping[str, Any],
) -> Attribution:
    own = {
        "target": case.aims.words(number, classes),
        "peaks": {layer: float(raw[number].max()) for layer, raw in raws.items()},
        "notes": case.warnings(number),
        **case.facts.get(number, {}),
    }
    only = [_array(raw[number]) for raw in raws.values()]
    return Attribution(
        values=_array(values[number]),
        target=case.aims.indices[number],
        raw=only[0] if len(only) == 1 else None,
        method=origin["method"],
        variant=origin["variant"],
        layer=origin["layer"],
        space=case.spaces[number],
        score=float(case.scores[number]),
        origin={**origin, **own},
    )


def _array(map_: Tensor) -> np.ndarray:
    return np.ascontiguousarray(map_.cpu().numpy())
