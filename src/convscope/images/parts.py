"""Where in each picture are the parts that all of them show, if somebody has marked them?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from convscope.errors import DataError
from convscope.texts import brief, number, one_line, read_json

Parts = Mapping[str, Mapping[str, tuple[float, float]]]
"""By picture name, then by part: column and row (x, y) of its centre in the picture's pixels."""


def read_parts(path: Path | str) -> dict[str, dict[str, tuple[float, float]]]:
    """Parts from JSON: {"images": {name: {part: [x, y], …}, …}}, or the inner table alone.

    Raises DataError D173 if the file is not that.
    """
    try:
        told = read_json(path)
        pictures = _table(told, "the file").get("images", told)
        return {
            one_line(name): _parts(name, parts)
            for name, parts in _table(pictures, "images").items()
        }
    except ValueError as fault:
        step = 'write {"images": {name: {part: [x, y]}}}'
        raise DataError(
            "D173", str(path), f"is not a file of parts ({fault})", next_step=step
        ) from fault


def _parts(name: str, told: object) -> dict[str, tuple[float, float]]:
    marked = _table(told, name)
    return {part: _point(f"{name}: {part}", place) for part, place in marked.items()}


def _table(told: object, where: str) -> dict[str, object]:
    if not isinstance(told, dict):
        raise ValueError(f"{where}: {brief(told)} in the place of a table of names")
    return told


def _point(where: str, place: object) -> tuple[float, float]:
    if not isinstance(place, list) or len(place) != 2:
        raise ValueError(f"{where}: {brief(place)} in the place of [x, y]")
    try:
        x, y = (float(number(value)) for value in place)
    except ValueError as fault:
        raise ValueError(f"{where}: {fault}") from None
    return x, y
