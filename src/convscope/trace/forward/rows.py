"""Feature maps of which only a window is new: cutting windows out of them, summing them up.

Maps lie in memory place after place, all channels of a place together. A map's rows are

    one row for what lies outside | the map without any patch | the window of each position

and a window, wherever it lies, is a list of row numbers.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from convscope.trace.forward.plan import Axis, Places, Wanted

NOWHERE = -(2**29)
"""A row number so small that adding any other leaves it below 0."""


class Rows:
    """One map's rows."""

    def __init__(self, room: int) -> None:
        """room: rows of windows at once."""
        self._room = room
        self._first = 0
        self._rows = torch.empty(0)

    def begin(self, base: Float[Tensor, "1 c h w"]) -> None:
        """Take in the map of another picture, without any patch."""
        _, channels, height, width = base.shape
        self._first = 1 + height * width
        shape = (self._first + self._room, channels)
        if self._rows.shape != shape or self._rows.dtype != base.dtype:
            self._rows = base.new_empty(shape)
        place = self._rows[1 : self._first].view(1, height, width, channels)
        place.permute(0, 3, 1, 2).copy_(base)

    def fresh(self, count: int, rows: int, columns: int) -> Float[Tensor, "n c r k"]:
        """The place for the windows of `count` positions, to be written."""
        part = self._rows[self._first : self._first + count * rows * columns]
        return part.view(count, rows, columns, -1).permute(0, 3, 1, 2)

    def cut(self, index: Int[Tensor, "n r k"], outside: float) -> Float[Tensor, "n c r k"]:
        """The windows of these rows. outside: what lies there."""
        self._rows[0].fill_(outside)
        count, rows, columns = index.shape
        windows = self._rows.index_select(0, index.view(-1))
        return windows.view(count, rows, columns, -1).permute(0, 3, 1, 2)


def row_numbers(
    axes: tuple[Axis, Axis], at: tuple[Places, Places], wanted: tuple[Wanted, Wanted]
) -> Int[Tensor, "n r k"]:
    """Rows of the windows `wanted` of a map whose own windows are `axes`.

    at: of each position, its number along both axes.
    """
    down, across = axes
    tall, wide = down.size * across.size, across.size
    count = np.arange(len(at[0]))
    first = 1 + down.extent * across.extent
    base_y, own_y = _numbers(down, at[0], wanted[0], across.extent, wide)
    base_x, own_x = _numbers(across, at[1], wanted[1], 1, 1)
    own_y += (first + count * tall)[:, None]
    base_y += 1
    # Rows of windows come after those of the map, so the larger number is the one that counts.
    base = _table(base_y)[:, :, None] + _table(base_x)[:, None]
    own = _table(own_y)[:, :, None] + _table(own_x)[:, None]
    return torch.maximum(base, own, out=base).clamp_(min=0)


def _numbers(
    axis: Axis, at: Places, wanted: Wanted, step: int, own_step: int
) -> tuple[np.ndarray, np.ndarray]:
    starts, length = wanted
    place = starts[:, None] + np.arange(length)
    inside = (place >= 0) & (place < axis.extent)
    own = place - axis.at(at)[:, None]
    new = (own >= 0) & (own < axis.size)
    return np.where(inside, place * step, NOWHERE), np.where(new, own * own_step, NOWHERE)


def _table(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(np.maximum(numbers, NOWHERE).astype(np.int32))


class Sums:
    """The sums of a map's windows without any patch, in float64: differences of large numbers."""

    def __init__(self, base: Float[Tensor, "1 c h w"]) -> None:
        table = base[0].double().cumsum(1).cumsum(2)
        self._table = F.pad(table, (1, 0, 1, 0)).permute(1, 2, 0).contiguous()

    def with_windows(
        self, fresh: Float[Tensor, "n c r k"], axes: tuple[Axis, Axis], at: tuple[Places, Places]
    ) -> Float[Tensor, "n c"]:
        """Sums over the whole map with each of these windows in its place."""
        device = fresh.device
        top, left = (
            torch.from_numpy(axis.at(a)).to(device) for axis, a in zip(axes, at, strict=True)
        )
        bottom, right = top + axes[0].size, left + axes[1].size
        t = self._table
        old = t[bottom, right] - t[top, right] - t[bottom, left] + t[top, left]
        return t[-1, -1] - old + fresh.sum((2, 3)).double()
