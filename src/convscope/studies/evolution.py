"""How did a network's features form while it was trained?

After each recorded epoch: for each chosen feature map its single strongest activation over the
pictures, projected. A feature jumps when the picture with the strongest activation changes.
Source: Zeiler and Fergus 2014, figure 4 (there over all training pictures, at epochs 1, 2, 5, 10,
20, 30, 40 and 64).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from torch import nn

from convscope.errors import DataError
from convscope.lens.backward import Rule
from convscope.lens.feature_layers import feature_layers
from convscope.lens.geometry import Field, fields
from convscope.lens.twin import bare
from convscope.methods.responses import ranked, responses
from convscope.methods.topk import topk
from convscope.methods.tuning import blank
from convscope.methods.ways_down import ways_down
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import of_module
from convscope.pictures.opening import as_folder
from convscope.pictures.pictures import Folder
from convscope.records.series import Convergence, Evolution
from convscope.records.topk import TopK
from convscope.studies.convergence import convergence
from convscope.studies.display import SCALING, limit, quantised
from convscope.studies.moment import Moment, moment
from convscope.units import Unit

EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)
"""The paper's."""
PER_LAYER = 6
"""Rows of a layer's block in the paper's figure."""
SIDE = 64
ASKED = 250
"""Pictures, spread evenly over the folder, whose responses are compared between epochs …"""
SAMPLES = 1000
"""… at so many places of each map: by chance alone two maps then correlate by about ±0.03."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Epoch:
    """The network at one epoch."""

    moments: list[Moment]
    image: dict[str, Int64[np.ndarray, "maps"]]
    ranks: dict[str, Float32[np.ndarray, "maps samples"]]


class EvolutionRecorder:
    """An observer for any training loop: call it as `recorder(epoch, model)` after an epoch.

    folder: the pictures to look for the strongest activations in, opened or by name. layers: by
    default see `feature_layers`. units: feature maps to project; by default `per_layer` of each
    layer, drawn with `seed` when first called. epochs: at which to record (all when None); epoch 0
    is the untrained network. side: of a picture of the record in pixels. progress: of the pass
    over the pictures at each of these epochs. The model is not touched, nor torch's random numbers.
    Projections follow the rule that fits their layer, see `ways_down`.
    """

    def __init__(
        self,
        folder: Folder | Path | str,
        preprocess: Preprocess,
        *,
        layers: Sequence[str] | None = None,
        units: Sequence[Unit | str] = (),
        per_layer: int = PER_LAYER,
        epochs: Sequence[int] | None = EPOCHS,
        side: int = SIDE,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.folder, self.preprocess = as_folder(folder), preprocess
        self.units = tuple(Unit.parse(unit) if isinstance(unit, str) else unit for unit in units)
        self.layers = tuple(layers or dict.fromkeys(unit.layer for unit in self.units))
        self.per_layer, self.side, self.seed = per_layer, side, seed
        self.epochs = None if epochs is None else frozenset(epochs)
        self.progress = progress
        self._seen: dict[int, _Epoch] = {}
        self._fields: dict[str, Field] = {}
        self._rules: dict[str, Rule] = {}
        self._read = self.folder.readings
        self._made: dict[int, dict[str, Any]] = {}

    def __call__(self, epoch: int, model: nn.Module) -> None:
        """Look, if this is one of the epochs to record."""
        if self.epochs is None or epoch in self.epochs:
            self.look(epoch, model)

    def look(self, epoch: int, model: nn.Module) -> None:
        """Record the network as it is after this epoch, asked for or not.

        Raises DataError D163 if no picture excites a unit, and what `topk`, `responses`, `fields`
        and `deconvnet` raise.
        """
        model = bare(model)
        self._settle(model)
        found = topk(
            model, self.folder, self.layers, preprocess=self.preprocess, k=1, progress=self.progress
        )
        strongest = [self._strongest(found, unit) for unit in self.units]
        numbers = np.unique(np.linspace(0, len(self.folder) - 1, ASKED).round().astype(int))
        places = -(-SAMPLES // len(numbers))
        responded = responses(
            model,
            self.folder,
            self.preprocess,
            self.layers,
            numbers.tolist(),
            places=places,
            seed=self.seed,
        )
        self._made[epoch] = of_module(model)
        self._seen[epoch] = _Epoch(
            [
                moment(
                    model,
                    self.folder,
                    self.preprocess,
                    self._fields[unit.layer],
                    self._rules[unit.layer],
                    self.side,
                    *entry,
                )
                for unit, entry in zip(self.units, strongest, strict=True)
            ],
            {layer: found.image[found.rows(layer), 0] for layer in self.layers},
            {layer: ranked(values) for layer, values in responded.items()},
        )

    @property
    def recorded(self) -> tuple[int, ...]:
        """The epochs recorded so far."""
        return tuple(sorted(self._seen))

    def record(self) -> Evolution:
        """What was seen so far. Raises DataError D162 if nothing was."""
        epochs, table = self.recorded, self._table()
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
            origin=self._origin("evolution")
            | {"scaling": f"jointly for each map over its epochs; {SCALING}"},
        )

    def convergence(self) -> Convergence:
        """From which epoch on each map and layer stays as it is at the last one recorded.

        Raises DataError D162 if nothing was recorded, D194 if only one epoch was.
        """
        table = self._table()
        if len(self._seen) < 2:
            what = f"only epoch {self.recorded[0]} was recorded, so nothing can be compared"
            raise DataError("D194", str(self.folder.root), what, next_step="record two or more")
        seen = [self._seen[epoch] for epoch in self.recorded]
        return convergence(
            self.layers,
            self.recorded,
            [one.image for one in seen],
            [one.ranks for one in seen],
            list(map(str, self.units)),
            np.array([[moment.projection for moment in row] for row in table], np.float32),
            seed=self.seed,
            origin=self._origin("convergence"),
        )

    def _table(self) -> list[list[Moment]]:
        """A row a unit, a column an epoch."""
        if not self._seen:
            raise DataError("D162", str(self.folder.root), "no epoch was recorded")
        columns = [self._seen[epoch].moments for epoch in self.recorded]
        return [list(row) for row in zip(*columns, strict=True)]

    def _origin(self, method: str) -> dict[str, object]:
        return {
            "method": method,
            "rule": " and ".join(sorted(set(self._rules.values()))),
            "pictures": len(self.folder),
            "pictures_sha256": self.folder.sha256,
            "contents_sha256": self.folder.contents(self._read),
            "preprocessing": self.preprocess.describe(),
            "seed": self.seed,
            **self._made[self.recorded[-1]],
            "weights_sha256": {str(n): self._made[n]["weights_sha256"] for n in self.recorded},
        }

    def _settle(self, model: nn.Module) -> None:
        """What is followed: decided when the network is first seen."""
        if not self.layers:
            empty = blank(model, self.preprocess.shape)
            self.layers = tuple(feature_layers(model, empty))
        if not self._fields:
            self._fields = fields(model, self.preprocess.shape, self.layers)
            ways = ways_down(model, blank(model, self.preprocess.shape), self.layers)
            self._rules = {layer: way.rules[0] for layer, way in ways.items()}
        if not self.units:
            self.units = self._drawn()

    def _strongest(self, found: TopK, unit: Unit) -> tuple[Unit, int, float]:
        for entry in found.units(unit.layer, unit.channel):
            return entry
        raise DataError("D163", str(self.folder.root), f"no picture excites {unit}")

    def _drawn(self) -> tuple[Unit, ...]:
        draw = np.random.default_rng(self.seed)
        units = []
        for layer in self.layers:
            channels = self._fields[layer].shape[0]
            chosen = draw.choice(channels, min(self.per_layer, channels), replace=False)
            units += [Unit(layer, int(channel)) for channel in sorted(chosen)]
        return tuple(units)
