"""Does a map that points at a marked thing count as doing so, by hand arithmetic?"""

from __future__ import annotations

import math

import numpy as np
import pytest

from convscope.core.errors import UsageError
from convscope.core.units import Box
from convscope.metrics.localisation import coverage, energy_inside, inside, pointing, share_inside
from tests.metrics.faithful_nets import a_map, noise


def peak_at(row: int, column: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    values = np.full(size, -1.0)
    values[row, column] = 0.5
    return values


@pytest.mark.parametrize(
    ("row", "column", "hit"),
    [(20, 30, 1), (29, 49, 1), (19, 30, 0), (30, 30, 0), (20, 29, 0), (20, 50, 0)],
    ids=["first pixel", "last pixel", "above", "below", "left", "right"],
)
def test_boxes_are_half_open(row: int, column: int, hit: float) -> None:
    assert pointing(peak_at(row, column), [Box(20, 30, 30, 50)], margin=0) == hit


@pytest.mark.parametrize(
    ("row", "column", "hit"),
    [(5, 15, 1), (44, 64, 1), (4, 30, 0), (45, 30, 0), (25, 14, 0), (25, 65, 0)],
)
def test_a_peak_may_miss_by_fifteen_pixels_and_no_more(row: int, column: int, hit: float) -> None:
    assert pointing(peak_at(row, column), [Box(20, 30, 30, 50)]) == hit


def test_any_of_several_boxes_may_be_hit() -> None:
    boxes = [Box(0, 0, 5, 5), Box(50, 70, 60, 80)]
    assert pointing(peak_at(59, 79), boxes, margin=0) == 1
    assert pointing(peak_at(30, 40), boxes, margin=0) == 0


def test_boxes_may_reach_over_the_border_and_lie_outside() -> None:
    assert pointing(peak_at(0, 0), [Box(-10, -10, 1, 1)], margin=0) == 1
    assert pointing(peak_at(59, 79), [Box(58, 78, 500, 500)], margin=0) == 1
    assert pointing(peak_at(0, 0), [Box(-10, -10, 0, 0)], margin=0) == 0
    assert share_inside((60, 80), [Box(-10, -10, 0, 0)]) == 0
    assert share_inside((60, 80), [Box(-10, -10, 600, 800)]) == 1


def test_of_equal_peaks_the_share_inside_counts() -> None:
    values = np.zeros((60, 80))
    values[5, [0, 10, 20, 30]] = 2
    assert pointing(values, [Box(0, 0, 60, 11)], margin=0) == 0.5


def test_a_map_without_evidence_points_nowhere_and_without_boxes_nobody_asked() -> None:
    box = [Box(0, 0, 60, 80)]
    for values in (np.zeros((60, 80)), -np.ones((60, 80)), np.full((60, 80), np.nan)):
        assert math.isnan(pointing(values, box))
        assert math.isnan(energy_inside(values, box))
        assert math.isnan(coverage(values))
    assert math.isnan(pointing(peak_at(3, 3), []))
    assert math.isnan(energy_inside(peak_at(3, 3), []))


def test_energy_is_the_share_of_what_is_positive() -> None:
    values = np.array([[1.0, 2.0, -9.0], [4.0, 0.0, 1.0]])
    assert energy_inside(values, [Box(0, 0, 1, 2)]) == 3 / 8
    assert energy_inside(values, [Box(0, 0, 1, 2), Box(0, 1, 2, 2)]) == 3 / 8
    assert energy_inside(values, [Box(0, 0, 2, 3)]) == 1


def test_the_energy_of_an_even_map_is_the_share_of_the_boxes() -> None:
    boxes = [Box(3, 5, 20, 44), Box(10, 30, 70, 50)]
    even = np.ones((60, 80), np.float16)
    union = sum(
        any(b.top <= r < b.bottom and b.left <= c < b.right for b in boxes)
        for r in range(60)
        for c in range(80)
    )
    assert energy_inside(even, boxes) == share_inside((60, 80), boxes) == union / 4800
    assert inside((60, 80), boxes).sum() == union


def test_coverage_is_the_smallest_part_that_holds_half() -> None:
    assert coverage(np.array([[1.0, 1.0], [1.0, 1.0]])) == 2 / 4
    assert coverage(np.array([[5.0, 1.0, 1.0], [1.0, -7.0, 1.0]])) == 1 / 6
    assert coverage(np.array([[4.0, 1.0, 1.0], [1.0, 1.0, 1.0]])) == 2 / 6
    assert coverage(np.abs(noise(31, 17)), part=1.0) == 1


def test_what_is_no_map_is_refused_in_words() -> None:
    for call in (pointing, energy_inside):
        with pytest.raises(UsageError, match="Attribution in the place of a map's numbers") as one:
            call(a_map(noise(3, 4)), [Box(0, 0, 1, 1)])
        assert one.value.code == "U393"
    with pytest.raises(UsageError, match="ndarray 3×4×5 in the place"):
        coverage(noise(3, 4, 5))
    with pytest.raises(UsageError, match="margin=-1: must be 0 or more"):
        pointing(noise(3, 4), [Box(0, 0, 1, 1)], margin=-1)
