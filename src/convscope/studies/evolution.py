"""How did a network's features form while it was trained?

After each recorded epoch: for each chosen feature map its single strongest activation over the
pictures, projected. A feature jumps when the picture with the strongest activation changes.
Source: Zeiler and Fergus 2014, figure 4 (there over all training pictures, at epochs 1, 2, 5, 10,
20, 30, 40 and 64).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from convscope.errors import DataError
from convscope.images.folder import Folder
from convscope.lens.feature_layers import feature_layers
from convscope.lens.geometry import Field, fields
from convscope.methods.deconvnet import deconvnet
from convscope.methods.topk import topk
from convscope.models.preprocess import Preprocess
from convscope.records.series import Evolution
from convscope.studies.display import SCALING, cut, limit, patch, quantised
from convscope.units import Unit

PER_LAYER = 6
"""Rows of a layer's block in the paper's figure."""
SIDE = 64


@dataclass(frozen=True)
class _Moment:
    """One feature map at one epoch."""

    value: float
    image: int
    at: tuple[int, int]
    patch: UInt8[np.ndarray, "s s 3"]
    projection: Float[np.ndarray, "s s 3"]


class EvolutionRecorder:
    """An observer for any training loop: call it as `recorder(epoch, model)` after an epoch.

    folder: the pictures to look for the strongest activations in. units: feature maps to follow;
    by default `per_layer` of each feature layer, drawn with `seed` when first called. epochs: at
    which to record (all when None); epoch 0 is the untrained network. The model is not touched.
    """

    def __init__(
        self,
        folder: Folder,
        preprocess: Preprocess,
        *,
        units: Sequence[Unit] = (),
        per_layer: int = PER_LAYER,
        epochs: Sequence[int] | None = None,
        side: int = SIDE,
        seed: int = 0,
    ) -> None:
        self.folder, self.preprocess = folder, preprocess
        self.units = tuple(units)
        self.per_layer, self.side, self.seed = per_layer, side, seed
        self.epochs = None if epochs is None else frozenset(epochs)
        self._moments: dict[int, list[_Moment]] = {}
        self._fields: dict[str, Field] = {}

    def __call__(self, epoch: int, model: nn.Module) -> None:
        if self.epochs is not None and epoch not in self.epochs:
            return
        if not self.units:
            self.units = self._drawn(model)
        layers = list(dict.fromkeys(unit.layer for unit in self.units))
        if not self._fields:
            self._fields = fields(model, self.preprocess.shape, layers)
        found = topk(model, self.folder, self.preprocess, layers, k=1)
        strongest = []
        for unit in self.units:
            entries = list(found.units(unit.layer, unit.channel))
            if not entries:
                raise DataError("D163", str(self.folder.root), f"no picture excites {unit}")
            strongest.append(entries[0])
        self._moments[epoch] = [self._moment(model, *entry) for entry in strongest]

    @property
    def recorded(self) -> tuple[int, ...]:
        """The epochs recorded so far."""
        return tuple(sorted(self._moments))

    def record(self) -> Evolution:
        """What was seen so far. Raises DataError D162 if nothing was."""
        if not self._moments:
            raise DataError("D162", str(self.folder.root), "no epoch was recorded")
        epochs = self.recorded
        table = [[self._moments[epoch][row] for epoch in epochs] for row in range(len(self.units))]
        raw = np.array([[moment.projection for moment in row] for row in table], np.float32)
        high = np.array([limit(row) for row in raw], np.float32)
        shown = [quantised(row, -most, most) for row, most in zip(raw, high, strict=True)]
        return Evolution(
            units=tuple(map(str, self.units)),
            epochs=np.array(epochs, np.int64),
            value=np.array([[m.value for m in row] for row in table], np.float32),
            image=np.array([[m.image for m in row] for row in table], np.int64),
            row=np.array([[m.at[0] for m in row] for row in table], np.int32),
            column=np.array([[m.at[1] for m in row] for row in table], np.int32),
            patches=np.array([[m.patch for m in row] for row in table], np.uint8),
            projections=np.array(shown, np.uint8),
            low=-high,
            high=high,
            origin={
                "method": "deconvnet",
                "pictures": len(self.folder),
                "pictures_sha256": self.folder.sha256,
                "seed": self.seed,
                "scaling": f"jointly for each map over its epochs; {SCALING}",
            },
        )

    def _drawn(self, model: nn.Module) -> tuple[Unit, ...]:
        blank = torch.zeros(1, *self.preprocess.shape, device=_device(model))
        draw = np.random.default_rng(self.seed)
        maps = fields(model, self.preprocess.shape)
        units = []
        for layer in feature_layers(model, blank):
            channels = maps[layer].shape[0]
            chosen = draw.choice(channels, min(self.per_layer, channels), replace=False)
            units += [Unit(layer, int(channel)) for channel in sorted(chosen)]
        return tuple(units)

    def _moment(self, model: nn.Module, unit: Unit, number: int, value: float) -> _Moment:
        picture = self.folder.one(number, self.preprocess.framing)
        tensor = self.preprocess.tensor(picture.pixels)
        (projection,) = deconvnet(model, tensor[None], [unit])
        row, column = unit.at or (0, 0)
        field = self._fields[unit.layer]
        box = field.box(row, column)
        side = max(1, min(self.side, max(field.size)))
        small = cut(torch.tensor(projection.pixels), box, side, 0.0).expand(3, -1, -1)
        return _Moment(
            value,
            number,
            (row, column),
            _enlarged(patch(self.preprocess.seen(picture.pixels), box, side), self.side),
            _enlarged(small.permute(1, 2, 0).numpy(), self.side),
        )


def _enlarged(square: np.ndarray, side: int) -> np.ndarray:
    """To the common side, by repeating pixels: what was small stays sharp."""
    place = np.arange(side) * len(square) // side
    return square[place][:, place]


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
