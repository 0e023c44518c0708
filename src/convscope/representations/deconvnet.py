"""Deconvnet: what in this picture excited this unit, projected back down to pixels?

One activation is kept, all others of its layer are set to zero, and the signal goes down the
network that computed it: each max pool puts it back where this picture's maximum was (its
switches), each rectifier lets only its positive part through, each convolution spreads it by the
transposed filters. Biases never enter and contrast normalisation is passed by. The result is
signed, in the units of the network's input.
Source: Zeiler and Fergus 2014, §2.1.

We take the signal down by automatic differentiation under a BackwardRule, so any network will do;
for a chain of layers the result is that of an explicit deconvnet. Where two pooling windows share
a maximum the paper does not say what happens; we add, as the transposed network does, and
`overlap="overwrite"` draws what `nn.MaxUnpool2d` draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import ModelError
from convscope.core.run import PLAIN, Run
from convscope.core.units import Unit
from convscope.lens.twin import bare
from convscope.network.arguments import Given, Model, several, taking, units_of
from convscope.network.network import Network
from convscope.network.outputs import Target, Targets, scored
from convscope.network.provenance import recorded
from convscope.records.maps import Projection
from convscope.trace.backward.descent import ForwardPass, Neuron, forward_pass, require_pictures
from convscope.trace.backward_rule import BackwardRule, Other, Overlap, Rule

Place = tuple[int, int, int]
"""Channel, row, column."""


@taking(images=several, units=units_of)
@recorded
def deconvnet(
    model: Model,
    images: Given,
    units: Sequence[Unit | str] | Unit | str = (),
    *,
    target: Target | Sequence[Target] | None = None,
    rule: Rule = "deconvnet",
    overlap: Overlap = "add",
    other: Other = "refuse",
    whole_map: bool = False,
    run: Run = PLAIN,
) -> list[Projection]:
    """Project units back to pixels: for each picture all units, in the order given.

    images: preprocessed, as the network takes them. units: one or several, as Unit or as text
    (`conv5:41`, `conv5:41@6,7`); a unit without a place stands for its map's strongest neuron in
    each picture (the first in row-major order), or with `whole_map` for the whole map. target: a
    class index, or a function from scores (b, classes) to one number a picture, or one of these
    for each picture; its projection comes last, as unit `class:INDEX`, and starts from 1, as a
    score may well be negative. rule, overlap, other: see `BackwardRule`.

    A unit starts from its own activation, rectified first under "deconvnet" and "guided": a unit
    that is not active gives a picture of zeros, and `origin["silent"]` says so.

    Raises ModelError M500, M502, M503, M530 (see `Lens`), M504 (no such map), M505 (no such place),
    M506 (a layer without feature maps), M514 (not finite), M531, M532 (see `BackwardRule`), M540
    (no way down), UsageError U201 (no unit), U351 to U354 (see `Targets`), U520 (wrong pictures).
    """
    aims = None if target is None else Targets.of(target, len(images))
    units = cast("list[Unit]", units)
    if aims is None:
        model = bare(model)
    else:
        require_pictures(images)
        model = scored(model, images, before=not aims.has_function)
    backward = BackwardRule(rule, overlap=overlap, other=other)
    layers = list(dict.fromkeys(unit.layer for unit in units))
    with forward_pass(model, images, layers, backward, to_the_end=aims is not None) as way:
        in_order = _in_order(way, units, whole_map, aims, run)
    return [projection for of_picture in zip(*in_order, strict=True) for projection in of_picture]


def _in_order(
    way: ForwardPass, units: Sequence[Unit], whole_map: bool, aims: Targets | None, run: Run
) -> list[list[Projection]]:
    """Of each unit, and of the target last, the projections in all pictures."""
    result: dict[int, list[Projection]] = {}
    total = len(units) + (aims is not None)
    for layer in dict.fromkeys(unit.layer for unit in units):
        members = [number for number, unit in enumerate(units) if unit.layer == layer]
        starts = [_unit_start(way, units[number], whole_map) for number in members]
        for number, start, pixels in zip(members, starts, _down(way, starts), strict=True):
            result[number] = _records(start, pixels, way)
            run.tick(len(result), total)
    if aims is not None:
        start, scores = _score_start(way, aims)
        pixels = way.down(scores, torch.ones_like(scores))
        result[len(units)] = _records(start, pixels, way)
        run.tick(len(result), total)
    return [result[number] for number in range(total)]


def project(
    model: nn.Module | Network,
    image: Float[Tensor, "c h w"],
    layer: str,
    places: Sequence[Place],
    *,
    rule: Rule = "deconvnet",
    overlap: Overlap = "add",
    other: Other = "refuse",
) -> Float[Tensor, "n c h w"]:
    """Project many neurons (channel, row, column) of one layer in one picture: one pass up for
    all of them. In all else as `deconvnet`."""
    backward = BackwardRule(rule, overlap=overlap, other=other)
    with forward_pass(bare(model), image[None], [layer], backward) as way:
        starts = [_unit_start(way, Unit(layer, c, (row, column))) for c, row, column in places]
        arrived = list(_down(way, starts))
    return torch.cat(arrived) if arrived else image.new_zeros(0, *image.shape)


class _Start(NamedTuple):
    """What is sent down, from where, and what it is called; one of each for every picture."""

    layer: str
    kind: str
    names: tuple[str, ...]
    activations: tuple[float, ...]
    sent: tuple[float, ...]
    """Of a whole map its strongest value."""
    neurons: tuple[Neuron, ...]
    whole_map: bool = False


def _unit_start(way: ForwardPass, unit: Unit, whole_map: bool = False) -> _Start:
    maps = _map_of(unit, way.maps(unit.layer))
    places = [unit.at or _peak(of_picture) for of_picture in maps]
    activations = tuple(float(m[at]) for m, at in zip(maps, places, strict=True))
    rectified = way.rule.rule != "gradient"
    placeless = whole_map or way.lens[unit.layer].dim() == 2
    named = [unit if placeless else Unit(unit.layer, unit.channel, at) for at in places]
    return _Start(
        layer=unit.layer,
        kind="whole map" if whole_map else "one activation",
        names=tuple(map(str, named)),
        activations=activations,
        sent=tuple(max(value, 0.0) if rectified else value for value in activations),
        neurons=tuple(Neuron(n, unit.channel, *at) for n, at in enumerate(places)),
        whole_map=whole_map,
    )


def _down(way: ForwardPass, starts: Sequence[_Start]) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """What arrives at the pixels for each start in all pictures."""
    if starts and not starts[0].whole_map:
        neurons = [neuron for start in starts for neuron in start.neurons]
        maps = way.maps(starts[0].layer)
        sent = [value for start in starts for value in start.sent]
        arrived = way.down_each(starts[0].layer, neurons, maps.new_tensor(sent))
        yield from torch.split(arrived, len(maps))
        return
    for start in starts:
        maps, channel = way.maps(start.layer), start.neurons[0].channel
        signal = torch.zeros_like(maps)
        signal[:, channel] = maps.detach()[:, channel]
        yield way.down(maps, signal if way.rule.rule == "gradient" else signal.relu_())


def require_place(
    layer: str, maps: Float[Tensor, "b c h w"], channel: int, at: tuple[int, int]
) -> None:
    """Raises ModelError M504 (no such map) or M505 (no such row or column)."""
    channels, height, width = maps.shape[1:]
    if not 0 <= channel < channels:
        there = f"has {channels} feature maps (0 to {channels - 1}), no {channel}"
        raise ModelError("M504", layer, there)
    if not (0 <= at[0] < height and 0 <= at[1] < width):
        there = f"has {height} rows and {width} columns, counted from 0"
        raise ModelError("M505", f"{layer}:{channel}@{at[0]},{at[1]}", there)


def _map_of(unit: Unit, layer: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """One feature map of every picture, checked to be there and finite."""
    require_place(unit.layer, layer, unit.channel, unit.at or (0, 0))
    maps = layer[:, unit.channel].detach()
    if not bool(torch.isfinite(maps).all()):
        raise ModelError("M514", str(unit), "has a NaN or an infinity in this picture")
    return maps


def _peak(of_picture: Float[Tensor, "h w"]) -> tuple[int, int]:
    """The strongest place; the first in row-major order, which torch.argmax does not promise."""
    values = of_picture.double().cpu().numpy()
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return int(row), int(column)


def _score_start(way: ForwardPass, aims: Targets) -> tuple[_Start, Float[Tensor, "b"]]:
    scores = aims.answer(way.output)
    settled = aims.settled(scores)
    with way.rule:  # a function of the scores may rectify, too
        values = settled.scores(scores)
    numbers = tuple(float(value) for value in values.detach())
    names = tuple(f"class:{_said(one)}" for one in settled.each)
    return _Start("scores", "score", names, numbers, (1.0,) * len(numbers), ()), values


def _said(target: object) -> str:
    return str(target) if isinstance(target, int) else getattr(target, "__name__", "score")


def _records(start: _Start, pixels: Float[Tensor, "b 3 h w"], way: ForwardPass) -> list[Projection]:
    arrived = pixels.detach().float().cpu().numpy()
    rule = way.rule
    return [
        Projection(
            pixels=arrived[number],
            unit=name,
            value=start.activations[number],
            rewritten=rule.rewritten,
            rectifiers=rule.rectifiers,
            origin={
                "method": "deconvnet",
                "rule": rule.rule,
                "overlap": rule.overlap,
                "other": rule.other,
                "start": start.kind,
                "layer": start.layer,
                "picture": number,
                "silent": start.sent[number] == 0,
                "peak": float(np.abs(arrived[number]).max()),
                "plain_gradient": list(rule.plain),
                "normalisations_passed_by": rule.skipped,
            },
        )
        for number, name in enumerate(start.names)
    ]
