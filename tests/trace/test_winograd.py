"""Convolutions as products of the numbers of tiles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convscope.trace.winograd import Products, matrices


def slowly(forms: tuple[Tensor, ...], weights: Tensor, tiles: Tensor) -> Tensor:
    numbers, filters, results = forms
    moved = torch.einsum("pa,qb,tabi->tpqi", numbers, numbers, tiles.double())
    by = torch.einsum("pk,ql,kloi->pqoi", filters, filters, weights.double())
    products = torch.einsum("tpqi,pqoi->tpqo", moved, by)
    return torch.einsum("ap,bq,tpqo->tabo", results, results, products)


@pytest.mark.parametrize("count", [1, 63, 256, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_they_are_the_sums_written_out(count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(count)
    forms = matrices(2)
    weights, tiles = torch.randn(3, 3, 6, 5, dtype=dtype), torch.randn(count, 4, 4, 5, dtype=dtype)
    expected = slowly(forms, weights, tiles)
    assert expected.shape == (count, 2, 2, 6)
    near = 1e-4 if dtype == torch.float32 else 1e-10
    found = Products(*forms, weights)(tiles)
    torch.testing.assert_close(found.double(), expected, atol=near, rtol=near)
