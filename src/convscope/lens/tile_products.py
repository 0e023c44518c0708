"""How is a convolution computed on tiles, once it has become products of single numbers?

Tiles lie in memory one after the other, the numbers of a tile one after the other, all channels of
a number together. So tiles are rows of a map, picked out. Going over to the numbers that are
multiplied, and back, is one small matrix for every tile, which stays in the cache. The sums over
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
    """results · (weights summed over channels · (numbers · tile)), for many tiles."""

    def __init__(
        self,
        numbers: Float[Tensor, "q2 a"],
        filters: Float[Tensor, "q2 k2"],
        results: Float[Tensor, "b q2"],
        weights: Float[Tensor, "k2 out in"],
    ) -> None:
        """filters: how the numbers of a tile come from those of a filter."""
        self._numbers, self._results = numbers.to(weights), results.to(weights)
        self.rows = rows_of(weights[0].numel())
        """Tiles that are multiplied at once."""
        self._laid: list[tuple[slice, Grouped]] = []
        self._plain: Tensor | None = None
        count, bytes_each = len(numbers), weights[0].numel() * weights.element_size()
        if not lays_out(weights):
            self._plain = _made(filters, weights).transpose(1, 2).contiguous()
            return
        parts = ceil(count * bytes_each / TOGETHER)
        for part in range(parts):
            some = slice(part * count // parts, (part + 1) * count // parts)
            self._laid.append((some, Grouped(_made(filters[some], weights), self.rows)))

    def __call__(self, tiles: Float[Tensor, "t a in"]) -> Float[Tensor, "t b out"]:
        if self._plain is not None:
            products = torch.bmm(_changed(self._numbers, tiles).transpose(0, 1), self._plain)
            return _changed(self._results, products.transpose(0, 1))
        found: Tensor | None = None
        count, rows = len(tiles), self.rows
        for some, laid in self._laid:
            moved = tiles.new_empty(ceil(count / rows) * rows, laid.groups, tiles.shape[2])
            moved[count:] = 0
            _changed(self._numbers[some], tiles, moved[:count])
            back, first = self._results[:, some], found is None
            if found is None:
                found = tiles.new_empty(count, len(back), laid.out)
            for start in range(0, count, rows):
                there = found[start : start + rows]
                products = laid(moved[start : start + rows])[: len(there)]
                if first:
                    _changed(back, products, there)
                else:
                    there.baddbmm_(back.expand(len(there), *back.shape), products)
        assert found is not None
        return found


def rows_of(weights: int) -> int:
    """Tiles that are multiplied at once, with so many weights for each of their numbers: enough
    that what a call costs does not count."""
    return 64 if weights >= 2**16 else 128 if weights >= 2**14 else 256


def _made(
    filters: Float[Tensor, "some k2"], weights: Float[Tensor, "k2 out in"]
) -> Float[Tensor, "some out in"]:
    flat = weights.flatten(1)
    made = flat.new_empty(len(filters), flat.shape[1])
    torch.mm(filters.to(flat), flat, out=made)
    return made.view(-1, *weights.shape[1:])


def _changed(
    matrix: Float[Tensor, "a b"], tiles: Float[Tensor, "t b c"], out: Tensor | None = None
) -> Float[Tensor, "t a c"]:
    """Tiles of other numbers: the matrix times each."""
    return torch.bmm(matrix.expand(len(tiles), *matrix.shape), tiles, out=out)
