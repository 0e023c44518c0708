"""How is a prepared run carried through, from its first or last finished epoch to its end?"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import nn

from convscope import __version__
from convscope.errors import EnvironmentFault, UsageError, nearest
from convscope.network.load import Card, load
from convscope.network.preprocess import Preprocess
from convscope.network.weights.checkpoint import save_weights
from convscope.records.series import Series
from convscope.training.board import Board
from convscope.training.loop import Around, Observer
from convscope.training.optimise import initialise
from convscope.training.precision import Choice, keep_choice, kept_choice
from convscope.training.recipe import Recipe
from convscope.training.recipe_text import to_json
from convscope.training.run_folder import finish, kept_file, require_kept, write_metrics
from convscope.training.state import drop_all, drop_damaged, load_state, save_state
from convscope.training.stock import Stock
from convscope.training.story import COLUMNS, Progress, Story
from convscope.training.task import Task

DEVICES: Mapping[str, Callable[[], bool]] = {
    "auto": lambda: True,
    "cpu": lambda: True,
    "gpu": lambda: torch.cuda.is_available() or torch.backends.mps.is_available(),
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}
"""What may be named as accelerator, and whether this machine has one."""


def trainer_for(recipe: Recipe, devices: int, nodes: int, accelerator: str) -> Trainer:
    """Lightning's Trainer, which only trains: what is kept and shown is ours.

    Under torchrun, its processes are taken. Raises UsageError U306 if the batch cannot be split,
    U378 for an unknown accelerator, EnvironmentFault R641 for one that is not there.
    """
    _require_device(accelerator)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if recipe.batch % (devices * nodes):
        raise UsageError(
            "U306", f"batch={recipe.batch}", f"cannot be split between {devices * nodes} processes"
        )
    try:
        return _trainer(recipe, devices, nodes, accelerator)
    except (MisconfigurationException, RuntimeError) as fault:
        said = str(fault).strip().splitlines()[0]
        raise EnvironmentFault("R641", accelerator, f"cannot be used ({said})") from fault


def _require_device(accelerator: str) -> None:
    if accelerator not in DEVICES:
        hint = nearest(accelerator, DEVICES).replace("it has", "there are")
        raise UsageError("U378", accelerator, f"no such accelerator; {hint}")
    if not DEVICES[accelerator]():
        raise EnvironmentFault(
            "R641",
            accelerator,
            "this machine has none that torch can use",
            next_step="pass --accelerator cpu, or auto",
        )


def _trainer(recipe: Recipe, devices: int, nodes: int, accelerator: str) -> Trainer:
    return Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        max_epochs=recipe.epochs,
        gradient_clip_val=recipe.clip_gradient or None,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Way(NamedTuple):
    """What does not decide a run's weights: see `train`."""

    stop: Callable[[], bool]
    threads: int
    keep: Collection[int]


def fit(
    trainer: Trainer,
    run: Path,
    recipe: Recipe,
    training: Stock,
    validation: Stock,
    preprocess: Preprocess,
    observers: Sequence[Observer],
    progress: Callable[[Progress], None] | None,
    way: Way,
) -> tuple[Story, int]:
    """Train the epochs that are left; give what happened, and how many were there before."""
    classes = training.folder.classes
    model = _network(recipe, len(classes))
    start = load_state(run)
    require_kept(run, way.keep, 0 if start is None else start.epoch + 1)
    if trainer.is_global_zero:
        drop_damaged(run, start)
    story = Story([]) if start is None else Story.from_json(start.plain)
    keeper = Keeper(run, recipe, classes, preprocess, story, way.keep)
    task = Task(
        model,
        preprocess,
        recipe,
        training,
        len(classes),
        start=start,
        choice=keeper.choice,
        threads=way.threads,
        stop=way.stop,
    )
    around = Around(
        story,
        validation,
        keeper.begin,
        keeper.commit,
        keeper.close,
        observers=[keeper.keep, *observers],
        progress=progress,
    )
    if task.first < recipe.epochs:
        trainer.callbacks.append(around)  # type: ignore[attr-defined]
        trainer.fit_loop.max_epochs = recipe.epochs - task.first
        try:
            trainer.fit(task)
        finally:
            keeper.close_board()
    elif trainer.is_global_zero:
        keeper.close()
    return story, task.first


class Keeper:
    """Puts on the disk what an epoch gave; the state last, for only that counts as done."""

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        classes: tuple[str, ...],
        preprocess: Preprocess,
        story: Story,
        epochs: Collection[int],
    ) -> None:
        """epochs: whose weights stay."""
        self.run = run
        self.recipe = recipe
        self.classes = classes
        self.preprocess = preprocess
        self.story = story
        self.epochs = epochs
        self.choice = kept_choice(run)
        self._board: Board | None = None

    def begin(self, task: Task) -> None:
        """Publish what was chosen for this machine, unless a former start has."""
        if self.choice is None and task.choice is not None:
            keep_choice(self.run, task.choice)
        self.choice = task.choice

    def keep(self, epoch: int, model: nn.Module) -> None:
        """Keep the weights after an epoch asked for. Before the epoch counts as done: a run killed
        in between does it once more, and writes the same."""
        if epoch in self.epochs:
            meta = self._metadata(epoch)
            save_weights(kept_file(self.run, epoch), model.state_dict(), meta)

    def commit(self, task: Task, best: bool) -> None:
        """Publish weights, metrics and state of the epoch that has just ended."""
        meta = self._metadata(task.epoch + 1)
        weights = task.judged.state_dict()
        if best:
            save_weights(self.run / "best.safetensors", weights, meta)
        save_weights(self.run / "last.safetensors", weights, meta)
        write_metrics(self.run, COLUMNS, self.story.rows)
        if self._board is None:
            self._board = Board(self.run / "tensorboard", self.story.rows[:-1])
        self._board.add(len(self.story.rows), self.story.rows[-1])
        save_state(self.run, task.state(self.story.to_json()))

    def close(self) -> None:
        """The run is done: its series, its mark; the way back is no longer needed."""
        shutil.rmtree(self.run / "series", ignore_errors=True)
        series(self.story, self.recipe, self.choice).save(self.run / "series")
        finish(self.run, self.story.to_json())
        drop_all(self.run)

    def close_board(self) -> None:
        """TensorBoard's log is whole up to here, whatever ended the run."""
        if self._board is not None:
            self._board.close()

    def _metadata(self, epoch: int) -> dict[str, str]:
        """What the weights after an epoch say about themselves."""
        more = {"recipe": to_json(self.recipe), "epoch": epoch} | _told(self.choice)
        return Card(self.recipe.model, self.classes, self.preprocess, more).metadata()


def _told(choice: Choice | None) -> dict[str, str]:
    return {} if choice is None else {"precision": choice.precision}


def series(story: Story, recipe: Recipe, choice: Choice | None) -> Series:
    """The run as a record."""
    rows = np.array(story.rows, dtype=np.float64).reshape(-1, len(COLUMNS))
    origin: Mapping[str, Any] = {
        "method": "training",
        "recipe": to_json(recipe),
        "best_epoch": story.best_epoch,
        "versions": versions(),
    } | _told(choice)
    return Series(COLUMNS, np.arange(1, len(rows) + 1), rows, origin=origin)


def versions() -> dict[str, str]:
    """The software that made a run, and the threads that may change its last bits."""
    return {
        "convscope": __version__,
        "torch": str(torch.__version__),
        "lightning": str(lightning.__version__),
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }


def _network(recipe: Recipe, classes: int) -> nn.Module:
    model = load(recipe.model, classes=classes, seed=recipe.seed).model
    initialise(model, recipe.init, recipe.seed)
    if recipe.channels_last:
        with suppress(RuntimeError):  # weights of other than two dimensions have no such layout
            model = model.to(memory_format=torch.channels_last)
    return model.train().requires_grad_(True)
