"""Signals of many neurons, each in a window of its own on a map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Pair = tuple[int, int]
Cuts = tuple[Pair, Pair]
"""How much is cut off above, below; left, right."""


@dataclass(frozen=True)
class Frame:
    """One window for each neuron, all of one size.

    Along each axis (0 down, 1 across) the corner of neuron i lies at
    `jump * places[i] + offset`: with jump 0 it is the same for all.
    """

    places: Int64[np.ndarray, "n 2"]
    bounds: tuple[Pair, Pair]
    """The first and the last place along each axis, of these neurons and any others whose windows
    are to be cut as these."""
    side: Pair = (1, 1)
    jump: Pair = (1, 1)
    offset: Pair = (0, 0)

    @classmethod
    def at(cls, places: Int64[np.ndarray, "n 2"]) -> Frame:
        """Windows of one place."""
        low, high = places.min(axis=0), places.max(axis=0)
        return cls(places, ((int(low[0]), int(high[0])), (int(low[1]), int(high[1]))))

    def corners(self, axis: int) -> Int64[np.ndarray, "n"]:
        corners: np.ndarray = self.places[:, axis] * self.jump[axis] + self.offset[axis]
        return corners

    def below(self, reach: Pair, stride: Pair, padding: Pair) -> Frame:
        """On the map below a layer that reads so many places, of this stride and padding."""
        return replace(
            self,
            side=_pair((self.side[axis] - 1) * stride[axis] + reach[axis] for axis in (0, 1)),
            jump=_pair(self.jump[axis] * stride[axis] for axis in (0, 1)),
            offset=_pair(self.offset[axis] * stride[axis] - padding[axis] for axis in (0, 1)),
        )

    def extremes(self, axis: int) -> Pair:
        """The first and the last corner."""
        first, last = self.bounds[axis]
        return (
            first * self.jump[axis] + self.offset[axis],
            last * self.jump[axis] + self.offset[axis],
        )

    def overhang(self, size: Pair) -> Cuts:
        """By how much all windows hang over the map; of each window something is left."""
        cuts = []
        for axis in (0, 1):
            (first, last), side = self.extremes(axis), self.side[axis]
            before = min(max(0, -last), side - 1)
            after = max(0, first + side - size[axis])
            cuts.append((before, min(after, side - 1 - before)))
        return cuts[0], cuts[1]

    def cropped(self, cuts: Cuts) -> Frame:
        side = _pair(self.side[axis] - sum(cuts[axis]) for axis in (0, 1))
        offset = _pair(self.offset[axis] + cuts[axis][0] for axis in (0, 1))
        return replace(self, side=side, offset=offset)

    def along(self, axis: int, side: int, jump: int, offset: int) -> Frame:
        """Another along one axis."""
        sides, jumps, offsets = list(self.side), list(self.jump), list(self.offset)
        sides[axis], jumps[axis], offsets[axis] = side, jump, offset
        return replace(self, side=_pair(sides), jump=_pair(jumps), offset=_pair(offsets))


@dataclass(frozen=True)
class Signal:
    """What stands in the windows of a frame; outside of them there is nothing.

    A signal's numbers are its own: whoever takes it may write into them.
    """

    values: Float[Tensor, "n c h w"]
    frame: Frame
    alone: Int64[Tensor, "n"] | None = None
    """Of each neuron the only map on which something stands, where that is known."""
    is_inside: bool = False
    """Is it known that nothing hangs over the map?"""

    def inside(self, size: Pair) -> Signal:
        """Without what hangs over the map. A window as large as the map becomes the map."""
        if self.is_inside:
            return self
        cuts = self.frame.overhang(size)
        frame = self.frame.cropped(cuts)
        signal = Signal(cropped(self.values, cuts), frame, self.alone)
        for axis in (0, 1):
            if frame.side[axis] >= size[axis] and frame.extremes(axis) != (0, 0):
                signal = signal.spread(axis, size[axis])
            else:
                signal._mask(axis, size[axis])
        return replace(signal, is_inside=True)

    def _mask(self, axis: int, size: int) -> None:
        corners, side = self.frame.corners(axis), self.frame.side[axis]
        for number in np.flatnonzero(corners < 0).tolist():
            self.values[number].narrow(1 + axis, 0, min(-int(corners[number]), side)).zero_()
        for number in np.flatnonzero(corners + side > size).tolist():
            over = min(int(corners[number]) + side - size, side)
            self.values[number].narrow(1 + axis, side - over, over).zero_()

    def clipped(self, size: Pair) -> Iterator[tuple[int, int, Float[Tensor, "c h w"]]]:
        """Of each neuron what lies on the map: row and column of its corner, and its window."""
        corners = zip(self.frame.corners(0).tolist(), self.frame.corners(1).tolist(), strict=True)
        for values, places in zip(self.values, corners, strict=True):
            part, firsts = values, []
            for axis, corner in enumerate(places):
                first = min(max(corner, 0), size[axis])
                last = min(max(corner + self.frame.side[axis], first), size[axis])
                part = part.narrow(1 + axis, first - corner, last - first)
                firsts.append(first)
            yield firsts[0], firsts[1], part

    def spread(self, axis: int, size: int) -> Signal:
        """The windows laid into the whole map along one axis."""
        if self.frame.jump[axis] == 0:
            return self.padded(axis, 0, size)
        shape = list(self.values.shape)
        shape[2 + axis] = size
        values = self.values.new_zeros(shape)
        side = self.frame.side[axis]
        for number, corner in enumerate(self.frame.corners(axis).tolist()):
            first, last = min(max(corner, 0), size), min(max(corner + side, 0), size)
            part = self.values[number].narrow(1 + axis, first - corner, last - first)
            values[number].narrow(1 + axis, first, last - first).copy_(part)
        return Signal(values, self.frame.along(axis, size, 0, 0), self.alone)

    def padded(self, axis: int, first: int, last: int) -> Signal:
        """The windows from offset `first` to before `last` along one axis, larger or smaller."""
        frame = self.frame
        before, after = frame.offset[axis] - first, last - frame.offset[axis] - frame.side[axis]
        pad = (before, after) if axis else (0, 0, before, after)
        values = F.pad(self.values, pad) if before or after else self.values
        return Signal(values, frame.along(axis, last - first, frame.jump[axis], first), self.alone)

    def plus(self, other: Signal, size: Pair) -> Signal:
        """Two signals that meet on one map, in windows that hold both."""
        large, small = (self, other) if self._cells() >= other._cells() else (other, self)
        for axis in (0, 1):
            if large.frame.jump[axis] != small.frame.jump[axis]:
                large, small = large.spread(axis, size[axis]), small.spread(axis, size[axis])
            ends = [(at.offset[axis], at.side[axis]) for at in (large.frame, small.frame)]
            large = large.padded(axis, min(end[0] for end in ends), max(sum(end) for end in ends))
        part = large.values
        for axis in (0, 1):
            first = small.frame.offset[axis] - large.frame.offset[axis]
            part = part.narrow(2 + axis, first, small.frame.side[axis])
        part += small.values
        return replace(large, alone=None, is_inside=False)

    def _cells(self) -> int:
        return self.frame.side[0] * self.frame.side[1]


def _pair(numbers: Iterable[int]) -> Pair:
    first, second = numbers
    return first, second


def cropped(values: Float[Tensor, "n c h w"], cuts: Cuts) -> Float[Tensor, "n c r k"]:
    (top, bottom), (left, right) = cuts
    height, width = values.shape[2:]
    return values[:, :, top : height - bottom, left : width - right]
