"""Localisation: the pointing game and energy of a map inside boxes of the thing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from convscope.core.errors import UsageError, nearest, shown
from convscope.core.text import as_path
from convscope.core.units import Box
from convscope.network.arguments import at_least, numbers
from convscope.pictures.annotations import read_boxes

MARGIN = 15
"""Pixels by which a peak may miss a box, along each side. Source: Zhang et al. 2018, §4.1."""


def boxes_of(given: Any, name: str = "") -> tuple[Box, ...]:
    """Boxes of one picture: one Box, several, or this picture's in a table by name or its file.

    Raises UsageError U380 for anything else, and where the table has none of this name; DataError
    D141 as `read_boxes`.
    """
    if given is None or isinstance(given, Box):
        return () if given is None else (given,)
    if isinstance(given, str | Path | Mapping):
        marked = boxes_by_name(given) or {}
        if name not in marked:
            what = f"there are none for {name or 'this picture'}; {nearest(name, marked)}"
            raise UsageError("U380", "boxes", what)
        return tuple(marked[name])
    if not isinstance(given, list | tuple) or not all(isinstance(one, Box) for one in given):
        step = "give a list of Box(top, left, bottom, right), or a file of boxes"
        raise UsageError("U380", "boxes", f"{shown(given)} is no list of boxes", next_step=step)
    return tuple(given)


def boxes_by_name(given: Any) -> dict[str, tuple[Box, ...]] | None:
    """Boxes of several pictures: a table by name, or its file. Raises as `boxes_of`."""
    if given is None:
        return None
    if isinstance(given, str | Path):
        return read_boxes(as_path("boxes", given))
    if not isinstance(given, Mapping):
        step = 'give {"roses/1.jpg": [Box(top, left, bottom, right)]}, or a file of boxes'
        what = f"{shown(given)} is no table of boxes by picture"
        raise UsageError("U380", "boxes", what, next_step=step)
    return {str(name): boxes_of(list(several)) for name, several in given.items()}


def pointing(
    values: Float[np.ndarray, "h w"], boxes: Sequence[Box], *, margin: int = MARGIN
) -> float:
    """1 if the map's peak lies in a box or at most `margin` pixels beside it, otherwise 0.

    Of several equal peaks the share that does; NaN for a map with no positive evidence, which
    points nowhere, and where there are no boxes. boxes: in the map's pixels. Raises UsageError
    U391 (margin below 0), U393 (no array of rows and columns). Source: Zhang et al. 2018,
    "Top-down Neural Attention by Excitation Backprop", the pointing game.
    """
    at_least(0, margin=margin)
    boxes = boxes_of(boxes)
    peak = float(numbers(values).max())
    if not (peak > 0 and boxes):
        return math.nan
    hit = inside(values.shape, [_grown(box, margin) for box in boxes])
    return float(hit[values == peak].mean())


def energy_inside(values: Float[np.ndarray, "h w"], boxes: Sequence[Box]) -> float:
    """Share of the map's positive evidence that lies in the boxes; NaN without any evidence or
    boxes. Raises UsageError U393 (no array of rows and columns).

    Source: Wang et al. 2020, "Score-CAM", §5.2, the energy-based pointing game.
    """
    boxes = boxes_of(boxes)
    positive = np.maximum(numbers(values), 0).astype(np.float64)
    total = float(positive.sum())
    if not (total > 0 and boxes):
        return math.nan
    return float(positive[inside(values.shape, boxes)].sum()) / total


def share_inside(shape: tuple[int, ...], boxes: Sequence[Box]) -> float:
    """Share of the picture that the boxes cover: the energy inside of a map that says nothing."""
    return float(inside(shape, boxes).mean())


def coverage(values: Float[np.ndarray, "h w"], part: float = 0.5) -> float:
    """The smallest share of the picture that holds this part of the positive evidence; NaN
    without any. Raises UsageError U393 (no array of rows and columns)."""
    positive = np.sort(np.maximum(numbers(values), 0).ravel().astype(np.float64))[::-1]
    sums = np.cumsum(positive)
    if not sums[-1] > 0:
        return math.nan
    return float(np.searchsorted(sums, part * sums[-1]) + 1) / positive.size


def inside(shape: tuple[int, ...], boxes: Sequence[Box]) -> Bool[np.ndarray, "h w"]:
    """Which pixels lie in a box."""
    height, width = shape
    found = np.zeros((height, width), bool)
    for box in boxes:
        part = box.clipped(height, width)
        found[part.top : part.bottom, part.left : part.right] = True
    return found


def _grown(box: Box, margin: int) -> Box:
    return Box(box.top - margin, box.left - margin, box.bottom + margin, box.right + margin)
