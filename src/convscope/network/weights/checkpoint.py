"""Checkpoints: read .safetensors and torch.save files of strangers safely, write our own."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from convscope.errors import CheckpointError, nearest, printable, shown
from convscope.network.weights import pickles
from convscope.network.weights.pickles import is_pickle
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


MAX_BYTES = 8_000_000_000
EXPANSION = 4
"""How many times its own size a file may declare: a weight fills its place on disk."""
FLOOR = 16_000_000
"""Bytes that any file may declare; smaller than what could hurt."""
SCRIPTED = ("constants.pkl", "/code/", "/extra/model_", "serialized_exported_program", "/models/")


def limit(file_size: int) -> int:
    """Bytes of tensors that a file of this size may hold."""
    return min(MAX_BYTES, max(FLOOR, EXPANSION * file_size))


def read_torch(data: bytes, name: str) -> Any:
    """The object in a file of torch.save; tensors on the CPU. `name` is for the messages.

    Raises CheckpointError: C401, C402, C403 what is no plain data, C404 a program, C405
    truncated, C407 larger than it looks, C408 other tensors, C409 damaged.
    """
    if data.startswith(b"PK"):
        _check_archive(data, name)
    else:
        legacy = pickles.is_legacy(data)
        pickles.inspect(data, name, pickles.LEGACY_PICKLES if legacy else 1)
        if not legacy:
            raise CheckpointError(
                "C406", name, "is a Python pickle, but not one that torch.save wrote"
            )
    return _load(data, name)


def _check_archive(data: bytes, name: str) -> None:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except Exception as fault:  # a damaged archive makes zipfile raise nearly anything
        raise CheckpointError(
            "C405",
            name,
            f"truncated: the zip directory at the end is missing ({size(len(data))} on disk)",
            next_step="download or copy it again",
        ) from fault
    entries = archive.infolist()
    if any(mark in f"/{entry.filename}" for entry in entries for mark in SCRIPTED):
        raise CheckpointError(
            "C404",
            name,
            "is a program (TorchScript or an exported .pt2), not a checkpoint",
            next_step="save model.state_dict() of the Python module instead",
        )
    declared = sum(entry.file_size for entry in entries)
    if declared > limit(len(data)):
        raise CheckpointError(
            "C407", name, f"a zip bomb: {size(len(data))} would unpack to {size(declared)}"
        )
    _check_sums(archive, name)
    records = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(records) != 1:
        raise CheckpointError("C406", name, "is a zip archive, but not one that torch.save wrote")
    pickles.inspect(archive.read(records[0]), name)


def _check_sums(archive: zipfile.ZipFile, name: str) -> None:
    """torch.load checks no sums, and a flipped byte would pass for a weight."""
    try:
        bad = archive.testzip()
    except Exception as fault:
        what = f"damaged: its zip archive cannot be read ({type(fault).__name__})"
        raise CheckpointError("C409", name, what, next_step=AGAIN) from fault
    if bad is not None:
        raise CheckpointError(
            "C409", name, f"damaged: the checksum of {bad} does not match", next_step=AGAIN
        )


def _load(data: bytes, name: str) -> Any:
    """torch's own words are replaced: they advise to open the file without protection."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except MemoryError as fault:
        raise CheckpointError("C407", name, "asks for more memory than there is") from fault
    except pickle.UnpicklingError as fault:
        raise CheckpointError(
            "C402", name, "refused: it holds more than tensors and plain containers"
        ) from fault
    except Exception as fault:
        text = str(fault)
        if "allocate" in text:
            raise CheckpointError("C407", name, "asks for more memory than there is") from fault
        if isinstance(fault, EOFError) or "EOF" in text or "PytorchStreamReader" in text:
            raise CheckpointError(
                "C405", name, f"truncated ({size(len(data))} on disk)", next_step=AGAIN
            ) from fault
        raise CheckpointError(
            "C409", name, f"damaged: torch cannot read it ({type(fault).__name__})"
        ) from fault


AGAIN = "download or copy it again"


MAX_HEADER = 10_000_000
MAX_TENSORS = 200_000
"""torchvision's largest network has about a thousand; 500,000 took 12 s to read."""
LENGTH = 8


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so declares a header of JSON."""
    return len(head) > LENGTH and head[LENGTH : LENGTH + 1] == b"{"


def read_safetensors(data: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. `name` is for the messages.

    Raises CheckpointError: C405 truncated, C407 an oversized header, C408 a number type torch has
    not, C409 damaged.
    """
    header = _header(data, name)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        metadata = {}
    try:
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError) as fault:
        code = "C408" if isinstance(fault, KeyError) else "C409"
        raise CheckpointError(code, name, f"damaged: {fault}") from fault
    return tensors, {str(key): str(value) for key, value in metadata.items()}


def _header(data: bytes, name: str) -> dict[str, Any]:
    length = int.from_bytes(data[:LENGTH], "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            "C407",
            name,
            f"declares a header of {size(length)}; {size(MAX_HEADER)} are the most",
        )
    if LENGTH + length > len(data):
        raise _truncated(name, len(data), LENGTH + length)
    try:
        header = json.loads(data[LENGTH : LENGTH + length])
        entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
        if len(entries) > MAX_TENSORS:
            raise CheckpointError(
                "C407", name, f"declares {len(entries)} tensors; {MAX_TENSORS} are the most"
            )
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if LENGTH + length + end > len(data):
            raise _truncated(name, len(data), LENGTH + length + end)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError) as fault:
        raise CheckpointError(
            "C409", name, "damaged: the header is not that of a safetensors file"
        ) from fault
    return dict(header)


def _truncated(name: str, there: int, whole: int) -> CheckpointError:
    return CheckpointError(
        "C405",
        name,
        f"truncated: {size(there)} of {size(whole)} are there",
        next_step="download or copy it again",
    )


OTHERS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run: git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", "save the weights from torch"),
    (b"\x93NUMPY", "a NumPy array", "save the weights as .safetensors"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it first"),
    (b"GGUF", "a GGUF file (a language model)", "give the weights of an image network"),
    (b"\xff\xd8\xff", "a JPEG picture", "give the weights as checkpoint"),
    (b"\x89PNG", "a PNG picture", "give the weights as checkpoint"),
    (b"%PDF", "a PDF document", "give the weights as checkpoint"),
)
TEXT = "give the file of weights itself; if this one was downloaded, the server sent words instead"
PAGE = "download it again: the server sent a page instead of the file"


def refuse_others(data: bytes, name: str) -> None:
    """Raise CheckpointError C406 if the file is known to be something else."""
    head = data[:512]
    for start, what, next_step in OTHERS:
        if head.startswith(start):
            raise CheckpointError("C406", name, f"this is {what}", next_step=next_step)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.lower().startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise CheckpointError("C406", name, "this is an HTML page", next_step=PAGE)
    if head[257:262] == b"ustar":
        raise CheckpointError("C406", name, "this is a tar archive", next_step="unpack it first")
    letters = all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in text)
    if text and letters and not is_pickle(data):  # the oldest pickles are text too
        first = text[:40].decode("ascii").split("\n")[0]
        raise CheckpointError("C406", name, f'this is a text (it begins "{first}")', next_step=TEXT)


def size(count: float) -> str:
    """Bytes as a person says them: 23.4 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
