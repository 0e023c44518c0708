"""How is all that training needs to go on stored, so that it is whole or not there?

One folder a finished epoch, published in one step: tensors in safetensors, the rest in JSON with
the tensors' hash. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convscope.publish import publish_folder
from convscope.records.record import seal
from convscope.texts import parsed

FOLDER = "checkpoints"
KEEP = 2
"""The newest, and one to fall back on if the disk has spoilt it."""


@dataclass(frozen=True)
class State:
    """What a run is after `epoch` finished epochs."""

    epoch: int
    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Any]


def save_state(run: Path, state: State) -> None:
    """Publish the state; older ones than the `KEEP` newest go. Raises EnvironmentFault R602."""

    def write(folder: Path) -> None:
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.tensors.items()}
        save_file(tensors, folder / "state.safetensors")
        index = {
            "schema": 1,
            "epoch": state.epoch,
            "sha256": _sha256(folder / "state.safetensors"),
            "plain": dict(state.plain),
        }
        index["seal"] = seal(json.loads(json.dumps(index)))
        (folder / "state.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    publish_folder(run / FOLDER / f"epoch-{state.epoch:04d}", write)
    for old in _folders(run)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def load_state(run: Path) -> State | None:
    """The newest undamaged state, if there is one."""
    for folder in _folders(run):
        try:
            index = parsed((folder / "state.json").read_text(encoding="utf-8"))
            told = index.pop("seal", None)  # states from before there was one have none
            if told in (None, seal(index)) and index["sha256"] == _sha256(
                folder / "state.safetensors"
            ):
                tensors = load_file(folder / "state.safetensors")
                return State(index["epoch"], tensors, index["plain"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
            continue
    return None


def drop_damaged(run: Path, good: State | None) -> None:
    """Remove what cannot be gone on from: states after the good one, half-written folders."""
    last = 0 if good is None else good.epoch
    for folder in (run / FOLDER).glob(".epoch-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in _folders(run):
        if int(folder.name.removeprefix("epoch-")) > last:
            shutil.rmtree(folder, ignore_errors=True)


def drop_all(run: Path) -> None:
    """Remove what a finished run no longer needs."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory as `optimiser.NUMBER.NAME`."""
    memory = optimiser.state_dict()["state"]
    return {
        f"optimiser.{number}.{name}": value
        for number, entries in memory.items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimiser its memory back, each tensor in its weight's own memory layout.

    The layout matters to the last bit: another one takes another loop through the same numbers.
    """
    plain = optimiser.state_dict()
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    memory: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimiser":
            number, _, name = rest.partition(".")
            like = weights[int(number)]
            fits = value.shape == like.shape
            laid = torch.empty_like(like, dtype=value.dtype).copy_(value) if fits else value
            memory.setdefault(int(number), {})[name] = laid
    optimiser.load_state_dict({**plain, "state": memory})


def model_tensors(prefix: str, model: nn.Module) -> dict[str, Tensor]:
    """The model's state as `PREFIX.NAME`."""
    return {f"{prefix}.{name}": value for name, value in model.state_dict().items()}


def restore_model(prefix: str, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give the model its weights back."""
    start = prefix + "."
    model.load_state_dict(
        {key.removeprefix(start): t for key, t in tensors.items() if key.startswith(start)}
    )


def _folders(run: Path) -> list[Path]:
    """Published states, newest first."""
    return sorted((run / FOLDER).glob("epoch-*"), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
