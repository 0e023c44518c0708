"""Temporary store of framed pictures that are looked at several times: each is decoded once."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from convscope.core.errors import EnvironmentFault
from convscope.core.publish import environment_fault
from convscope.pictures.pictures import Frame, Picture, Pictures


class Framed:
    """Pictures of a folder in a temporary file, which is gone with this: those that another pass
    over the folder hands to `keep`, and those that are read as they are first asked for."""

    def __init__(self, folder: Pictures, framing: Frame) -> None:
        self.folder = folder
        self._framing = framing
        self._kept: dict[int, tuple[int, tuple[int, ...]]] = {}
        """Of each picture where its pixels begin, and their shape."""
        self._asked: set[int] = set()
        self._file = tempfile.TemporaryFile(prefix="convscope-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._room = shutil.disk_usage(tempfile.gettempdir()).free // 4
        """Bytes that pictures nobody has asked for yet may take."""

    def keep(self, pictures: Sequence[Picture]) -> None:
        """Pictures in this framing, which may be asked for later. Where room ends, they are left,
        and are decoded again when they are asked for."""
        for picture in pictures:
            self._room -= picture.pixels.nbytes
            if self._room > 0 and picture.number not in self._asked:
                try:
                    self._write(picture)
                except EnvironmentFault:
                    self._room = 0
                else:
                    self._asked.add(picture.number)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"]]]:
        """Number and pixels of the usable ones of these pictures, in this order.

        Raises as `Pictures.read`, and EnvironmentFault R602 or R603 if the temporary folder is full
        or cannot be written.
        """
        self._fill([number for number in numbers if number not in self._asked])
        for number in numbers:
            if number in self._kept:
                begin, shape = self._kept[number]
                data = os.pread(self._file.fileno(), int(np.prod(shape)), begin)
                yield number, np.frombuffer(bytearray(data), np.uint8).reshape(shape)

    def _fill(self, numbers: Sequence[int]) -> None:
        self._asked.update(numbers)
        for picture in self.folder.read(self._framing, sorted(numbers)) if numbers else ():
            self._write(picture)

    def _write(self, picture: Picture) -> None:
        pixels = np.ascontiguousarray(picture.pixels)
        begin = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(pixels.data)
            self._file.flush()
        except OSError as fault:
            raise environment_fault(fault, Path(tempfile.gettempdir())) from fault
        self._kept[picture.number] = (begin, pixels.shape)
