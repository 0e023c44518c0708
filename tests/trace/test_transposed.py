"""Do all ways back through a convolution give what a transposed convolution gives?"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from convscope.trace.backward.windows import Even, Tiles, TransposedConvolution, cropped
from convscope.trace.winograd import PLACES, matrices

KINDS = {
    "3 × 3": ((3, 3), (1, 1), (1, 1), 1),
    "5 × 5": ((5, 5), (1, 1), (1, 1), 1),
    "even": ((2, 4), (1, 1), (1, 1), 1),
    "rows": ((1, 5), (1, 1), (1, 1), 1),
    "1 × 1": ((1, 1), (1, 1), (1, 1), 1),
    "stride 4 of 11": ((11, 11), (4, 4), (1, 1), 1),
    "two strides": ((4, 3), (2, 3), (1, 1), 1),
    "stride beyond the kernel": ((1, 2), (3, 2), (1, 1), 1),
    "groups and gaps": ((3, 3), (1, 2), (2, 1), 4),
}
ROUNDING = {torch.float64: 1e-13, torch.float32: 2e-5}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_windows_spread_as_by_a_transposed_convolution_less_what_is_cut(kind, dtype):
    kernel, stride, dilation, groups = KINDS[kind]
    torch.manual_seed(0)
    weight = torch.randn(16, 12 // groups, *kernel, dtype=dtype)
    spreading = TransposedConvolution(weight, stride, dilation, groups)
    for sides, cut in itertools.product([(1, 1), (3, 4), (9, 5)], [(0, 0), (1, 0), (1, 2)]):
        values = torch.randn(3, 16, *sides, dtype=dtype)
        whole = F.conv_transpose2d(values, weight, stride=stride, dilation=dilation, groups=groups)
        cuts = tuple((a if a + b < n else 0, b if a + b < n else 0) for a, b, n in (
            (*cut, min(whole.shape[2], kernel[0])), (*cut[::-1], min(whole.shape[3], kernel[1]))
        ))  # fmt: skip
        expected = cropped(whole, cuts)
        ours = spreading(values.clone(), cuts)
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() <= ROUNDING[dtype] * whole.abs().max()


def test_a_single_activation_spreads_to_its_own_filter():
    weight = torch.randn(5, 3, 4, 2)
    spreading = TransposedConvolution(weight, (1, 1), (1, 1), 1)
    found = spreading.filters(torch.tensor([4, 0]), torch.tensor([2.0, -1.0]))
    assert torch.equal(found, torch.stack([2 * weight[4], -weight[0]]))


def test_tiles_of_every_size_give_the_same():
    torch.manual_seed(0)
    for k in (2, 3, 5):
        weight, values = torch.randn(6, 4, k, k).double(), torch.randn(3, 6, 7, 4).double()
        expected = F.conv_transpose2d(values, weight)
        for m in range(2, max(PLACES) - k + 2):
            ours = Tiles(weight, m)(values, ((0, 0), (0, 0)))
            assert (ours - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_rounding_of_tiles_is_small():
    """So that after four layers a projection is right to 1e-5 of its largest value."""
    torch.manual_seed(0)
    for k in (3, 5):
        weight, values = torch.randn(96, 64, k, k), torch.randn(4, 96, 12, 12).relu()
        expected = F.conv_transpose2d(values.double(), weight.double())
        for m in range(2, max(PLACES) - k + 2):
            error = Tiles(weight, m)(values, ((0, 0), (0, 0))) - expected
            share = error.square().mean().sqrt() / expected.square().mean().sqrt()
            assert share <= 1e-5, (k, m)


def test_tiles_are_taken_where_there_are_many_maps():
    few, many = Even(torch.randn(16, 8, 3, 3)), Even(torch.randn(384, 256, 3, 3))
    rows = Even(torch.randn(384, 256, 1, 3))
    assert many._tile((3, 3)) == 0  # for a single window weights are not laid out
    few._seen = many._seen = rows._seen = 10_000
    assert (few._tile((9, 9)), many._tile((3, 3)), rows._tile((9, 9))) == (0, 3, 0)
    many._seen = 1
    many._tiled[3] = Tiles(many.weight, 3)
    assert many._tile((3, 3)) == 3  # they are laid out already


def test_products_of_tiles_are_those_of_polynomials():
    for k in (1, 2, 3, 5):
        for m in range(1, max(PLACES) - k + 2):
            back, filters, there = matrices(m, k)
            one, two = torch.randn(m).double(), torch.randn(k).double()
            expected = F.conv_transpose1d(one[None, None], two[None, None])[0, 0]
            found = back.T @ ((there.T @ one) * (filters @ two))
            assert torch.allclose(found, expected, atol=1e-12)
