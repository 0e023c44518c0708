"""Passes that look at pictures one by one: a row a picture, of arrays, records and plain values.

A row is kept as msgpack, an array in it as its type, shape and bytes, so that a segment holds the
rows of its pictures as two arrays, and rows come back as they were from whichever process or run.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
import numpy as np

from convscope.core.run import Run
from convscope.pictures.pictures import Picture, Pictures
from convscope.scale.engine import Job, passed
from convscope.scale.segments import KINDS, Arrays, plain_array

ARRAY = 1
"""Of msgpack's extension types, ours."""
T = TypeVar("T")


class RowJob(Job, Generic[T]):
    """What is seen of each picture, whatever the others are."""

    part = 16
    """Few, as one picture may take seconds."""
    kind: ClassVar[Any] = Any
    """Type of a row, as msgspec knows types; a dataclass may hold arrays."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """facts: see `Job`."""
        self._facts, self._bytes = facts, 0
        self._rows: list[bytes] = []

    @property
    def facts(self) -> Mapping[str, Any]:
        return self._facts

    @abstractmethod
    def row(self, picture: Picture) -> T:
        """What is kept of a picture."""

    @contextmanager
    def looking(self) -> Iterator[Callable[[list[Picture]], object]]:
        yield self._look

    def _look(self, pictures: list[Picture]) -> None:
        for picture in pictures:
            self._rows.append(packed(self.row(picture)))
            self._bytes += len(self._rows[-1])

    @property
    def pending(self) -> int:
        return self._bytes

    def take(self) -> dict[str, np.ndarray]:
        rows, self._rows, self._bytes = self._rows, [], 0
        sizes = np.array([len(row) for row in rows], np.int64)
        return {"rows": np.frombuffer(b"".join(rows), np.uint8), "size": sizes}

    def rows(self, folder: Pictures, run: Run, numbers: Sequence[int] | None = None) -> Iterator[T]:
        """Of all usable pictures, in order. Raises as `engine.passed`."""
        for part in passed(self, folder, run, numbers):
            yield from self.rows_in(part.arrays)

    def rows_in(self, arrays: Arrays) -> Iterator[T]:
        content, place = memoryview(arrays["rows"].data), 0
        for size in arrays["size"].tolist():
            yield unpacked(content[place : place + size], self.kind)
            place += size


def digest(told: Any) -> str:
    """Of facts that are too many to be told one by one."""
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def packed(value: Any) -> bytes:
    """Raises TypeError for what is neither plain, nor an array of numbers, nor made of these."""
    return msgspec.msgpack.encode(value, enc_hook=_plain)


def unpacked(content: bytes | memoryview, kind: Any = Any) -> Any:
    """The value, of this type. Raises msgspec.ValidationError."""
    value = msgspec.msgpack.decode(content, ext_hook=_array)
    return msgspec.convert(value, kind, dec_hook=lambda _, given: given)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        array = plain_array("a row", value)
        return msgspec.msgpack.Ext(ARRAY, packed((array.dtype.str, array.shape, array.tobytes())))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not kept")


def _array(code: int, data: memoryview) -> np.ndarray:
    kind, shape, content = msgspec.msgpack.decode(data, type=tuple[str, tuple[int, ...], bytes])
    dtype = np.dtype(kind)
    if code != ARRAY or dtype.kind not in KINDS:
        raise ValueError("a row holds something that is no array of plain numbers")
    array = np.frombuffer(content, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)
