"""How does a recipe become a trained network, in a folder that a killed run goes on from?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from convscope.errors import DataError, EnvironmentFault, UsageError
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.notes import table, tables
from convscope.pictures.pictures import Folder
from convscope.publish import publish_file
from convscope.records.series import Series
from convscope.training.augment import Shrunk
from convscope.training.batches import steps
from convscope.training.precision import kept_choice
from convscope.training.quiet import deterministic, quiet
from convscope.training.recipe import Recipe
from convscope.training.run_folder import Identity, check_run, finished, open_run, require_kept
from convscope.training.state import drop_all
from convscope.training.stock import Stock, pixel_mean
from convscope.training.story import Progress, Story

if TYPE_CHECKING:
    from convscope.training.loop import Observer

EXTRA = ("lightning", "tensorboard")
"""Of what only training needs; imported when it begins."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    folder: Path
    """`load(folder)` gives the network of the best epoch."""
    series: Series
    best_accuracy: float
    """Top-1 on the validation pictures, 0 to 1, one view."""
    best_epoch: int
    resumed_from: int
    """Epochs that were finished before; all of them if there was nothing left to do."""
    chief: bool = True
    """False on all but the first of several processes, which alone writes."""


def train(
    recipe: Recipe,
    training: Folder,
    validation: Folder,
    out: Path | str,
    *,
    observers: Sequence[Observer] = (),
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    devices: int = 1,
    nodes: int = 1,
    accelerator: str = "auto",
    threads: int = 1,
    memory: int = 4_000_000_000,
    keep: Collection[int] = (),
) -> TrainResult:
    """Train as the recipe says, into the run folder `out`; go on where a killed run stopped.

    observers: called with (epoch, network in eval mode) before training (epoch 0) and after every
    epoch, on the first process; a resumed run calls them from the epoch it resumes at.
    stop: asked at every step; once true, training ends with Stopped R575, to be resumed.
    devices, nodes, accelerator: as Lightning has them; several devices train by DDP, with the
    recipe's batch split between them. threads: that make batches, beside the network's own; as many
    processes decode pictures when they are first read. memory: bytes of pictures that each process
    keeps; what does not fit is read again.
    keep: epochs whose weights stay in `out/epochs`, 0 for the untrained network.

    On the CPU with the same number of threads, a killed and resumed run ends with the same
    weights, bit for bit. Raises OutputError O501, O511 to O513, DataError D150 to D154 and of
    unusable pictures, ModelError M551 (loss not finite), UsageError U306, U307, U378, U385 (an
    epoch to keep that there is not),
    EnvironmentFault R641, R623 (Lightning or TensorBoard is not installed), Stopped R575.
    """
    require_extra()
    from convscope.training.fit import Way, fit, series, trainer_for, versions

    run = Path(out)
    _require_epochs(keep, recipe)
    with quiet(), deterministic():
        trainer = trainer_for(recipe, devices, nodes, accelerator)
        identity = _identity(recipe, training, validation)
        lock = open_run(run, identity, versions()) if trainer.is_global_zero else nullcontext()
        with lock:
            check_run(run, identity)
            done = finished(run)
            if done is not None:
                require_kept(run, keep, recipe.epochs + 1)
                if trainer.is_global_zero:
                    drop_all(run)  # as where it was killed right after it was done
                story, resumed = Story.from_json(done), recipe.epochs
            else:
                told = progress if trainer.is_global_zero else None
                stocks = _stocks(recipe, training, validation, memory, threads, told)
                _require_steps(stocks[0], recipe, trainer.world_size)
                if trainer.is_global_zero:
                    lists = tables([training.report, validation.report])
                    for name, content in ({"skipped.csv": table([])} | lists).items():
                        publish_file(run / name, content)
                how = Way(stop, threads, tuple(keep))
                story, resumed = fit(trainer, run, recipe, *stocks, observers, progress, how)
    return TrainResult(
        run,
        series(story, recipe, kept_choice(run)),
        story.best_accuracy,
        story.best_epoch,
        resumed,
        trainer.is_global_zero,
    )


def require_extra() -> None:
    """Raise EnvironmentFault R623 unless all that training needs is installed."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise EnvironmentFault(
            "R623",
            " and ".join(missing),
            "needed for training, and not installed",
            next_step="run: pip install 'convscope[train]'",
        )


def _identity(recipe: Recipe, training: Folder, validation: Folder) -> Identity:
    """Raises UsageError U307 or DataError D150 if these cannot be trained on together."""
    if training.classes != validation.classes:
        only = sorted(set(training.classes) ^ set(validation.classes))
        raise UsageError(
            "U307",
            str(validation.root),
            f"has other classes than the training pictures: {', '.join(only[:5])}",
        )
    if len(training.classes) < 2:
        raise DataError(
            "D150",
            str(training.root),
            "has no two class folders, so there is nothing to tell apart",
            next_step="put each class's pictures into a folder with the class's name",
        )
    return Identity(recipe, training.classes, training.sha256, validation.sha256)


def _require_epochs(keep: Collection[int], recipe: Recipe) -> None:
    """Raise UsageError U385 if one of them is no epoch of the recipe's."""
    for epoch in keep:
        if not 0 <= epoch <= recipe.epochs:
            what = f"there is no epoch {epoch} to keep; the recipe has {recipe.epochs}"
            raise UsageError(
                "U385", f"keep={epoch}", what, next_step=f"name some from 0 to {recipe.epochs}"
            )


def _require_steps(stock: Stock, recipe: Recipe, world: int) -> None:
    if not steps(len(stock), recipe, world):
        raise DataError(
            "D154",
            str(stock.folder.root),
            f"{len(stock)} usable pictures are too few for {world} processes",
            next_step="add pictures, or take fewer devices",
        )


def _stocks(
    recipe: Recipe,
    training: Folder,
    validation: Folder,
    memory: int,
    workers: int,
    progress: Callable[[Progress], None] | None,
) -> tuple[Stock, Stock, Preprocess]:
    total = len(training) + len(validation)

    def told(before: int) -> Callable[[int, int], None]:
        def tell(done: int, _: int) -> None:
            if progress is not None:
                progress(Progress("reading", before + done, total))

        return tell

    teaching = Stock(
        training, Shrunk(recipe.cache), memory=memory, workers=workers, progress=told(0)
    )
    framing = Framing(recipe.test_resize or None, (recipe.test_size, recipe.test_size))
    mean = pixel_mean(teaching, framing) * (recipe.input_range / 255) if recipe.pixel_mean else None
    preprocess = Preprocess(
        framing, recipe.mean if mean is None else mean, recipe.std, recipe.input_range / 255
    )
    judging = Stock(
        validation, framing, memory=memory // 4, workers=workers, progress=told(len(training))
    )
    return teaching, judging, preprocess
