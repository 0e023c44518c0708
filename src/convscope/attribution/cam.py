"""Class activation maps: from a network, pictures and a formula to a result; the target layer.

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
    Reshape,
    enlarged,
    has_maps,
    variant_of,
)
from convscope.core.errors import ModelError, UsageError
from convscope.network.arguments import Given, Layers, Model, several, taking
from convscope.network.network import Network, prepared
from convscope.network.outputs import Targets, meaning, scored
from convscope.network.provenance import recorded
from convscope.records.maps import Attribution
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

    formula = definition.variants[AUTHORS]
    attribute.__name__ = name.replace("++", "_plus_plus")
    # Where it is found again by its name, in another process:
    attribute.__module__, attribute.__qualname__ = formula.__module__, f"CAM.{attribute.__name__}"
    attribute.__doc__ = formula.__doc__
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
