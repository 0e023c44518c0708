"""Class activation maps: from a network, pictures and a formula to a result.

Target layer, target, one or more forward passes, the formula's raw maps; then, for showing
alongside the picture, joined if there are several layers and enlarged. What decided the numbers
goes into the origin. The formulas, and the table of all methods, are in `formulas.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from convscope.attribution.base import (
    AUTHORS,
    ForwardPass,
    Method,
    Options,
    Request,
    enlarged,
    variant_of,
)
from convscope.attribution.layer import Choice, choice
from convscope.attribution.reshape import Reshape
from convscope.core.errors import ModelError, UsageError
from convscope.network.arguments import Given, Layers, Model, several, taking
from convscope.network.network import Network
from convscope.network.provenance import recorded
from convscope.records.maps import Attribution

PGC = "pytorch-grad-cam"
EVERY_BIAS = Choice(("every bias",), "it takes no layer")

Map = Float[Tensor, "b h w"]
Formula = Callable[[ForwardPass, str], Map]
"""From a forward pass and a layer's name to raw maps at the layer's own size. What it does not
ask of the pass is not computed: it may as well run `request.model` in its own way."""
Enlarge = Callable[[Tensor], Tensor]
"""From maps (b, h, w) to the picture's size."""
Fuse = Callable[[list[Tensor], Enlarge], Tensor]
"""From several layers' raw maps (b, h, w), the deepest layer's last, to one at full size."""


class CamOptions(Options, total=False):
    """layer, which comes third: a layer's name as in `model.named_modules()`, the module itself,
    or several. Without it the last layer with spatial extent before pooling, found by running the
    network on the first picture."""

    reshape: Reshape | None
    """From the layer's output to maps (b, maps, h, w), where that cannot be told by its shape."""


def mean_of_maxima(raws: list[Tensor], enlarge: Enlarge) -> Float[Tensor, "b height width"]:
    """The mean of the maps, each divided by its maximum."""
    return torch.stack([enlarge(to_one(raw)) for raw in raws]).mean(0)


@dataclass(frozen=True)
class Definition:
    """What makes a CAM."""

    title: str
    """Its name in print."""
    variants: Mapping[str, Formula]
    """The authors' formula first; its docstring is that of the method."""
    weight: str = ""
    """Of the docs' table: what a map is weighed by, or what the result is made of."""
    source: str = ""
    runs: str = "1"
    gradient: bool = True
    """Whether it needs one."""
    fuse: Fuse = mean_of_maxima
    fusion: str = "mean of the maps, each divided by its maximum"
    takes_layers: bool = True
    epsilon: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """What a variant adds to a denominator."""


def method(name: str, definition: Definition) -> Method:
    """The public function of a CAM: `(model, images, layer=None, **CamOptions)`."""

    def attribute(
        model: Model, images: Given, layer: Layers = None, **how: Unpack[CamOptions]
    ) -> list[Attribution]:
        return explain(definition, model, images, layer, **how)

    attribute.__name__ = attribute.__qualname__ = name.replace("++", "_plus_plus")
    attribute.__doc__ = definition.variants[AUTHORS].__doc__
    return taking(images=several)(recorded(attribute))


def explain(
    definition: Definition,
    model: nn.Module | Network,
    images: Float[Tensor, "b c h w"],
    layer: str | Sequence[str] | None = None,
    **how: Unpack[CamOptions],
) -> list[Attribution]:
    """One attribution for each picture; see `CamOptions`.

    Raises ModelError M500 (no such layer), M503 (it runs several times), M520 (no scores), M522
    (pictures of another size), M540, M541 (no gradient), M542 (no maps), M543 (NaN); UsageError
    U350 (no such variant), U351 to U354 (targets), U355 (no pictures), U358 (it takes no layer).
    """
    variant = how.pop("variant", AUTHORS)
    formula = variant_of(definition.title, definition.variants, variant)
    with torch.inference_mode(False):
        request = Request.of(model, images, **how)
        chosen = _choice(definition, request, layer)
        seen = ForwardPass(request, chosen.layers)
        maps = {name: _sound(name, formula(seen, name).detach()) for name in chosen.layers}
        raws = [maps[name] for name in seen.order]
        values = _values(definition, variant, raws, request.images.shape[2:])
    origin = {
        **_made_by(definition, variant, seen.order),
        "layer chosen": chosen.why,
        "target chosen": "the likeliest class" if how.get("target") is None else "by the user",
        "precision": str(values.dtype).removeprefix("torch."),
    }
    return [
        request.result(
            number,
            values[number],
            origin,
            peaks={name: float(maps[name][number].max()) for name in seen.order},
            raw=raws[0][number] if len(raws) == 1 else None,
        )
        for number in range(len(values))
    ]


def _made_by(definition: Definition, variant: str, layers: Sequence[str]) -> dict[str, Any]:
    """What of the formula and its layers goes into the origin."""
    return {
        "method": definition.title,
        "variant": variant,
        "layer": " + ".join(layers),
        "epsilon": definition.epsilon.get(variant, 0.0),
        "fusion": "" if len(layers) == 1 else _fusion(definition, variant),
    }


def _choice(definition: Definition, request: Request, layer: str | Sequence[str] | None) -> Choice:
    if definition.takes_layers:
        return choice(request.model, request.images, layer)
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


def _stretched(maps: Map) -> Map:
    """To [0, 1] as pytorch-grad-cam does it: whatever there is looks confident."""
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax((1, 2), keepdim=True))


def to_one(maps: Map) -> Map:
    """Each divided by its maximum, if that is positive."""
    top = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(top > 0, top, 1)


def weighted(weights: Float[Tensor, "b k"], A: Float[Tensor, "b k h w"]) -> Map:
    """ReLU(Σ w_k A_k)."""
    return F.relu((weights[:, :, None, None] * A).sum(1))
