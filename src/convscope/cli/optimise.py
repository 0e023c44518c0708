"""Command optimise: pictures that a unit, a class or a layer would like to see."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.options import Model, Opening, Reading, expanded
from convscope.cli.results import claim, new_study, progress, tell
from convscope.cli.stop import stop_on_signals
from convscope.core.errors import Stopped, UsageError, printable
from convscope.core.run import Progress, Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from convscope.cli.options import Reading
    from convscope.network.network import Network
    from convscope.pictures.pictures import Pictures
    from convscope.records.maps import OptimisedPicture


@dataclass(frozen=True)
class Job:
    """One picture to make."""

    name: str
    make: Callable[..., OptimisedPicture]
    strength: Callable[[Any], Sequence[float]] | None = None
    """From preprocessed pictures to what is made large, where photographs can be measured."""

    @property
    def file_name(self) -> str:
        return re.sub(r"[^\w.]+", "-", self.name).strip("-.") or "picture"


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    units: Sequence[str]
    classes: Sequence[str]
    invert: Path | None
    dream: Path | None
    layers: Sequence[str]

    def check(self) -> None:
        """Raises UsageError U368 unless there is something to do, and layers where they count."""
        if not (self.units or self.classes or self.invert or self.dream):
            step = "give --unit, --class, --invert or --dream"
            raise UsageError("U368", "", "there is nothing to make a picture of", next_step=step)
        if bool(self.invert or self.dream) != bool(self.layers):
            what = "is for --invert and --dream, which need it"
            raise UsageError("U368", "--layer", what, next_step="`convscope layers` lists names")

    def jobs(self, network: Network, over: str, reading: Reading) -> list[Job]:
        """Units, then classes, then inversions, then dreams."""
        return [
            *(_unit(network, one, over) for one in self.units),
            *(_class(network, one) for one in self.classes),
            *self._of_photographs(network, reading),
        ]

    def _of_photographs(self, network: Network, reading: Reading) -> list[Job]:
        from convscope.visualisation.optimise import deep_dream, invert

        jobs: list[Job] = []
        kinds = (("inverted", invert, self.invert), ("dream", deep_dream, self.dream))
        for word, function, path in kinds:
            if path is not None:
                made = partial(function, network, _photograph(network, path, reading))
                jobs += [Job(f"{word} {one}", partial(made, one)) for one in self.layers]
        return jobs


def best_natural(network: Network, jobs: Sequence[Job], pictures: Pictures | None) -> list[float]:
    """The largest strength among photographs for each job; NaN where none is measured."""
    best = [math.nan] * len(jobs)
    if pictures is None:
        return best
    with pictures as folder, progress("photographs") as tick:
        for (picture,) in folder.batches(1, network.preprocess.framing, run=Run(progress=tick)):
            images = network.preprocess.tensor(picture.pixels)[None]
            for place, job in enumerate(jobs):
                if job.strength is not None:
                    best[place] = max(job.strength(images)[0], best[place])  # NaN stays last
    return best


def _unit(network: Network, unit: str, over: str) -> Job:
    from convscope.visualisation.optimise import activation_maximisation, unit_values

    make = partial(activation_maximisation, network, unit, over=over)
    return Job(unit, make, partial(unit_values, network, unit, over=over))


def _class(network: Network, name: str) -> Job:
    from convscope.visualisation.optimise import class_image, class_values

    target = int(name) if name.isdecimal() and name not in network.classes else name
    make = partial(class_image, network, target)
    if isinstance(target, int) and target < len(network.classes):
        name = network.classes[target]
    return Job(name, make, partial(class_values, network, target))


def _photograph(network: Network, path: Path, reading: Reading) -> Any:
    ready = network.preprocess
    return ready.tensor(reading.one(path, ready.framing).pixels)


@dataclass(frozen=True)
class Making:
    """What pictures are made of, and how."""

    unit: Annotated[
        list[str] | None, typer.Option(help="LAYER:MAP or LAYER:MAP@ROW,COLUMN; again for more.")
    ] = None
    target: Annotated[
        list[str] | None, typer.Option("--class", help="Name or index; again for more.")
    ] = None
    invert: Annotated[
        Path | None, typer.Option(help="Photograph to tell from what --layer makes of it.")
    ] = None
    dream: Annotated[
        Path | None, typer.Option(help="Photograph to draw into it what --layer sees in it.")
    ] = None
    layer: Annotated[
        list[str] | None, typer.Option(help="For --invert and --dream; again for more.")
    ] = None
    out: Annotated[Path, typer.Option(help="New folder for pictures and records.")] = Path(
        "optimised"
    )
    steps: Annotated[
        int | None, typer.Option(min=1, help="Default: 128; of a dream's octave 10.")
    ] = None
    over: Annotated[
        str, typer.Option(help="What of a feature map is to be large: mean, max or centre.")
    ] = "mean"
    seed: Annotated[int, typer.Option(help="Of the noise to begin with, and of the jitter.")] = 0
    start: Annotated[
        Path | None, typer.Option(help="Record to go on from, as of a picture that was stopped.")
    ] = None
    pictures: Annotated[
        str | None, typer.Option(help="Photographs; the strongest is told beside each picture.")
    ] = None


@expanded
def optimise(model: Model, options: Making, opening: Opening, reading: Reading) -> None:
    """Pictures made for a network: of units, of classes, from a layer's output, and dreams.

    Ctrl-C keeps the picture so far. Example: convscope optimise run --unit conv2:3 --class 0
    """

    claim(options.out)
    wish = Wish(
        options.unit or (), options.target or (), options.invert, options.dream, options.layer or ()
    )
    wish.check()
    network = opening.network(model)
    jobs = wish.jobs(network, options.over, reading)
    how = {**({} if options.steps is None else {"steps": options.steps}), **_started(options.start)}
    naturals = best_natural(
        network, jobs, None if options.pictures is None else reading.open(options.pictures)
    )
    with new_study(options.out) as place, stop_on_signals() as stop:
        made = _made(jobs, naturals, how, place, Run(seed=options.seed, stop=stop))
        _sheet(made, place)
    tell(options.out / "sheet.png")
    if stop():
        kept = f"{len(made)} of {len(jobs)} pictures, in {options.out}"
        last = options.out / jobs[len(made) - 1].file_name
        step = "" if options.dream else f"--start {last} goes on from the last one"
        raise Stopped("R575", str(options.out), "stopped as asked", kept=kept, next_step=step)


def _made(
    jobs: list[Job], naturals: list[float], how: dict[str, Any], out: Path, run: Run
) -> list[OptimisedPicture]:
    """Each picture, saved when it is done; once the run is stopped, those so far."""
    made: list[OptimisedPicture] = []
    for job, natural in zip(jobs, naturals, strict=True):
        if made and run.is_stopped:
            break
        yardstick = {} if job.strength is None else {"natural": natural}
        with _bar(job.name) as (observe, tick):
            watched = {"observe": observe, "run": run.telling(tick)}
            made.append(job.make(**how, **yardstick, **watched))
        _save(made[-1], out / job.file_name)
    return made


def _started(start: Path | None) -> dict[str, Any]:
    from convscope.records.maps import OptimisedPicture

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
def _bar(name: str) -> Iterator[tuple[Callable[..., None], Progress]]:
    """A bar with the objective, for a person; gives what moves it: `observe` and progress."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[how]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Bars(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(printable(name), total=None, how="")
        yield (
            lambda _, value, __: bar.update(task, how=f"{value:.4g}"),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
