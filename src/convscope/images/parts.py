"""Where in each picture are the parts that all of them show, if somebody has marked them?"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from convscope.errors import DataError

Parts = Mapping[str, Mapping[str, tuple[float, float]]]
"""By picture name, then by part: column and row (x, y) of its centre in the picture's pixels."""


def read_parts(path: Path | str) -> dict[str, dict[str, tuple[float, float]]]:
    """Parts from JSON: {"images": {name: {part: [x, y], …}, …}}, or the inner table alone.

    Raises DataError D173 if the file is not that.
    """
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        pictures = _table(told).get("images", told)
        return {
            str(name): {str(part): _point(place) for part, place in _table(parts).items()}
            for name, parts in _table(pictures).items()
        }
    except (OSError, ValueError, TypeError, AttributeError) as fault:
        step = 'write {"images": {name: {part: [x, y]}}}'
        raise DataError(
            "D173", str(path), f"is not a file of parts ({fault})", next_step=step
        ) from fault


def _table(told: object) -> dict[str, object]:
    if not isinstance(told, dict):
        raise ValueError(f"{str(told)[:60]} in the place of a table of names")
    return told


def _point(place: object) -> tuple[float, float]:
    if not isinstance(place, list) or len(place) != 2:
        raise ValueError(f"{place!r} in the place of [x, y]")
    if not all(isinstance(number, int | float) for number in place):
        raise ValueError(f"{place!r} in the place of [x, y]")
    x, y = (float(number) for number in place)
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"{place!r} in the place of [x, y]")
    return x, y
