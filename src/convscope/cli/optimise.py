"""What does a picture look like that a unit, a class or a layer would like to see?"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.optimise_jobs import Job, Wish, best_natural
from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.progress import tell
from convscope.cli.stop import stop_on_signals
from convscope.cli.study_files import claim, new_study
from convscope.errors import Stopped, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from convscope.records.optimise import OptimisedPicture


@expanded
def optimise(
    model: Model,
    opening: Opening,
    reading: Reading,
    unit: Annotated[
        list[str] | None, typer.Option(help="LAYER:MAP or LAYER:MAP@ROW,COLUMN; again for more.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--class", help="Name or index; again for more.")
    ] = None,
    invert: Annotated[
        Path | None, typer.Option(help="Photograph to tell from what --layer makes of it.")
    ] = None,
    dream: Annotated[
        Path | None, typer.Option(help="Photograph to draw into it what --layer sees in it.")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="For --invert and --dream; again for more.")
    ] = None,
    out: Annotated[Path, typer.Option(help="New folder for pictures and records.")] = Path(
        "optimised"
    ),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Default: 128; of a dream's octave 10.")
    ] = None,
    over: Annotated[
        str, typer.Option(help="What of a feature map is to be large: mean, max or centre.")
    ] = "mean",
    seed: Annotated[int, typer.Option(help="Of the noise to begin with, and of the jitter.")] = 0,
    start: Annotated[
        Path | None, typer.Option(help="Record to go on from, as of a picture that was stopped.")
    ] = None,
    pictures: Annotated[
        str | None, typer.Option(help="Photographs; the strongest is told beside each picture.")
    ] = None,
) -> None:
    """Pictures made for a network: of units, of classes, from a layer's output, and dreams.

    Ctrl-C keeps the picture so far. Example: convscope optimise run --unit conv2:3 --class 0
    """

    claim(out)
    wish = Wish(unit or (), target or (), invert, dream, layer or ())
    wish.check()
    network = opening.network(model)
    jobs = wish.jobs(network, over, reading)
    how = {"seed": seed, **({} if steps is None else {"steps": steps}), **_started(start)}
    naturals = best_natural(network, jobs, None if pictures is None else reading.open(pictures))
    with new_study(out) as place, stop_on_signals() as stop:
        made = _made(jobs, naturals, how, place, stop)
        _sheet(made, place)
    tell(out / "sheet.png")
    if stop():
        kept = f"{len(made)} of {len(jobs)} pictures, in {out}"
        last = out / jobs[len(made) - 1].file_name
        step = "" if dream else f"--start {last} goes on from the last one"
        raise Stopped("R575", str(out), "stopped as asked", kept=kept, next_step=step)


def _made(
    jobs: list[Job], naturals: list[float], how: dict[str, Any], out: Path, stop: Callable[[], bool]
) -> list[OptimisedPicture]:
    """Each picture, saved when it is done; once `stop` says yes, those so far."""
    made: list[OptimisedPicture] = []
    for job, natural in zip(jobs, naturals, strict=True):
        if made and stop():
            break
        yardstick = {} if job.strength is None else {"natural": natural}
        with _bar(job.name) as watch:
            made.append(job.make(**how, **yardstick, **watch, stop=stop))
        _save(made[-1], out / job.file_name)
    return made


def _started(start: Path | None) -> dict[str, Any]:
    from convscope.records.optimise import OptimisedPicture

    return {} if start is None else {"start": OptimisedPicture.load(start).pixels}


def _save(record: OptimisedPicture, place: Path) -> None:
    """The record as a folder, and the picture alone beside it."""
    from PIL import Image

    from convscope.drawing.tiles import optimised_picture

    record.save(place)
    picture = Image.fromarray(optimised_picture(record))
    place.with_name(f"{place.name}.png").write_bytes(_png(picture))


def _sheet(made: list[OptimisedPicture], place: Path) -> None:
    from convscope.drawing.tiles import optimised_figure

    (place / "sheet.png").write_bytes(_png(optimised_figure(made)))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="png")
    return file.getvalue()


@contextmanager
def _bar(name: str) -> Iterator[dict[str, Any]]:
    """A bar with the objective, for a person; gives `observe` and `progress`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[how]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(name), total=None, how="")
        yield {
            "observe": lambda _, value, __: bar.update(task, how=f"{value:.4g}"),
            "progress": lambda done, total: bar.update(task, completed=done, total=total),
        }
