"""Where in the pictures are the things they show, if somebody has marked them?"""

from __future__ import annotations

from pathlib import Path

from convscope.errors import DataError
from convscope.texts import brief, number, one_line, read_json
from convscope.units import Box

FILE = "boxes.json"
FORM = "write {name: [[xmin, ymin, xmax, ymax], …]}"


def read_boxes(path: Path | str) -> dict[str, tuple[Box, ...]]:
    """Boxes by picture name, from JSON of the form {name: [[xmin, ymin, xmax, ymax], …]}, in
    pixels of the picture as it is read (EXIF orientation applied or not).

    Raises DataError D141 if the file is not that.
    """
    try:
        told = read_json(path)
        if not isinstance(told, dict):
            raise ValueError(f"{brief(told)} is no table of names")
        return {one_line(name): _boxes(name, boxes) for name, boxes in told.items()}
    except ValueError as fault:
        what = f"is not a file of boxes ({fault})"
        raise DataError("D141", str(path), what, next_step=FORM) from fault


def _boxes(name: str, told: object) -> tuple[Box, ...]:
    if not isinstance(told, list):
        raise ValueError(f"{name}: {brief(told)} is no list of boxes")
    return tuple(_box(name, box) for box in told)


def _box(name: str, told: object) -> Box:
    if not isinstance(told, list) or len(told) != 4:
        raise ValueError(f"{name}: {brief(told)} is not [xmin, ymin, xmax, ymax]")
    try:
        left, top, right, bottom = (number(value) for value in told)
    except ValueError as fault:
        raise ValueError(f"{name}: {fault}") from None
    if left >= right or top >= bottom:
        raise ValueError(f"{name}: {brief(told)} is empty or inverted")
    return Box(top, left, bottom, right)  # type: ignore[arg-type]  # pixels may be split
