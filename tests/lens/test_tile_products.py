"""Products of the numbers of tiles, in oneDNN's form and in the ordinary one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convscope.lens import tile_products
from convscope.lens.incremental_packed import lays_out
from convscope.lens.tile_products import Products
from convscope.lens.tiles import matrices

needs = pytest.mark.skipif(not lays_out(torch.ones(1)), reason="oneDNN's calls do not work here")


def slowly(forms: tuple[Tensor, ...], weights: Tensor, tiles: Tensor) -> Tensor:
    numbers, filters, results = forms
    moved = torch.einsum("pa,qb,tabi->tpqi", numbers, numbers, tiles.double())
    by = torch.einsum("pk,ql,kloi->pqoi", filters, filters, weights.double())
    products = torch.einsum("tpqi,pqoi->tpqo", moved, by)
    return torch.einsum("ap,bq,tpqo->tabo", results, results, products)


@pytest.mark.parametrize("count", [1, 63, 256, 300])
@pytest.mark.parametrize(
    ("dtype", "together"),
    [
        (torch.float64, 24e6),
        pytest.param(torch.float32, 24e6, marks=needs),
        pytest.param(torch.float32, 500, marks=needs),
    ],
)
def test_they_are_the_sums_written_out(
    monkeypatch: pytest.MonkeyPatch, count: int, dtype: torch.dtype, together: float
) -> None:
    monkeypatch.setattr(tile_products, "TOGETHER", together)
    torch.manual_seed(count)
    forms = matrices(2)
    weights, tiles = torch.randn(3, 3, 6, 5, dtype=dtype), torch.randn(count, 4, 4, 5, dtype=dtype)
    made = Products(*forms, weights)
    expected = slowly(forms, weights, tiles)
    assert expected.shape == (count, 2, 2, 6)
    near = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(made(tiles).double(), expected, atol=near, rtol=near)
    if dtype == torch.float32:
        assert len(made._parts) == (1 if together > 1e6 else 4)


@needs
def test_what_is_left_of_the_last_call_does_not_spoil_it() -> None:
    made = Products(*matrices(2), torch.ones(3, 3, 2, 3))
    wild = torch.full((made.rows + 1, 4, 4, 3), torch.nan)
    wild[:1] = 1
    found = made(wild)
    assert not found[0].isnan().any()
    assert found[1:].isnan().all()
