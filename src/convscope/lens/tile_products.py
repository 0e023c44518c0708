"""How is a convolution computed on tiles, once it has become products of single numbers?

Tiles lie in memory one after the other, the numbers of a tile one after the other, all channels of
a number together. So tiles are rows of a map, picked out. Going over to the numbers that are
multiplied, and back, is two small matrices for every tile, which stays in the cache. The sums over
channels are a matrix product for each of these numbers: one convolution in as many groups, of maps
one place wide, which is at once the quickest form (measured: up to ten times the products one by
one) and the one in which nothing has to be moved between steps.
"""

from __future__ import annotations

from math import ceil

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.lens.incremental_packed import Grouped, lays_out

TOGETHER = 24e6
"""Bytes of weights that are laid out at once: more, and the system hands out fresh pages."""


class Products:
    """A convolution of tiles of a × a numbers to tiles of b × b."""

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
        self.rows = rows_of(weights[0, 0].numel())
        """Tiles that are multiplied at once by `Grouped`."""
        self._quick = quick = lays_out(weights)
        q = len(numbers)
        size = q * q * weights[0, 0].numel() * weights.element_size()
        parts = min(q, ceil(size / TOGETHER)) if quick else 1
        flat, both = weights.flatten(0, 1).flatten(1), torch.kron(filters, filters).to(weights)
        self._parts: list[tuple[slice, Grouped | Plainly]] = []
        """Rows of each tile's numbers, and their weights."""
        for part in range(parts):
            some = slice(part * q // parts, (part + 1) * q // parts)
            made = (both[some.start * q : some.stop * q] @ flat).view(-1, *weights.shape[2:])
            self._parts.append((some, Grouped(made, self.rows) if quick else Plainly(made)))

    def __call__(self, tiles: Float[Tensor, "t a a in"]) -> Float[Tensor, "t b b out"]:
        side, (_, first) = len(self._results), self._parts[0]
        found = tiles.new_empty(len(tiles), side, side, first.out)
        rows = self.rows if self._quick else max(1, len(tiles))
        for start in range(0, len(tiles), rows):
            some = slice(start, start + rows)
            for number, (part, weights) in enumerate(self._parts):
                products = weights(self._moved(tiles[some], self._numbers[part], rows))
                self._back(products, self._results[:, part], found[some], more=number > 0)
        return found

    def _moved(
        self, tiles: Float[Tensor, "t a a in"], part: Float[Tensor, "h a"], rows: int
    ) -> Float[Tensor, "rows hq in"]:
        """The numbers that are multiplied; for tiles that are missing to a call, zeros."""
        (n, _, a, channels), h, q = tiles.shape, len(part), len(self._numbers)
        moved = tiles.new_empty(rows, h * q, channels)
        moved[n:] = 0
        down = torch.bmm(part.expand(n, h, a), tiles.reshape(n, a, a * channels))
        across = self._numbers.expand(n * h, q, a)
        torch.bmm(across, down.view(n * h, a, channels), out=moved[:n].view(n * h, q, channels))
        return moved

    def _back(
        self,
        products: Float[Tensor, "rows hq out"],
        part: Float[Tensor, "b h"],
        place: Float[Tensor, "t b b out"],
        more: bool,
    ) -> None:
        """more: add to what is there."""
        (n, b, _, out), h, q = place.shape, part.shape[1], len(self._numbers)
        across = torch.bmm(
            self._results.expand(n * h, b, q), products[:n].reshape(n * h, q, out)
        ).view(n, h, b * out)
        down, place = part.expand(n, b, h), place.view(n, b, b * out)
        if more:
            place.baddbmm_(down, across)
        else:
            torch.bmm(down, across, out=place)


class Plainly:
    """`Grouped` by ordinary products, for any number of rows."""

    def __init__(self, weights: Float[Tensor, "groups out in"]) -> None:
        self.out = weights.shape[1]
        self._weights = weights.transpose(1, 2).contiguous()

    def __call__(self, x: Float[Tensor, "rows groups in"]) -> Float[Tensor, "rows groups out"]:
        return torch.bmm(x.transpose(0, 1), self._weights).transpose(0, 1)


def rows_of(weights: int) -> int:
    """Tiles that are multiplied at once, with so many weights for each of their numbers: enough
    that what a call costs does not count."""
    return 64 if weights >= 2**16 else 128 if weights >= 2**14 else 256
