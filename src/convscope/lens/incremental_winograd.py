"""How can a 3 × 3 convolution be computed with a third of the multiplications?

A tile of m × m results is the image, under a small matrix, of products of (m + 2)² numbers, one
product each, instead of nine for each result. The sums over channels are then one matrix product
for each of those (m + 2)² numbers.
Source: Winograd 1980; Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from convscope.lens.tiles import ROWS, Products, matrices
from convscope.trace.nodes import Node

TILES = (2, 3, 4)
TOGETHER = 4 * ROWS
"""Tiles that are gathered at once."""
SLOWER, GOING, BACK, LAYING, GAIN = 1.05, 250.0, 130.0, 300.0, 0.95
"""In multiplications of a convolution: one product of a tile; to bring a channel's number of a tile
to the products, and back, with AVX-512, and half of it with narrower vectors, which multiply fewer
numbers in that time; to bring one weight into the form of a tile; and the share of a convolution's
cost below which tiles are taken (measured: `bench/RESULTS.md`)."""


def tile(node: Node, windows: Sequence[tuple[int, int, int]]) -> tuple[int, list[bool]]:
    """The tile that is quickest for all these windows, and which of them to compute in tiles.

    windows: rows, columns, and how many there are of this size. 0: none are computed in tiles.
    """
    weight, read = node.weight, node.windows or ()
    none = [False] * len(windows)
    if node.kind != "slide" or weight is None or node.how[3] != 1:
        return 0, none
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return 0, none
    if any(w.kernel != 3 or w.stride != 1 or w.dilation != 1 for w in read):
        return 0, none
    out, into = weight.shape[:2]
    plain = np.array([GAIN * n * rows * columns * 9 * out * into for rows, columns, n in windows])
    best, least, chosen = 0, plain.sum(), none
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    each = SLOWER * into * out + (GOING * into + BACK * out) * (1 if wide else 0.5)
    for m in TILES:
        q2 = (m + 2) ** 2
        tiles = [n * ceil(rows / m) * ceil(columns / m) for rows, columns, n in windows]
        costs = np.array(tiles) * q2 * each
        total = np.minimum(costs, plain).sum() + LAYING * q2 * into * out
        if total < least:
            best, least, chosen = m, total, (costs < plain).tolist()
    return best, chosen


class Tiled:
    """A convolution in tiles of m × m; its weights are brought into their form once."""

    def __init__(self, node: Node, m: int) -> None:
        assert node.weight is not None
        self._weight, self._bias, self._m = node.weight, node.bias, m

    @cached_property
    def _products(self) -> Products:
        return Products(*matrices(self._m), self._weight.permute(2, 3, 0, 1))

    def __call__(self, take: Take, tiles: Tiling) -> Float[Tensor, "n out rows columns"]:
        """take: the tiles of some windows, as (t, q, q, channels)."""
        m, (down, across) = self._m, tiles.counts
        products, out = self._products, len(self._weight)
        y = self._weight.new_empty((tiles.windows, down * m, across * m, out))
        step = max(1, TOGETHER // (down * across))
        for first in range(0, tiles.windows, step):
            part = slice(first, first + step)
            found = products(take(part))
            place = y[part].view(-1, down, m, across, m, out)
            found = found.view(-1, down, across, m, m, out).transpose(2, 3)
            if self._bias is None:
                place.copy_(found)
            else:
                torch.add(found, self._bias, out=place)
        return y[:, : tiles.rows, : tiles.columns].permute(0, 3, 1, 2)


Take = Callable[[slice], Float[Tensor, "t q q c"]]


@dataclass(frozen=True)
class Tiling:
    """Windows of results, divided into tiles of m × m."""

    m: int
    windows: int
    rows: int
    columns: int

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles of a window, down and across."""
        return ceil(self.rows / self.m), ceil(self.columns / self.m)

    def of(self, x: Float[Tensor, "n c l k"], padding: tuple[int, int]) -> Take:
        """Tiles of maps, with rows and columns of zeros put around them."""
        m, (down, across), (top, left) = self.m, self.counts, padding
        bottom, right = down * m + 2 - x.shape[2] - top, across * m + 2 - x.shape[3] - left
        if max(top, left, bottom, right) > 0:
            x = F.pad(x, (left, max(0, right), top, max(0, bottom)))
        cut = x.permute(0, 2, 3, 1).unfold(1, m + 2, m).unfold(2, m + 2, m)
        cut = cut[:, :down, :across].permute(0, 1, 2, 4, 5, 3)
        return lambda part: cut[part].reshape(-1, m + 2, m + 2, x.shape[1])

    def picked(self, index: Int[Tensor, "n l k"]) -> Int[Tensor, "n tiles"]:
        """The rows that the tiles of windows are made of, from those that the windows are."""
        m = self.m
        cut = index.unfold(1, m + 2, m).unfold(2, m + 2, m)
        return cut.reshape(len(index), -1)
