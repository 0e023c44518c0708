"""How does TensorBoard get to see a run?"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from convscope.training.story import COLUMNS


class Board:
    """TensorBoard's log of a run: one scalar a quantity, one step an epoch."""

    def __init__(self, folder: Path, rows: Sequence[Sequence[float]]) -> None:
        """rows: of the epochs that are done; written anew, so that a killed run leaves no gap."""
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))
        for epoch, row in enumerate(rows, start=1):
            self.add(epoch, row)

    def add(self, epoch: int, row: Sequence[float]) -> None:
        for column, value in zip(COLUMNS, row, strict=True):
            where, _, what = column.partition("_")
            name = f"{what}/{where}" if where in ("train", "val") else column
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
