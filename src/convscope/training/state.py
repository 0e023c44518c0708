"""Run folder of a training: identity, checkpoints to go on from, history, TensorBoard log, lock.

RUN/run.json          what the run is: recipe, hash of the pictures, classes
    recipe.toml       every field of the recipe
    class_indices.json
    metrics.csv, tensorboard/, series/    how it went, one row an epoch
    best.safetensors, last.safetensors    weights as they are used; `load("RUN")` takes the best
    epochs/           weights after the epochs that were asked for, each as best.safetensors
    checkpoints/      what a stopped run needs to go on; gone when it is finished
    precision.json    which numbers the run is trained in, and why
    skipped.csv       pictures that could not be used
    notes.csv         what was changed in pictures, if anything was
    done.json         there when all epochs are done

A checkpoint is one folder a finished epoch, published in one step: tensors in safetensors, the
rest in JSON with the tensors' hash. Nothing is ever unpickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from convscope import __version__
from convscope.core.errors import DataError, OutputError, UsageError
from convscope.core.publish import (
    environment_fault,
    publish_file,
    publish_folder,
    require_folder,
    require_free,
)
from convscope.core.record import seal
from convscope.core.text import checked, csv_table, parsed, read_json
from convscope.network.checkpoint import save_weights
from convscope.network.weights import KEPT
from convscope.records.predictions import Series
from convscope.training.recipe import Choice, Recipe, differences, to_json, to_toml

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SCHEMA = 1
CHECKPOINTS = "checkpoints"
KEEP = 2
"""Checkpoints: the newest, and one to fall back on if the disk has spoilt it."""
Kind = TypeVar("Kind")


class Row(NamedTuple):
    """How an epoch went."""

    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    seconds: float
    pictures_per_second: float


COLUMNS = Row._fields


@dataclass
class RunHistory:
    """The epochs of a run so far."""

    rows: list[Row] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """Counted from 1. The lower validation loss decides between equals, then the earlier."""
        ranks = [(row.val_accuracy, -row.val_loss) for row in self.rows]
        return ranks.index(max(ranks)) + 1 if ranks else 0

    @property
    def best_accuracy(self) -> float:
        return self.rows[self.best_epoch - 1].val_accuracy

    def series(self, recipe: Recipe, choice: Choice | None) -> Series:
        """The run as a record."""
        rows = np.array(self.rows, dtype=np.float64).reshape(-1, len(COLUMNS))
        origin: dict[str, Any] = {
            "method": "training",
            "recipe": to_json(recipe),
            "best_epoch": self.best_epoch,
            "versions": versions(),
        }
        if choice is not None:
            origin["precision"] = choice.precision
        return Series(COLUMNS, np.arange(1, len(rows) + 1), rows, origin=origin)


class Identity(
    msgspec.Struct,
    frozen=True,
    rename={"training": "training pictures", "validation": "validation pictures"},
):
    """All that decides a run's weights, on one kind of machine."""

    schema: Annotated[int, msgspec.Meta(le=SCHEMA)]
    recipe: dict[str, Any]
    classes: tuple[str, ...]
    training: str
    """Hash of the training pictures."""
    validation: str


@dataclass(frozen=True)
class Checkpoint:
    """What a run is after `epoch` finished epochs: enough to go on exactly from there."""

    epoch: int
    tensors: Mapping[str, Tensor]
    """`model.NAME` and the like of each network, `optimiser.NUMBER.NAME`."""
    plain: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        epoch: int,
        models: Mapping[str, nn.Module],
        optimiser: Optimizer,
        plain: Mapping[str, Any],
    ) -> Checkpoint:
        states: dict[str, Any] = {kind: model.state_dict() for kind, model in models.items()}
        for number, memory in optimiser.state_dict()["state"].items():
            states[f"optimiser.{number}"] = memory
        tensors = {
            f"{kind}.{name}": value
            for kind, state in states.items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        return cls(epoch, tensors, plain)

    def restore(self, models: Mapping[str, nn.Module], optimiser: Optimizer) -> None:
        """Give networks and optimiser what they had. The optimiser gets each tensor in its weight's
        own memory layout: to the last bit, another one takes another loop through the numbers."""
        for kind, model in models.items():
            model.load_state_dict(self._of(kind))
        weights = [weight for group in optimiser.param_groups for weight in group["params"]]
        memory: dict[int, dict[str, Tensor]] = {}
        for key, value in self._of("optimiser").items():
            number, _, name = key.partition(".")
            like = weights[int(number)]
            fits = value.shape == like.shape
            laid = torch.empty_like(like, dtype=value.dtype).copy_(value) if fits else value
            memory.setdefault(int(number), {})[name] = laid
        optimiser.load_state_dict({**optimiser.state_dict(), "state": memory})

    def _of(self, kind: str) -> dict[str, Tensor]:
        start = f"{kind}."
        tensors = self.tensors.items()
        return {key.removeprefix(start): t for key, t in tensors if key.startswith(start)}


class RunFolder:
    """Where a run is kept. What is written here is there whole or not at all."""

    def __init__(self, path: Path, recipe: Recipe, identity: Identity) -> None:
        self.path = path
        self.recipe = recipe
        self.identity = identity
        self._log: SummaryWriter | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, or take the one of the same run, and let no other process train there.

        Raises as `check`, and OutputError O513 (in use).
        """
        self.check()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w", encoding="utf-8")
        except OSError as fault:
            raise environment_fault(fault, self.path) from fault
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as fault:
                busy = OutputError("O513", str(self.path), "another process is training there")
                raise busy from fault
            if not (self.path / "run.json").exists():
                self._introduce()
            yield

    def _introduce(self) -> None:
        publish_file(self.path / "recipe.toml", to_toml(self.recipe).encode())
        names = {str(index): name for index, name in enumerate(self.identity.classes)}
        publish_file(self.path / "class_indices.json", json.dumps(names, indent=4).encode())
        self._publish("run.json", msgspec.to_builtins(self.identity) | {"made with": versions()})

    def check(self) -> None:
        """Raise OutputError unless the folder is free or holds this very run: O501 (something
        else), O511 (another run), O512 (a newer format, or damaged)."""
        require_folder(self.path)
        try:
            theirs = self._read("run.json", Identity)
        except ValueError as fault:
            what = f"was written by a newer convscope, or is damaged ({fault})"
            raise OutputError("O512", str(self.path / "run.json"), what) from fault
        if theirs is None:
            if not (self.path / ".lock").exists():
                require_free(self.path)
            return
        ours = msgspec.to_builtins(self.identity)
        changes = [f"recipe.{d}" for d in differences(ours.pop("recipe"), theirs.recipe)]
        changes += [
            f"the {k}" for k, v in msgspec.to_builtins(theirs).items() if ours.get(k, v) != v
        ]
        if changes:
            what = f"holds another run; these differ: {', '.join(changes)}"
            raise OutputError(
                "O511", str(self.path), what, next_step="name a new folder with --out"
            )

    def finished(self) -> RunHistory | None:
        """How the run went, if it is done. Raises DataError D140 if the file is damaged."""
        return self._result("done.json", RunHistory)

    def choice(self) -> Choice | None:
        """The numbers chosen when the run began. Raises DataError D140 if the file is damaged."""
        return self._result("precision.json", Choice)

    def keep_choice(self, choice: Choice) -> None:
        self._publish("precision.json", asdict(choice))

    def kept(self, epoch: int) -> Path:
        """Where the weights after an epoch are kept; epoch 0 is the untrained network."""
        return self.path / KEPT / f"epoch-{epoch:03d}.safetensors"

    def checkpoint(self, *, clean: bool) -> Checkpoint | None:
        """The newest that is undamaged, if there is one. clean: remove what cannot be gone on from:
        later ones, and folders half written."""
        good = next(filter(None, map(_read_checkpoint, _checkpoints(self.path))), None)
        last = 0 if good is None else good.epoch
        late = [old for old in _checkpoints(self.path) if int(old.name.partition("-")[2]) > last]
        for folder in [*(self.path / CHECKPOINTS).glob(".epoch-*"), *late] if clean else []:
            shutil.rmtree(folder, ignore_errors=True)
        return good

    def require_kept(self, keep: Collection[int], first: int) -> None:
        """Raise UsageError U385 if an epoch before `first` is to be kept, and was not."""
        lost = [epoch for epoch in sorted(keep) if epoch < first and not self.kept(epoch).exists()]
        if lost:
            what = f"epochs {', '.join(map(str, lost))} are past, and were not kept"
            step = "ask for later ones, or name a new folder with --out"
            raise UsageError("U385", str(self.path), what, next_step=step)

    def commit(
        self,
        weights: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        history: RunHistory,
        checkpoint: Checkpoint,
    ) -> None:
        """Publish an epoch that has ended; the checkpoint last, for only that counts as done."""
        if history.best_epoch == len(history.rows):
            save_weights(self.path / "best.safetensors", weights, metadata)
        save_weights(self.path / "last.safetensors", weights, metadata)
        rows = [(n, *(f"{value:.8g}" for value in row)) for n, row in enumerate(history.rows, 1)]
        publish_file(self.path / "metrics.csv", csv_table([("epoch", *COLUMNS), *rows]))
        self._log_epochs(history)
        save_checkpoint(self.path, checkpoint)

    def finish(self, history: RunHistory) -> None:
        """The run is done: its series, its mark; the way back is no longer needed."""
        shutil.rmtree(self.path / "series", ignore_errors=True)
        history.series(self.recipe, self.choice()).save(self.path / "series")
        self._publish("done.json", asdict(history))
        self.drop_checkpoints()

    def drop_checkpoints(self) -> None:
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def close_log(self) -> None:
        """TensorBoard's log is whole up to here, whatever ended the run."""
        if self._log is not None:
            self._log.close()

    def _log_epochs(self, history: RunHistory) -> None:
        """For TensorBoard: one scalar a quantity, one step an epoch. Written anew by a run that
        goes on, so that a killed one leaves no gap."""
        fresh = self._log is None
        if self._log is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second

            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
            self._log = SummaryWriter(str(self.path / "tensorboard"))
        for epoch, row in enumerate(history.rows, 1):
            for column, value in zip(COLUMNS, row, strict=True):
                if fresh or epoch == len(history.rows):
                    where, _, what = column.partition("_")
                    name = f"{what}/{where}" if where in ("train", "val") else column
                    self._log.add_scalar(name, value, epoch)
        self._log.flush()

    def _publish(self, name: str, plain: Mapping[str, Any]) -> None:
        publish_file(self.path / name, json.dumps(plain, indent=1).encode())

    def _read(self, name: str, kind: type[Kind]) -> Kind | None:
        """A file of JSON, if it is there. Raises ValueError if it is not of this kind."""
        if not (self.path / name).exists():
            return None
        return checked(read_json(self.path / name), kind)

    def _result(self, name: str, kind: type[Kind]) -> Kind | None:
        try:
            return self._read(name, kind)
        except ValueError as fault:
            what = f"is not readable ({fault})"
            raise DataError("D140", str(self.path / name), what) from fault


def versions() -> dict[str, str]:
    """The software that made a run, and the threads that may change its last bits."""
    return {
        "convscope": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }


def save_checkpoint(run: Path, made: Checkpoint) -> None:
    """Publish it; older ones than the `KEEP` newest go. Raises EnvironmentFault R602."""

    def write(folder: Path) -> None:
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in made.tensors.items()}
        save_file(tensors, folder / "state.safetensors")
        index = {
            "schema": 1,
            "epoch": made.epoch,
            "sha256": _sha256(folder / "state.safetensors"),
            "plain": dict(made.plain),
        }
        index["seal"] = seal(json.loads(json.dumps(index)))
        (folder / "state.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    publish_folder(run / CHECKPOINTS / f"epoch-{made.epoch:04d}", write)
    for old in _checkpoints(run)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def _read_checkpoint(folder: Path) -> Checkpoint | None:
    try:
        index = parsed((folder / "state.json").read_text(encoding="utf-8"))
        kept = index.pop("seal", None)  # those from before there was one have none
        tensors = folder / "state.safetensors"
        if kept in (None, seal(index)) and index["sha256"] == _sha256(tensors):
            return Checkpoint(index["epoch"], load_file(tensors), index["plain"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        pass
    return None


def _checkpoints(run: Path) -> list[Path]:
    """Published ones, newest first."""
    return sorted((run / CHECKPOINTS).glob("epoch-*"), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
