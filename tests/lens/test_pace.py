"""Does what a machine is quick at decide between ways, and only between them?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from convscope.lens import incremental_packed, incremental_winograd, pace
from convscope.lens.incremental_packed import Product, lays_out
from convscope.lens.pace import Pace, moving_of
from convscope.trace.backward import transposed
from convscope.trace.backward.transposed import Even

needs = pytest.mark.skipif(not lays_out(torch.ones(1)), reason="oneDNN's calls do not work here")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which nothing is remembered, and none in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pace.kept_at.cache_clear()
    pace._pace.cache_clear()
    yield tmp_path  # type: ignore[misc]
    pace.kept_at.cache_clear()
    pace._pace.cache_clear()


def given(monkeypatch: pytest.MonkeyPatch, moving: float, onednn: bool) -> None:
    for module in (incremental_packed, incremental_winograd, transposed):
        monkeypatch.setattr(module, "pace", lambda: Pace(moving, onednn))


def test_a_machine_is_tried_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = [Pace(0.25, False), Pace(2.0, True)]
    monkeypatch.setattr(pace, "by_trial", lambda: tried.pop(0))
    assert pace.pace() == pace.pace() == Pace(0.25, False)
    pace._pace.cache_clear()  # as in another process
    assert pace.pace() == Pace(0.25, False)
    assert len(tried) == 1


def test_of_two_that_try_at_once_both_take_the_first_ones_answer(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late() -> Pace:
        home = pace.kept_at(torch.get_num_threads())
        home.parent.mkdir(parents=True)
        home.write_text('{"moving": 0.5, "onednn": false}')
        return Pace(2.0, True)

    monkeypatch.setattr(pace, "by_trial", late)
    assert pace.pace() == Pace(0.5, False)


@pytest.mark.parametrize(
    "damage", ["", "[]", "{", '{"moving": 9, "onednn": true}', '{"moving": 1}']
)
def test_a_damaged_answer_is_tried_again(
    damage: str, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "by_trial", lambda: Pace(0.5, True))
    home = pace.kept_at(torch.get_num_threads())
    home.parent.mkdir(parents=True)
    home.write_text(damage)
    assert pace.pace() == Pace(0.5, True)
    assert pace.remembered(home) == Pace(0.5, True)


def test_without_a_cache_it_is_tried_and_nothing_breaks(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fresh / "convscope").write_text("a file where the folder should be")
    monkeypatch.setattr(pace, "by_trial", lambda: Pace(0.5, True))
    assert pace.pace() == Pace(0.5, True)


def test_other_threads_and_other_instructions_are_other_machines(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {pace.kept_at(1), pace.kept_at(2)}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    pace.kept_at.cache_clear()
    assert len({*one, pace.kept_at(1), pace.kept_at(2)}) == 4


@needs
def test_the_trial_gives_an_answer() -> None:
    found = pace.by_trial()
    assert found.moving in (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


def test_the_costs_are_solved_for_moving() -> None:
    """With 64 maps and tiles of 4 × 4 a product is 64² multiplications, 36 products give 16 sums
    of 9 multiplications, and moving costs (250 + 130) · 64 for each of the 36 numbers."""
    for moving in (1 / 4, 1 / 2, 1.0, 2.0):
        tiles = 36 * (1.05 * 64**2 + moving * (250 + 130) * 64)
        assert moving_of(tiles / (16 * 9 * 64**2)) == moving
    assert (moving_of(0.0), moving_of(1e9)) == (1 / 8, 2.0)


@needs
def test_tiles_are_taken_for_fewer_maps_where_moving_is_cheap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    even = Even(torch.randn(64, 64, 3, 3))
    even._seen = 10_000
    given(monkeypatch, 1 / 8, True)
    assert even._tile((9, 9)) > 0
    given(monkeypatch, 2.0, True)
    assert even._tile((9, 9)) == 0


@needs
@pytest.mark.parametrize("moving", [1 / 8, 2.0])
@pytest.mark.parametrize("onednn", [False, True])
def test_whatever_is_chosen_the_numbers_are_the_same_but_for_rounding(
    moving: float, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, moving, onednn)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 96), torch.randn(30, 96), torch.randn(30)
    torch.testing.assert_close(
        Product(weight, bias)(x), F.linear(x, weight, bias), rtol=1e-5, atol=1e-4
    )
    filters = torch.randn(64, 64, 3, 3)
    even = Even(filters)
    even._seen = 10_000
    values = torch.randn(5, 64, 9, 9)
    expected = F.conv_transpose2d(values, filters)
    torch.testing.assert_close(even(values, ((0, 0), (0, 0))), expected, rtol=1e-4, atol=1e-3)
