"""Segments: what a pass over some pictures gave, in one checksummed file that is never changed.

A segment covers the places `start` to `stop` of the pictures wanted, in their order. Segments of
disjoint ranges are merged in any order; the same range computed twice gives the same result.

    magic · length of the header · header (JSON) · arrays, little-endian · SHA-256 of all before
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import msgspec
import numpy as np

from convscope.pictures.pictures import Looked

MAGIC = b"convscope segment\n"
SCHEMA = 1
LENGTH = struct.Struct("<Q")
KINDS = "biuf"
"""Of NumPy's kinds of numbers, those that a segment holds."""
MOST_HEADER = 1 << 30
NUMBER, DIGEST = "looked.number", "looked.digest"
Arrays = Mapping[str, np.ndarray]


class _Array(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    run_key: str
    start: int
    stop: int
    used: int
    arrays: list[_Array]
    notes: dict[int, tuple[str, ...]]
    skipped: list[tuple[int, int, str, str]]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """start, stop: places among the pictures wanted. facts: whatever else the pass tells, as of the
    machine it ran on."""

    start: int
    stop: int
    arrays: Arrays
    used: int = 0
    """Pictures looked at."""
    looked: Looked = field(default_factory=Looked)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def to_bytes(self, run_key: str) -> bytes:
        """Raises TypeError for arrays of anything but plain numbers."""
        arrays = {**self.arrays, NUMBER: self.looked.number, DIGEST: self.looked.digest}
        kept = {name: plain_array(name, array) for name, array in sorted(arrays.items())}
        header = {
            "schema": SCHEMA,
            "run_key": run_key,
            "start": self.start,
            "stop": self.stop,
            "used": self.used,
            "arrays": [
                {"name": name, "dtype": array.dtype.str, "shape": array.shape}
                for name, array in kept.items()
            ],
            "notes": {str(number): notes for number, notes in sorted(self.looked.notes.items())},
            "skipped": self.looked.skipped,
            "facts": dict(self.facts),
        }
        head = json.dumps(header, sort_keys=True).encode("ascii")
        parts = [MAGIC, LENGTH.pack(len(head)), head, *(a.tobytes() for a in kept.values())]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return b"".join([*parts, digest.digest()])

    @classmethod
    def from_bytes(cls, content: bytes, run_key: str) -> Segment:
        """Raises ValueError for anything but a whole segment of this run, NewerSchema."""
        view = memoryview(content)
        if len(view) < len(MAGIC) + LENGTH.size + 32 or view[: len(MAGIC)] != MAGIC:
            raise ValueError("is no segment")
        if hashlib.sha256(view[:-32]).digest() != view[-32:]:
            raise ValueError("its content is not what was written")
        begin = len(MAGIC) + LENGTH.size
        (length,) = LENGTH.unpack(view[len(MAGIC) : begin])
        if length > min(MOST_HEADER, len(view)):
            raise ValueError("its header is longer than it is")
        raw = bytes(view[begin : begin + length])
        if (schema := _schema(raw)) > SCHEMA:
            raise NewerSchema(schema)
        header = msgspec.json.decode(raw, type=_Header)
        if header.run_key != run_key:
            raise ValueError("is of another run")
        arrays = _arrays(view[begin + length : -32], header.arrays)
        looked = Looked(arrays.pop(NUMBER), arrays.pop(DIGEST), header.notes, header.skipped)
        return cls(header.start, header.stop, arrays, header.used, looked, header.facts)


class NewerSchema(Exception):
    """Written by a newer convscope."""


class _Schema(msgspec.Struct):
    schema: int


def _schema(raw: bytes) -> int:
    return msgspec.json.decode(raw, type=_Schema).schema


def plain_array(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in KINDS:
        raise TypeError(f"{name}: arrays of {array.dtype} are not kept")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def _arrays(content: memoryview, told: Sequence[_Array]) -> dict[str, np.ndarray]:
    arrays, place = {}, 0
    for one in told:
        kind = np.dtype(one.dtype)
        count = prod(one.shape)
        if kind.kind not in KINDS or min(one.shape, default=0) < 0:
            raise ValueError(f"{one.name} is no array of plain numbers")
        if place + count * kind.itemsize > len(content):
            raise ValueError(f"{one.name} is longer than the file")
        values = np.frombuffer(content, kind, count, place).reshape(one.shape)
        arrays[one.name] = values.astype(kind.newbyteorder("="), copy=False)
        place += count * kind.itemsize
    if place != len(content):
        raise ValueError("it is longer than its arrays")
    return arrays
