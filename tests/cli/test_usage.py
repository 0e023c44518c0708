"""Is a wrong command line told as the user's slip, not as our bug?"""

from __future__ import annotations

import pytest

from convscope.cli.app import run


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("laeyrs zfnet", "'layers'"),
        ("layers", "model"),
        ("layers zfnet --sise 3", "--sise"),
        ("atlas m p --top 0", "--top"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith("convscope: error[U200]: ")
    assert said in told
    assert told.count("\n") == 1


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [["predict", "zfnet", ""], ["atlas", "zfnet", "pictures", "--out", ""], ["layers", "--size="]],
)
def test_an_empty_name_does_not_stand_for_the_working_folder(
    line: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 2
    told = capsys.readouterr().err
    assert told.startswith("convscope: error[U375]: ")
    assert told.count("\n") == 1
