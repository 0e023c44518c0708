"""Winograd's tiles: 3 × 3 convolutions of windows with a third of the multiplications.

A tile of m numbers and a filter of k are two polynomials, and their m + k - 1 products are those
of their values at as many places: so many multiplications instead of m · k. The same three
matrices, each turned around, give the m results of a correlation that reads m + k - 1 numbers
(Winograd's tiles) and the m + k - 1 numbers that m numbers spread to (Toom's and Cook's).
Source: Winograd 1980; Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".

A tile of m × m results is the image, under a small matrix, of products of (m + 2)² numbers, one
product each, instead of nine for each result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, cached_property
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from convscope.trace.graph import Node

PLACES = {
    1: "",
    2: "0",
    3: "0 1",
    4: "0 2/3 -2/3",
    5: "0 2/3 -2/3 3/2",
    6: "0 2/3 -2/3 3/2 -3/2",
    7: "0 -1/3 1 -1 2 -2",
    8: "0 1/2 -1/2 1 -1 2 -2",
}
"""Where polynomials of so many numbers are evaluated, besides infinity: those of which rounding
was least in a search, 1e-6 to 8e-6 of the largest result."""
ROWS = 128
"""Tiles that are multiplied at once: enough that what a call costs does not count, and few enough
for a processor's cache."""
Matrices = tuple[Float[Tensor, "q q"], Float[Tensor, "q k"], Float[Tensor, "m q"]]


@cache
def matrices(m: int, kernel: int = 3) -> Matrices:
    """For inputs, for weights, for results, in float64, of tiles of m results in one dimension."""
    points = [Fraction(place) for place in PLACES[m + kernel - 1].split()]
    rows, weights = [], []
    for a in points:
        others = [b for b in points if b != a]
        scale = Fraction(1)
        for b in others:
            scale *= a - b
        rows.append([*_product(others), Fraction(0)])
        weights.append([a**k / scale for k in range(kernel)])
    rows.append(_product(points))
    weights.append([Fraction(int(k == kernel - 1)) for k in range(kernel)])
    results = [[*(a**i for a in points), Fraction(int(i == m - 1))] for i in range(m)]
    return _tensor(rows), _tensor(weights), _tensor(results)


def _product(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of the polynomial with these roots, that of 1 first."""
    series = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *series]
        series = [a - root * b for a, b in zip(shifted, [*series, Fraction(0)], strict=True)]
    return series


def _tensor(rows: Sequence[Sequence[Fraction]]) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)


class Products:
    """A convolution of tiles of a × a numbers to tiles of b × b.

    Going over to the numbers that are multiplied, and back, is two small matrices for every tile,
    which stays in the cache; the sums over channels are a matrix product for each of the numbers.
    """

    def __init__(
        self,
        numbers: Float[Tensor, "q a"],
        filters: Float[Tensor, "q k"],
        results: Float[Tensor, "b q"],
        weights: Float[Tensor, "k k out in"],
    ) -> None:
        """The matrices, each for one dimension: from a tile to the numbers that are multiplied,
        from a filter to those by which they are, and from the products to the results."""
        self._numbers, self._results = numbers.to(weights), results.to(weights)
        both = torch.kron(filters, filters).to(weights)
        made = (both @ weights.flatten(0, 1).flatten(1)).view(-1, *weights.shape[2:])
        self._weights = made.transpose(1, 2).contiguous()

    def __call__(self, tiles: Float[Tensor, "t a a in"]) -> Float[Tensor, "t b b out"]:
        results = [self._some(part) for part in torch.split(tiles, ROWS)]
        return results[0] if len(results) == 1 else torch.cat(results)

    def _some(self, tiles: Float[Tensor, "t a a in"]) -> Float[Tensor, "t b b out"]:
        (n, _, a, channels), (b, q) = tiles.shape, self._results.shape
        numbers, results = self._numbers.expand(n, q, a), self._results.expand(n, b, q)
        down = torch.bmm(numbers, tiles.reshape(n, a, a * channels)).view(n * q, a, channels)
        across = torch.bmm(self._numbers.expand(n * q, q, a), down).view(n, q * q, channels)
        products = torch.bmm(across.transpose(0, 1), self._weights).transpose(0, 1)
        back = torch.bmm(self._results.expand(n * q, b, q), products.reshape(n * q, q, -1))
        return torch.bmm(results, back.view(n, q, -1)).view(n, b, b, -1)


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

    def __call__(
        self, x: Float[Tensor, "n c l k"], padding: tuple[int, int], size: tuple[int, int]
    ) -> Float[Tensor, "n out rows columns"]:
        """padding: rows above and columns left of the windows that are zero. size: rows and
        columns of the result; what the last tiles read beyond the windows is zero, too."""
        m, (top, left) = self._m, padding
        down, across = (ceil(side / m) for side in size)
        bottom, right = down * m + 2 - x.shape[2] - top, across * m + 2 - x.shape[3] - left
        if max(top, left, bottom, right) > 0:
            x = F.pad(x, (left, max(0, right), top, max(0, bottom)))
        tiles = x.permute(0, 2, 3, 1).unfold(1, m + 2, m).unfold(2, m + 2, m)
        tiles = tiles[:, :down, :across].permute(0, 1, 2, 4, 5, 3)
        return self._run(lambda part: tiles[part].flatten(0, 2), len(x), size)

    def numbers(self, index: Int[Tensor, "n l k"]) -> Int[Tensor, "n tiles q q"]:
        """The rows that the tiles of windows are made of, from those that the windows are."""
        q = self._m + 2
        return index.unfold(1, q, self._m).unfold(2, q, self._m).flatten(1, 2).contiguous()

    def picked(
        self,
        cut: Callable[[Tensor, float], Float[Tensor, "t c q q"]],
        index: Int[Tensor, "n tiles q q"],
        size: tuple[int, int],
    ) -> Float[Tensor, "n out rows columns"]:
        """Of windows that are not cut out themselves: a move less, a tenth of the time with few
        channels. cut: as `Rows.cut`; index: the rows of the windows' tiles."""

        def take(part: slice) -> Float[Tensor, "t q q c"]:
            return cut(index[part].flatten(0, 1), 0.0).permute(0, 2, 3, 1)

        return self._run(take, len(index), size)

    def _run(
        self,
        take: Callable[[slice], Float[Tensor, "t q q c"]],
        count: int,
        size: tuple[int, int],
    ) -> Float[Tensor, "n out rows columns"]:
        """take: the tiles of some of so many windows."""
        m, out, (rows, columns) = self._m, len(self._weight), size
        down, across = ceil(rows / m), ceil(columns / m)
        y = self._weight.new_empty((count, down, m, across, m, out))
        step = max(1, TOGETHER // (down * across))
        for first in range(0, count, step):
            part = slice(first, first + step)
            result = self._products(take(part))
            result = result.view(-1, down, across, m, m, out).transpose(2, 3)
            if self._bias is None:
                y[part].copy_(result)
            else:
                torch.add(result, self._bias, out=y[part])
        y = y.view(count, down * m, across * m, out)
        return y[:, :rows, :columns].permute(0, 3, 1, 2)
