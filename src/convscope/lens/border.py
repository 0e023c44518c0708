"""Which neurons' windows hang over the border of their maps alike?

What hangs over is cut off where it is the same for all neurons that are sent down together. So
neurons in like places are: as many groups as are worth the time that each of them costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from convscope.lens.downward import Step
from convscope.lens.signal import Pair
from convscope.lens.windows import Affine

EACH = 4.0
"""What a group costs besides its windows: as much as so many whole windows (measured)."""
UNBOUNDED = (1 << 40, 1 << 40)
Spans = tuple[Affine, Affine]


@dataclass(frozen=True)
class Reach:
    """The windows of neurons on the map that one step is given signals of."""

    number: int
    """Of the step."""
    spans: Spans
    """Along rows and columns, over the border, too."""
    size: Pair
    maps: int
    effort: float
    """Multiplications for each place of a window."""

    def overhang(self, axis: int, places: Int64[np.ndarray, "p"]) -> Int64[np.ndarray, "2 p"]:
        """How far the windows of these places hang over, before and after."""
        span = self.spans[axis]
        first = span.start + places * span.stride
        over: np.ndarray = np.stack((-first, first + span.size - self.size[axis]))
        return over.clip(min=0)

    def sides(self, axis: int, places: Int64[np.ndarray, "p"]) -> Int64[np.ndarray, "p p"]:
        """Lengths of windows that hold what is on the map from place i on to place j, both of
        `places`, which ascend."""
        before, after = self.overhang(axis, places)
        sides: np.ndarray = self.spans[axis].size - before[None, :] - after[:, None]
        return sides.clip(1, self.size[axis])

    def numbers(self, bounds: tuple[Pair, Pair]) -> int:
        """In a window that holds what is on the map of all places within bounds."""
        first, second = (int(self.sides(axis, np.array(bounds[axis]))[0, 1]) for axis in (0, 1))
        return self.maps * first * second


def reaches(steps: Sequence[Step], end: int, size: Pair) -> list[Reach]:
    """At every step, and at the pixels, of neurons where the first of these steps begins."""
    spans: dict[int, Spans] = {steps[0].number: (Affine(1, 1, 0), Affine(1, 1, 0))}
    sizes = {steps[0].number: UNBOUNDED}
    found = []
    for step in steps:
        here = spans[step.number]
        found.append(Reach(step.number, here, sizes[step.number], step.maps, step.effort))
        sent = (step.below(here[0], 0), step.below(here[1], 1))
        for target in step.targets:
            spans[target] = _hull(spans.get(target, sent), sent, step.size)
            sizes[target] = step.size
    return [*found, Reach(end, spans[end], size, 3, 0)]


def _hull(one: Spans, two: Spans, size: Pair) -> Spans:
    """Of windows that meet on a map. Where they have come by other strides it is all of it."""
    rows, columns = (Affine.union(pair) for pair in zip(one, two, strict=True))
    return rows or Affine(size[0], 0, 0), columns or Affine(size[1], 0, 0)


def alike(places: Int64[np.ndarray, "n 2"], known: Sequence[Reach]) -> list[Int64[np.ndarray, "m"]]:
    """Neurons by number, in groups of like places."""
    groups = []
    for rows in _split(places[:, 0], known, 0, 2 * EACH):
        groups += [rows[each] for each in _split(places[rows, 1], known, 1, EACH)]
    return groups


def _split(
    places: Int64[np.ndarray, "n"], known: Sequence[Reach], axis: int, each: float
) -> list[Int64[np.ndarray, "m"]]:
    """In groups of neighbours along one axis, such that the sum of what they cost is least."""
    there, counts = np.unique(places, return_counts=True)
    cost = _costs(there, known, axis)
    until = np.cumsum(counts)
    many = until[None, :] - (until - counts)[:, None]
    cost = cost * many + each * cost[0, -1]
    best, begin = np.zeros(len(there) + 1), np.zeros(len(there), int)
    for last in range(len(there)):
        choices = best[: last + 1] + cost[: last + 1, last]
        begin[last] = int(choices.argmin())
        best[last + 1] = choices[begin[last]]
    groups, last = [], len(there) - 1
    while last >= 0:
        inside = (places >= there[begin[last]]) & (places <= there[last])
        groups.append(np.flatnonzero(inside))
        last = int(begin[last]) - 1
    return groups


def _costs(
    there: Int64[np.ndarray, "p"], known: Sequence[Reach], axis: int
) -> Float[np.ndarray, "p p"]:
    """Of one window that holds what is on the map from place i on to place j."""
    total = np.zeros((len(there), len(there)))
    for reach in known:
        across = min(reach.spans[1 - axis].size, reach.size[1 - axis])
        total += reach.effort * across * reach.sides(axis, there)
    return total
