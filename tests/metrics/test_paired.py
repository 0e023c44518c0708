"""Does the sign test give what counting the cases by hand gives?"""

from __future__ import annotations

from itertools import product

import pytest

from convscope.metrics.faithfulness import sign_test


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (0, 0, 1),
        (1, 0, 1),
        (5, 0, 2 / 32),
        (3, 1, 10 / 16),
        (4, 4, 1),
        (4, 5, 1),
        (1, 9, 22 / 1024),
    ],
)
def test_p_is_the_share_of_coin_throws_at_least_so_uneven(lost: int, gained: int, p: float) -> None:
    assert sign_test(lost, gained) == pytest.approx(p, rel=1e-12)
    assert sign_test(gained, lost) == sign_test(lost, gained)


def test_p_agrees_with_all_throws_of_twelve_coins() -> None:
    throws = [abs(2 * sum(coins) - 12) for coins in product((0, 1), repeat=12)]
    for lost in range(13):
        share = sum(uneven >= abs(2 * lost - 12) for uneven in throws) / len(throws)
        assert sign_test(lost, 12 - lost) == pytest.approx(share, rel=1e-12)


def test_thousands_of_pictures_are_no_trouble() -> None:
    assert sign_test(30_000, 20_000) == 0 or sign_test(30_000, 20_000) < 1e-300
    assert 0.9 < sign_test(25_010, 24_990) < 1
