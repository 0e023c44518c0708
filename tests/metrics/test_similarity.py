"""Are maps as alike as peer libraries and slow twins say?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr
from skimage.metrics import structural_similarity

from convscope.core.errors import UsageError
from convscope.metrics.randomisation import agreement, in_cells, overlap, ranks, spearman, ssim
from tests.metrics.faithful_nets import a_map, noise
from tests.oracles import faithfulness as slow


def test_rank_correlation_is_scipys_ties_too() -> None:
    one = noise(13, 21)
    for other in (noise(13, 21, seed=1), one + noise(13, 21, seed=1), np.round(one, 1), -one):
        peer = spearmanr(one.ravel(), other.ravel()).statistic
        assert spearman(one, other) == pytest.approx(peer, abs=1e-12)
    rectified = np.maximum(one, 0).astype(np.float16)
    peer = spearmanr(one.ravel(), rectified.ravel()).statistic
    assert spearman(one, rectified) == pytest.approx(peer, abs=1e-12)


@pytest.mark.parametrize("kind", [float, np.float32, int])
def test_ranks_are_scipys(kind: type) -> None:
    random = np.random.default_rng(0)
    for shape in ((1,), (7,), (5, 40), (3, 0), (2, 3, 11)):
        for most in (2, 9, 10**6):
            values = random.integers(-most, most, shape).astype(kind)
            assert np.array_equal(ranks(values), rankdata(values, axis=-1))
    if kind is not int:
        rows = np.array([[1.0, np.nan, 0.0], [np.inf, -np.inf, 0.0]], kind)
        assert np.array_equal(ranks(rows), rankdata(rows, axis=1), equal_nan=True)


def test_only_the_order_counts() -> None:
    one = noise(13, 21)
    assert spearman(one, np.exp(3 * one)) == 1
    assert spearman(one, -(one**3)) == -1


def test_flat_maps_have_no_rank_correlation() -> None:
    assert math.isnan(spearman(np.zeros((4, 5)), noise(4, 5)))
    assert math.isnan(spearman(noise(4, 5), np.full((4, 5), 3.0)))
    assert math.isnan(spearman(np.ones((1, 1)), np.ones((1, 1))))


def test_structural_similarity_is_scikit_images_of_scaled_maps() -> None:
    one, other = noise(40, 31), noise(40, 31) + 0.4 * noise(40, 31, seed=1)
    scaled = [(m - m.min()) / (m.max() - m.min()) for m in (one, other)]
    peer = structural_similarity(
        *scaled, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert 0.3 < peer < 0.99
    assert ssim(one, other) == pytest.approx(peer, abs=1e-9)
    assert ssim(7 * one - 3, other) == pytest.approx(peer, abs=1e-9)
    assert ssim(one, other) == pytest.approx(ssim(other, one), abs=1e-12)
    assert ssim(one, one) == pytest.approx(1, abs=1e-12)


def test_maps_smaller_than_the_window_have_no_structure() -> None:
    assert math.isnan(ssim(noise(10, 40), noise(10, 40)))
    assert ssim(noise(11, 40), noise(11, 40)) == pytest.approx(1)


def test_overlap_is_that_of_the_sets() -> None:
    one = noise(15, 20) + 3
    for weight in (0.0, 0.3, 2.0):
        other = one + weight * noise(15, 20, seed=1)
        assert overlap(one, other) == pytest.approx(slow.overlap(one, other, 30), abs=1e-12)
    assert overlap(one, one) == 1
    assert overlap(one, -one) == 0


def test_places_that_neither_map_marks_are_not_shared() -> None:
    one, other = np.zeros((20, 30)), np.zeros((20, 30))
    one[15, :12], other[3, :12] = 1, 1  # of 60 places that would count, the rest are equal zeros
    assert overlap(one, other) == 0
    other[15, :4] = 0.5
    assert overlap(one, other) == pytest.approx(4 / 24)
    assert overlap(one, np.zeros((20, 30))) == 0
    assert math.isnan(overlap(np.zeros((20, 30)), -np.ones((20, 30))))


def test_equal_values_share_what_is_left_of_the_tenth() -> None:
    one = np.full((10, 10), 1.0)
    one[0, :5] = 2  # the other 5 of 10 are spread over 95
    other = np.zeros((10, 10))
    other[0] = 3
    assert overlap(one, one) == 1
    both, either = 5 + 5 * 5 / 95, 10 + 5 * 90 / 95
    assert overlap(one, other) == pytest.approx(both / either, abs=1e-12)


def test_cells_hold_the_means_of_their_pixels() -> None:
    values = noise(7, 10)
    found = in_cells(values, 3)  # of 2 by 2 pixels; the last row of cells is 3 high
    assert found.shape == (3, 5)
    assert found[0, 1] == pytest.approx(values[0:2, 2:4].mean())
    assert found[2, 4] == pytest.approx(values[4:7, 8:10].mean())
    assert in_cells(values, 100) == pytest.approx(values)
    assert in_cells(np.ones((197, 251)), 14) == pytest.approx(np.ones((14, 18)))


def test_agreement_is_symmetric_with_one_on_its_diagonal() -> None:
    base = noise(33, 29)
    maps = {
        "a": a_map(base),
        "b": a_map(base + noise(33, 29, seed=1)),
        "opposite": a_map(-base),
        "flat": a_map(np.zeros((33, 29))),
    }
    found = agreement(maps, cells=29)
    table = found.spearman
    assert found.methods == tuple(maps)
    assert np.array_equal(table, table.T, equal_nan=True)
    assert (np.diag(table)[:3] == 1).all()
    assert table[0, 2] == -1
    assert 0.4 < table[0, 1] < 0.95
    assert np.isnan(table[3]).all()
    peer = spearmanr(base.astype(np.float32).ravel(), maps["b"].values.ravel()).statistic
    assert table[0, 1] == pytest.approx(peer, abs=1e-6)


def test_agreement_compares_places_not_pixels() -> None:
    place = np.kron(noise(4, 5), np.ones((14, 14)))
    fine = a_map(place + 3 * noise(56, 70, seed=1))
    pixels = spearman(place, fine.values)
    places = agreement({"a": a_map(place), "b": fine}, cells=4).spearman[0, 1]
    assert pixels < 0.5
    assert places > 0.9


def test_what_cannot_be_compared_is_refused_in_words() -> None:
    good = a_map(noise(8, 9))
    wrong = {
        "U390": {"a": good, "b": a_map(noise(9, 8))},
        "U393": {"a": good, "b": noise(8, 9)},
        "U394": {"a": a_map(np.full((8, 9), np.inf))},
    }
    for code, maps in wrong.items():
        with pytest.raises(UsageError) as fault:
            agreement(maps)  # type: ignore[arg-type]
        assert fault.value.code == code
    with pytest.raises(UsageError, match="list in the place of maps"):
        agreement([good, good])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cells=0: must be 1 or more"):
        agreement({"a": good}, cells=0)
    assert agreement({}).spearman.shape == (0, 0)
