"""Do names of places read back as they print, and refuse anything else?"""

from __future__ import annotations

import pytest

from convscope.core.errors import UsageError
from convscope.core.units import Box, Unit


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("conv5:41@6,7", Unit("conv5", 41, (6, 7))),
        ("features.0:3", Unit("features.0", 3)),
    ],
)
def test_a_unit_reads_back_as_it_prints(text: str, unit: Unit) -> None:
    assert Unit.parse(text) == unit
    assert str(unit) == text


@pytest.mark.parametrize("text", ["conv5", "conv5:x", "conv5:-1", ":3", "conv5:1@2", "a:1@2,3,4"])
def test_what_is_no_unit_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(UsageError, match="is not a unit") as caught:
        Unit.parse(text)
    assert text in caught.value.line()
    assert caught.value.exit_status == 2


def test_a_unit_counts_from_zero() -> None:
    with pytest.raises(UsageError, match="count from 0"):
        Unit("conv5", 1, (-1, 0))


def test_a_box_over_the_border_is_cut_to_the_picture() -> None:
    box = Box(-17, 100, 58, 175)
    assert (box.height, box.width) == (75, 75)
    assert box.clipped(120, 150) == Box(0, 100, 58, 150)
    outside = Box(-9, -9, -2, -2).clipped(120, 150)
    assert outside.height == outside.width == 0
