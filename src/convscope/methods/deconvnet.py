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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope import __version__
from convscope.errors import ModelError
from convscope.lens.ascent import Ascent, ascent
from convscope.lens.backward import BackwardRule, Other, Overlap, Rule
from convscope.lens.lens import logits
from convscope.records.maps import Projection
from convscope.units import Unit

Target = int | Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]
Place = tuple[int, int, int]
"""Channel, row, column."""


def deconvnet(
    model: nn.Module,
    images: Float[Tensor, "b 3 h w"],
    units: Sequence[Unit] = (),
    *,
    target: Target | None = None,
    rule: Rule = "deconvnet",
    overlap: Overlap = "add",
    other: Other = "refuse",
    whole_map: bool = False,
    progress: Progress | None = None,
) -> list[Projection]:
    """Project units back to pixels: for each picture all units, in the order given.

    images: preprocessed, as the network takes them. units: a unit without a place stands for its
    map's strongest neuron in each picture (the first in row-major order), or with `whole_map` for
    the whole map. target: a class index, or a function from scores (b, classes) to one number a
    picture; its projection comes last, as unit `class:INDEX`, and starts from 1, as a score may
    well be negative. rule, overlap, other: see `BackwardRule`.

    A unit starts from its own activation, rectified first under "deconvnet" and "guided": a unit
    that is not active gives a picture of zeros, and `origin["silent"]` says so.

    The model is not touched. Raises ModelError M500, M502, M503, M530 (see `Lens`), M504 (no such
    map), M505 (no such place), M506 (a layer without feature maps), M507 (no such class), M508
    (a target that is no number a picture), M514 (an activation that is not finite), M531 and M532
    (see `BackwardRule`), M540 (no way down to the pixels), and UsageError U520 (pictures of a wrong shape).
    """
    backward = BackwardRule(rule, overlap=overlap, other=other)
    layers = list(dict.fromkeys(unit.layer for unit in units))
    found: list[list[Projection]] = []
    with ascent(model, images, layers, backward, to_the_end=target is not None) as way:
        starts = [_unit_start(way, unit, rule, whole_map) for unit in units]
        if target is not None:
            starts.append(_score_start(way.output, target))
        for start in starts:
            pixels = way.down(start.values, start.signal)
            found.append(_records(start, pixels, backward, type(model).__name__))
            _tell(progress, len(found), len(starts))
    return [projection for of_picture in zip(*found, strict=True) for projection in of_picture]


def project(
    model: nn.Module,
    image: Float[Tensor, "3 h w"],
    layer: str,
    places: Sequence[Place],
    *,
    rule: Rule = "deconvnet",
    overlap: Overlap = "add",
    other: Other = "refuse",
    progress: Progress | None = None,
) -> Float[Tensor, "n 3 h w"]:
    """Project many neurons (channel, row, column) of one layer in one picture: one pass up, one
    pass down for each. In all else as `deconvnet`."""
    backward = BackwardRule(rule, overlap=overlap, other=other)
    arrived: list[Tensor] = []
    with ascent(model, image[None], [layer], backward) as way:
        for channel, row, column in places:
            start = _unit_start(way, Unit(layer, channel, (row, column)), rule)
            arrived.append(way.down(start.values, start.signal)[0])
            _tell(progress, len(arrived), len(places))
    return torch.stack(arrived) if arrived else image.new_zeros(0, *image.shape)


class _Start(NamedTuple):
    """What is sent down, from where, and what it is called."""

    values: Tensor
    signal: Tensor
    names: tuple[str, ...]
    """One a picture, as strongest places differ."""
    activations: tuple[float, ...]
    kind: str
    layer: str


def _unit_start(way: Ascent, unit: Unit, rule: Rule, whole_map: bool = False) -> _Start:
    layer = way.maps(unit.layer)
    maps = _map_of(unit, layer)
    places = [unit.at or _peak(of_picture) for of_picture in maps]
    activations = tuple(float(m[at]) for m, at in zip(maps, places, strict=True))
    signal = torch.zeros_like(layer)
    for picture, at in enumerate(places):
        where = (picture, unit.channel) if whole_map else (picture, unit.channel, *at)
        signal[where] = maps[picture] if whole_map else maps[picture][at]
    if rule != "gradient":
        signal.relu_()
    placeless = whole_map or way.lens[unit.layer].dim() == 2
    named = [unit if placeless else Unit(unit.layer, unit.channel, at) for at in places]
    kind = "whole map" if whole_map else "one activation"
    return _Start(layer, signal, tuple(map(str, named)), activations, kind, unit.layer)


def _map_of(unit: Unit, layer: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """One feature map of every picture, checked to be there and finite."""
    channels, *size = layer.shape[1:]
    if unit.channel >= channels:
        there = f"has {channels} feature maps (0 to {channels - 1}), no {unit.channel}"
        raise ModelError("M504", unit.layer, there)
    if unit.at is not None and (unit.at[0] >= size[0] or unit.at[1] >= size[1]):
        there = f"has {size[0]} rows and {size[1]} columns, counted from 0"
        raise ModelError("M505", str(unit), there)
    maps = layer[:, unit.channel].detach()
    if not bool(torch.isfinite(maps).all()):
        raise ModelError("M514", str(unit), "has a NaN or an infinity in this picture")
    return maps


def _peak(of_picture: Float[Tensor, "h w"]) -> tuple[int, int]:
    """The strongest place; the first in row-major order, which torch.argmax does not promise."""
    values = of_picture.double().cpu().numpy()
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return int(row), int(column)


def _score_start(output: Any, target: Target) -> _Start:
    scores = logits(output)
    if callable(target):
        name, values = getattr(target, "__name__", "score"), target(scores)
        if values.shape != scores.shape[:1]:
            what = f"gives {tuple(values.shape)} for {len(scores)} pictures, not a number for each"
            raise ModelError("M508", name, what)
    else:
        if not 0 <= target < scores.shape[1]:
            what = f"the network has {scores.shape[1]} classes, counted from 0"
            raise ModelError("M507", f"class {target}", what)
        name, values = str(target), scores[:, target]
    numbers = tuple(float(value) for value in values.detach())
    names = (f"class:{name}",) * len(numbers)
    return _Start(values, torch.ones_like(values), names, numbers, "score", "scores")


def _records(
    start: _Start, pixels: Float[Tensor, "b 3 h w"], rule: BackwardRule, network: str
) -> list[Projection]:
    arrived = pixels.detach().float().cpu().numpy()
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
                "silent": not bool(start.signal[number].any()),
                "peak": float(np.abs(arrived[number]).max()),
                "plain_gradient": list(rule.plain),
                "normalisations_passed_by": rule.skipped,
                "network": network,
                "convscope": __version__,
            },
        )
        for number, name in enumerate(start.names)
    ]


def _tell(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
