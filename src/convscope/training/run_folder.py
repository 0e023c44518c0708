"""What does a run folder hold, and may this run go on in it?

RUN/run.json          what the run is: recipe, hash of the pictures, classes
    recipe.toml       every field of the recipe
    class_indices.json
    metrics.csv, tensorboard/, series/    how it went, one row an epoch
    best.safetensors, last.safetensors    weights as they are used; `load("RUN")` takes the best
    epochs/           weights after the epochs that were asked for, each as best.safetensors
checkpoints/      what a stopped run needs to go on; gone when it is finished
    precision.json        which numbers the run is trained in, and why
    skipped.csv       pictures that could not be used
    notes.csv         what was changed in pictures, if anything was
    done.json         there when all epochs are done
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from convscope.errors import DataError, OutputError, UsageError
from convscope.network.weights.snapshots import KEPT
from convscope.publish import environment_fault, publish_file, require_folder, require_free
from convscope.texts import csv_table, parsed
from convscope.training.recipe import Recipe
from convscope.training.recipe_text import differences, to_json, to_toml
from convscope.training.story import Story

SCHEMA = 1


@dataclass(frozen=True)
class Identity:
    """All that decides a run's weights, on one kind of machine."""

    recipe: Recipe
    classes: tuple[str, ...]
    training: str
    """Hash of the training pictures."""
    validation: str

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "recipe": to_json(self.recipe),
            "classes": list(self.classes),
            "training pictures": self.training,
            "validation pictures": self.validation,
        }


def open_run(run: Path, identity: Identity, versions: Mapping[str, str]) -> IO[str]:
    """Make the run folder, or check that the one there is of the same run; hold its lock.

    The lock goes when the returned file is closed, or the process ends. Raises OutputError O501
    (holds something else), O511 (another run), O512 (a newer format), O513 (in use).
    """
    check_run(run, identity)
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / ".lock").open("w", encoding="utf-8")
    except OSError as fault:
        raise environment_fault(fault, run) from fault
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        lock.close()
        raise OutputError("O513", str(run), "another process is training there") from fault
    if not (run / "run.json").exists():
        publish_file(run / "recipe.toml", to_toml(identity.recipe).encode())
        names = {str(index): name for index, name in enumerate(identity.classes)}
        publish_file(run / "class_indices.json", json.dumps(names, indent=4).encode())
        whole = identity.to_json() | {"made with": dict(versions)}
        publish_file(run / "run.json", json.dumps(whole, indent=1).encode())
    return lock


def check_run(run: Path, identity: Identity) -> None:
    """Raise OutputError unless the folder is free or holds this very run."""
    require_folder(run)
    theirs = read_identity(run)
    if theirs is None:
        if not (run / ".lock").exists():
            require_free(run)
        return
    ours = identity.to_json()
    changes = [f"recipe.{line}" for line in differences(ours["recipe"], theirs["recipe"])]
    changes += [
        f"the {key}" for key in ours if key not in ("recipe", "schema") and ours[key] != theirs[key]
    ]
    if changes:
        raise OutputError(
            "O511",
            str(run),
            f"holds another run; these differ: {', '.join(changes)}",
            next_step="name a new folder with --out",
        )


def read_identity(run: Path) -> dict[str, Any] | None:
    """What run the folder holds, if any. Raises OutputError O512 if we cannot tell."""
    try:
        plain = parsed((run / "run.json").read_text(encoding="utf-8"))
        newer = plain["schema"] > SCHEMA
        complete = {"recipe", "classes", "training pictures", "validation pictures"} <= set(plain)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as fault:
        raise OutputError("O512", str(run / "run.json"), f"is not readable ({fault})") from fault
    if newer or not complete:
        raise OutputError("O512", str(run), "was written by a newer convscope, or is damaged")
    return dict(plain)


def kept_file(run: Path, epoch: int) -> Path:
    """Where the weights after an epoch are kept; epoch 0 is the untrained network."""
    return run / KEPT / f"epoch-{epoch:03d}.safetensors"


def require_kept(run: Path, keep: Collection[int], first: int) -> None:
    """Raise UsageError U385 if an epoch before `first` is to be kept, and was not."""
    lost = [epoch for epoch in sorted(keep) if epoch < first and not kept_file(run, epoch).exists()]
    if lost:
        raise UsageError(
            "U385",
            str(run),
            f"epochs {', '.join(map(str, lost))} are past, and were not kept",
            next_step="ask for later ones, or name a new folder with --out",
        )


def finished(run: Path) -> dict[str, Any] | None:
    """What `finish` wrote, if the run in this folder is done."""
    try:
        told = dict(parsed((run / "done.json").read_text(encoding="utf-8")))
        Story.from_json(told)
        return told
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as fault:
        raise DataError("D140", str(run / "done.json"), f"is not readable ({fault})") from fault


def finish(run: Path, summary: Mapping[str, Any]) -> None:
    """Mark the run as done."""
    publish_file(run / "done.json", json.dumps(dict(summary), indent=1).encode())


def write_metrics(run: Path, columns: Sequence[str], rows: Sequence[Sequence[float]]) -> None:
    """metrics.csv: the epoch, then a column a quantity."""
    told = (
        (str(epoch), *(f"{value:.8g}" for value in row)) for epoch, row in enumerate(rows, start=1)
    )
    publish_file(run / "metrics.csv", csv_table([("epoch", *columns), *told]))
