"""Deconvnet: what excited this unit, projected back to pixels; when a stride's grid shows in it.

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

A transposed convolution lays its filter down at every stop of the stride; where the sums that
overlap are uneven, the energy of what arrives rises and falls with the stride's period. The energy
of a layer's projections, laid over one another at their receptive fields, is compared with its own
running mean, and the strength of this ripple at the period with that at periods around it.
Source: Odena, Dumoulin and Olah 2016, "Deconvolution and Checkerboard Artifacts".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch import Tensor, nn

from convscope.core.errors import ModelError
from convscope.core.run import PLAIN, Run
from convscope.core.units import Box, Unit
from convscope.lens.twin import bare
from convscope.network.arguments import Given, Model, several, taking, units_of
from convscope.network.network import Network
from convscope.network.outputs import Target, Targets, scored
from convscope.network.provenance import recorded
from convscope.records.features import Grid
from convscope.records.maps import Projection
from convscope.trace.backward.descent import ForwardPass, Neuron, forward_pass, require_pictures
from convscope.trace.backward_rule import BackwardRule, Other, Overlap, Rule
from convscope.trace.operations import Stride
from convscope.trace.receptive_field import ReceptiveField

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


GREY = 128
"""Of what lies outside the picture; no network saw it."""
CLIP = 99.5
SCALING = f"zero is mid-grey, the scale ends at the {CLIP}th percentile of absolute values"


def side_of(field: ReceptiveField, most: int) -> int:
    """Side of the square for a layer: the receptive field's own size, that of the picture where
    the field is larger, or the display's limit."""
    return max(1, min(most, max(map(min, field.size, field.picture))))


def around(box: Box, picture: tuple[int, int]) -> Box:
    """What is shown of a receptive field: all of it, and around its middle as much as the picture
    is large where it is larger."""
    down, across = max(0, box.height - picture[0]), max(0, box.width - picture[1])
    top, left = box.top + down // 2, box.left + across // 2
    return Box(top, left, top + box.height - down, left + box.width - across)


def inside(box: Box, picture: tuple[int, int], side: int) -> Bool[np.ndarray, "side side"]:
    """Which pixels of the square that `cut` makes lie in the picture, with their middles."""
    scale = min(1.0, side / max(box.height, box.width))
    axes = []
    starts, lengths = (box.top, box.left), (box.height, box.width)
    for first, length, most in zip(starts, lengths, picture, strict=True):
        before = (side - max(1, round(length * scale))) // 2
        middles = first + (np.arange(side) - before + 0.5) / scale
        axes.append((middles > max(0, first)) & (middles < min(most, first + length)))
    return np.logical_and.outer(*axes)


def cut(
    image: Float[Tensor, "c h w"], box: Box, side: int, outside: float
) -> Float[Tensor, "c side side"]:
    """The box of the image as a square; what reaches outside, or beyond a box that is not
    square, has the value `outside`. Boxes larger than the square are made smaller, by averages;
    none is made larger."""
    part = _padded(image, box, outside)
    scale = min(1.0, side / max(box.height, box.width))
    if scale < 1:
        size = [max(1, round(length * scale)) for length in (box.height, box.width)]
        part = F.interpolate(part[None], size, mode="bilinear", antialias=True)[0]
    square = part.new_full((part.shape[0], side, side), outside)
    height, width = part.shape[-2:]
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = part
    return square


def _padded(
    image: Float[Tensor, "c h w"], box: Box, outside: float
) -> Float[Tensor, "c boxheight boxwidth"]:
    inside = box.clipped(*image.shape[-2:])
    part = image.new_full((image.shape[0], box.height, box.width), outside)
    down, across = inside.top - box.top, inside.left - box.left
    part[:, down : down + inside.height, across : across + inside.width] = image[
        :, inside.top : inside.bottom, inside.left : inside.right
    ]
    return part


def patch(
    pixels: UInt8[np.ndarray, "h w 3"], box: Box, side: int
) -> UInt8[np.ndarray, "side side 3"]:
    """The box of a framed picture as a square for display."""
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float()
    square = cut(image, box, side, GREY).round().clamp(0, 255).byte()
    return square.permute(1, 2, 0).numpy()


def limit(values: Float32[np.ndarray, "*any"]) -> float:
    """Where the display's scale ends on both sides of zero, which is mid-grey.

    Between least and largest, as the paper's figures seem to be scaled, a few bright pixels leave
    the rest of a deep unit's projection all but invisible.
    """
    size = np.abs(values)
    return float(np.percentile(size, CLIP)) or float(size.max())


def quantised(
    values: Float32[np.ndarray, "*any"], low: float, high: float
) -> UInt8[np.ndarray, "*any"]:
    """Numbers between low and high as 0 to 255; all at mid-grey if low is high."""
    if not high > low:
        return np.full(values.shape, GREY, np.uint8)
    return np.rint((values - low) * (255.0 / (high - low))).clip(0, 255).astype(np.uint8)


RIPPLE = 0.1
"""By how much of its mean the energy swings, at least, where a grid is named …"""
ABOVE = 3.0
"""… and how many times what it does at periods around."""
STOPS = 5
"""Periods that have to be seen at least."""
AROUND = (0.58, 0.66, 0.74, 1.32, 1.41, 1.55)
"""Frequencies that no stride has, in those of the stride."""
FAINT = 0.05
"""Of the strongest row: weaker ones are left out."""


class Energy:
    """Of a layer's projections by row and column of the receptive field."""

    def __init__(self, field: ReceptiveField) -> None:
        self._sums = [np.zeros(length) for length in field.size]
        self._counts = [np.zeros(length) for length in field.size]

    def add(self, pixels: Float[Tensor, "c h w"], near: Box) -> None:
        """near: the receptive field, in rows and columns of these pixels; each counts alike."""
        squares = pixels.double().square_().sum(dim=0)
        total = float(squares.sum())
        if not total > 0:
            return
        for axis, (low, high) in enumerate(((near.top, near.bottom), (near.left, near.right))):
            along = (squares.sum(dim=1 - axis) / total).cpu().numpy()
            first, last = max(low, 0), min(high, len(along), low + len(self._sums[axis]))
            if first < last:
                self._sums[axis][first - low : last - low] += along[first:last]
                self._counts[axis][first - low : last - low] += 1

    def grids(self, strides: Sequence[Stride]) -> tuple[Grid, ...]:
        """Those that show, the widest first; each period once, with the first convolution on the
        way down that is uneven."""
        result: dict[int, Grid] = {}
        profiles = [s / np.maximum(c, 1) for s, c in zip(self._sums, self._counts, strict=True)]
        for stride in sorted(strides, key=lambda each: each.is_even):
            for axis in (0, 1):
                period, step = stride.period[axis], stride.stride[axis]
                if step == 1:
                    continue
                ripple = _ripple(profiles[axis], period)
                known = result.get(period)
                if known is None and ripple > 0:
                    how = (stride.kernel[axis], step, period, ripple)
                    result[period] = (stride.layer, *how)
                elif known is not None and known[0] == stride.layer:
                    result[period] = (*known[:4], max(known[4], ripple))
        return tuple(result[period] for period in sorted(result, reverse=True))


def _ripple(profile: Float64[np.ndarray, "n"], period: int) -> float:
    """By what share of its mean the profile swings with this period; 0 where that is nothing
    special."""
    seen = np.flatnonzero(profile > 0)
    if not len(seen):
        return 0.0
    profile = profile[seen[0] : seen[-1] + 1]
    if len(profile) < (STOPS + 1) * period:
        return 0.0
    smooth = np.convolve(profile, np.ones(period) / period, "valid")
    start = (period - 1) // 2
    inner = profile[start : start + len(smooth)]
    strong = np.flatnonzero(smooth > FAINT * smooth.max())
    if len(strong) < STOPS * period:
        return 0.0
    part = slice(strong[0], strong[-1] + 1)
    relative = inner[part] / np.maximum(smooth[part], 1e-300) - 1
    own = _at(relative, 1 / period)
    around = max(float(np.median([_at(relative, share / period) for share in AROUND])), 1e-12)
    return own if own >= RIPPLE and own >= ABOVE * around else 0.0


def _at(values: Float[np.ndarray, "n"], frequency: float) -> float:
    """The amplitude of one frequency, in cycles a pixel."""
    window = np.hanning(len(values) + 2)[1:-1]
    wave = np.exp(-2j * np.pi * frequency * np.arange(len(values)))
    return float(
        (1 if frequency == 0.5 else 2) * abs((window * values * wave).sum()) / window.sum()
    )
