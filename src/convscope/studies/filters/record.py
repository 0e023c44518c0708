"""What do a network's first filters look like, which maps are wasted, and what is folded?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from convscope.core.record import Record


@dataclass(frozen=True, eq=False)
class Filters(Record):
    """A network's first convolution, and all its convolutions over a data set.

    Without pictures the arrays of all layers and of folds on pictures are empty.
    """

    network: str
    layer: str
    stride: tuple[int, int]
    weights: Float32[np.ndarray, "maps c k l"]
    rms: Float64[np.ndarray, "maps"]
    """Root mean square of each filter's weights."""
    weak: Bool[np.ndarray, "maps"]
    """RMS below a tenth of the median: next to nothing was learned, or it died."""
    twin: Int64[np.ndarray, "maps"]
    """The first filter before it with the same pattern (cosine ±0.95 or more); −1: none."""
    bands: Float32[np.ndarray, "maps 3"]
    """Share of each filter's energy below 1/8, below 1/4 and above, in cycles a pixel."""
    peak: Float64[np.ndarray, "maps"]
    """Each filter's strongest frequency, in cycles a pixel."""
    transfer: Float64[np.ndarray, "down across"]
    """Energy of the layer's answer to gratings; frequencies as `np.fft.fftfreq` orders them."""
    folded: float
    """Share of the energy of all these gratings together that the stride folds."""
    clip: float
    """Radius to which larger RMS are clipped for comparison; 0: not at all."""
    fold_layers: tuple[str, ...]
    fold_kinds: tuple[str, ...]
    fold_strides: tuple[tuple[int, int], ...]
    folds: Float64[np.ndarray, "strided pictures"]
    """Share of each strided layer's output energy that folds, on each picture."""
    layers: tuple[str, ...]
    of: Int64[np.ndarray, "all_maps"]
    """Number of the layer that each of all maps belongs to; the maps in their order."""
    silent: Bool[np.ndarray, "all_maps"]
    """Never positive."""
    saturated: Bool[np.ndarray, "all_maps"]
    """Positive at 99.9 % of all places or more."""
    still: Bool[np.ndarray, "all_maps"]
    """The same at all places of all pictures."""
    copies: Bool[np.ndarray, "all_maps"]
    """Correlated ±0.99 or more with an earlier map of its layer."""
    pictures: int

    @property
    def dominance(self) -> float:
        """Largest RMS of a filter over the median: one feature that drowns the others."""
        middle = float(np.median(self.rms))
        return float(self.rms.max()) / middle if middle > 0 else float("inf")

    @property
    def coverage(self) -> Float64[np.ndarray, "3"]:
        """Share of the filters, weak ones left out, whose strongest frequency is low, middle and
        high."""
        which = np.searchsorted(
            (0.125, 0.25), self.peak[~self.weak & ~np.isnan(self.peak)], "right"
        )
        counts = np.bincount(which, minlength=3)[:3]
        return np.asarray(counts / max(1, counts.sum()), np.float64)

    def share(self, wasted: Bool[np.ndarray, "all_maps"], layer: int) -> float:
        """Of a layer's maps."""
        own = wasted[self.of == layer]
        return float(own.mean()) if len(own) else 0.0
