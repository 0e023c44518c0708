"""Do the commands take the same options of networks and of pictures, and hand them over?"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import pytest
import typer

from convscope.cli.app import app, run
from convscope.cli.options import Opening, Passing, Reading, expanded
from convscope.core.errors import (
    ConvscopeError,
    DataError,
    EnvironmentFault,
    ModelError,
    OutputError,
    StopAsked,
    Stopped,
)
from convscope.scale.folder import NEW


@dataclass(frozen=True)
class Sides:
    """A group."""

    width: Annotated[int, typer.Option(help="Across.")] = 2
    height: Annotated[int, typer.Option(help="Down.")] = 3


def test_a_group_of_options_arrives_as_one_object() -> None:
    told: list[object] = []
    small = typer.Typer()

    @small.command()
    @expanded
    def area(name: str, sides: Sides, twice: bool = False) -> None:
        told.extend([name, sides, twice])

    small(["door", "--height", "7", "--twice"], standalone_mode=False)
    assert told == ["door", Sides(2, 7), True]


def test_two_options_of_one_name_are_refused_when_the_command_is_made() -> None:
    with pytest.raises(ValueError, match="duplicate parameter name: 'width'"):

        @expanded
        def area(sides: Sides, width: int = 1) -> None: ...


def test_every_command_that_opens_a_network_takes_all_options_of_opening() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    taken = {name: {option.name for option in command.params} for name, command in commands.items()}
    wanted = set(Opening.__dataclass_fields__)
    opening = {
        name for name, options in taken.items() if "model" in options and name != "evolution"
    }
    assert opening >= {"check", "explain", "layers", "tune"}
    assert {name: wanted - taken[name] for name in opening if wanted - taken[name]} == {}


def test_every_command_that_reads_pictures_takes_all_options_of_reading() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    taken = {name: {option.name for option in command.params} for name, command in commands.items()}
    wanted = {field.name for field in fields(Reading) if field.init}
    reading = {name for name, options in taken.items() if "max_bad" in options}
    assert len(reading) > 18
    assert {name: wanted - taken[name] for name in reading if wanted - taken[name]} == {}


def test_a_command_of_pictures_takes_the_share_of_bad_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = ["train", "ablation", "mark", "evolution", "predict", "check", "correspondence"]
    for command in commands:
        assert run([command, "--help"]) == 0
        assert "--max-bad" in capsys.readouterr().out, command


@pytest.mark.parametrize(
    ("options", "said"),
    [("--engine spark", "only ray"), ("--address a:1", "--engine ray"), ("--gpus 1", "--gpus: is")],
)
def test_an_engine_that_is_not_there_is_refused_before_the_work(
    options: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["atlas", "zfnet", "nowhere", "--out", "nowhere/a", *options.split()]) == 2
    told = capsys.readouterr().err
    assert told.startswith("convscope: error[U224]: ")
    assert said in told


def test_parts_behind_a_url_are_told_when_the_command_does_not_come_to_its_end() -> None:
    passing = Passing(run_folder="s3://me:hush@bucket/run")
    with pytest.raises(EnvironmentFault) as told, passing.keeping(Path("out")):
        raise EnvironmentFault("R655", "Ray", "was lost")
    assert told.value.kept == "what is finished, in s3://***@bucket/run"


def test_after_new_another_command_goes_on(tmp_path: Path) -> None:
    """--new again would begin once more, under the next number."""
    passing, out = Passing(new=True), tmp_path / "a-2"
    (tmp_path / "a-2-run/topk/seg").mkdir(parents=True)
    (tmp_path / "a-2-run/topk/seg/one.seg").touch()
    step = f"the same command without --new and with --out {out} goes on"
    with pytest.raises(Stopped) as told, passing.keeping(out):
        raise Stopped("R575", "topk", "stopped as asked", kept="1 of 2", next_step="again")
    assert told.value.next_step == step
    with pytest.raises(StopAsked) as asked, passing.keeping(out):
        raise StopAsked(15)
    assert asked.value.line().endswith(f"Next: {step}.")


def test_a_run_folder_that_was_named_is_not_left_by_new(tmp_path: Path) -> None:
    passing = Passing(run_folder=str(tmp_path / "run"), new=True)
    with pytest.raises(OutputError) as told, passing.keeping(tmp_path / "a"):
        raise OutputError("O514", "run", "holds parts of another run", next_step=NEW)
    assert "--new" not in told.value.next_step
    assert told.value.next_step.endswith("--run-folder")


@pytest.mark.parametrize("inside", ["", "/parts"])
def test_parts_are_not_kept_where_the_result_goes(inside: str, tmp_path: Path) -> None:
    """Else all is computed before the result finds its place taken."""
    out = tmp_path / "a"
    with pytest.raises(OutputError) as told, Passing(run_folder=f"{out}{inside}").keeping(out):
        raise AssertionError("was begun")
    assert told.value.code == "O501"


@pytest.mark.parametrize(
    ("fault", "begun", "part", "left", "told"),
    [
        (ModelError("M500", "a", "b"), False, False, False, False),
        (ModelError("M574", "a", "b"), False, True, True, True),
        (ModelError("M500", "a", "b"), True, True, True, False),
        (OutputError("O501", "a", "b"), False, False, True, False),
        (EnvironmentFault("R602", "a", "b"), True, True, True, True),
        (DataError("D118", "a", "b"), True, True, True, True),
    ],
)
def test_finished_parts_are_kept_and_those_of_others_left_alone(
    tmp_path: Path, fault: ConvscopeError, begun: bool, part: bool, left: bool, told: bool
) -> None:
    """begun: whether the run folder was there before; part: whether a part is finished."""
    place = tmp_path / "out-run"
    if begun:
        place.mkdir()

    def command() -> None:
        with Passing().keeping(tmp_path / "out"):
            place.mkdir(exist_ok=True)
            if part:
                (place / "1.seg").touch()
            raise fault

    with pytest.raises(type(fault)):
        command()
    assert place.exists() == left
    assert fault.kept == (f"the finished parts, in {place}" if told else "")
