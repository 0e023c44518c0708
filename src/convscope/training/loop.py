"""What happens around the steps: judging, observers, checkpoints, metrics, progress?"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from convscope.training.judge import Tally, judge
from convscope.training.stock import Stock
from convscope.training.story import COLUMNS, Progress, Story, work
from convscope.training.task import Task

Observer = Callable[[int, nn.Module], None]


class Around(Callback):
    """All that is done before and after steps and epochs; what is written goes through `commit`."""

    def __init__(
        self,
        story: Story,
        validation: Stock,
        begin: Callable[[Task], None],
        commit: Callable[[Task, bool], None],
        close: Callable[[], None],
        *,
        observers: Sequence[Observer] = (),
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """begin(task), commit(task, is_best), close(): called on the first process before the
        first step, after an epoch, after the last."""
        self.story = story
        self.validation = validation
        self.begin = begin
        self.commit = commit
        self.close = close
        self.observers = observers
        self.progress = progress
        self._signal = _sigterm()
        self._began = self._epoch_began = time.monotonic()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has put its own handler in the place of the one that whoever called us set up.
        _sigterm(self._signal)
        self._began = time.monotonic()
        task = _task(pl_module)
        if trainer.is_global_zero:
            self.begin(task)
            if self.progress is not None and task.choice is not None:
                self.progress(Progress("remark", 0, 0, remark=task.choice.line(task.device)))
        if task.first == 0:
            self._observe(trainer, task, 0)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_began = time.monotonic()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.progress is not None and trainer.is_global_zero:
            step, world = batch_idx + 1, trainer.world_size
            self.progress(self._standing("training", _task(pl_module), step, world))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        task, world = _task(pl_module), trainer.world_size
        trained = summed(task.tally(), task.device, world)
        seconds = time.monotonic() - self._epoch_began
        judged = judge(
            task.judged, self.validation, task.preprocess, rank=task.global_rank, world=world
        )
        loss, accuracy = summed(judged, task.device, world).means()
        now = task.last_rate
        task.plateau.saw(loss, task.recipe)
        speed = trained.pictures / max(1e-9, seconds)
        best = self.story.add([*trained.means(), loss, accuracy, now, seconds, speed])
        self._observe(trainer, task, task.epoch + 1)
        if trainer.is_global_zero:
            self.commit(task, best)
            if self.progress is not None:
                self.progress(self._standing("judged", task, task.steps(), world))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.close()
        trainer.strategy.barrier()

    def _observe(self, trainer: Trainer, task: Task, epoch: int) -> None:
        if trainer.is_global_zero:
            for observer in self.observers:
                observer(epoch, task.judged.eval())

    def _standing(self, stage: str, task: Task, step: int, world: int) -> Progress:
        per, seen = task.steps(), task.tally()
        loss, accuracy = seen.means()
        done = work(task.recipe, task.epoch, step / per)
        begun = work(task.recipe, task.first, 0.0)
        whole = work(task.recipe, task.recipe.epochs, 0.0)
        now = time.monotonic()
        speed = seen.pictures * world / max(1e-9, now - self._epoch_began)
        if stage == "judged":  # judging took time too
            speed = self.story.rows[-1][COLUMNS.index("pictures_per_second")]
        return Progress(
            stage=stage,
            done=task.epoch * per + step,
            total=task.recipe.epochs * per,
            epoch=task.epoch + 1,
            epochs=task.recipe.epochs,
            loss=loss,
            accuracy=accuracy,
            pictures_per_second=speed,
            seconds_left=(now - self._began) * (whole - done) / max(1e-9, done - begun),
            val_accuracy=self.story.rows[-1][COLUMNS.index("val_accuracy")]
            if self.story.rows
            else None,
        )


def summed(tally: Tally, device: torch.device, world: int) -> Tally:
    """Over all processes."""
    if world == 1:
        return tally
    whole = [tally.loss, tally.correct, tally.pictures]
    sums = torch.tensor(whole, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return Tally(*sums.tolist())


def _task(module: LightningModule) -> Task:
    assert isinstance(module, Task)
    return module


def _sigterm(handler: Any = None) -> Any:
    """The handler of SIGTERM; with an argument, set it (only the main thread may)."""
    if handler is not None and threading.current_thread() is threading.main_thread():
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, handler)
    return signal.getsignal(signal.SIGTERM)
