"""Which feature maps say nothing, always the same, or the same as another, over a data set?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.lens.lens import Lens

ALIKE = 0.99
"""Correlation of two maps' outputs from which they count as duplicates."""
STILL = 1e-3
"""Of the median spread in the layer: a map that varies less puts out a constant."""
ALWAYS = 0.999
"""Share of places with a positive output from which a rectifier cuts nothing off."""


@dataclass
class Tally:
    """What is known of a layer's maps so far."""

    places: int = 0
    highest: Tensor = field(default_factory=lambda: torch.empty(0))
    positive: Tensor = field(default_factory=lambda: torch.empty(0))
    total: Tensor = field(default_factory=lambda: torch.empty(0))
    product: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, maps: Float[Tensor, "n maps rows columns"]) -> None:
        values = maps.transpose(0, 1).flatten(1).double().cpu()
        if not self.places:
            self.highest = torch.full((len(values),), -torch.inf, dtype=torch.float64)
            self.positive, self.total = torch.zeros(2, len(values), dtype=torch.float64)
            self.product = torch.zeros(len(values), len(values), dtype=torch.float64)
        self.places += values.shape[1]
        self.highest = torch.maximum(self.highest, values.amax(1))
        self.positive += (values > 0).double().sum(1)
        self.total += values.sum(1)
        self.product += values @ values.T

    @property
    def covariance(self) -> Float64[np.ndarray, "maps maps"]:
        mean = self.total / self.places
        found: Float64[np.ndarray, "maps maps"]
        found = (self.product / self.places - torch.outer(mean, mean)).numpy()
        return found

    @property
    def spread(self) -> Float64[np.ndarray, "maps"]:
        found: Float64[np.ndarray, "maps"] = np.sqrt(np.maximum(np.diag(self.covariance), 0))
        return found

    @property
    def silent(self) -> Bool[np.ndarray, "maps"]:
        """Never positive: a rectifier after it puts out nothing but zeros."""
        found: Bool[np.ndarray, "maps"] = (self.highest <= 0).numpy()
        return found

    @property
    def saturated(self) -> Bool[np.ndarray, "maps"]:
        """Positive (nearly) always: a rectifier after it cuts nothing off."""
        found: Bool[np.ndarray, "maps"] = (self.positive >= ALWAYS * self.places).numpy()
        return found

    @property
    def still(self) -> Bool[np.ndarray, "maps"]:
        """The same at all places of all pictures."""
        spread = self.spread
        found: Bool[np.ndarray, "maps"] = spread <= STILL * np.median(spread)
        return found

    @property
    def twins(self) -> Int64[np.ndarray, "maps"]:
        """The first map before it that says the same, up to scale and sign; −1: none."""
        spread = np.where(self.still, np.inf, self.spread)
        return first_alike(self.covariance / np.outer(spread, spread), ALIKE)


def first_alike(table: Float64[np.ndarray, "n n"], least: float) -> Int64[np.ndarray, "n"]:
    """For each row the first earlier one that is alike in size of its entry; −1: none."""
    alike = np.tril(np.abs(table) >= least, -1)
    return np.where(alike.any(1), alike.argmax(1), -1).astype(np.int64)


@torch.inference_mode()
def map_health(
    model: nn.Module, layers: Sequence[str], batches: Iterable[Float[Tensor, "n c h w"]]
) -> list[Tally]:
    """One tally a layer, over all places of all pictures.

    layers: before their rectifiers, as `feature_layers` names them. Raises ModelError M506 (no
    feature maps), M514 (not finite), M522.
    """
    tallies = [Tally() for _ in layers]
    with Lens(model, layers) as lens:
        for images in batches:
            lens.reach(images)
            for layer, tally in zip(layers, tallies, strict=True):
                maps = lens[layer]
                if maps.dim() != 4:
                    raise ModelError("M506", layer, "puts out no feature maps")
                if not bool(maps.isfinite().all()):
                    raise ModelError("M514", layer, "its feature maps are not finite")
                tally.add(maps)
    return tallies
