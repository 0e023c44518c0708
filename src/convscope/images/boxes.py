"""Where in the pictures are the things they show, if somebody has marked them?"""

from __future__ import annotations

import json
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
            str(name): tuple(Box(top, left, bottom, right) for left, top, right, bottom in boxes)
            for name, boxes in told.items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as fault:
        raise DataError("D141", str(path), f"is not a file of boxes ({fault})") from fault
