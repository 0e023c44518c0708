"""Which pictures excite each feature map most, how strongly, and where?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64

from convscope.errors import ModelError, nearest
from convscope.records.record import Record
from convscope.units import Unit


@dataclass(frozen=True, eq=False)
class TopK(Record):
    """The k strongest distinct pictures of every feature map of every layer.

    Rows are feature maps, layer after layer; `starts[i]:starts[i + 1]` are those of `layers[i]`.
    Entries are ordered by value (descending), then picture number (ascending); a map that has
    seen fewer than k pictures is filled up with picture -1 and value -inf.
    """

    layers: tuple[str, ...]
    starts: Int64[np.ndarray, "layers+1"]
    value: Float32[np.ndarray, "maps k"]
    """Largest activation of the map over the picture's positions; NaN never enters."""
    image: Int64[np.ndarray, "maps k"]
    row: Int32[np.ndarray, "maps k"]
    column: Int32[np.ndarray, "maps k"]
    """Place of the activation in the layer's output: its first maximum in row-major order."""
    active: Int64[np.ndarray, "maps"]
    """Number of pictures whose largest activation is above 0; 0 means a dead map."""
    invalid: Int64[np.ndarray, "maps"]
    """Number of pictures in which the map had a NaN."""
    seen: int
    """Number of pictures looked at."""

    @property
    def k(self) -> int:
        return int(self.value.shape[1])

    def rows(self, layer: str) -> slice:
        """The rows of one layer. Raises ModelError M501 on an unknown layer."""
        if layer not in self.layers:
            raise ModelError("M501", layer, f"no such layer here; {nearest(layer, self.layers)}")
        index = self.layers.index(layer)
        return slice(int(self.starts[index]), int(self.starts[index + 1]))

    def units(self, layer: str, channel: int) -> Iterator[tuple[Unit, int, float]]:
        """(neuron, picture number, value) of one map's entries, strongest first."""
        row = self.rows(layer).start + channel
        for place in range(self.k):
            if self.image[row, place] >= 0:
                at = (int(self.row[row, place]), int(self.column[row, place]))
                yield (
                    Unit(layer, channel, at),
                    int(self.image[row, place]),
                    float(self.value[row, place]),
                )
