"""Is the agreement of sign changes what its slow twin and hand counting say?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convscope.studies.correspondence.study import (
    distances,
    over_pairs,
    permutation_test,
    relative,
    sign_changes,
)
from tests.oracles import correspondence as oracle


def drawn(pictures: int, masks: int, features: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (pictures * masks, features), generator=draw).to(torch.int8)


def listed(signs: torch.Tensor, masks: int) -> list[list[tuple[int, ...]]]:
    rows = [tuple(row) for row in signs.tolist()]
    return [rows[first : first + masks] for first in range(0, len(rows), masks)]


def test_a_feature_that_falls_when_hidden_is_1_one_that_rises_minus_1() -> None:
    whole = torch.tensor([4.0, 4.0, 4.0, 4.0])
    masked = torch.tensor([[3.0, 5.0, 4.0, 4.0 + 1e-6]])
    assert sign_changes(whole, masked).tolist() == [[1, -1, 0, 0]]


def test_a_zero_differs_from_both_signs() -> None:
    signs = torch.tensor([[1, 0, -1], [1, 1, -1], [-1, 0, -1]], dtype=torch.int8)
    third = 1 / 3
    expected = [[0, third, third], [third, 0, 2 * third], [third, 2 * third, 0]]
    assert distances(signs) == pytest.approx(np.array(expected), abs=1e-15)


def test_distances_are_the_slow_twins() -> None:
    signs = drawn(4, 3, 11)
    rows = [tuple(row) for row in signs.tolist()]
    expected = [[oracle.hamming(one, other) for other in rows] for one in rows]
    assert distances(signs) == pytest.approx(np.array(expected), abs=1e-12)


def test_relative_distances_are_over_the_mean_of_all_orders() -> None:
    signs = drawn(2, 1, 6, seed=3)
    one, other = (tuple(row) for row in signs.tolist())
    found = relative(signs, distances(signs))[0, 1]
    assert found == pytest.approx(oracle.hamming(one, other) / oracle.shuffled(one, other))


def test_nothing_changes_is_no_agreement() -> None:
    still = torch.zeros(2, 5, dtype=torch.int8)
    assert relative(still, distances(still)).tolist() == [[1, 1], [1, 1]]


def test_the_mean_over_unordered_pairs_is_the_formulas_over_ordered_ones() -> None:
    signs = drawn(5, 1, 9, seed=2)
    table = distances(signs).reshape(5, 1, 5, 1)
    found = over_pairs(table, np.zeros(5, np.int64))
    assert len(found) == 10
    assert found.mean() == pytest.approx(oracle.consistency([r[0] for r in listed(signs, 1)]))


@pytest.mark.parametrize("part", [0, 1])
def test_the_permutation_test_comes_near_all_deals(part: int) -> None:
    signs = drawn(4, 4, 8, seed=5)
    signs[part::4] = torch.where(torch.rand(4, 8) < 0.4, signs[part], signs[part::4])
    table = distances(signs).reshape(4, 4, 4, 4)
    found = permutation_test(table, 2, permutations=20_000, seed=1)
    assert found[part] == pytest.approx(oracle.exact_p(listed(signs, 4), part), abs=0.015)


def test_masks_that_all_do_the_same_prove_nothing() -> None:
    table = np.zeros((3, 4, 3, 4))
    assert permutation_test(table, 2, permutations=99, seed=0).tolist() == [1, 1, 1]
