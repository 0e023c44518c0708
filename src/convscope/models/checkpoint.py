"""How do weights come from a file that may be anybody's, and go into one?"""

from __future__ import annotations

import hashlib
import re
import stat
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from convscope.errors import CheckpointError, nearest, printable, shown
from convscope.models.safetensors_file import is_safetensors, read_safetensors
from convscope.models.sniff import refuse_others, size
from convscope.models.torch_file import MAX_BYTES, limit, read_torch
from convscope.publish import publish_file
from convscope.texts import unusable

OWN = "."
"""As a part: names as the network itself has them, without the copy that stands beside them."""
_OPTIMISER = re.compile("optim|sched|scaler|callbacks|loops")
"""What is beside the weights in a checkpoint of a training."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read from one file."""

    name: str
    """The path as it was given, for messages."""
    weights: dict[str, Tensor]
    metadata: dict[str, str]
    sha256: str
    """Of the whole file, of exactly the bytes that were read."""
    notes: tuple[str, ...] = field(default=())


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Read weights from `.safetensors` or a file of torch.save, told apart by their content.

    `FILE#PART` takes one of several state dicts in a file, or of what lies in one only the tensors
    whose names begin so; `FILE#.` those that no other name begins. Nothing in the file is run.

    Raises CheckpointError: C400 not readable, C401 to C404 and C406 what is no checkpoint, C405
    truncated, C407 larger than it looks, C408 tensors without plain values, C409 damaged, C411
    several state dicts, C413 numbers that are not finite, C416 no such part.
    """
    name, part = str(path), ""
    if why := unusable(name):
        raise CheckpointError("C400", shown(name), why)
    if not Path(name).exists() and "#" in name:
        name, _, part = name.rpartition("#")
    data = _bytes(Path(name))
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what strange bytes remind Python and torch
        content, metadata = _content(data, name)
    weights = _chosen(content, part, name, notes)
    _check_tensors(weights, limit(len(data)), name)
    sha256 = hashlib.sha256(data).hexdigest()
    return Checkpoint(str(path), weights, metadata, sha256, tuple(map(printable, notes)))


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, and the file's metadata. Raises as `open_checkpoint`."""
    found = open_checkpoint(path)
    return found.weights, found.metadata


def save_weights(
    path: Path, model_state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a state dict to `.safetensors`, whole or not at all; what is there is replaced.

    Raises EnvironmentFault R602 (disk full) or R603 (not writable).
    """
    plain = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for key, value in model_state.items()
    }
    publish_file(path, safetensors.torch.save(plain, dict(metadata or {})))
    return path


def _bytes(path: Path) -> bytes:
    name = str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise CheckpointError("C400", name, f"is {kind}, not a checkpoint")
        if status.st_size > MAX_BYTES:
            raise CheckpointError(
                "C407", name, f"has {size(status.st_size)}; {size(MAX_BYTES)} are the most"
            )
        data = path.read_bytes()
    except FileNotFoundError as fault:
        raise CheckpointError("C400", name, f"no such file; {_beside(path)}") from fault
    except OSError as fault:
        reason = (fault.strerror or str(fault)).lower()
        raise CheckpointError("C400", name, f"cannot be read ({reason})") from fault
    if not data:
        raise CheckpointError("C405", name, "the file is empty", next_step="copy it again")
    refuse_others(data, name)
    return data


def _content(data: bytes, name: str) -> tuple[Any, dict[str, str]]:
    """What the file holds, and its metadata."""
    named = name.endswith(".safetensors") and not data.startswith(b"PK")
    if named or is_safetensors(data[:16]):
        return read_safetensors(data, name)
    return read_torch(data, name), {}


def _beside(path: Path) -> str:
    """Checkpoints with a similar name in the same folder."""
    suffixes = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
    if not path.parent.is_dir():
        return "and no such folder"
    return nearest(path.name, sorted(p.name for p in path.parent.iterdir() if p.suffix in suffixes))


def _chosen(content: Any, part: str, name: str, notes: list[str]) -> dict[str, Tensor]:
    """The one state dict in what a file holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            "C406", name, f"holds a {type(content).__name__}, not weights by name"
        )
    own = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    parts = _states(content)
    if not parts and not _is_state(own):
        parts = {
            f"{key}.{inner}": state
            for key, value in content.items()
            if isinstance(value, Mapping) and not _OPTIMISER.search(str(key))
            for inner, state in _states(value).items()
        }
    if part:
        return _part(part, own, parts, name, notes)
    if len(parts) > 1 or (parts and _is_state(own)):
        choices = " or ".join(f"{name}#{key}" for key in sorted(parts))
        raise CheckpointError(
            "C411",
            name,
            f"holds several sets of weights: {', '.join(sorted(parts))}",
            next_step=f"choose one, as {choices}",
        )
    for key, state in parts.items():
        others = [str(other) for other in content if other != key]
        beside = f" (beside {', '.join(others[:4])})" if others else ""
        notes.append(f"took the weights under {key!r} in the file{beside}")
        return state
    if not own:
        raise CheckpointError("C406", name, "holds no weights")
    if len(own) < len(content):
        left = [str(key) for key in content if key not in own]
        notes.append(f"left out what is no tensor: {', '.join(left[:4])}")
    return {str(key): value for key, value in own.items()}


def _part(
    part: str,
    own: dict[Any, Tensor],
    parts: dict[str, dict[str, Tensor]],
    name: str,
    notes: list[str],
) -> dict[str, Tensor]:
    """The state dict under `part`, or the tensors whose names begin with it."""
    begun = parts.get(part, {})
    for path, state in (("", own), *parts.items()):
        begun = begun or _begun(state, part) or _begun(state, part.removeprefix(f"{path}."))
    if not begun:
        heads = {str(key).partition(".")[0] for state in (own, *parts.values()) for key in state}
        raise CheckpointError(
            "C416", f"{name}#{part}", f"there is no such part; {nearest(part, [*parts, *heads])}"
        )
    notes.append(f"took the weights under {part!r} in the file, as asked")
    return begun


def _begun(state: Mapping[Any, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the part; for "." those that are not there once more
    with something before their names."""
    names = {str(key): value for key, value in state.items()}
    if part != OWN:
        return {key: value for key, value in names.items() if key.startswith(f"{part}.")}
    ends = {key: _ends(key) for key in names}
    copies = {key for key, shorter in ends.items() if any(end in names for end in shorter)}
    return {key: value for key, value in names.items() if key not in copies} if copies else {}


def _ends(name: str) -> list[str]:
    """conv.0.weight: 0.weight and weight."""
    pieces = name.split(".")
    return [".".join(pieces[start:]) for start in range(1, len(pieces))]


def _states(content: Mapping[Any, Any]) -> dict[str, dict[str, Tensor]]:
    return {str(key): dict(value) for key, value in content.items() if _is_state(value)}


def _is_state(value: object) -> bool:
    """Tensors by name, and not only single numbers, as a best accuracy or a loss scale."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and all(isinstance(entry, Tensor) for entry in value.values())
        and any(entry.ndim > 0 for entry in value.values())
    )


def _check_tensors(weights: Mapping[str, Tensor], most: int, name: str) -> None:
    total = 0
    broken = []
    for key, value in weights.items():
        if value.device.type == "meta":
            raise CheckpointError("C408", name, f"{key} has a shape but no values (meta tensor)")
        if value.layout != torch.strided or value.is_quantized or value.is_nested:
            raise CheckpointError("C408", name, f"{key} is not a plain dense tensor")
        own = value.numel() * value.element_size()
        total += own
        if own > value.untyped_storage().nbytes() or total > most:
            raise CheckpointError(
                "C407", name, f"{key} claims {size(own)} that the file does not hold"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            broken.append(key)
    if broken:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise CheckpointError(
            "C413",
            name,
            f"{len(broken)} of {len(weights)} tensors hold NaN or infinity: {shown}",
            next_step="take a checkpoint from before the training broke down",
        )
