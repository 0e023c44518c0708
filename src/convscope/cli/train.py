"""Commands train and flowers, and the progress bar of a training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convscope.cli.options import Reading, expanded
from convscope.cli.predict import save_evaluation
from convscope.cli.results import progress, say, tell
from convscope.cli.stop import stop_on_signals
from convscope.core.run import Run
from convscope.studies.base import epochs

if TYPE_CHECKING:
    from convscope.pictures.pictures import Pictures
    from convscope.training.recipe import Recipe
    from convscope.training.trainer import Progress as Standing
    from convscope.training.trainer import TrainResult


Tell = Callable[["Standing"], None]


@contextmanager
def training_bar() -> Iterator[Tell]:
    """Gives the `progress` for `train`: a bar for a person, one line an epoch for a log."""
    if not sys.stderr.isatty():
        yield _log()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(24),
        TextColumn("{task.fields[how]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading", total=None, how="")

        def tell(standing: Standing) -> None:
            if standing.stage == "remark":
                console.print(standing.remark, markup=False, highlight=False)
                return
            bar.update(
                task,
                description="reading" if standing.stage == "reading" else _epoch(standing),
                completed=standing.done,
                total=standing.total,
                how=described(standing),
            )

        yield tell


def described(standing: Standing) -> str:
    """One line on where the run stands."""
    if standing.stage == "reading":
        return f"{standing.done:,} of {standing.total:,} pictures"
    judged = standing.val_accuracy
    parts = [f"loss {standing.loss:.3f}", f"accuracy {standing.accuracy:.1%}"]
    parts += [] if judged is None else [f"validation {judged:.1%}"]
    parts += [f"{standing.pictures_per_second:,.0f} pictures/s", left(standing.seconds_left)]
    return ", ".join(parts)


def left(seconds: float) -> str:
    """Time left, in words."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min left"
    return f"{minutes}:{rest:02d} min left"


def _epoch(standing: Standing) -> str:
    return f"epoch {standing.epoch}/{standing.epochs}"


def _log() -> Tell:
    def tell(standing: Standing) -> None:
        if standing.stage == "remark":
            say(standing.remark)
        if standing.stage == "judged":
            say(f"{_epoch(standing)}: {described(standing)}")

    return tell


@dataclass(frozen=True)
class Training:
    """How a network is trained."""

    recipe: Annotated[str, typer.Option(help="tutorial, paper, best, demo or a .toml file.")] = (
        "tutorial"
    )
    out: Annotated[
        Path, typer.Option(help="Run folder: new, or of the same run, which then goes on.")
    ] = Path("run")
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE of the recipe, e.g. epochs=3.")
    ] = None
    validation: Annotated[
        str | None,
        typer.Option(help="Pictures to judge by; else a tenth of PICTURES, chosen by file name."),
    ] = None
    devices: Annotated[int, typer.Option(min=1, help="Processes that share each batch.")] = 1
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1
    accelerator: Annotated[str, typer.Option(help="auto, cpu, gpu, mps.")] = "auto"
    threads: Annotated[int, typer.Option(min=1, help="Threads that make batches.")] = 1
    memory: Annotated[
        float, typer.Option(min=0, help="GB of pictures to keep; others are read each epoch.")
    ] = 4.0
    keep: Annotated[
        str | None,
        typer.Option(help="Epochs whose weights stay in OUT/epochs, e.g. 1,2,5,10; 0: untrained."),
    ] = None

    def machine(self) -> dict[str, Any]:
        """What does not decide the weights, for `train`."""
        return {
            "devices": self.devices,
            "nodes": self.nodes,
            "accelerator": self.accelerator,
            "threads": self.threads,
            "memory": int(self.memory * 1e9),
            "keep": () if self.keep is None else epochs(self.keep),
        }


@expanded
def train(
    pictures: Annotated[
        str,
        typer.Argument(help="Class folders, a folder with train and val in it, or builtin:photos."),
    ],
    options: Training,
    reading: Reading,
) -> None:
    """Train a network from a recipe; the same command goes on where it was stopped or killed.

    Example: convscope train flower_photos --recipe best --out run
    """
    from convscope.training.recipe import recipe as read_recipe
    from convscope.training.trainer import require_extra
    from convscope.training.trainer import train as run_training

    require_extra()
    plan, machine = read_recipe(options.recipe, options.changes or ()), options.machine()
    teaching, judging = pair(pictures, options.validation, reading)
    if len(teaching) < plan.batch:
        say(f"{len(teaching)} pictures make less than a batch of {plan.batch}: one step an epoch")
    with stop_on_signals() as stop, training_bar() as bar:
        result = run_training(
            plan,
            teaching,
            judging,
            options.out,
            progress=bar,
            stop=stop,
            **machine,
        )
    if result.chief:
        _finish(result, plan, judging)
        tell(result.folder)


def pair(pictures: str, validation: str | None, reading: Reading) -> tuple[Pictures, Pictures]:
    """Pictures to train on and to judge by, as the arguments of `convscope train` mean them."""
    from convscope.pictures.opening import inside
    from convscope.pictures.pictures import split

    if validation is not None:
        return reading.open(pictures), reading.open(validation)
    return split(reading.open(inside(pictures, "train")))


def _finish(result: TrainResult, recipe: Recipe, judging: Pictures) -> None:
    """Curves, and the evaluation of the best epoch with the recipe's views."""
    from convscope.core.publish import publish_file, publishing
    from convscope.drawing.plots import png, training_curves
    from convscope.network.load import load
    from convscope.representations.predict import evaluate as measure

    run = result.folder
    publish_file(run / "curves.png", png(training_curves(result.series)))
    if not (run / "evaluation").exists():
        with progress("evaluating") as tick:
            network = load(str(run))
            found = measure(network, judging, views=recipe.views, run=Run(progress=tick))
        with publishing(run / "evaluation") as place:
            save_evaluation(found, place)
    say(
        f"best epoch {result.best_epoch} of {recipe.epochs}: "
        f"{result.best_accuracy:.1%} of {len(judging):,} validation pictures"
    )


def flowers(
    out: Annotated[
        Path | None, typer.Option(help="New folder for them; by default the user's cache.")
    ] = None,
) -> None:
    """Download the 3,670 flower photographs of the tutorials (229 MB, CC-BY).

    The download goes on where it stopped and is checked by its SHA-256. Without --out, `flowers`
    then stands for them wherever a command wants pictures.

    Example: convscope flowers
    """
    from convscope.pictures.builtin import download

    with progress("flower photographs (bytes)") as tick:
        place = download(out, progress=tick)
    tell(place)
