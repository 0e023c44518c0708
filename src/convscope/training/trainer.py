"""Training loop: a recipe and pictures become a trained network, on one or several processes.

A run folder that was stopped or killed is gone on from. The loop is plain torch: nothing that an
epoch does is hidden, which a run that ends with the same bits after any kill needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from convscope.core.errors import DataError, EnvironmentFault, ModelError, Stopped, UsageError
from convscope.core.publish import publish_file
from convscope.network.checkpoint import save_weights
from convscope.network.load import Card, load
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.notes import table, tables
from convscope.pictures.pictures import Pictures
from convscope.records.predictions import Series
from convscope.training.data import (
    NOISE,
    Batch,
    Batches,
    PictureCache,
    Shrunk,
    network_input,
    pixel_mean,
    steps,
    stream,
    targets,
)
from convscope.training.processes import Processes, Tally, deterministic, launched
from convscope.training.recipe import (
    Choice,
    Recipe,
    choose,
    clip_filters,
    initialise,
    optimiser,
    plateau_state,
    restore_plateau,
    running_mean,
    schedule,
    to_json,
)
from convscope.training.state import (
    SCHEMA,
    Checkpoint,
    Identity,
    Row,
    RunFolder,
    RunHistory,
)

EXTRA = ("tensorboard",)
"""What only training needs; imported when it begins."""
GRACE = 6.0
"""Seconds for which a request to stop waits for the end of an epoch; batch systems give 10 to 30
between SIGTERM and SIGKILL."""
VALIDATED = 64
"""Pictures at once in validation."""
Observer = Callable[[int, nn.Module], None]


@dataclass(frozen=True)
class Progress:
    """Where a run stands, for people."""

    stage: str
    """"reading", "remark" once before the first step, "training", or "judged" once an epoch."""
    done: int
    """Pictures read, or steps done in the whole run."""
    total: int
    epoch: int = 0
    """The epoch being trained, from 1; its loss and accuracy so far are on training pictures."""
    epochs: int = 0
    loss: float = 0.0
    accuracy: float = 0.0
    pictures_per_second: float = 0.0
    seconds_left: float = 0.0
    val_accuracy: float | None = None
    """Of the last epoch that was validated."""
    remark: str = ""
    """Of that stage: what was decided for this machine, as a sentence."""


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


@dataclass(frozen=True)
class Options:
    """What does not decide a run's weights: see `train`."""

    observers: Sequence[Observer]
    """Called with (epoch, network in eval mode) before training (epoch 0) and after every epoch,
    on the first process; a resumed run calls them from the epoch it resumes at."""
    progress: Callable[[Progress], None] | None
    stop: Callable[[], bool]
    threads: int
    """That make batches, beside the network's own; as many processes decode pictures."""
    memory: int
    """Bytes of pictures that each process keeps; what does not fit is read again."""
    keep: Collection[int]
    """Epochs whose weights stay in `out/epochs`, 0 for the untrained network."""


def train(
    recipe: Recipe,
    training: Pictures,
    validation: Pictures,
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

    stop: asked at every step; once true, training ends with Stopped R575, to be resumed.
    devices, nodes: processes on each machine, and machines, between which each batch is split, or
    torchrun's. accelerator: auto, cpu, gpu, cuda, mps. The rest: see `Options`.

    On the CPU with the same number of threads, a killed and resumed run ends with the same
    weights, bit for bit. Raises OutputError O501, O511 to O513, DataError D150 to D155 and of
    unusable pictures, ModelError M551 (loss not finite), UsageError U306 to U308, U378, U385 (no
    such epoch), EnvironmentFault R641, R642, R623 (TensorBoard is not installed), Stopped R575,
    R576 (another process is lost).
    """
    require_extra()
    options = Options(observers, progress, stop, threads, memory, keep)
    _require_epochs(keep, recipe)
    processes = Processes.of(recipe.batch, devices, nodes, accelerator)
    run = RunFolder(Path(out), recipe, _identity(recipe, training, validation))
    history, choice, resumed = _history(run, training, validation, processes, options)
    series = history.series(recipe, choice)
    best = history.best_accuracy, history.best_epoch
    return TrainResult(run.path, series, *best, resumed, processes.first)


def _history(
    run: RunFolder,
    training: Pictures,
    validation: Pictures,
    processes: Processes,
    options: Options,
) -> tuple[RunHistory, Choice | None, int]:
    """Train what is left of the run; also the numbers it is trained in, and how many epochs were
    finished before. The first process alone looks into the folder, and tells the others."""
    with ExitStack() as stack:
        stack.enter_context(deterministic())
        if not launched():
            run.check()  # before other processes are started
        stack.enter_context(processes.joined())
        where, identity = str(training.root), msgspec.to_builtins(run.identity)
        processes.require_same("recipe and pictures", where, identity)
        if processes.first:
            stack.enter_context(run.locked())
            run.check()
        before = (run.finished(), run.choice()) if processes.first else None
        history, choice = processes.shared(before)
        epochs = run.recipe.epochs
        if history is not None:
            if processes.first:
                run.require_kept(options.keep, epochs + 1)
                run.drop_checkpoints()  # as where it was killed right after it was done
            processes.barrier()
            return history, choice, epochs
        trainer = Trainer(run, training, validation, processes, options, choice)
        stack.callback(run.close_log)
        trainer.train()
        return trainer.history, trainer.choice, trainer.first_epoch


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


def _identity(recipe: Recipe, training: Pictures, validation: Pictures) -> Identity:
    """Raises UsageError U307 or DataError D150 if these cannot be trained on together."""
    if training.classes != validation.classes:
        only = sorted(set(training.classes) ^ set(validation.classes))
        raise UsageError(
            "U307",
            validation.place,
            f"has other classes than the training pictures: {', '.join(only[:5])}",
        )
    if len(training.classes) < 2:
        raise DataError(
            "D150",
            training.place,
            "has no two class folders, so there is nothing to tell apart",
            next_step="put each class's pictures into a folder with the class's name",
        )
    return Identity(SCHEMA, to_json(recipe), training.classes, training.sha256, validation.sha256)


def _require_epochs(keep: Collection[int], recipe: Recipe) -> None:
    """Raise UsageError U385 if one of them is no epoch of the recipe's."""
    for epoch in keep:
        if not 0 <= epoch <= recipe.epochs:
            what = f"there is no epoch {epoch} to keep; the recipe has {recipe.epochs}"
            step = f"name some from 0 to {recipe.epochs}"
            raise UsageError("U385", f"keep={epoch}", what, next_step=step)


class Trainer:
    """One run: its network, the pictures that teach it, and where it stands."""

    def __init__(
        self,
        run: RunFolder,
        training: Pictures,
        validation: Pictures,
        processes: Processes,
        options: Options,
        choice: Choice | None,
    ) -> None:
        """Reads all pictures, and takes up what a stopped run has left. Raises DataError D151 to
        D155 and UsageError U385."""
        recipe = run.recipe
        self.run, self.recipe, self.processes, self.options = run, recipe, processes, options
        self.training, self.validation, self.preprocess = self._read(training, validation)
        if processes.watch is not None:
            processes.watch.wait("read")
        usable = [self.training.numbers, self.validation.numbers]
        processes.require_same("usable pictures", str(training.root), usable)
        self.steps = steps(len(self.training), recipe)
        if len(self.training) < processes.count:
            raise DataError(
                "D154",
                training.place,
                f"{len(self.training)} usable pictures are too few for {processes.count} processes",
                next_step="add pictures, or take fewer devices",
            )
        if processes.first:
            lists = tables([training.report, validation.report])
            for name, content in ({"skipped.csv": table([])} | lists).items():
                publish_file(run.path / name, content)
        start = run.checkpoint(clean=True) if processes.first else None
        if processes.first:
            run.require_kept(options.keep, 0 if start is None else start.epoch + 1)
        start = processes.shared(start)
        self.first_epoch = self.epoch = 0 if start is None else start.epoch
        self.choice = choice
        self._start(start)

    def _read(
        self, training: Pictures, validation: Pictures
    ) -> tuple[PictureCache, PictureCache, Preprocess]:
        recipe, memory = self.recipe, self.options.memory
        total = len(training) + len(validation)

        def tell(before: int) -> Callable[[int, int], None]:
            return lambda done, _: self._tell(Progress("reading", before + done, total))

        workers = self.options.threads
        cache = PictureCache(
            training, Shrunk(recipe.cache), memory=memory, workers=workers, progress=tell(0)
        )
        framing = Framing(recipe.test_resize or None, (recipe.test_size, recipe.test_size))
        mean: Any = recipe.mean
        if recipe.pixel_mean:
            mean = pixel_mean(cache, framing) * (recipe.input_range / 255)
        later = tell(len(training))
        held = PictureCache(
            validation, framing, memory=memory // 4, workers=workers, progress=later
        )
        return cache, held, Preprocess(framing, mean, recipe.std, recipe.input_range / 255)

    def _start(self, start: Checkpoint | None) -> None:
        """The network and all that moves it, as they were at the end of the last epoch."""
        recipe, done = self.recipe, self.first_epoch * self.steps
        self.model = _network(recipe, len(self.training.folder.classes))
        self.mean = running_mean(self.model, recipe.ema, done) if recipe.ema else None
        self.validated: nn.Module = self.mean.module if self.mean else self.model
        self.models = {"model": self.model} | ({"average": self.validated} if self.mean else {})
        self.model.to(self.processes.device)
        self.validated.to(self.processes.device)
        self.optimiser = optimiser(self.model, recipe)
        self.schedule = schedule(self.optimiser, recipe, recipe.epochs * self.steps, done)
        self.history = RunHistory()
        if start is not None:
            start.restore(self.models, self.optimiser)
            restore_plateau(self.schedule, recipe, start.plain["plateau"])
            self.history.rows += [Row(*row) for row in start.plain["rows"]]

    def train(self) -> None:
        """The epochs that are left."""
        if self.first_epoch < self.recipe.epochs:
            self._choose()
            network = self.processes.wrapped(self.model)
            self._began = time.monotonic()
            if self.first_epoch == 0:
                self._observe(0)
            for epoch in range(self.first_epoch, self.recipe.epochs):
                self.epoch = epoch
                self._train_epoch(network)
                self._end_epoch()
        if self.processes.first:
            self.run.finish(self.history)
        self.processes.barrier()

    def _choose(self) -> None:
        """The numbers to train in, on every process the same."""
        choice = self.choice
        if choice is None and self.processes.first:
            choice = choose(self.recipe, self.model, self.processes.device)
            self.run.keep_choice(choice)
        self.choice = self.processes.shared(choice)
        if self.choice is not None:
            self._tell(Progress("remark", 0, 0, remark=self.choice.line(self.processes.device)))

    def _train_epoch(self, network: nn.Module) -> None:
        network.train()
        recipe, processes = self.recipe, self.processes
        self._tally, self._epoch_began = Tally(), time.monotonic()
        noise = stream(recipe.seed, NOISE, self.epoch, processes.rank)
        torch.manual_seed(int(noise.integers(2**63)))
        place = processes.rank, processes.count, self.options.threads
        batches = Batches(self.training, recipe, self.epoch, *place)
        for step, batch in enumerate(batches):
            self._step(network, batch.to(processes.device), step)
            self._tell(self._standing("training", step + 1))

    def _step(self, network: nn.Module, batch: Batch, step: int) -> None:
        recipe = self.recipe
        images = network_input(batch, self.preprocess)
        if not recipe.channels_last:
            images = images.contiguous()
        half = self.choice is not None and self.choice.precision == "bfloat16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            scores = network(images)
        wanted = targets(batch, len(self.training.folder.classes))
        loss = F.cross_entropy(scores.float(), wanted, label_smoothing=recipe.label_smoothing)
        self._require_going(loss.detach(), step)
        correct = (scores.argmax(1) == wanted.argmax(1)).sum()
        if batch.weight:
            self._tally += Tally(float(loss.detach()) * len(scores), float(correct), len(scores))
        self.optimiser.zero_grad()
        torch.autograd.backward(loss * batch.weight)
        if recipe.clip_gradient:
            weights = [w for group in self.optimiser.param_groups for w in group["params"]]
            nn.utils.clip_grad_norm_(weights, recipe.clip_gradient)
        self._rate = float(self.optimiser.param_groups[0]["lr"])
        self.optimiser.step()
        if recipe.filter_rms:
            clip_filters(self.model, recipe.filter_rms)
        if self.mean is not None:
            self.mean.update_parameters(self.model)
        if isinstance(self.schedule, LambdaLR):
            self.schedule.step()

    def _end_epoch(self) -> None:
        trained = self.processes.sum(self._tally)
        seconds = time.monotonic() - self._epoch_began
        self.processes.align(self.validated)
        held = self.processes.sum(
            validate(self.validated, self.validation, self.preprocess, self.processes)
        )
        loss, accuracy = held.means()
        speed = trained.pictures / max(1e-9, seconds)
        self.history.rows.append(Row(*trained.means(), loss, accuracy, self._rate, seconds, speed))
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(loss)
        self._observe(self.epoch + 1)
        if self.processes.first:
            epoch, meta = self.epoch + 1, self._metadata(self.epoch + 1)
            plain = {"rows": self.history.rows, "plateau": plateau_state(self.schedule)}
            checkpoint = Checkpoint.of(epoch, self.models, self.optimiser, plain)
            self.run.commit(self.validated.state_dict(), meta, self.history, checkpoint)
        self._tell(self._standing("judged", self.steps))

    def _metadata(self, epoch: int) -> dict[str, str]:
        """What the weights after an epoch say about themselves."""
        more: dict[str, Any] = {"recipe": to_json(self.recipe), "epoch": epoch}
        if self.choice is not None:
            more["precision"] = self.choice.precision
        classes = self.training.folder.classes
        return Card(self.recipe.model, classes, self.preprocess, more).metadata()

    def _observe(self, epoch: int) -> None:
        """Keep the weights if asked to, and show them to the observers. Before the epoch counts as
        done: a run killed in between does it once more, and writes the same."""
        if not self.processes.first:
            return
        model = self.validated.eval()
        if epoch in self.options.keep:
            save_weights(self.run.kept(epoch), model.state_dict(), self._metadata(epoch))
        for observer in self.options.observers:
            observer(epoch, model)

    def _require_going(self, loss: Float[Tensor, ""], step: int) -> None:
        """Raise, on every process alike, if one is asked to stop or has lost its numbers.

        Before the step, so the weights are still those that gave the loss.
        """
        asked = self.options.stop() and not self._soon(step)
        bad, asked = self.processes.any(not bool(loss.isfinite()), asked)
        place = f"epoch {self.epoch + 1}, step {step + 1} of {self.steps}"
        kept = f"all up to epoch {self.epoch}, in last.safetensors" if self.epoch else ""
        if bad:
            weights = self.model.named_parameters()
            lost = next((name for name, w in weights if not w.detach().isfinite().all()), None)
            more = f"; the first tensor that is not is {lost}" if lost else ""
            lower = f"lower the rate: --set learning_rate={self.recipe.learning_rate / 10:g}"
            what = f"the loss is not finite{more}"
            raise ModelError("M551", place, what, kept=kept, next_step=lower)
        if asked:
            again = "the same command goes on from the last finished epoch"
            raise Stopped("R575", place, "stopped as asked", kept=kept, next_step=again)

    def _soon(self, step: int) -> bool:
        """Is the epoch so nearly done that it can be finished when asked to stop?"""
        spent = time.monotonic() - self._epoch_began
        return step > 0 and spent / step * (self.steps - step) < GRACE

    def _tell(self, progress: Progress) -> None:
        if self.options.progress is not None and self.processes.first:
            self.options.progress(progress)

    def _standing(self, stage: str, step: int) -> Progress:
        (loss, accuracy), recipe = self._tally.means(), self.recipe
        done = _work(recipe, self.epoch, step / self.steps)
        begun, whole = (_work(recipe, n, 0.0) for n in (self.first_epoch, recipe.epochs))
        now, rows = time.monotonic(), self.history.rows
        speed = self._tally.pictures * self.processes.count / max(1e-9, now - self._epoch_began)
        return Progress(
            stage=stage,
            done=self.epoch * self.steps + step,
            total=recipe.epochs * self.steps,
            epoch=self.epoch + 1,
            epochs=recipe.epochs,
            loss=loss,
            accuracy=accuracy,
            # validation took time too
            pictures_per_second=rows[-1].pictures_per_second if stage == "judged" else speed,
            seconds_left=(now - self._began) * (whole - done) / max(1e-9, done - begun),
            val_accuracy=rows[-1].val_accuracy if rows else None,
        )


def _work(recipe: Recipe, epoch: int, part: float) -> float:
    """Work done after `epoch` epochs and a part of the next: proportional to the pixels seen."""
    whole = sum(recipe.size_at(number) ** 2 for number in range(epoch))
    return whole + part * recipe.size_at(epoch) ** 2


def _network(recipe: Recipe, classes: int) -> nn.Module:
    model = load(recipe.model, classes=classes, seed=recipe.seed).model
    initialise(model, recipe.init, recipe.seed)
    if recipe.channels_last:
        with suppress(RuntimeError):  # weights of other than two dimensions have no such layout
            model = model.to(memory_format=torch.channels_last)
    return model.train().requires_grad_(True)


@torch.inference_mode()
def validate(
    model: nn.Module, cache: PictureCache, preprocess: Preprocess, processes: Processes
) -> Tally:
    """Cross-entropy and top-1 of one process's share; in float32, as users will run the network.

    Batch number i goes to process i modulo their count, so that the same pictures are always
    computed together.
    """
    model.eval()
    sums, device = Tally(), processes.device
    for start in range(processes.rank * VALIDATED, len(cache), processes.count * VALIDATED):
        places = range(start, min(start + VALIDATED, len(cache)))
        labels = torch.tensor([cache.labels[place] for place in places], device=device)
        images = preprocess.batch(cache.take(places, cache.workers)).to(device)
        scores = model(images.contiguous(memory_format=torch.channels_last)).float()
        loss = F.cross_entropy(scores, labels, reduction="sum").item()
        sums += Tally(loss, (scores.argmax(1) == labels).sum().item(), len(places))
    return sums
