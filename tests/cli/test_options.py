"""Do the commands take the same options of networks and of pictures, and hand them over?"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import pytest
import typer

from convscope.cli.app import app, run
from convscope.cli.options import Opening, Passing, Reading, expanded
from convscope.core.errors import EnvironmentFault


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
