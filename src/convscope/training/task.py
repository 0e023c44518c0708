"""What is one step of training, and what is all its memory? The part that Lightning runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from convscope.errors import ModelError, Stopped
from convscope.network.preprocess import Preprocess
from convscope.training.augment import NOISE, stream
from convscope.training.batches import Batch, Batches, network_input, steps, targets
from convscope.training.judge import Tally
from convscope.training.optimise import Average, Plateau, clip_filters, optimiser, rate
from convscope.training.precision import Choice, choose
from convscope.training.recipe import Recipe
from convscope.training.state import (
    State,
    model_tensors,
    optimiser_tensors,
    restore_model,
    restore_optimiser,
)
from convscope.training.stock import Stock

GRACE = 6.0
"""Seconds for which a request to stop waits for the end of an epoch; batch systems give 10 to 30
between SIGTERM and SIGKILL."""


class Task(LightningModule):
    """A network, the pictures that teach it, and where it stands."""

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        recipe: Recipe,
        stock: Stock,
        classes: int,
        *,
        start: State | None = None,
        choice: Choice | None = None,
        threads: int = 1,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """choice: of the numbers, made when the run began. stop: asked at every step; True on
        any process ends training with Stopped R575."""
        super().__init__()
        self.model = model
        self.preprocess = preprocess
        self.recipe = recipe
        self.stock = stock
        self.classes = classes
        self.start = start
        self.choice = choice
        self.threads = threads
        self.stop = stop
        self.first = 0 if start is None else start.epoch
        self.plateau = Plateau()
        self.last_rate = 0.0
        self._epoch_began = 0.0
        # Hidden in a tuple from torch's registry: it is no part of what is optimised or wrapped.
        self._average = (Average(model, recipe.ema),) if recipe.ema else ()
        self._seen = torch.zeros(3, dtype=torch.float64)
        if start is not None:
            self._restore(start)

    @property
    def epoch(self) -> int:
        """Epochs of the whole run, resumed or not, finished before this one."""
        return self.first + int(self.current_epoch)

    @property
    def judged(self) -> nn.Module:
        """The network that is judged and kept: the running mean, where there is one."""
        return self._average[0].model if self._average else self.model

    def state(self, plain: dict[str, Any]) -> State:
        """After an epoch: all that is needed to go on exactly from here."""
        tensors = model_tensors("model", self.model)
        if self._average:
            tensors |= model_tensors("average", self.judged)
        tensors |= optimiser_tensors(self._raw_optimiser())
        return State(self.epoch + 1, tensors, plain | {"plateau": self.plateau.to_json()})

    def _restore(self, start: State) -> None:
        restore_model("model", self.model, start.tensors)
        if self._average:
            restore_model("average", self.judged, start.tensors)
        self.plateau = Plateau.from_json(start.plain["plateau"])

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        made = optimiser(self.model, self.recipe)
        if self.start is not None:
            restore_optimiser(made, self.start.tensors)
        return made

    def _raw_optimiser(self) -> torch.optim.Optimizer:
        return cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))

    @override
    def train_dataloader(self) -> Batches:
        """Asked for by Lightning before every epoch."""
        return Batches(
            self.stock,
            self.recipe,
            self.epoch,
            rank=self.global_rank,
            world=self.trainer.world_size,
            threads=self.threads,
        )

    @override
    def on_fit_start(self) -> None:
        choice = self.choice
        if choice is None and self.trainer.is_global_zero:
            choice = choose(self.recipe, self.model, self.device)
        self.choice = self.trainer.strategy.broadcast(choice)
        if self._average:
            self._average[0].model.to(self.device)

    @override
    def on_train_epoch_start(self) -> None:
        self.train()
        self._seen = torch.zeros(3, dtype=torch.float64)
        self._epoch_began = time.monotonic()
        noise = stream(self.recipe.seed, NOISE, self.epoch, self.global_rank)
        torch.manual_seed(int(noise.integers(2**63)))

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        total = self.recipe.epochs * self.steps()
        step = self.epoch * self.steps() + batch_idx
        self.last_rate = rate(self.recipe, step, total, self.plateau)
        for group in self._raw_optimiser().param_groups:
            group["lr"] = self.last_rate

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        images = network_input(batch, self.preprocess)
        if not self.recipe.channels_last:
            images = images.contiguous()
        autocast = self.choice is not None and self.choice.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            scores = self.model(images)
        wanted = targets(batch, self.classes)
        loss = F.cross_entropy(scores.float(), wanted, label_smoothing=self.recipe.label_smoothing)
        self._go_on(loss.detach(), batch_idx)
        self._count(loss.detach(), scores.detach(), wanted)
        return loss * batch.weight

    @override
    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.recipe.filter_rms:
            clip_filters(self.model, self.recipe.filter_rms)
        if self._average:
            self._average[0].update(self.model, self.epoch * self.steps() + batch_idx + 1)

    def tally(self) -> Tally:
        """What this process has seen of the epoch."""
        return Tally(*self._seen.tolist())

    def _go_on(self, loss: Float[Tensor, ""], batch_idx: int) -> None:
        """Raise, on every process alike, if one is asked to stop or has lost its numbers.

        Before the step, so the weights are still those that gave the loss.
        """
        bad, asked = self._anywhere(
            not bool(loss.isfinite()), self.stop() and not self._soon(batch_idx)
        )
        kept = f"all up to epoch {self.epoch}, in last.safetensors" if self.epoch else ""
        if bad:
            raise ModelError(
                "M551",
                f"epoch {self.epoch + 1}, step {batch_idx + 1} of {self.steps()}",
                f"the loss is not finite{self._first_bad()}",
                kept=kept,
                next_step=f"lower the rate: --set learning_rate={self.recipe.learning_rate / 10:g}",
            )
        if asked:
            raise Stopped(
                "R575",
                f"epoch {self.epoch + 1}, step {batch_idx + 1} of {self.steps()}",
                "stopped as asked",
                kept=kept,
                next_step="the same command goes on from the last finished epoch",
            )

    def _soon(self, batch_idx: int) -> bool:
        """Is the epoch so nearly done that it can be finished when asked to stop?"""
        spent = time.monotonic() - self._epoch_began
        return batch_idx > 0 and spent / batch_idx * (self.steps() - batch_idx) < GRACE

    def _anywhere(self, *here: bool) -> list[bool]:
        """Which of these hold on at least one process?"""
        if self.trainer.world_size == 1:
            return list(here)
        flags = torch.tensor(here, dtype=torch.float32, device=self.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in flags]

    def _first_bad(self) -> str:
        for name, weight in self.model.named_parameters():
            if not weight.detach().isfinite().all():
                return f"; the first tensor that is not is {name}"
        return ""

    def _count(
        self,
        loss: Float[Tensor, ""],
        scores: Float[Tensor, "b classes"],
        wanted: Float[Tensor, "b classes"],
    ) -> None:
        correct = (scores.argmax(1) == wanted.argmax(1)).sum()
        count = len(scores)
        self._seen += torch.tensor(
            [float(loss) * count, float(correct), count], dtype=torch.float64
        )

    def steps(self) -> int:
        """In an epoch."""
        return steps(len(self.stock), self.recipe, self.trainer.world_size)
