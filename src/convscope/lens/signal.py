"""Where on a map are the signals of many neurons, each in a window of its own?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Signal:
    """A window of one map for each neuron, with its signal in it; outside there is none.

    Along each axis (0 down, 1 across) the corner of neuron i lies at
    `jump * places[i] + offset`: with jump 0 it is the same for all.
    """

    values: Float[Tensor, "n c h w"]
    places: tuple[Pair, ...]
    jump: Pair = (1, 1)
    offset: Pair = (0, 0)

    def side(self, axis: int) -> int:
        """Rows (axis 0) or columns (axis 1) of a window."""
        return int(self.values.shape[2 + axis])

    def corner(self, number: int, axis: int) -> int:
        return self.places[number][axis] * self.jump[axis] + self.offset[axis]

    def cuts(self, axis: int, size: int) -> Iterator[tuple[int, slice, slice]]:
        """For each neuron: the part of its window that lies on the map, and where it lies."""
        side = self.side(axis)
        for number in range(len(self.places)):
            corner = self.corner(number, axis)
            first, last = min(max(corner, 0), size), min(max(corner + side, 0), size)
            yield number, slice(first - corner, last - corner), slice(first, last)

    def stretched(self, values: Tensor, stride: Pair, padding: Pair) -> Signal:
        """On the map below a layer of this stride and padding."""
        jump = (self.jump[0] * stride[0], self.jump[1] * stride[1])
        offset = [self.offset[axis] * stride[axis] - padding[axis] for axis in (0, 1)]
        return Signal(values, self.places, jump, (offset[0], offset[1]))

    def inside(self, size: Pair) -> Signal:
        """Without what hangs over the map. A window as large as the map becomes the map.

        Writes into its own values.
        """
        signal = self
        for axis in (0, 1):
            if signal.jump[axis] == 0 or signal.side(axis) >= size[axis]:
                signal = signal.spread(axis, size[axis])
                continue
            for number, mine, _ in signal.cuts(axis, size[axis]):
                window = signal.values[number].transpose(1, 1 + axis)
                window[:, : mine.start] = 0
                window[:, mine.stop :] = 0
        return signal

    def whole(self, size: Pair) -> Float[Tensor, "n c h w"]:
        """The signals on the whole map."""
        return self.spread(0, size[0]).spread(1, size[1]).values

    def spread(self, axis: int, size: int) -> Signal:
        """The windows laid into the whole map along one axis."""
        if self.jump[axis] == 0:
            return self.padded(axis, 0, size)
        shape = list(self.values.shape)
        shape[2 + axis] = size
        values = self.values.new_zeros(shape)
        for number, mine, there in self.cuts(axis, size):
            window = self.values[number].transpose(1, 1 + axis)
            values[number].transpose(1, 1 + axis)[:, there] = window[:, mine]
        return self._along(axis, values, 0, 0)

    def padded(self, axis: int, first: int, last: int) -> Signal:
        """The windows from offset `first` to before `last` along one axis, larger or smaller."""
        before = self.offset[axis] - first
        after = last - self.offset[axis] - self.side(axis)
        pad = (before, after) if axis else (0, 0, before, after)
        values = F.pad(self.values, pad) if before or after else self.values
        return self._along(axis, values, self.jump[axis], first)

    def plus(self, other: Signal | None, size: Pair) -> Signal:
        """Two signals that meet on one map, in windows that hold both."""
        if other is None:
            return self
        one = self
        for axis in (0, 1):
            if one.jump[axis] != other.jump[axis]:
                one, other = one.spread(axis, size[axis]), other.spread(axis, size[axis])
            first = min(one.offset[axis], other.offset[axis])
            last = max(each.offset[axis] + each.side(axis) for each in (one, other))
            one, other = one.padded(axis, first, last), other.padded(axis, first, last)
        return replace(one, values=one.values + other.values)

    def _along(self, axis: int, values: Tensor, jump: int, offset: int) -> Signal:
        jumps, offsets = list(self.jump), list(self.offset)
        jumps[axis], offsets[axis] = jump, offset
        return Signal(values, self.places, (jumps[0], jumps[1]), (offsets[0], offsets[1]))
