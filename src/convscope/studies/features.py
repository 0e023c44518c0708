"""What does each feature map of each layer see: its strongest pictures and their projections?

Source: Zeiler and Fergus 2014, figure 2: nine strongest pictures a map, each projected alone,
beside the parts of the pictures that the unit saw; scaled jointly for each map.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32
from torch import Tensor, nn

from convscope.images.builtin import as_folder
from convscope.images.folder import Folder, Picture
from convscope.lens.backward import Other, Overlap
from convscope.lens.feature_layers import chosen_layers
from convscope.lens.geometry import Field, fields
from convscope.methods.deconvnet import deconvnet
from convscope.methods.topk import topk
from convscope.methods.tuning import Tuning, require_tuning
from convscope.models.network import Network, whole
from convscope.models.preprocess import Preprocess
from convscope.records.features import LayerFeatures, Pictures
from convscope.records.topk import TopK
from convscope.studies.display import GREY, SCALING, cut, limit, patch, quantised, side_of
from convscope.units import Box, Unit

Progress = Callable[[int, int], None]
SIDE = 96
THUMB = 160
AT_ONCE = 32
"""Projections held as whole pictures at a time: 19 MB at 224 pixels."""


def features(
    network: Network,
    folder: Folder | Path | str,
    layers: Sequence[str] | str | None = None,
    *,
    k: int = 9,
    side: int = SIDE,
    overlap: Overlap = "add",
    other: Other = "refuse",
    tuning: Tuning | None = None,
    progress: Progress | None = None,
) -> tuple[TopK, Pictures, Iterator[LayerFeatures]]:
    """The k strongest pictures of every feature map, with patches and projections.

    folder: opened, or its name. layers: one or several; by default see `feature_layers`. side:
    largest side of a patch in pixels. overlap, other: see `BackwardRule`. tuning: what `tune`
    chose, for the pass over the pictures. progress: of that pass. The layers' features come one by
    one, as each is asked for, so that only one layer is in memory.

    Raises UsageError U376 (a bare module), U377 (no folder), U401 (no tuning), and what `topk`,
    `fields` and `deconvnet` raise.
    """
    require_tuning(tuning)
    network, folder = whole(network), as_folder(folder)
    model, preprocess = network.model, network.preprocess
    blank = torch.zeros(1, *preprocess.shape, device=_device(model))
    names = chosen_layers(model, layers, blank)
    # What the projections would raise at the end of a long search is raised before it.
    deconvnet(model, blank, [Unit(layer, 0) for layer in names[-1:]], overlap=overlap, other=other)
    found = topk(model, folder, preprocess, names, k=k, tuning=tuning, progress=progress)
    known = fields(model, preprocess.shape, names)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}

    def each() -> Iterator[LayerFeatures]:
        for layer in names:
            looked = _Layer(network, folder, found, layer, known[layer], side, overlap, other)
            yield looked.features(kinds.get(layer.partition("#")[0], ""))

    return found, winners(folder, preprocess, found), each()


def winners(folder: Folder, preprocess: Preprocess, found: TopK) -> Pictures:
    """The pictures that are among the strongest of any map, as thumbnails."""
    alive = found.image[found.active > 0]
    numbers = np.unique(alive[alive >= 0])
    seen = list(folder.read(preprocess.framing, numbers.tolist()))
    height, width = preprocess.size
    whole = Box(0, 0, height, width)
    thumb = min(THUMB, max(height, width))
    squares = [patch(preprocess.seen(picture.pixels), whole, thumb) for picture in seen]
    return Pictures(
        number=np.array([picture.number for picture in seen], np.int64),
        name=tuple(picture.name for picture in seen),
        label=np.array([-1 if p.label is None else p.label for p in seen], np.int64),
        classes=folder.classes,
        thumbs=np.array(squares, np.uint8).reshape(-1, thumb, thumb, 3),
        size=(height, width),
        origin={"folder_sha256": folder.sha256},
    )


class _Layer:
    """One layer's entries, filled in picture by picture, so that each is read once."""

    def __init__(
        self,
        network: Network,
        folder: Folder,
        found: TopK,
        layer: str,
        field: Field,
        side: int,
        overlap: Overlap,
        other: Other,
    ) -> None:
        self.network, self.folder, self.layer, self.field = network, folder, layer, field
        self.overlap, self.other, self.found = overlap, other, found
        rows = found.rows(layer)
        self.rows = rows
        self.dead = found.active[rows] == 0
        self.image = np.where(self.dead[:, None], -1, found.image[rows])
        self.side = side_of(field, side)
        shape = (*self.image.shape, self.side, self.side, 3)
        self.patches = np.full(shape, GREY, np.uint8)
        # Each projection divided by its own peak: half precision then holds what 8 bits show.
        self.scaled: Float16[np.ndarray, "maps k s s 3"] = np.zeros(shape, np.float16)
        self.peak = np.zeros(self.image.shape, np.float32)
        self.box = np.zeros((*self.image.shape, 4), np.int32)
        self.coverage = (0, 0)

    def features(self, kind: str) -> LayerFeatures:
        self._fill()
        low, high, shown = self._jointly_scaled()
        found, rows = self.found, self.rows
        return LayerFeatures(
            layer=self.layer,
            kind=kind,
            shape=(len(self.image), len(self.field.rows), len(self.field.columns)),
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
            origin={
                **found.origin,
                "rule": "deconvnet",
                "overlap": self.overlap,
                "other": self.other,
                "scaling": f"jointly for each map; {SCALING}",
            },
        )

    def _fill(self) -> None:
        entries: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for channel, place in np.argwhere(self.image >= 0).tolist():
            entries[int(self.image[channel, place])].append((channel, place))
        framing = self.network.preprocess.framing
        for picture in self.folder.read(framing, sorted(entries)):
            chosen = entries[picture.number]
            for start in range(0, len(chosen), AT_ONCE):
                self._take(picture, chosen[start : start + AT_ONCE])

    def _take(self, picture: Picture, chosen: list[tuple[int, int]]) -> None:
        preprocess = self.network.preprocess
        tensor, shown = preprocess.tensor(picture.pixels), preprocess.seen(picture.pixels)
        projected = deconvnet(
            self.network.model,
            tensor[None],
            [Unit(self.layer, channel, self._at(channel, place)) for channel, place in chosen],
            overlap=self.overlap,
            other=self.other,
        )
        for (channel, place), projection in zip(chosen, projected, strict=True):
            box = self.field.box(*self._at(channel, place))
            self.box[channel, place] = box
            self.patches[channel, place] = patch(shown, box, self.side)
            self._keep(channel, place, cut(torch.tensor(projection.pixels), box, self.side, 0.0))
            self.coverage = (projection.rewritten, projection.rectifiers)

    def _at(self, channel: int, place: int) -> tuple[int, int]:
        row = self.rows.start + channel
        return int(self.found.row[row, place]), int(self.found.column[row, place])

    def _keep(self, channel: int, place: int, square: Float[Tensor, "c s s"]) -> None:
        peak = float(square.abs().max())
        self.peak[channel, place] = peak
        if peak > 0:
            self.scaled[channel, place] = (square / peak).permute(1, 2, 0).numpy()

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


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
