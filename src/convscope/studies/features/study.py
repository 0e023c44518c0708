"""What do random or chosen maps of a few layers see, for a figure in print?

Source: Zeiler and Fergus 2014, figure 2: random maps of five layers, nine strongest pictures each.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float32, UInt8
from torch import Tensor

from convscope.core.errors import EnvironmentFault, ModelError, UsageError
from convscope.core.publish import environment_fault
from convscope.core.run import PLAIN, Run
from convscope.core.units import Box, Unit
from convscope.lens.lens import Lens
from convscope.metrics.randomisation import mean_correlation
from convscope.network.arguments import FolderLike, Layers, pictures_of, taking
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.network.tuning import Tuning, blank, require_tuning
from convscope.pictures.opening import as_pictures, opened
from convscope.pictures.pictures import Frame, Picture, Pictures
from convscope.records.features import COUNTS, LayerFeatures, Shown, random_maps
from convscope.records.features import Pictures as PictureRecord
from convscope.records.topk import TopK
from convscope.representations.deconvnet import (
    GREY,
    SCALING,
    Energy,
    around,
    cut,
    deconvnet,
    inside,
    limit,
    patch,
    quantised,
    side_of,
)
from convscope.representations.fast import told as told_of_search
from convscope.representations.projections import (
    BackwardPath,
    Choice,
    Projected,
    backward_paths,
    projections,
)
from convscope.representations.topk import Also, Precision, topk
from convscope.studies.base import Ask, arguments
from convscope.studies.features import Options
from convscope.studies.features.record import KEPT, kept_features
from convscope.trace.backward.descent import Neuron
from convscope.trace.backward_rule import Other, Overlap, Rule
from convscope.trace.layers import chosen_layers, feature_layers
from convscope.trace.receptive_field import ReceptiveField, fields


class Framed:
    """Pictures of a folder in a temporary file, which is gone with this: those that another pass
    over the folder hands to `keep`, and those that are read as they are first asked for."""

    def __init__(self, folder: Pictures, framing: Frame) -> None:
        self.folder = folder
        self._framing = framing
        self._kept: dict[int, tuple[int, tuple[int, ...]]] = {}
        """Of each picture where its pixels begin, and their shape."""
        self._asked: set[int] = set()
        self._file = tempfile.TemporaryFile(prefix="convscope-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._room = shutil.disk_usage(tempfile.gettempdir()).free // 4
        """Bytes that pictures nobody has asked for yet may take."""

    def keep(self, pictures: Sequence[Picture]) -> None:
        """Pictures in this framing, which may be asked for later. Where room ends, they are left,
        and are decoded again when they are asked for."""
        for picture in pictures:
            self._room -= picture.pixels.nbytes
            if self._room > 0 and picture.number not in self._asked:
                try:
                    self._write(picture)
                except EnvironmentFault:
                    self._room = 0
                else:
                    self._asked.add(picture.number)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        """Number and pixels of the usable ones of these pictures, in this order.

        Raises as `Pictures.read`, and EnvironmentFault R602 or R603 if the temporary folder is full
        or cannot be written.
        """
        self._fill([number for number in numbers if number not in self._asked])
        for number in numbers:
            if number in self._kept:
                begin, shape = self._kept[number]
                data = os.pread(self._file.fileno(), int(np.prod(shape)), begin)
                yield number, np.frombuffer(bytearray(data), np.uint8).reshape(shape)

    def _fill(self, numbers: Sequence[int]) -> None:
        self._asked.update(numbers)
        for picture in self.folder.read(self._framing, sorted(numbers)) if numbers else ():
            self._write(picture)

    def _write(self, picture: Picture) -> None:
        pixels = np.ascontiguousarray(picture.pixels)
        begin = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(pixels.data)
            self._file.flush()
        except OSError as fault:
            raise environment_fault(fault, Path(tempfile.gettempdir())) from fault
        self._kept[picture.number] = (begin, pixels.shape)


class ProjectionOptions(NamedTuple):
    """How projections go down; see `backward_paths` and `BackwardRule`."""

    rule: Choice = "auto"
    overlap: Overlap = "add"
    other: Other = "refuse"


class Looking(NamedTuple):
    """What was found in one pass over the pictures, for all layers."""

    network: Network
    pictures: Framed
    found: TopK
    fields: dict[str, ReceptiveField]
    side: int
    """Largest side of a patch in pixels."""
    options: ProjectionOptions
    ways: dict[str, BackwardPath]
    """Down from each layer."""


def mined(
    network: Network,
    folder: Pictures,
    layers: Sequence[str] | str | None,
    options: ProjectionOptions,
    *,
    k: int,
    side: int,
    tuning: Tuning | None = None,
    precision: Precision = "float32",
    also: Also = None,
    run: Run = PLAIN,
) -> Looking:
    """The strongest pictures and the receptive fields; see `features`."""
    model, preprocess = network.model, network.preprocess
    empty = blank(model, preprocess.shape)
    names = chosen_layers(model, layers, empty)
    # What the projections would raise at the end of a long search is raised before it.
    rule, overlap, other = options
    ways = backward_paths(model, empty, names, rule=rule, other=other)
    for up in {rule for way in ways.values() for rule in way.rules}:
        last = [Unit(layer, 0) for layer in names[-1:]]
        deconvnet(model, empty, last, rule=up, overlap=overlap, other=other)
    pictures = Framed(folder, preprocess.framing)

    # What is framed here and now is kept, so that none of it is decoded again for its patches.
    seeing = (pictures.keep, also)
    how: dict[str, Any] = {"tuning": tuning, "precision": precision, "also": seeing, "run": run}
    result = topk(network, folder, names, k=k, **how)
    known = fields(model, preprocess.shape, names)
    return Looking(network, pictures, result, known, side, options, ways)


Maps = Mapping[str, Sequence[int] | None]
"""By layer, the numbers of maps; None for all of them."""


def each_layer(looking: Looking, maps: Maps) -> Iterator[LayerFeatures]:
    """Of these layers, in this order; each picture is passed up once for all of them."""
    groups = groupby(projected(looking, maps), key=lambda projection: projection.layer)
    waiting = next(groups, None)
    for layer, chosen in maps.items():
        if waiting is not None and waiting[0] == layer:
            yield layer_features(looking, layer, chosen, waiting[1])
            waiting = next(groups, None)
        else:  # nothing in it was ever active
            yield layer_features(looking, layer, chosen, ())


def layer_features(
    looking: Looking,
    layer: str,
    maps: Sequence[int] | None = None,
    drawn: Iterable[Projected] | None = None,
) -> LayerFeatures:
    """Of the maps of these numbers, in this order; of all by default. drawn: their projections,
    where they are there already. Raises as `deconvnet`."""
    modules = dict(looking.network.model.named_modules())
    module = modules.get(layer.partition("#")[0])
    kind = "" if module is None else type(module).__name__
    looked = _Layer(looking, layer, maps)
    drawn = projected(looking, {layer: maps}) if drawn is None else drawn
    return looked.features(kind, drawn, whole=maps is None)


def projected(looking: Looking, maps: Maps) -> Iterator[Projected]:
    """The projections of what is strongest in these layers, one layer after the other."""
    preprocess = looking.network.preprocess

    def read(numbers: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        for number, pixels in looking.pictures.read(numbers):
            yield number, preprocess.tensor(pixels)

    return projections(
        looking.network.model,
        read,
        {layer: _Layer(looking, layer, chosen).neurons() for layer, chosen in maps.items()},
        **looking.options._asdict(),
    )


class _Layer:
    """One layer's entries."""

    def __init__(self, looking: Looking, layer: str, maps: Sequence[int] | None) -> None:
        self.looking, self.found, self.layer = looking, looking.found, layer
        self.field = looking.fields[layer]
        rows = self.found.rows(layer)
        self.maps = list(range(rows.stop - rows.start) if maps is None else maps)
        self.rows = rows.start + np.array(self.maps, np.int64)
        self.dead = self.found.active[self.rows] == 0
        self.image = np.where(self.dead[:, None], -1, self.found.image[self.rows])

    def neurons(self) -> list[Neuron]:
        """In the order of `_entries`."""
        return [
            Neuron(int(self.image[row, place]), self.maps[row], *self._at(row, place))
            for row, place in self._entries()
        ]

    def _entries(self) -> list[tuple[int, int]]:
        return [(row, place) for row, place in np.argwhere(self.image >= 0).tolist()]

    def features(self, kind: str, drawn: Iterable[Projected], *, whole: bool) -> LayerFeatures:
        self._make_room()
        self._cut_patches()
        way = self.looking.ways[self.layer]
        drawings = {rule: _Drawing(self, way) for rule in way.rules}
        entries = self._entries()
        for projection in drawn:
            self.coverage = (projection.rewritten, projection.rectifiers)
            drawings[projection.rule].add(*entries[projection.number], projection)
        shown = [drawing.shown(rule) for rule, drawing in drawings.items()]
        result, rows = self.found, self.rows
        return LayerFeatures(
            layer=self.layer,
            kind=kind,
            shape=(self.field.shape[0], len(self.field.rows), len(self.field.columns)),
            field=self.field.size,
            stride=self.field.stride,
            value=np.where(self.image >= 0, result.value[rows], -np.inf).astype(np.float32),
            image=self.image,
            row=result.row[rows],
            column=result.column[rows],
            box=self.box,
            active=result.active[rows],
            invalid=result.invalid[rows],
            seen=result.seen,
            patches=self.patches,
            rewritten=self.coverage[0],
            rectifiers=self.coverage[1],
            channels=() if whole else tuple(self.maps),
            patch_similarity=self._patch_similarity(),
            **shown[0]._asdict(),
            **(_beside(shown[1]) if len(shown) > 1 else {}),
            origin={**result.origin, **self._projected_by(way)},
        )

    def _projected_by(self, way: BackwardPath) -> dict[str, str]:
        """What of the projections goes into the origin."""
        options = self.looking.options
        return {
            "rule": " and ".join(way.rules),
            "rule_chosen": _why(options.rule, way),
            "overlap": options.overlap,
            "other": options.other,
            "scaling": f"jointly for each map; {SCALING}",
        }

    def _make_room(self) -> None:
        self.side = side_of(self.field, self.looking.side)
        shape = (*self.image.shape, self.side, self.side, 3)
        self.patches = np.full(shape, GREY, np.uint8)
        self.box = np.zeros((*self.image.shape, 4), np.int32)
        self.coverage = (0, 0)

    def around(self, row: int, place: int) -> Box:
        """What is shown of an entry's receptive field."""
        return around(self.box_of(row, place), self.field.picture)

    def seen(self, row: int) -> Bool[np.ndarray, "k s s"]:
        """Which pixels of a map's squares lie in their pictures."""
        marks = np.zeros((self.image.shape[1], self.side, self.side), bool)
        for place in np.flatnonzero(self.image[row] >= 0).tolist():
            marks[place] = inside(self.around(row, place), self.field.picture, self.side)
        return marks

    def _patch_similarity(self) -> Float32[np.ndarray, "maps"]:
        result = np.full(len(self.image), np.nan, np.float32)
        for row in np.flatnonzero((self.image >= 0).sum(axis=1) > 1).tolist():
            result[row] = mean_correlation(self.patches[row].astype(np.float32), self.seen(row))
        return result

    def _cut_patches(self) -> None:
        """Picture by picture, so that each is read once."""
        entries: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row, place in self._entries():
            entries[int(self.image[row, place])].append((row, place))
        preprocess = self.looking.network.preprocess
        for number, pixels in self.looking.pictures.read(sorted(entries)):
            shown = preprocess.seen(pixels)
            for row, place in entries[number]:
                self.box[row, place] = self.box_of(row, place)
                self.patches[row, place] = patch(shown, self.around(row, place), self.side)

    def box_of(self, row: int, place: int) -> Box:
        return self.field.box(*self._at(row, place))

    def _at(self, row: int, place: int) -> tuple[int, int]:
        at = self.rows[row]
        return int(self.found.row[at, place]), int(self.found.column[at, place])


class _Drawing:
    """The projections of one layer by one rule, each map finished as soon as it is complete."""

    def __init__(self, layer: _Layer, way: BackwardPath) -> None:
        self._layer, self._way = layer, way
        maps = len(layer.image)
        self._waiting: dict[int, dict[int, tuple[float, Float16[np.ndarray, "s s 3"]]]] = {}
        self._squares = np.full_like(layer.patches, GREY)
        self._high = np.zeros(maps, np.float32)
        self._similarity = np.full(maps, np.nan, np.float32)
        self._energy = Energy(layer.field)

    def add(self, row: int, place: int, projection: Projected) -> None:
        layer, pixels = self._layer, projection.pixels.float()
        box = layer.around(row, place).moved(-projection.top, -projection.left)
        square = cut(pixels, box, layer.side, 0.0)
        self._energy.add(pixels, layer.box_of(row, place).moved(-projection.top, -projection.left))
        # Each projection divided by its own peak: half precision then holds what 8 bits show.
        peak = float(square.abs().max())
        scaled = (square / peak if peak > 0 else square).expand(3, -1, -1).permute(1, 2, 0)
        waiting = self._waiting.setdefault(row, {})
        waiting[place] = (peak, scaled.cpu().numpy().astype(np.float16))
        if len(waiting) == np.count_nonzero(layer.image[row] >= 0):
            self._finish(row)

    def shown(self, rule: Rule) -> Shown:
        for row in list(self._waiting):  # a picture of these could not be read again
            self._finish(row)
        grids = self._energy.grids(self._way.strides)
        return Shown(rule, self._squares, -self._high, self._high, self._similarity, grids)

    def _finish(self, row: int) -> None:
        """One scale for all of a map's."""
        waiting = self._waiting.pop(row)
        places = sorted(waiting)
        raw = np.stack([waiting[place][1].astype(np.float32) for place in places])
        self._similarity[row] = mean_correlation(raw, self._layer.seen(row)[places])
        raw *= np.array([waiting[place][0] for place in places], np.float32)[:, None, None, None]
        self._high[row] = high = limit(raw)
        self._squares[row, places] = quantised(raw, -high, high)


def _beside(shown: Shown) -> dict[str, Any]:
    fields = shown._asdict()
    return {"beside": fields.pop("rule")} | {f"beside_{name}": fields[name] for name in fields}


def _why(rule: Choice, way: BackwardPath) -> str:
    if rule not in ("auto", "both"):
        return "as asked"
    if not way.rectifiers:
        return "no rectifier on the way: the filter itself, by either rule"
    if way.has_switches:
        return "switches of max pools on the way (Zeiler and Fergus 2014)"
    return "no switches where maps get smaller on the way (Springenberg et al. 2015)"


SIDE = 96
THUMB = 160


@taking(folder=pictures_of)
@recorded
def features(
    network: Network,
    folder: FolderLike,
    layers: Layers = None,
    *,
    k: int = 9,
    side: int = SIDE,
    rule: Choice = "auto",
    overlap: Overlap = "add",
    other: Other = "refuse",
    tuning: Tuning | None = None,
    precision: Precision = "float32",
    also: Also = None,
    run: Run = PLAIN,
) -> tuple[TopK, PictureRecord, Iterator[LayerFeatures]]:
    """The k strongest pictures of every feature map, with patches and projections.

    folder: opened, or its name. layers: one or several; by default see `feature_layers`. side:
    largest side of a patch in pixels. rule: how projections go down, see `backward_paths`; "both"
    draws either. overlap, other: see `BackwardRule`. tuning: what `tune` chose, for the pass
    over the pictures. precision, also: see `topk`. run: its progress is of that pass. The layers'
    features come one by one, as each is asked for, so that only one layer is in memory.

    Raises UsageError U376 (a bare module), U377 (no folder), U401 (no tuning), and what `topk`,
    `fields` and `deconvnet` raise.
    """
    require_tuning(tuning)
    network, folder = whole(network), as_pictures(folder)
    options = ProjectionOptions(rule, overlap, other)
    how: dict[str, Any] = {"tuning": tuning, "precision": precision, "also": also, "run": run}
    looking = mined(network, folder, layers, options, k=k, side=side, **how)
    result = looking.found
    return result, winners(looking), each_layer(looking, dict.fromkeys(result.layers))


def winners(looking: Looking) -> PictureRecord:
    """The pictures that are among the strongest of any map, as thumbnails."""
    preprocess, result, folder = looking.network.preprocess, looking.found, looking.pictures.folder
    alive = result.image[result.active > 0]
    wanted = np.unique(alive[alive >= 0]).tolist()
    height, width = preprocess.size
    whole = Box(0, 0, height, width)
    thumb = min(THUMB, max(height, width))
    squares = {
        number: patch(preprocess.seen(pixels), whole, thumb)
        for number, pixels in looking.pictures.read(wanted)
    }
    labels = [folder.labels[number] for number in squares]
    return PictureRecord(
        number=np.array(list(squares), np.int64),
        name=tuple(folder.names[number] for number in squares),
        label=np.array([-1 if label is None else label for label in labels], np.int64),
        classes=folder.classes,
        thumbs=np.array(list(squares.values()), np.uint8).reshape(-1, thumb, thumb, 3),
        size=(height, width),
        origin={"folder_sha256": folder.sha256},
    )


CHOSEN_SIDE = 64
"""On paper a tile is 4 to 5 mm wide: this is more than 300 pixels an inch."""


@taking(folder=pictures_of)
@recorded
def chosen_features(
    network: Network,
    folder: FolderLike,
    layers: Layers = None,
    *,
    units: Sequence[Unit | str] = (),
    count: int | None = None,
    k: int = 9,
    side: int = CHOSEN_SIDE,
    rule: Choice = "auto",
    overlap: Overlap = "add",
    other: Other = "refuse",
    tuning: Tuning | None = None,
    precision: Precision = "float32",
    run: Run = PLAIN,
) -> list[LayerFeatures]:
    """The k strongest pictures of some maps, with patches and projections, a record a layer.

    layers: by default those of the units, or else five of the network's, evenly from the first to
    the last (`feature_layers`). units: the maps wanted, in this order. count: without units, so
    many random ones of each layer that are active; by default as many as in the paper.
    Raises UsageError U387 (count, or units of layers that are not named), ModelError M504 (no such
    map), and what `features` raises, where the other parameters are explained.
    """
    network, wanted = whole(network), _units(units, layers, count)
    names = layers or list(wanted) or _spread(network)
    _require(network, wanted)
    with opened(folder) as pictures:
        options = ProjectionOptions(rule, overlap, other)
        how: dict[str, Any] = {"tuning": tuning, "precision": precision, "run": run}
        looking = mined(network, pictures, names, options, k=k, side=side, **how)
        chance = np.random.default_rng(run.seed)
        maps = {
            layer: wanted.get(layer)
            or random_maps(looking.found.active[looking.found.rows(layer)], count, place, chance)
            for place, layer in enumerate(names)
        }
        records = each_layer(looking, maps)
        return [replace(one, origin={**one.origin, "seed": run.seed}) for one in records]


def _units(
    units: Sequence[Unit | str], layers: Sequence[str] | None, count: int | None
) -> dict[str, list[int]]:
    """Maps by layer."""
    if count is not None and count < 1:
        raise UsageError("U387", f"{count} maps", "are none", next_step="take 1 or more")
    result: dict[str, list[int]] = {}
    for unit in units:
        one = Unit.parse(unit) if isinstance(unit, str) else unit
        if layers and one.layer not in layers:
            what = f"its layer is not among those named: {', '.join(layers)}"
            raise UsageError("U387", str(one), what, next_step="name the layer too, or no layers")
        result.setdefault(one.layer, []).append(one.channel)
    return result


def _require(network: Network, wanted: Mapping[str, Sequence[int]]) -> None:
    """Before the long search for their pictures: are these maps there?"""
    empty = blank(network.model, network.preprocess.shape)
    with torch.no_grad(), Lens(network.model, list(wanted)) as lens:
        if wanted:
            lens.reach(empty)
        counts = {layer: lens[layer].shape[1] for layer in wanted}
    for layer, maps in wanted.items():
        there = counts[layer]
        for channel in maps:
            if channel >= there:
                what = f"has {there} feature maps (0 to {there - 1}), no {channel}"
                raise ModelError("M504", layer, what)


def _spread(network: Network) -> list[str]:
    empty = blank(network.model, network.preprocess.shape)
    every = feature_layers(network.model, empty)
    places = np.linspace(0, len(every) - 1, min(len(COUNTS), len(every))).round().astype(int)
    return [every[place] for place in places]


def from_command(ask: Ask, options: Options) -> dict[str, LayerFeatures]:
    """Of new pictures, or without any out of what was kept."""
    count, units = (options.maps, ()) if isinstance(options.maps, int) else (None, options.maps)
    if ask.given is None:
        records = kept_features(Path(ask.model), options.layers, units or (), count, options.seed)
    else:
        network = ask.network()
        with ask.pictures() as folder:
            run = ask.run("strongest pictures")
            asked = arguments(options, run) | {"precision": "fast" if options.fast else "float32"}
            records = chosen_features(network, folder, **asked, units=units or (), count=count)
        if told := next((told_of_search(record.origin) for record in records), ""):
            ask.say(told)
    return {f"{KEPT}{number}": record for number, record in enumerate(records)}
