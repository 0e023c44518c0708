"""How is a file that torch.save wrote opened without running what it may ask for?"""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import torch

from convscope.errors import CheckpointError
from convscope.models import pickles
from convscope.models.sniff import size

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
