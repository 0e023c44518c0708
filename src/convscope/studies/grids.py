"""Does the grid of a stride show in a layer's projections, and of which convolution?

A transposed convolution lays its filter down at every stop of the stride; where the sums that
overlap are uneven, the energy of what arrives rises and falls with the stride's period. The energy
of a layer's projections, laid over one another at their receptive fields, is compared with its own
running mean, and the strength of this ripple at the period with that at periods around it.
Source: Odena, Dumoulin and Olah 2016, "Deconvolution and Checkerboard Artifacts".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from convscope.lens.geometry import Field
from convscope.lens.reductions import Stride
from convscope.records.features import Grid
from convscope.units import Box

RIPPLE = 0.1
"""By how much of its mean the energy swings, at least, where a grid is named …"""
ABOVE = 3.0
"""… and how many times what it does at periods around."""
STOPS = 5
"""Periods that have to be seen at least."""
AROUND = (0.58, 0.66, 0.74, 1.32, 1.41, 1.55)
"""Frequencies that no stride has, in those of the stride."""
FAINT = 0.05
"""Of the strongest row: weaker ones are left out."""


class Energy:
    """Of a layer's projections by row and column of the receptive field."""

    def __init__(self, field: Field) -> None:
        self._sums = [np.zeros(length) for length in field.size]
        self._counts = [np.zeros(length) for length in field.size]

    def add(self, pixels: Float[Tensor, "c h w"], near: Box) -> None:
        """near: the receptive field, in rows and columns of these pixels; each counts alike."""
        squares = pixels.double().square_().sum(dim=0)
        total = float(squares.sum())
        if not total > 0:
            return
        for axis, (low, high) in enumerate(((near.top, near.bottom), (near.left, near.right))):
            along = (squares.sum(dim=1 - axis) / total).cpu().numpy()
            first, last = max(low, 0), min(high, len(along), low + len(self._sums[axis]))
            if first < last:
                self._sums[axis][first - low : last - low] += along[first:last]
                self._counts[axis][first - low : last - low] += 1

    def grids(self, strides: Sequence[Stride]) -> tuple[Grid, ...]:
        """Those that show, the widest first; each period once, with the first convolution on the
        way down that is uneven."""
        found: dict[int, Grid] = {}
        profiles = [s / np.maximum(c, 1) for s, c in zip(self._sums, self._counts, strict=True)]
        for stride in sorted(strides, key=lambda each: each.is_even):
            for axis in (0, 1):
                period, step = stride.period[axis], stride.stride[axis]
                if step == 1:
                    continue
                ripple = _ripple(profiles[axis], period)
                known = found.get(period)
                if known is None and ripple > 0:
                    how = (stride.kernel[axis], step, period, ripple)
                    found[period] = (stride.layer, *how)
                elif known is not None and known[0] == stride.layer:
                    found[period] = (*known[:4], max(known[4], ripple))
        return tuple(found[period] for period in sorted(found, reverse=True))


def _ripple(profile: Float64[np.ndarray, "n"], period: int) -> float:
    """By what share of its mean the profile swings with this period; 0 where that is nothing
    special."""
    seen = np.flatnonzero(profile > 0)
    if not len(seen):
        return 0.0
    profile = profile[seen[0] : seen[-1] + 1]
    if len(profile) < (STOPS + 1) * period:
        return 0.0
    smooth = np.convolve(profile, np.ones(period) / period, "valid")
    start = (period - 1) // 2
    inner = profile[start : start + len(smooth)]
    strong = np.flatnonzero(smooth > FAINT * smooth.max())
    if len(strong) < STOPS * period:
        return 0.0
    part = slice(strong[0], strong[-1] + 1)
    relative = inner[part] / np.maximum(smooth[part], 1e-300) - 1
    own = _at(relative, 1 / period)
    around = max(float(np.median([_at(relative, share / period) for share in AROUND])), 1e-12)
    return own if own >= RIPPLE and own >= ABOVE * around else 0.0


def _at(values: Float[np.ndarray, "n"], frequency: float) -> float:
    """The amplitude of one frequency, in cycles a pixel."""
    window = np.hanning(len(values) + 2)[1:-1]
    wave = np.exp(-2j * np.pi * frequency * np.arange(len(values)))
    return float(
        (1 if frequency == 0.5 else 2) * abs((window * values * wave).sum()) / window.sum()
    )
