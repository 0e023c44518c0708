"""Do bars come one after the other, and is what commands print one line each?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from convscope.cli import results as progress
from convscope.cli.results import Tick, say, tell


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


def test_whatever_a_name_holds_it_is_one_line_on_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    forged = "a\x1b[31m\nconvscope: error[X070]: b\r\x9b2J\u2028\u202e"
    tell(forged, Path(forged), 7)
    say(forged)
    told = capsys.readouterr()
    assert told.out.count("\n") == 3
    assert told.err.count("\n") == 1
    shown = r"a\x1b[31m\nconvscope: error[X070]: b\r\x9b2J\u2028\u202e"
    assert told.out.splitlines() == [shown, shown, "7"]
    assert told.err == f"{shown}\n"


def test_commands_print_by_these_two_alone() -> None:
    home = Path(progress.__file__).parent
    for path in home.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and path.name not in ("results.py", "app.py"):
                assert ast.unparse(node.func) not in ("print", "typer.echo", "sys.stdout.write")


def test_where_no_terminal_looks_on_a_line_a_minute_tells_how_it_goes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress("looking") as tick:
        for second in range(150):
            now[0] = float(second)
            tick(100 + 2 * second, 1000)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "looking: 220 of 1,000, 2 a second, 6 min left",
        "looking: 340 of 1,000, 2 a second, 6 min left",
    ]
