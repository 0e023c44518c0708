"""Which place in a network, and which place in its input, do we mean?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from convscope.core.errors import UsageError, shown


@dataclass(frozen=True, order=True)
class Unit:
    """A feature map of a layer, or (with `at`) one neuron of it; prints as `conv5:41@6,7`.

    Raises UsageError U201 for what is neither a layer's name nor the module, and for numbers that
    are none from 0.
    """

    layer: Any
    """The layer's name; also the module itself, in the place of which functions put the name."""
    channel: int
    at: tuple[int, int] | None = None
    """Row and column in the layer's own output."""

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str) and not hasattr(self.layer, "named_modules"):
            step = 'write Unit("conv5", 41), with the layer\'s name or the module'
            raise UsageError("U201", "", f"{shown(self.layer)} is no layer", next_step=step)
        at = () if self.at is None else self.at
        if (
            not isinstance(at, tuple | list)
            or len(at) not in (0, 2)
            or not _count((self.channel, *at))
        ):
            step = 'write Unit("conv5", 41) or Unit("conv5", 41, (6, 7))'
            what = "channel, row and column count from 0, in whole numbers"
            raise UsageError("U201", self._told(), what, next_step=step)

    def _told(self) -> str:
        return ", ".join(map(shown, (self.layer, self.channel, self.at)))

    def __str__(self) -> str:
        place = "" if self.at is None else f"@{self.at[0]},{self.at[1]}"
        return f"{self.layer}:{self.channel}{place}"

    @classmethod
    def parse(cls, text: str) -> Unit:
        """Read what `str` prints. Raises UsageError U201 on anything else."""
        if not isinstance(text, str):
            step = 'write "conv5:41", or Unit("conv5", 41)'
            raise UsageError("U201", "", f"{shown(text)} is no unit", next_step=step)
        found = re.fullmatch(
            r"(?P<layer>[^:@]+):(?P<channel>\d+)(@(?P<row>\d+),(?P<col>\d+))?", text
        )
        if found is None:
            raise UsageError(
                "U201", text, "is not a unit", next_step="write LAYER:MAP or LAYER:MAP@ROW,COLUMN"
            )
        at = None if found["row"] is None else (int(found["row"]), int(found["col"]))
        return cls(found["layer"], int(found["channel"]), at)


def _count(numbers: tuple[Any, ...]) -> bool:
    """Whether all are whole numbers from 0."""
    whole = all(hasattr(one, "__index__") and not isinstance(one, bool) for one in numbers)
    return whole and all(getattr(one, "ndim", 0) == 0 and one >= 0 for one in numbers)


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
