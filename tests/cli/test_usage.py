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


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                "allocate memory: you tried to allocate 119997600012 bytes. Error code 12"
            ),
            "memory ran out (119997600012 bytes were asked for)",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB."), "(2.50 GiB were asked"),
        (MemoryError(), "memory ran out."),
    ],
)
def test_memory_that_runs_out_is_no_bug_of_ours(
    fault: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr("convscope.network.load.load", fail)
    assert run(["layers", "zfnet"]) == 6
    told = capsys.readouterr().err
    assert told.startswith("convscope: error[R640]: memory ran out")
    assert said in told


def test_a_size_that_cannot_be_is_told_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", "torchvision:no-such-network", "--size", "99999"]) == 2
    assert "over 8192 pixels" in capsys.readouterr().err
