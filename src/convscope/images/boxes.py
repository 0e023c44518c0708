"""Where in the pictures are the things they show, if somebody has marked them?"""

from __future__ import annotations

import json
import math
from pathlib import Path

from convscope.errors import DataError
from convscope.units import Box

FILE = "boxes.json"


def read_boxes(path: Path | str) -> dict[str, tuple[Box, ...]]:
    """Boxes by picture name, from JSON of the form {name: [[xmin, ymin, xmax, ymax], …]}.

    Raises DataError D141 if the file is not that.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            str(name): tuple(_box(str(name), box) for box in boxes) for name, boxes in told.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as fault:
        raise DataError("D141", str(path), f"is not a file of boxes ({fault})") from fault


def _box(name: str, told: object) -> Box:
    numbers = told if isinstance(told, list) and len(told) == 4 else None
    if numbers is None or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise ValueError(f"{name}: {told} is not [xmin, ymin, xmax, ymax]")
    left, top, right, bottom = numbers
    if left >= right or top >= bottom:
        raise ValueError(f"{name}: {told} is empty or inverted")
    return Box(top, left, bottom, right)
