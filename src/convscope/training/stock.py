"""Where do the pictures come from, epoch after epoch?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from convscope.errors import DataError
from convscope.pictures.pictures import Folder

Framer = Callable[[Image.Image], UInt8[np.ndarray, "h w 3"]]
Progress = Callable[[int, int], None]
AT_ONCE = 64


class Stock:
    """A folder's usable pictures, framed; kept in memory as far as it reaches, else read again."""

    def __init__(
        self,
        folder: Folder,
        framing: Framer,
        *,
        memory: int,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> None:
        """Read every picture once. memory: bytes that may be kept. workers: decoding processes of
        this first reading, and of `batches`.

        Raises DataError D151 if pictures have no class, D152 if none is usable, and what
        `Folder.check_bad` raises if too many are unusable.
        """
        self.folder = folder
        self.framing = framing
        self.workers = workers
        self._kept: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
        self.numbers: tuple[int, ...] = tuple(self._read_all(memory, progress))
        folder.check_bad()
        if not self.numbers:
            raise DataError("D152", str(folder.root), "holds no usable picture")
        labels = [folder.labels[number] for number in self.numbers]
        self.labels: tuple[int, ...] = tuple(label for label in labels if label is not None)
        if len(self.labels) < len(labels):
            raise DataError(
                "D151",
                str(folder.root),
                "holds pictures outside of class folders, so they cannot teach a class",
                next_step="put each class's pictures into a folder with the class's name",
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def take(
        self, places: Sequence[int], workers: int | None = None
    ) -> list[UInt8[np.ndarray, "h w 3"]]:
        """The framed pictures at these places, 0 being the first usable picture."""
        wanted = [self.numbers[place] for place in places]
        absent = [number for number in wanted if number not in self._kept]
        fresh = {
            p.number: p.pixels for p in self.folder.read(self.framing, absent, workers=workers)
        }
        lost = [number for number in absent if number not in fresh]
        if lost:
            name = self.folder.names[lost[0]]
            raise DataError("D153", name, "could be read before training, and cannot be now")
        return [fresh[n] if n in fresh else self._kept[n] for n in wanted]

    def each(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """All framed pictures, a few at a time in memory."""
        for start in range(0, len(self), AT_ONCE):
            yield from self.take(range(start, min(start + AT_ONCE, len(self))), self.workers)

    def _read_all(self, memory: int, progress: Progress | None) -> list[int]:
        good: list[int] = []
        for picture in self.folder.read(self.framing, workers=self.workers):
            good.append(picture.number)
            memory -= picture.pixels.nbytes
            if memory >= 0:
                self._kept[picture.number] = picture.pixels
            if progress is not None:
                progress(picture.number + 1, len(self.folder))
        return good


def pixel_mean(stock: Stock, framing: Framer) -> Float32[np.ndarray, "3 h w"]:
    """Mean of all framed pictures at every pixel, 0 to 255; summed in whole numbers, so exact."""
    total = np.zeros((), np.uint64)
    for pixels in stock.each():
        total = total + framing(Image.fromarray(pixels)).astype(np.uint64)
    return (total / len(stock)).transpose(2, 0, 1).astype(np.float32)
