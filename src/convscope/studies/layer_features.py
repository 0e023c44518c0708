"""What do the maps of one layer see: patches and projections of their strongest pictures?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float16, Float32
from torch import Tensor

from convscope.images.folder import Folder
from convscope.lens.ascent import Neuron
from convscope.lens.backward import Other, Overlap
from convscope.lens.feature_layers import chosen_layers
from convscope.lens.geometry import Field, fields
from convscope.methods.deconvnet import deconvnet
from convscope.methods.projections import Projected, projections
from convscope.methods.topk import topk
from convscope.methods.tuning import Tuning, blank
from convscope.models.network import Network
from convscope.records.features import LayerFeatures
from convscope.records.topk import TopK
from convscope.studies.display import GREY, SCALING, cut, limit, patch, quantised, side_of
from convscope.units import Unit


class Looking(NamedTuple):
    """What was found in one pass over the pictures, for all layers."""

    network: Network
    folder: Folder
    found: TopK
    fields: dict[str, Field]
    side: int
    """Largest side of a patch in pixels."""
    overlap: Overlap
    other: Other


def mined(
    network: Network,
    folder: Folder,
    layers: Sequence[str] | str | None,
    *,
    k: int,
    side: int,
    overlap: Overlap = "add",
    other: Other = "refuse",
    tuning: Tuning | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Looking:
    """The strongest pictures and the receptive fields; see `features`."""
    model, preprocess = network.model, network.preprocess
    empty = blank(model, preprocess.shape)
    names = chosen_layers(model, layers, empty)
    # What the projections would raise at the end of a long search is raised before it.
    deconvnet(model, empty, [Unit(layer, 0) for layer in names[-1:]], overlap=overlap, other=other)
    found = topk(network, folder, names, k=k, tuning=tuning, progress=progress)
    known = fields(model, preprocess.shape, names)
    return Looking(network, folder, found, known, side, overlap, other)


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
    drawn = projected(looking, [layer], maps) if drawn is None else drawn
    return looked.features(kind, drawn, whole=maps is None)


def projected(
    looking: Looking, layers: Sequence[str], maps: Sequence[int] | None = None
) -> Iterator[Projected]:
    """The projections of what is strongest in these layers, one layer after the other."""
    preprocess = looking.network.preprocess

    def read(numbers: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        for picture in looking.folder.read(preprocess.framing, numbers):
            yield picture.number, preprocess.tensor(picture.pixels)

    return projections(
        looking.network.model,
        read,
        {layer: _Layer(looking, layer, maps).neurons() for layer in layers},
        overlap=looking.overlap,
        other=looking.other,
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

    def _make_room(self) -> None:
        self.side = side_of(self.field, self.looking.side)
        shape = (*self.image.shape, self.side, self.side, 3)
        self.patches = np.full(shape, GREY, np.uint8)
        # Each projection divided by its own peak: half precision then holds what 8 bits show.
        self.scaled: Float16[np.ndarray, "maps k s s 3"] = np.zeros(shape, np.float16)
        self.peak = np.zeros(self.image.shape, np.float32)
        self.box = np.zeros((*self.image.shape, 4), np.int32)
        self.coverage = (0, 0)

    def features(self, kind: str, drawn: Iterable[Projected], *, whole: bool) -> LayerFeatures:
        self._make_room()
        self._draw(drawn)
        self._cut_patches()
        low, high, shown = self._jointly_scaled()
        found, rows = self.found, self.rows
        return LayerFeatures(
            layer=self.layer,
            kind=kind,
            shape=(self.field.shape[0], len(self.field.rows), len(self.field.columns)),
            field=self.field.size,
            stride=self.field.stride,
            value=np.where(self.image >= 0, found.value[rows], -np.inf).astype(np.float32),
            image=self.image,
            row=found.row[rows],
            column=found.column[rows],
            box=self.box,
            active=found.active[rows],
            invalid=found.invalid[rows],
            seen=found.seen,
            patches=self.patches,
            projections=shown,
            low=low,
            high=high,
            rewritten=self.coverage[0],
            rectifiers=self.coverage[1],
            channels=() if whole else tuple(self.maps),
            origin={
                **found.origin,
                "rule": "deconvnet",
                "overlap": self.looking.overlap,
                "other": self.looking.other,
                "scaling": f"jointly for each map; {SCALING}",
            },
        )

    def _draw(self, drawn: Iterable[Projected]) -> None:
        entries = self._entries()
        for projection in drawn:
            row, place = entries[projection.number]
            box = self.field.box(*self._at(row, place))
            near = box.moved(-projection.top, -projection.left)
            self._keep(row, place, cut(projection.pixels.float(), near, self.side, 0.0))
            self.coverage = (projection.rewritten, projection.rectifiers)

    def _cut_patches(self) -> None:
        """Picture by picture, so that each is read once."""
        entries: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for row, place in self._entries():
            entries[int(self.image[row, place])].append((row, place))
        preprocess = self.looking.network.preprocess
        for picture in self.looking.folder.read(preprocess.framing, sorted(entries)):
            shown = preprocess.seen(picture.pixels)
            for row, place in entries[picture.number]:
                box = self.field.box(*self._at(row, place))
                self.box[row, place] = box
                self.patches[row, place] = patch(shown, box, self.side)

    def _at(self, row: int, place: int) -> tuple[int, int]:
        at = self.rows[row]
        return int(self.found.row[at, place]), int(self.found.column[at, place])

    def _keep(self, row: int, place: int, square: Float[Tensor, "c s s"]) -> None:
        peak = float(square.abs().max())
        self.peak[row, place] = peak
        if peak > 0:
            self.scaled[row, place] = (square / peak).permute(1, 2, 0).numpy()

    def _jointly_scaled(
        self,
    ) -> tuple[Float32[np.ndarray, "maps"], Float32[np.ndarray, "maps"], np.ndarray]:
        shown = np.full_like(self.patches, GREY)
        low = np.zeros(len(self.image), np.float32)
        high = np.zeros(len(self.image), np.float32)
        for channel, used in enumerate(self.image >= 0):
            if used.any():
                raw = self.scaled[channel].astype(np.float32)
                raw *= self.peak[channel][:, None, None, None]
                high[channel] = limit(raw[used])
                low[channel] = -high[channel]
                shown[channel][used] = quantised(raw[used], low[channel], high[channel])
        return low, high, shown
