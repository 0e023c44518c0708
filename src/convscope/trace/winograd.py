"""Winograd's tiles: the small matrices by which a convolution becomes products of single numbers.

A tile of m numbers and a filter of k are two polynomials, and their m + k - 1 products are those
of their values at as many places: so many multiplications instead of m · k. The same three
matrices, each turned around, give the m results of a correlation that reads m + k - 1 numbers
(Winograd's tiles) and the m + k - 1 numbers that m numbers spread to (Toom's and Cook's).
Source: Winograd 1980; Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

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
