"""Which rows (or columns) of each value change if some rows of the picture do?

Reckoned for each axis alone. A window that is larger than what changes is right as well: what it
holds beyond is computed again from what did not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from convscope.trace.graph import Graph
from convscope.trace.recorder import PICTURE
from convscope.trace.windows import Window

Places = Int64[np.ndarray, "positions"]


@dataclass(frozen=True)
class Span:
    """What changes along one axis, first and one past the last, for each position of the patch."""

    low: Places
    high: Places

    @property
    def size(self) -> Places:
        size: Places = self.high - self.low
        return size


@dataclass(frozen=True, eq=False)
class Axis:
    """Windows of one size along one axis, one for each position of the patch."""

    size: int
    starts: Places
    extent: int
    """Of the whole map."""

    @property
    def whole(self) -> bool:
        return self.size == self.extent

    def at(self, positions: Places) -> Places:
        return np.take(self.starts, positions)

    def fits(self, other: Axis) -> bool:
        return self.size == other.size and np.array_equal(self.starts, other.starts)


Spans = dict[int, Span]
Axes = dict[int, Axis]


def spans(graph: Graph, axis: int, starts: Sequence[int], size: int) -> Spans:
    """axis: 0 for rows, 1 for columns. starts, size: of the patch along that axis."""
    found: Spans = {}
    for slot, node in graph.mapped.items():
        extent = node.shape[axis - 2]
        if slot == PICTURE:
            low = np.array(starts, np.int64)
            found[slot] = Span(low, low + size)
        elif node.windows is not None:
            found[slot] = _seen(found[node.takes[0]], node.windows[axis], extent)
        else:
            taken = [found[s] for s in node.takes]
            low = np.min([span.low for span in taken], axis=0)
            found[slot] = Span(low, np.max([span.high for span in taken], axis=0))
    return found


def _seen(span: Span, window: Window, extent: int) -> Span:
    """The places of which some window reads the span; at least one, where none does."""
    reach = (window.kernel - 1) * window.dilation
    low = -((reach - span.low - window.padding) // window.stride)
    high = (span.high - 1 + window.padding) // window.stride + 1
    low = np.clip(low, 0, extent - 1)
    return Span(low, np.clip(high, low + 1, extent))


def axes(graph: Graph, axis: int, found: Spans, positions: Places) -> Axes:
    """Windows of one size for all these positions, for each value."""
    users = graph.users
    made: Axes = {}
    takers: dict[int, list[int]] = {}
    for slot, node in graph.mapped.items():
        for s in node.takes:
            takers.setdefault(s, []).append(slot)
    for slot, node in reversed(graph.mapped.items()):
        above = takers.get(slot, [])
        only = users[slot] == 1 and len(above) == 1 and graph.nodes[above[0]].kind == "point"
        if only and slot != PICTURE:
            made[slot] = made[above[0]]
        else:
            made[slot] = _axis(found[slot], node.shape[axis - 2], positions)
    return made


def _axis(span: Span, extent: int, positions: Places) -> Axis:
    size = int(span.size[positions].max())
    starts = np.minimum(span.low[positions], extent - size)
    return Axis(size, starts, extent)


def groups(graph: Graph, found: Spans, other: Spans, most: int) -> list[Places]:
    """Positions with windows of like sizes: those at a border, and those inside.

    other: along the other axis. most: number of groups. Beginning with positions of equal sizes,
    those two groups are joined that cost least by it, in computing.
    """
    slots = list(found)
    sizes = np.stack([found[slot].size for slot in slots], axis=1)
    across = [int(other[slot].size.sum()) for slot in slots]
    work = np.array([(MOVED + graph.nodes[s].work) * n for s, n in zip(slots, across, strict=True)])
    tops, which = np.unique(sizes, axis=0, return_inverse=True)
    members = [np.flatnonzero(which.ravel() == kind) for kind in range(len(tops))]
    weights = [node.weight for node in graph.mapped.values() if node.weight is not None]
    read = sum(weight.numel() for weight in weights)
    least = USUAL * (CALL * len(graph.nodes) + READ * read)
    while len(tops) > 1:
        counts = np.array([len(group) for group in members])
        alone = counts * (tops @ work)
        both = np.maximum(tops[:, None], tops[None]) @ work * (counts[:, None] + counts)
        cost = both - alone[:, None] - alone + np.diag(np.full(len(tops), np.inf))
        a, b = sorted(int(i) for i in np.unravel_index(int(cost.argmin()), cost.shape))
        if len(tops) <= most and cost[a, b] > least:
            break
        tops[a] = np.maximum(tops[a], tops[b])
        members[a] = np.concatenate([members[a], members[b]])
        tops = np.delete(tops, b, axis=0)
        del members[b]
    return [np.sort(group) for group in members]


MOVED = 100.0
"""What a place of a window costs that is only moved about, in multiplications."""
CALL, READ = 12e6, 80.0
"""What making one more call and reading one more weight cost, in multiplications (measured)."""
USUAL = 4
"""Groups along the other axis, each of which is divided by one more along this one."""
