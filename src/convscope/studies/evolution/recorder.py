"""Evolution of features while a network is trained: recorder, callbacks of Lightning and Trainer.

After each recorded epoch: for each chosen feature map its single strongest activation over the
pictures, projected. A feature jumps when the picture with the strongest activation changes.
Source: Zeiler and Fergus 2014, figure 4 (there over all training pictures, at epochs 1, 2, 5, 10,
20, 30, 40 and 64).

Neither library is imported here unless the training has done so already. Each callback looks at the
untrained network (epoch 0, if it is to be recorded), after each epoch, and always after the last,
on the first process alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor, nn

from convscope.core.errors import DataError, ModelError
from convscope.core.run import PLAIN, Run, with_old_keywords
from convscope.core.units import Unit
from convscope.lens.lens import Lens
from convscope.lens.machine import usual_batch
from convscope.lens.twin import bare
from convscope.metrics.randomisation import ranks
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import of_module
from convscope.network.tuning import blank
from convscope.pictures.opening import as_pictures
from convscope.pictures.pictures import Pictures
from convscope.records.predictions import Convergence, Evolution
from convscope.records.topk import TopK
from convscope.representations.deconvnet import (
    SCALING,
    around,
    cut,
    deconvnet,
    limit,
    patch,
    quantised,
    side_of,
)
from convscope.representations.projections import backward_paths
from convscope.representations.topk import topk
from convscope.trace.backward_rule import Rule
from convscope.trace.layers import feature_layers
from convscope.trace.receptive_field import ReceptiveField, fields


def responses(
    model: nn.Module,
    folder: Pictures,
    preprocess: Preprocess,
    layers: Sequence[str],
    numbers: Sequence[int],
    *,
    places: int = 1,
    seed: int = 0,
) -> dict[str, Float32[np.ndarray, "maps samples"]]:
    """What the layers put out at `places` random places of each of these pictures.

    A place is a share of the layer's height and width, so that all layers are asked about the same
    part of a picture; it depends on seed and on the picture's number alone. A unit of a fully
    connected layer has one place. Unusable pictures are left out.

    Raises DataError D118 or D161 (no usable picture), ModelError M500, M502, M506 (no feature
    maps), M514 (not finite), M522.
    """
    result: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    black = blank(model, preprocess.shape)
    batches = folder.batches(usual_batch(model, black), preprocess.framing, numbers)
    with Lens(model, layers) as lens, torch.inference_mode():
        for pictures in batches:
            images = preprocess.batch([p.pixels for p in pictures], channels_last=True)
            lens.reach(images.to(black.device))
            where = [_places(picture.number, places, seed) for picture in pictures]
            for layer in layers:
                result[layer].append(_at(lens[layer], layer, np.stack(where)))
    return {layer: np.concatenate(parts, axis=1) for layer, parts in result.items()}


def ranked(values: Float[np.ndarray, "maps samples"]) -> Float32[np.ndarray, "maps samples"]:
    """Ranks along each row, less their mean and at length 1, so that the product of two rows is
    their rank correlation; NaN in a row that is the same everywhere."""
    result: Float64[np.ndarray, "maps samples"] = ranks(values)
    result -= result.mean(axis=1, keepdims=True)
    size = np.linalg.norm(result, axis=1, keepdims=True)
    return (result / np.where(size > 0, size, np.nan)).astype(np.float32)


def _places(number: int, places: int, seed: int) -> Float64[np.ndarray, "places 2"]:
    return np.random.default_rng((seed, number)).random((places, 2))


def _at(
    output: Tensor, layer: str, where: Float64[np.ndarray, "b places 2"]
) -> Float32[np.ndarray, "maps b*places"]:
    maps = output[:, :, None, None] if output.dim() == 2 else output
    if maps.dim() != 4:
        raise ModelError("M506", layer, "puts out no feature maps")
    if not bool(maps.isfinite().all()):
        raise ModelError("M514", layer, "its feature maps are not finite")
    size = np.array(maps.shape[2:])
    rows, columns = torch.from_numpy((where * size).astype(np.int64)).unbind(-1)
    pictures = torch.arange(len(maps))[:, None]
    taken = maps[pictures, :, rows.to(maps.device), columns.to(maps.device)]
    return taken.flatten(0, 1).T.float().cpu().contiguous().numpy()


class Snapshot(NamedTuple):
    """One feature map at one epoch."""

    value: float
    image: int
    at: tuple[int, int]
    patch: UInt8[np.ndarray, "s s 3"]
    projection: Float[np.ndarray, "s s 3"]


def _enlarged(square: np.ndarray, side: int) -> np.ndarray:
    """To the common side, by repeating pixels: what was small stays sharp."""
    place = np.arange(side) * len(square) // side
    return square[place][:, place]


WAY = 0.9
RESAMPLES = 1000
LEVEL = (2.5, 97.5)
"""Percentiles: a 95 % interval over maps, by drawing maps again and again with replacement."""


def convergence(
    layers: Sequence[str],
    epochs: Sequence[int],
    image: Sequence[Mapping[str, Int64[np.ndarray, "maps"]]],
    responses: Sequence[Mapping[str, Float32[np.ndarray, "maps samples"]]],
    units: Sequence[str],
    projections: Float[np.ndarray, "units epochs *pixels"],
    *,
    seed: int = 0,
    origin: Mapping[str, object] | None = None,
) -> Convergence:
    """From what was seen at each epoch. responses: ranks, see `ranked`. seed: of the resampling."""
    counts = [len(image[0][layer]) for layer in layers]
    starts = np.cumsum([0, *counts], dtype=np.int64)
    images = np.concatenate([np.stack([one[layer] for one in image], 1) for layer in layers])
    alike = np.concatenate([_alike([one[layer] for one in responses]) for layer in layers])
    looks = _cosines(projections)
    members = [[n for n, u in enumerate(units) if u.rpartition(":")[0] == x] for x in layers]
    same = (images == images[:, -1:]).astype(np.float64)
    blocks = [slice(int(a), int(b)) for a, b in pairwise(starts)]
    at = np.asarray(epochs, np.int64)
    drawn = [_resampled(alike[block], seed) for block in blocks]
    return Convergence(
        layers=tuple(layers),
        starts=starts,
        epochs=at,
        image=images,
        responses=alike.astype(np.float32),
        units=tuple(units),
        projection=looks.astype(np.float32),
        responses_curve=np.stack([_curve(each) for each in drawn]),
        same_curve=np.stack([_curve(_resampled(same[block], seed)) for block in blocks]),
        projection_curve=np.stack([_curve(_resampled(looks[rows], seed)) for rows in members]),
        arrived=np.stack([_spread(arrived(each, at)) for each in drawn]),
        centre=np.stack([_spread(centre(each, at)) for each in drawn]),
        samples=int(responses[0][layers[0]].shape[1]),
        origin=dict(origin or {}),
    )


def way(means: Float64[np.ndarray, "*n epochs"]) -> Float64[np.ndarray, "*n epochs"]:
    """How much of the way from the first value to 1 is gone; all of it if there is none to go."""
    left = 1 - means[..., :1]
    there = left < 1e-6
    gone: Float64[np.ndarray, "*n epochs"]
    gone = np.where(there, 1.0, (means - means[..., :1]) / np.where(there, 1.0, left))
    return gone


def arrived(
    means: Float64[np.ndarray, "n epochs"], epochs: Int64[np.ndarray, "epochs"]
) -> Float64[np.ndarray, "n"]:
    """The first recorded epoch from which WAY of the way is gone for good."""
    there = way(means) >= WAY
    there[:, -1] = True
    ever_after = np.logical_and.accumulate(there[:, ::-1], axis=1).sum(axis=1)
    first: Float64[np.ndarray, "n"] = epochs[len(epochs) - ever_after].astype(np.float64)
    return first


def centre(
    means: Float64[np.ndarray, "n epochs"], epochs: Int64[np.ndarray, "epochs"]
) -> Float64[np.ndarray, "n"]:
    """Epochs weighted by the share of the way gone there; between two recorded ones, the middle."""
    gone = np.diff(way(means), axis=1)
    # With no way to go there is no step: the layer was there at the first epoch.
    result: Float64[np.ndarray, "n"] = gone @ ((epochs[1:] + epochs[:-1]) / 2)
    return np.where(gone.any(axis=1), result, float(epochs[0]))


def _alike(ranks: Sequence[Float32[np.ndarray, "maps samples"]]) -> Float64[np.ndarray, "maps e"]:
    """Rank correlation with the last epoch; 0 where only the earlier responses are all the same."""
    last = ranks[-1]
    result = np.stack([(np.nan_to_num(each) * last).sum(axis=1) for each in ranks], axis=1)
    return result.astype(np.float64).clip(-1, 1)


def _cosines(pixels: Float[np.ndarray, "units epochs *pixels"]) -> Float64[np.ndarray, "units e"]:
    flat = pixels.reshape(*pixels.shape[:2], math.prod(pixels.shape[2:])).astype(np.float64)
    size = np.linalg.norm(flat, axis=2)
    products = np.einsum("uep,up->ue", flat, flat[:, -1])
    silent = np.where(size[:, -1:] > 0, size[:, -1:], np.nan)
    result: Float64[np.ndarray, "units e"] = products / np.where(size > 0, size, 1.0) / silent
    return result


def _resampled(
    values: Float64[np.ndarray, "maps epochs"], seed: int
) -> Float64[np.ndarray, "n+1 epochs"]:
    """The mean over maps, and the means of resamples of the maps; maps with NaN are left out."""
    known = values[~np.isnan(values).any(axis=1)]
    if not len(known):
        return np.full((1, values.shape[1]), np.nan)
    chance = np.random.default_rng(seed)
    draws = chance.integers(len(known), size=(RESAMPLES, len(known)))
    return np.stack([known.mean(axis=0), *(known[draw].mean(axis=0) for draw in draws)])


def _curve(means: Float64[np.ndarray, "n epochs"]) -> Float64[np.ndarray, "epochs 3"]:
    return np.stack([_spread(column) for column in means.T])


def _spread(values: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "3"]:
    """The first value and the interval of the others."""
    draws = values[1:] if len(values) > 1 else values
    return np.array([values[0], *np.percentile(draws, LEVEL)])


EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)
"""The paper's."""
PER_LAYER = 6
"""Rows of a layer's block in the paper's figure."""
SIDE = 64
ASKED = 250
"""Pictures, spread evenly over the folder, whose responses are compared between epochs …"""
SAMPLES = 1000
"""… at so many places of each map: by chance alone two maps then correlate by about ±0.03."""


@dataclass(frozen=True)
class _Epoch:
    """The network at one epoch."""

    snapshots: list[Snapshot]
    image: dict[str, Int64[np.ndarray, "maps"]]
    ranks: dict[str, Float32[np.ndarray, "maps samples"]]


class EvolutionRecorder:
    """An observer for any training loop: call it as `recorder(epoch, model)` after an epoch.

    folder: the pictures to look for the strongest activations in, opened or by name. layers: by
    default see `feature_layers`. units: feature maps to project; by default `per_layer` of each
    layer, drawn with `seed` when first called. epochs: at which to record (all when None); epoch 0
    is the untrained network. side: of a picture of the record in pixels. run: its progress is of
    the pass over the pictures at each of these epochs. The model is not touched, nor torch's random
    numbers. Projections follow the rule that fits their layer, see `backward_paths`.
    """

    @with_old_keywords
    def __init__(
        self,
        folder: Pictures | Path | str,
        preprocess: Preprocess,
        *,
        layers: Sequence[str] | None = None,
        units: Sequence[Unit | str] = (),
        per_layer: int = PER_LAYER,
        epochs: Sequence[int] | None = EPOCHS,
        side: int = SIDE,
        run: Run = PLAIN,
    ) -> None:
        self.folder, self.preprocess = as_pictures(folder), preprocess
        self.units = tuple(Unit.parse(unit) if isinstance(unit, str) else unit for unit in units)
        self.layers = tuple(layers or dict.fromkeys(unit.layer for unit in self.units))
        self.per_layer, self.side, self.run = per_layer, side, run
        self.epochs = None if epochs is None else frozenset(epochs)
        self._seen: dict[int, _Epoch] = {}
        self._fields: dict[str, ReceptiveField] = {}
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
        result = topk(
            model, self.folder, self.layers, preprocess=self.preprocess, k=1, run=self.run
        )
        strongest = [self._strongest(result, unit) for unit in self.units]
        numbers = np.unique(np.linspace(0, len(self.folder) - 1, ASKED).round().astype(int))
        places = -(-SAMPLES // len(numbers))
        responded = responses(
            model,
            self.folder,
            self.preprocess,
            self.layers,
            numbers.tolist(),
            places=places,
            seed=self.run.seed,
        )
        self._made[epoch] = of_module(model)
        self._seen[epoch] = _Epoch(
            [self._snapshot(model, *entry) for entry in strongest],
            {layer: result.image[result.rows(layer), 0] for layer in self.layers},
            {layer: ranked(values) for layer, values in responded.items()},
        )

    def _snapshot(self, model: nn.Module, unit: Unit, number: int, value: float) -> Snapshot:
        """unit: with its place in the picture of this number, where its activation is value."""
        field, rule = self._fields[unit.layer], self._rules[unit.layer]
        picture = self.folder.one(number, self.preprocess.framing)
        image = self.preprocess.tensor(picture.pixels)[None]
        (projection,) = deconvnet(model, image, [unit], rule=rule)
        row, column = unit.at or (0, 0)
        box, own = around(field.box(row, column), field.picture), side_of(field, self.side)
        small = cut(torch.tensor(projection.pixels), box, own, 0.0).expand(3, -1, -1)
        return Snapshot(
            value,
            number,
            (row, column),
            _enlarged(patch(self.preprocess.seen(picture.pixels), box, own), self.side),
            _enlarged(small.permute(1, 2, 0).numpy(), self.side),
        )

    @property
    def recorded(self) -> tuple[int, ...]:
        """The epochs recorded so far."""
        return tuple(sorted(self._seen))

    def record(self) -> Evolution:
        """What was seen so far. Raises DataError D162 if nothing was."""
        epochs, table = self.recorded, self._table()
        raw = np.array([[m.projection for m in row] for row in table], np.float32)
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
            raise DataError("D194", self.folder.place, what, next_step="record two or more")
        seen = [self._seen[epoch] for epoch in self.recorded]
        return convergence(
            self.layers,
            self.recorded,
            [one.image for one in seen],
            [one.ranks for one in seen],
            list(map(str, self.units)),
            np.array([[m.projection for m in row] for row in table], np.float32),
            seed=self.run.seed,
            origin=self._origin("convergence"),
        )

    def _table(self) -> list[list[Snapshot]]:
        """A row a unit, a column an epoch."""
        if not self._seen:
            raise DataError("D162", self.folder.place, "no epoch was recorded")
        columns = [self._seen[epoch].snapshots for epoch in self.recorded]
        return [list(row) for row in zip(*columns, strict=True)]

    def _origin(self, method: str) -> dict[str, object]:
        return {
            "method": method,
            "rule": " and ".join(sorted(set(self._rules.values()))),
            "pictures": len(self.folder),
            "pictures_sha256": self.folder.sha256,
            "contents_sha256": self.folder.contents(self._read),
            "preprocessing": self.preprocess.describe(),
            "seed": self.run.seed,
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
            ways = backward_paths(model, blank(model, self.preprocess.shape), self.layers)
            self._rules = {layer: way.rules[0] for layer, way in ways.items()}
        if not self.units:
            self.units = self._drawn()

    def _strongest(self, result: TopK, unit: Unit) -> tuple[Unit, int, float]:
        for entry in result.units(unit.layer, unit.channel):
            return entry
        raise DataError("D163", self.folder.place, f"no picture excites {unit}")

    def _drawn(self) -> tuple[Unit, ...]:
        draw = np.random.default_rng(self.run.seed)
        units = []
        for layer in self.layers:
            channels = self._fields[layer].shape[0]
            chosen = draw.choice(channels, min(self.per_layer, channels), replace=False)
            units += [Unit(layer, int(channel)) for channel in sorted(chosen)]
        return tuple(units)


LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
"""The two names that Lightning is installed under; their callbacks are not each other's."""


def lightning_callback(recorder: EvolutionRecorder, part: str = "") -> Any:
    """For `Trainer(callbacks=[…])`. part: name of the network in the LightningModule, e.g. model;
    by default the module itself is looked at, with layers named as in it."""
    home = next((sys.modules[name] for name in LIGHTNING if name in sys.modules), None)
    if home is None:
        import lightning.pytorch as home  # takes seconds

    class LightningEvolution(home.Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
            if trainer.current_epoch == 0:
                self._tell(trainer, pl_module, recorder, 0)

        def on_train_epoch_end(self, trainer: Any, pl_module: nn.Module) -> None:
            self._tell(trainer, pl_module, recorder, trainer.current_epoch + 1)

        def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
            # Lightning has counted the last epoch by now, unless it was broken off.
            self._tell(trainer, pl_module, _last(recorder), trainer.current_epoch)

        def _tell(
            self, trainer: Any, module: nn.Module, to: Callable[[int, nn.Module], None], epoch: int
        ) -> None:
            if trainer.is_global_zero:
                to(epoch, module.get_submodule(part))

    return LightningEvolution()


def hugging_face_callback(recorder: EvolutionRecorder) -> Any:
    """For `Trainer(callbacks=[…])` of transformers. A `TrainerCallback` if transformers has been
    imported, else an object that answers to all of its events."""
    transformers = sys.modules.get("transformers")
    kinds: tuple[type, ...] = (_HuggingFace,)
    if transformers is not None:
        kinds = (_HuggingFace, transformers.TrainerCallback)
    made = type("HuggingFaceEvolution", kinds, {})()
    made.recorder = recorder
    return made


class _HuggingFace:
    """Events of transformers' Trainer; it counts epochs in fractions."""

    recorder: EvolutionRecorder

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **more: Any) -> None:
        if not state.epoch:
            self._tell(state, more, self.recorder)

    def on_epoch_end(self, _args: Any, state: Any, _control: Any, **more: Any) -> None:
        self._tell(state, more, self.recorder)

    def on_train_end(self, _args: Any, state: Any, _control: Any, **more: Any) -> None:
        self._tell(state, more, _last(self.recorder))

    def _tell(self, state: Any, more: dict[str, Any], to: Callable[[int, nn.Module], None]) -> None:
        if state.is_world_process_zero:
            to(round(state.epoch or 0), more["model"])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):  # an event that means nothing to us
            return lambda *_, **__: None
        raise AttributeError(name)


def _last(recorder: EvolutionRecorder) -> Callable[[int, nn.Module], None]:
    """Looks at the last epoch, whether or not it is one of those to record."""

    def look(epoch: int, model: nn.Module) -> None:
        if epoch not in recorder.recorded:
            recorder.look(epoch, model)

    return look
