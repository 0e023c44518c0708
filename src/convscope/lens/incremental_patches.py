"""Which windows of a picture are changed, and into what?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Patches:
    """A rectangle at every combination of tops and lefts, one at a time."""

    tops: Sequence[int]
    lefts: Sequence[int]
    size: tuple[int, int]
    """Rows and columns of the rectangle; it lies inside the picture."""
    fill: Float[Tensor, "c r k"]
    """What the rectangle shows; of the picture's size: what is seen through it."""

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def windows(self, numbers: Sequence[int]) -> Float[Tensor, "n c r k"]:
        """What the rectangle shows at these positions, counted row after row."""
        rows, columns = self.size
        if self.fill.shape[1:] == self.size:
            return self.fill.expand(len(numbers), *self.fill.shape)
        parts = [
            self.fill[:, top : top + rows, left : left + columns]
            for top, left in map(self.corner, numbers)
        ]
        return torch.stack(parts)

    def paint(
        self, picture: Float[Tensor, "c h w"], numbers: Sequence[int]
    ) -> Float[Tensor, "n c h w"]:
        """The picture with the rectangle at each of these positions."""
        painted = picture.expand(len(numbers), *picture.shape).clone()
        rows, columns = self.size
        for one, window, number in zip(painted, self.windows(numbers), numbers, strict=True):
            top, left = self.corner(number)
            one[:, top : top + rows, left : left + columns] = window
        return painted

    def corner(self, number: int) -> tuple[int, int]:
        return self.tops[number // len(self.lefts)], self.lefts[number % len(self.lefts)]
