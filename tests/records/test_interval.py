"""Is a mean over pictures given with limits that hold?"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from convscope.core.errors import UsageError
from convscope.records.maps import interval, left_out


def test_the_limits_are_those_of_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).gamma(1.5, size=40)
    peer = bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1)
    mean, low, high = interval(values)
    assert mean == values.mean()
    spread = peer.standard_error
    assert low == pytest.approx(peer.confidence_interval.low, abs=0.15 * spread)
    assert high == pytest.approx(peer.confidence_interval.high, abs=0.15 * spread)
    assert high - low > 3 * spread


def test_nineteen_of_twenty_intervals_hold_the_true_mean() -> None:
    chance = np.random.default_rng(0)
    found = [interval(chance.normal(2, 1, 60), resamples=300) for _ in range(200)]
    held = sum(low <= 2 <= high for _, low, high in found) / len(found)
    assert 0.89 <= held <= 0.98


def test_a_lower_level_gives_a_narrower_interval() -> None:
    values = np.random.default_rng(5).random(30)
    wide, narrow = interval(values), interval(values, level=0.5)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_nan_is_left_out_and_counted() -> None:
    assert interval([1.0, math.nan, 3.0, math.nan, 5.0]) == interval([1.0, 3.0, 5.0])
    assert left_out([1.0, math.nan, 3.0, math.nan]) == 2
    assert left_out([]) == 0


def test_one_picture_has_a_mean_and_no_limits_and_none_has_nothing() -> None:
    mean, low, high = interval([0.25])
    assert (mean, math.isnan(low), math.isnan(high)) == (0.25, True, True)
    assert all(math.isnan(number) for number in interval([]))
    assert all(math.isnan(number) for number in interval([math.nan]))


def test_truths_are_shares() -> None:
    mean, low, high = interval([True, False, True, True])
    assert mean == 0.75
    assert 0 <= low < mean < high <= 1


def test_equal_numbers_have_no_spread() -> None:
    assert interval([0.5] * 7) == (0.5, 0.5, 0.5)


def test_the_same_seed_gives_the_same_limits() -> None:
    values = np.random.default_rng(2).random(12).tolist()
    assert interval(values, seed=4) == interval(values, seed=4)
    assert interval(values, seed=4) != interval(values, seed=5)


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"level": 95}, {"resamples": 0}])
def test_impossible_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="no interval at level") as fault:
        interval([1.0, 2.0], **wrong)  # type: ignore[arg-type]
    assert fault.value.code == "U391"
