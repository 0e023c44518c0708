"""The strongest pictures the slow way: keep every activation, sort, strike out copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

Entry = tuple[float, int, int, int]
"""Value, picture number, row, column."""


def strongest(
    maps_of: Callable[[int], Tensor], contents: Sequence[object], k: int
) -> tuple[list[list[Entry]], list[int], list[int]]:
    """For each map its k strongest pictures, in how many it was above 0, in how many it had a NaN.

    maps_of: picture number to that picture's feature maps (c, h, w). contents: of each picture,
    None for one that cannot be used.
    """
    usable = [number for number, content in enumerate(contents) if content is not None]
    every = {number: maps_of(number).tolist() for number in usable}
    entries: list[list[Entry]] = []
    active, invalid = [], []
    for channel in range(len(every[usable[0]])):
        found = []
        broken = 0
        for number in usable:
            rows = every[number][channel]
            if any(math.isnan(value) for row in rows for value in row):
                broken += 1
                continue
            best = max(value for row in rows for value in row)
            place = next(
                (r, c) for r, row in enumerate(rows) for c, value in enumerate(row) if value == best
            )
            found.append((best, number, *place))
        active.append(sum(value > 0 for value, *_ in found))
        invalid.append(broken)
        met: set[object] = set()
        kept = []
        for entry in sorted(found, key=lambda e: (-e[0], e[1])):
            if contents[entry[1]] not in met:
                met.add(contents[entry[1]])
                kept.append(entry)
        entries.append(kept[:k])
    return entries, active, invalid
