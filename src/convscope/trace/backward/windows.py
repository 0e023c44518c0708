"""Signals in windows on a map, and transposed convolutions of them.

By its transposed filters: each number of a window becomes a block of k × k in the window below.
The same comes out in four ways, of which the quickest is taken. A single activation becomes its
own filter, and nothing is computed. With many maps, tiles (`winograd.py`) save most products. Else
it is a plain convolution with the filters turned around. Filters with a stride of s are s² sets
of filters without one, whose results lie between each other (sub-pixel convolution).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from convscope.trace.winograd import PLACES, Products, matrices

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


SLOWER, MOVING, LAYING, GAIN = 1.25, 160.0, 300.0, 0.85
"""In multiplications of a convolution: one product of a tile; to move a channel's number of a
tile; to bring one weight into the form of a tile; and the share of a convolution's cost below which
tiles are taken (measured)."""
BYTES = 24e6
"""Of tiles at a time: the larger the products the better, until memory gets slow (measured)."""
Windows = Float[Tensor, "n c h w"]


class TransposedConvolution:
    """The way back through one convolution; its weights are brought into each form once."""

    def __init__(
        self, weight: Float[Tensor, "out in k l"], stride: Pair, dilation: Pair, groups: int
    ) -> None:
        self.weight, self.stride, self.dilation = weight.detach(), stride, dilation
        self.groups = groups
        out, _, *kernel = weight.shape
        self.into = weight.shape[1] * groups
        rows, columns = ((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
        self.reach: Pair = (rows, columns)
        """Rows and columns that one place reads, gaps included."""
        self.is_plain = groups == 1 and tuple(dilation) == (1, 1)
        self._even: Even | None = None
        self._filters: Tensor | None = None
        self.effort = out * weight[0].numel()
        """Multiplications for each place of a window."""

    def filters(self, channels: Int64[Tensor, "n"], values: Float[Tensor, "n"]) -> Windows:
        """Of single activations: windows of one place become filters."""
        if self._filters is None:
            self._filters = self.weight.permute(0, 2, 3, 1).contiguous()
        chosen = self._filters.index_select(0, channels) * values[:, None, None, None]
        return chosen.permute(0, 3, 1, 2)

    def __call__(self, values: Windows, cuts: Cuts) -> Windows:
        """Windows of `reach` more, less what is cut off."""
        if not self.is_plain:
            grown = F.conv_transpose2d(
                values,
                self.weight,
                stride=self.stride,
                groups=self.groups,
                dilation=self.dilation,
            )
            return cropped(grown, cuts)
        if self._even is None:
            self._even = Even(between(self.weight, self.stride))
        if self.stride == (1, 1):
            return self._even(values, cuts)
        sides = [
            (side - 1) * step + reach - sum(cut)
            for side, step, reach, cut in zip(
                values.shape[2:], self.stride, self.reach, cuts, strict=True
            )
        ]
        return self._strided(values, cuts, (sides[0], sides[1]))

    def _strided(self, values: Windows, cuts: Cuts, sides: Pair) -> Windows:
        """In blocks of stride × stride; those that are cut off are not computed."""
        assert self._even is not None
        (down, across), (rows, columns) = self.stride, sides
        skip = (cuts[0][0] // down, cuts[1][0] // across)
        rest = (cuts[0][0] % down, cuts[1][0] % across)
        wanted = (ceil((rest[0] + rows) / down), ceil((rest[1] + columns) / across))
        kernel = self._even.kernel
        blocks: list[Pair] = [
            (skip[axis], values.shape[2 + axis] + kernel[axis] - 1 - skip[axis] - wanted[axis])
            for axis in (0, 1)
        ]
        y = self._even(values, (blocks[0], blocks[1])).permute(0, 2, 3, 1)
        y = y.view(len(y), *wanted, down, across, self.into).permute(0, 1, 3, 2, 4, 5)
        laid: Tensor = y.reshape(len(y), wanted[0] * down, wanted[1] * across, self.into)
        laid = laid[:, rest[0] : rest[0] + rows, rest[1] : rest[1] + columns]
        return laid.permute(0, 3, 1, 2)


def between(weight: Float[Tensor, "out in k l"], stride: Pair) -> Float[Tensor, "out more r s"]:
    """Filters without a stride that give, as maps, what lies between each other with it."""
    out, into, *kernel = weight.shape
    (down, across), (rows, columns) = (
        stride,
        (ceil(k / s) for k, s in zip(kernel, stride, strict=True)),
    )
    padded = F.pad(weight, (0, columns * across - kernel[1], 0, rows * down - kernel[0]))
    blocks = padded.view(out, into, rows, down, columns, across)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(out, down * across * into, rows, columns)


class Even:
    """The way back through a convolution without stride, gaps and groups."""

    def __init__(self, weight: Float[Tensor, "out in k l"]) -> None:
        self.weight = weight
        self.kernel: Pair = (weight.shape[2], weight.shape[3])
        turned = weight.detach().flip(2, 3).transpose(0, 1)
        self._turned = turned.contiguous(memory_format=torch.channels_last)
        self._tiled: dict[int, Tiles] = {}
        self._seen = 0
        """Windows so far: of a few, laying out the weights would take longer than it saves."""

    def __call__(self, values: Windows, cuts: Cuts) -> Windows:
        self._seen += len(values)
        m = self._tile(values.shape[2:])
        if m:
            if m not in self._tiled:
                self._tiled[m] = Tiles(self.weight, m)
            return self._tiled[m](values, cuts)
        if not any(map(sum, cuts)):
            reach = (self.kernel[0] - 1, self.kernel[1] - 1)
            return torch.conv2d(values, self._turned, padding=reach)
        pads = [self.kernel[axis] - 1 - cut for axis in (1, 0) for cut in cuts[axis]]
        return torch.conv2d(F.pad(values, pads), self._turned)

    def _tile(self, sides: Sequence[int]) -> int:
        """The tile that is quickest for windows of these sides; 0: no tiles are."""
        out, into, k, across = self.weight.shape
        if k != across or k == 1:
            return 0
        grown = (sides[0] + k - 1) * (sides[1] + k - 1)
        best, least = 0, GAIN * grown * k * k * out * into
        for m in range(2, _most(k) - k + 2):
            numbers = ceil(sides[0] / m) * ceil(sides[1] / m) * (m + k - 1) ** 2
            cost = numbers * (SLOWER * into * out + MOVING * (into + out))
            if m not in self._tiled:
                cost += LAYING * (m + k - 1) ** 2 * into * out / max(1, self._seen)
            if cost < least:
                best, least = m, cost
        return best


def _most(kernel: int) -> int:
    """Results along one side of a tile, at most, so that after all layers of a way no more than
    1e-5 of the largest pixel is lost to rounding: 3 × 3 filters are met many times on it, larger
    ones once or twice."""
    return 6 if kernel <= 3 else max(PLACES)


class Tiles:
    """Windows in tiles of m × m numbers, each of which spreads to (m + k - 1)²."""

    def __init__(self, weight: Float[Tensor, "out in k k"], m: int) -> None:
        self._m, self._k, self._into = m, weight.shape[2], weight.shape[1]
        back, filters, there = matrices(m, self._k)
        self._products = Products(there.T, filters, back.T, weight.permute(2, 3, 1, 0))

    def __call__(self, values: Windows, cuts: Cuts) -> Windows:
        n, channels, height, width = values.shape
        m, q = self._m, self._m + self._k - 1
        down, across, more = ceil(height / m), ceil(width / m), ceil(q / m) - 1
        y = values.new_zeros(n, down + more, m, across + more, m, self._into)
        each = down * across * q * q * max(channels, self._into) * values.element_size()
        step = max(1, int(BYTES // each))
        x = F.pad(values, (0, across * m - width, 0, down * m - height)).permute(0, 2, 3, 1)
        for first in range(0, n, step):
            self._spread(x[first : first + step], y[first : first + step])
        y = y.view(n, y.shape[1] * m, y.shape[3] * m, self._into).permute(0, 3, 1, 2)
        return cropped(y[:, :, : height + self._k - 1, : width + self._k - 1], cuts)

    def _spread(self, x: Float[Tensor, "n h w c"], y: Float[Tensor, "n d m a m i"]) -> None:
        m, q, n = self._m, self._m + self._k - 1, len(x)
        down, across = x.shape[1] // m, x.shape[2] // m
        tiles = x.reshape(n, down, m, across, m, -1).transpose(2, 3)
        back = self._products(tiles.reshape(n * down * across, m, m, -1))
        back = back.view(n, down, across, q, q, -1)
        for i in range(0, q, m):
            for j in range(0, q, m):
                part = back[:, :, :, i : i + m, j : j + m].transpose(2, 3)
                rows, columns = part.shape[2], part.shape[4]
                there = y[:, i // m : i // m + down, :rows, j // m : j // m + across, :columns]
                there += part
