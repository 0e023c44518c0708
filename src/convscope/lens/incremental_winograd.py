"""How can a 3 × 3 convolution be computed with a third of the multiplications?

A tile of m × m results is the image, under a small matrix, of products of (m + 2)² numbers, one
product each, instead of nine for each result. The sums over channels are then one matrix product
for each of those (m + 2)² numbers.
Source: Winograd 1980; Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".
"""

from __future__ import annotations

from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from convscope.lens.incremental_node import Node
from convscope.lens.incremental_packed import Product, lays_out
from convscope.lens.tiles import matrices

TILES = (2, 3, 4)
SLOWER, MOVING, LAYING, GAIN = 1.25, 128.0, 300.0, 0.85
"""In multiplications of a convolution: one product; to move a channel's number of a tile; to lay
out one weight; and the share of a convolution's cost below which tiles are taken (measured)."""
BYTES = 12e6
"""Of tiles at a time, so that they stay in the processor's cache from step to step."""


def tile(node: Node, rows: int, columns: int, count: int) -> int:
    """The tile that is quickest for `count` windows of this size; 0: no tiles are."""
    weight, windows = node.weight, node.windows or ()
    if node.kind != "slide" or weight is None or not lays_out(weight) or node.how[3] != 1:
        return 0
    if any(w.kernel != 3 or w.stride != 1 or w.dilation != 1 for w in windows):
        return 0
    out, into = weight.shape[:2]
    best, least = 0, GAIN * rows * columns * 9 * out * into
    for m in TILES:
        tiles, q = ceil(rows / m) * ceil(columns / m), (m + 2) ** 2
        cost = tiles * q * (SLOWER * into * out + MOVING * (into + out))
        cost += LAYING * q * into * out / count
        if cost < least:
            best, least = m, cost
    return best


class Tiled:
    """A convolution in tiles; its weights are brought into each form once."""

    def __init__(self, node: Node) -> None:
        assert node.weight is not None
        self._weight, self._bias = node.weight, node.bias
        self._forms: dict[int, list[Product]] = {}

    def _form(self, m: int) -> list[Product]:
        """One matrix product for each number of a tile."""
        if m not in self._forms:
            out, into = self._weight.shape[:2]
            _, weights, _ = matrices(m)
            both = torch.kron(weights, weights)
            flat = self._weight.permute(2, 3, 0, 1).reshape(9, -1)
            form = (both.to(flat) @ flat).view(-1, out, into)
            self._forms[m] = [Product(one, None, often=True) for one in form]
        return self._forms[m]

    def __call__(
        self, x: Float[Tensor, "n c l k"], m: int, size: tuple[int, int], padding: tuple[int, int]
    ) -> Float[Tensor, "n out rows columns"]:
        """Results of this size. padding: rows and columns of zeros to be put around x."""
        rows, columns = size
        down, across = ceil(rows / m), ceil(columns / m)
        top, left = padding
        bottom, right = down * m + 2 - x.shape[2] - top, across * m + 2 - x.shape[3] - left
        if max(top, left, bottom, right) > 0:
            x = F.pad(x, (left, max(0, right), top, max(0, bottom)))
        x = x.permute(0, 2, 3, 1)
        each = down * across * (m + 2) ** 2 * x.shape[3] * x.element_size()
        step = max(1, int(BYTES // each))
        y = x.new_empty((len(x), down * m, across * m, len(self._weight)))
        for first in range(0, len(x), step):
            part = slice(first, first + step)
            self._tiles(x[part], m, y[part].view(-1, down, m, across, m, y.shape[3]))
        return y[:, :rows, :columns].permute(0, 3, 1, 2)

    def _tiles(self, x: Tensor, m: int, y: Float[Tensor, "n down m across m out"]) -> None:
        inputs, _, results = (matrix.to(x) for matrix in matrices(m))
        q, (n, _, _, channels), s = m + 2, x.shape, x.stride()
        down, across = y.shape[1], y.shape[3]
        tiles = x.as_strided(
            (q, q, n, down, across, channels),
            (s[1], s[2], s[0], m * s[1], m * s[2], s[3]),
            x.storage_offset(),
        )
        moved = _both_ways(inputs, tiles.reshape(q, q, -1)).view(q * q, -1, channels)
        products = [product(one) for product, one in zip(self._form(m), moved, strict=True)]
        back = _both_ways(results, torch.stack(products).view(q, q, -1))
        back = back.view(m, m, n, down, across, -1)
        if self._bias is not None:
            back += self._bias
        y.copy_(back.permute(2, 3, 0, 4, 1, 5))


def _both_ways(
    matrix: Float[Tensor, "a q"], values: Float[Tensor, "q q many"]
) -> Float[Tensor, "a a many"]:
    """matrix · values · matrixᵀ."""
    once = matrix @ values.reshape(len(values), -1)
    return torch.matmul(matrix, once.view(len(matrix), len(values), -1))
