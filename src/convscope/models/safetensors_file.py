"""How is a .safetensors file opened without being drowned by its header?"""

from __future__ import annotations

import json
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from convscope.errors import CheckpointError
from convscope.models.sniff import size

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
