"""Wasted maps over any number of pictures: never positive, always so, still, or alike another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from convscope.core.errors import ModelError
from convscope.core.run import Run
from convscope.lens.lens import Lens
from convscope.network.network import Network
from convscope.pictures.pictures import Picture, Pictures
from convscope.scale.engine import Job, merged
from convscope.scale.rows import digest
from convscope.scale.segments import Arrays

MAPS_ALIKE = 0.99
"""Correlation of two maps' outputs from which they count as duplicates."""
STILL = 1e-3
"""Of the median spread in the layer: a map that varies less puts out a constant."""
ALWAYS = 0.999
"""Share of places with a positive output from which a rectifier cuts nothing off."""


FINE_STEP, FARTHEST = 1 << 20, 256.0
"""Sums are whole numbers of this part of a map's range, from values at most so far out of it: so
they are the same in any order and division."""
LEAST_RANGE = 1 / 64
"""Of the median one in the layer: a map that hardly moved may do so yet."""


class Tally:
    """What is known of a layer's maps so far."""

    def __init__(self, low: Float64[np.ndarray, "maps"], high: Float64[np.ndarray, "maps"]) -> None:
        """low, high: of each map, as far as is known; sums are taken in these units."""
        self._centre, half = (low + high) / 2, (high - low) / 2
        self._unit = np.maximum(half, LEAST_RANGE * np.median(half))
        self._unit[self._unit == 0] = 1.0
        self.clear()

    def clear(self) -> dict[str, np.ndarray]:
        """Begin anew; what was counted."""
        before, maps = getattr(self, "sums", {}), len(self._unit)
        self.sums = {
            "places": np.zeros((), np.int64),
            "highest": np.full(maps, -np.inf),
            "positive": np.zeros(maps, np.int64),
            "total": np.zeros(maps, np.int64),
            "product": np.zeros((maps, maps), np.int64),
        }
        return before

    def add(self, maps: Float[Tensor, "n maps rows columns"]) -> None:
        values = maps.transpose(0, 1).flatten(1).double().cpu()
        centre, unit = (torch.from_numpy(one[:, None]) for one in (self._centre, self._unit))
        units = ((values - centre) / unit).clamp_(-FARTHEST, FARTHEST)
        sums = {
            "places": torch.tensor(values.shape[1]),
            "highest": values.amax(1),
            "positive": (values > 0).sum(1),
            "total": (units.sum(1) * FINE_STEP).round().long(),
            "product": (units @ units.T * FINE_STEP).round().long(),
        }
        self.join({name: one.numpy() for name, one in sums.items()})

    def join(self, other: Mapping[str, np.ndarray]) -> None:
        self.sums = {name: both(name, one, other[name]) for name, one in self.sums.items()}

    @property
    def places(self) -> int:
        return int(self.sums["places"])

    @property
    def covariance(self) -> Float64[np.ndarray, "maps maps"]:
        many = self.places * float(FINE_STEP)
        mean = self.sums["total"] / many
        result: Float64[np.ndarray, "maps maps"] = self.sums["product"] / many
        return (result - np.outer(mean, mean)) * np.outer(self._unit, self._unit)

    @property
    def spread(self) -> Float64[np.ndarray, "maps"]:
        result: Float64[np.ndarray, "maps"] = np.sqrt(np.maximum(np.diag(self.covariance), 0))
        return result

    @property
    def silent(self) -> Bool[np.ndarray, "maps"]:
        """Never positive: a rectifier after it puts out nothing but zeros."""
        result: Bool[np.ndarray, "maps"] = self.sums["highest"] <= 0
        return result

    @property
    def saturated(self) -> Bool[np.ndarray, "maps"]:
        """Positive (nearly) always: a rectifier after it cuts nothing off."""
        result: Bool[np.ndarray, "maps"] = self.sums["positive"] >= ALWAYS * self.places
        return result

    @property
    def still(self) -> Bool[np.ndarray, "maps"]:
        """The same at all places of all pictures."""
        spread = self.spread
        result: Bool[np.ndarray, "maps"] = spread <= STILL * np.median(spread)
        return result

    @property
    def twins(self) -> Int64[np.ndarray, "maps"]:
        """The first map before it that says the same, up to scale and sign; −1: none."""
        spread = np.where(self.still, np.inf, self.spread)
        return first_alike(self.covariance / np.outer(spread, spread), MAPS_ALIKE)


def first_alike(table: Float64[np.ndarray, "n n"], least: float) -> Int64[np.ndarray, "n"]:
    """For each row the first earlier one that is alike in size of its entry; −1: none."""
    alike = np.tril(np.abs(table) >= least, -1)
    return np.where(alike.any(1), alike.argmax(1), -1).astype(np.int64)


def both(name: str, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What both have counted; name: of a tally's sum."""
    result: np.ndarray = np.maximum(one, other) if name == "highest" else one + other
    return result


class HealthJob(Job):
    """A tally of each layer, over all places of all pictures.

    layers: before their rectifiers, as `feature_layers` names them. Raises ModelError M506 (no
    feature maps), M514 (not finite), M522.
    """

    name, batch, may_be_empty = "filters", 8, True

    def __init__(self, network: Network, tallies: Mapping[str, Tally]) -> None:
        self.network, self.tallies = network, tallies
        self.framing = network.preprocess.framing

    @property
    def facts(self) -> dict[str, Any]:
        units = {x: [*one._centre.tolist(), *one._unit.tolist()] for x, one in self.tallies.items()}
        return {**self.network.facts, "ranges": {name: digest(one) for name, one in units.items()}}

    @contextmanager
    def looking(self) -> Iterator[Callable[[list[Picture]], object]]:
        with Lens(self.network.model, list(self.tallies)) as lens, torch.inference_mode():

            def look(pictures: list[Picture]) -> None:
                lens.reach(batch_of(self.network, pictures))
                for layer, tally in self.tallies.items():
                    tally.add(maps_of(lens, layer))

            yield look

    def take(self) -> Arrays:
        parts = (tally.clear() for tally in self.tallies.values())
        return {f"{name}.{n}": one for n, part in enumerate(parts) for name, one in part.items()}

    def merge(self, one: Arrays, other: Arrays) -> Arrays:
        return {name: both(name.partition(".")[0], one[name], other[name]) for name in one}

    def measured(self, folder: Pictures, run: Run) -> list[Tally]:
        arrays, _ = merged(self, folder, run)
        for number, tally in enumerate(self.tallies.values()):
            tally.join({name: arrays[f"{name}.{number}"] for name in tally.sums})
        return list(self.tallies.values())


def batch_of(network: Network, pictures: Sequence[Picture]) -> Float[Tensor, "n c h w"]:
    like = next(network.model.parameters(), torch.empty(0))
    return network.preprocess.batch([picture.pixels for picture in pictures]).to(like)


def maps_of(lens: Lens, layer: str) -> Float[Tensor, "n maps rows columns"]:
    maps = lens[layer]
    if maps.dim() != 4:
        raise ModelError("M506", layer, "puts out no feature maps")
    if not bool(maps.isfinite().all()):
        raise ModelError("M514", layer, "its feature maps are not finite")
    return maps
