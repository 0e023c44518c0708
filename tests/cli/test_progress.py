"""Do bars come one after the other?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from convscope.cli import progress
from convscope.cli.progress import Tick


def test_a_bar_goes_before_the_next_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    @contextmanager
    def bar(what: str) -> Iterator[Tick]:
        told.append(f"{what} comes")
        yield lambda done, total: told.append((what, done, total))
        told.append(f"{what} goes")

    monkeypatch.setattr(progress, "progress", bar)
    with progress.phases() as named:
        first, second = named("a"), named("b")
        assert told == []
        first(1, 2)
        first(2, 2)
        second(1, 1)
    assert told == ["a comes", ("a", 1, 2), ("a", 2, 2), "a goes", "b comes", ("b", 1, 1), "b goes"]
