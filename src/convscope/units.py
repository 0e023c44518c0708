"""Which place in a network, and which place in its input, do we mean?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from convscope.errors import UsageError


@dataclass(frozen=True, order=True)
class Unit:
    """A feature map of a layer, or (with `at`) one neuron of it; prints as `conv5:41@6,7`."""

    layer: str
    channel: int
    at: tuple[int, int] | None = None
    """Row and column in the layer's own output."""

    def __post_init__(self) -> None:
        if self.channel < 0 or (self.at is not None and min(self.at) < 0):
            raise UsageError("U201", str(self), "channel, row and column count from 0")

    def __str__(self) -> str:
        place = "" if self.at is None else f"@{self.at[0]},{self.at[1]}"
        return f"{self.layer}:{self.channel}{place}"

    @classmethod
    def parse(cls, text: str) -> Unit:
        """Read what `str` prints. Raises UsageError U201 on anything else."""
        found = re.fullmatch(
            r"(?P<layer>[^:@]+):(?P<channel>\d+)(@(?P<row>\d+),(?P<col>\d+))?", text
        )
        if found is None:
            raise UsageError(
                "U201", text, "is not a unit", next_step="write LAYER:MAP or LAYER:MAP@ROW,COLUMN"
            )
        at = None if found["row"] is None else (int(found["row"]), int(found["col"]))
        return cls(found["layer"], int(found["channel"]), at)


class Box(NamedTuple):
    """A rectangle of input pixels, half-open; it may reach outside the picture."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def moved(self, down: int, across: int) -> Box:
        return Box(self.top + down, self.left + across, self.bottom + down, self.right + across)

    def clipped(self, height: int, width: int) -> Box:
        """The part inside a picture of height × width; empty (0 by 0 or thinner) if none is."""
        top, bottom = (min(max(v, 0), height) for v in (self.top, self.bottom))
        left, right = (min(max(v, 0), width) for v in (self.left, self.right))
        return Box(top, left, bottom, right)
