"""Which windows of each feature map change with a patch, and in which portions to compute them.

Reckoned for rows and columns alone. A window that is larger than what changes is right as well:
what it holds beyond is computed again from what did not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import ceil, prod

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from convscope.lens.machine import LARGEST
from convscope.trace.graph import Graph
from convscope.trace.receptive_field import Window
from convscope.trace.recorder import PICTURE
from convscope.trace.winograd import tile

TEMPORARY = 3
"""Tensors as large as the largest that are there at once."""
GROUPS = 3
"""Most groups of positions along each axis."""
MOVED = 100.0
"""What a place of a window costs that is only moved about, in multiplications."""
CALL, READ = 12e6, 80.0
"""What making one more call and reading one more weight cost, in multiplications (measured)."""
USUAL = 4
"""Groups along the other axis, each of which is divided by one more along this one."""

Places = Int64[np.ndarray, "positions"]
Wanted = tuple[Places, int]
"""Along one axis: where the window of each position starts, and how long all of them are."""


@dataclass(frozen=True)
class Patches:
    """A rectangle at every combination of tops and lefts, one at a time."""

    tops: Sequence[int]
    lefts: Sequence[int]
    size: tuple[int, int]
    """Rows and columns of the rectangle; it lies inside the picture."""
    fill: Float[Tensor, "c r k"]
    """What the rectangle shows; of the picture's size: what is seen through it."""

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def windows(self, numbers: Sequence[int]) -> Float[Tensor, "n c r k"]:
        """What the rectangle shows at these positions, counted row after row."""
        rows, columns = self.size
        if self.fill.shape[1:] == self.size:
            return self.fill.expand(len(numbers), *self.fill.shape)
        parts = [
            self.fill[:, top : top + rows, left : left + columns]
            for top, left in map(self.corner, numbers)
        ]
        return torch.stack(parts)

    def paint(
        self, picture: Float[Tensor, "c h w"], numbers: Sequence[int]
    ) -> Float[Tensor, "n c h w"]:
        """The picture with the rectangle at each of these positions."""
        painted = picture.expand(len(numbers), *picture.shape).clone()
        rows, columns = self.size
        for one, window, number in zip(painted, self.windows(numbers), numbers, strict=True):
            top, left = self.corner(number)
            one[:, top : top + rows, left : left + columns] = window
        return painted

    def corner(self, number: int) -> tuple[int, int]:
        return self.tops[number // len(self.lefts)], self.lefts[number % len(self.lefts)]


@dataclass(frozen=True)
class Changed:
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


@dataclass(frozen=True, eq=False)
class Portion:
    """Positions that are computed together, by their numbers in a plan along both axes."""

    at: tuple[Places, Places]
    numbers: Places
    """Among all positions, row after row."""

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(eq=False)
class Plan:
    """Windows of one size for a group of positions."""

    graph: Graph
    axes: dict[int, tuple[Axis, Axis]]
    """Of each value that has rows and columns."""
    group: tuple[Places, Places]
    portions: list[Portion] = field(default_factory=list)
    tiles: dict[int, int] = field(default_factory=dict)
    """Sides of the tiles in which some convolutions are computed."""

    def __len__(self) -> int:
        return len(self.group[0]) * len(self.group[1])

    @cached_property
    def cut(self) -> set[int]:
        """The values that windows are cut out of."""
        nodes = self.graph.nodes
        return {
            source
            for taker, node in nodes.items()
            for source in node.takes
            if nodes[source].mapped and self.cuts(source, taker)
        }

    def size(self, slot: int) -> tuple[int, int]:
        down, across = self.axes[slot]
        return down.size, across.size

    def whole(self, slot: int) -> bool:
        return all(axis.whole for axis in self.axes[slot])

    def cuts(self, source: int, taker: int) -> bool:
        """Must windows be cut out of the source's map for this taker of it?"""
        node = self.graph.nodes[taker]
        if node.kind == "mean":
            return False
        if node.kind == "whole":
            return not self.whole(source)
        if node.kind == "slide" and self.whole(source) and self.whole(taker):
            return False
        both = zip(self.axes[source], self.axes[taker], strict=True)
        fits = all(one.fits(other) for one, other in both)
        return not (fits and (node.kind == "point" or node.in_place))

    def wanted(self, source: int, taker: int, at: tuple[Places, Places]) -> tuple[Wanted, Wanted]:
        """The windows of the source that this taker reads, for positions along both axes."""
        node = self.graph.nodes[taker]

        def along(axis: int) -> Wanted:
            if node.kind == "whole":
                return np.zeros(len(at[axis]), np.int64), self.axes[source][axis].extent
            one = self.axes[taker][axis]
            if node.windows is None:
                return one.at(at[axis]), one.size
            w, m = node.windows[axis], self.tiles.get(taker, 1)
            length = (-(-one.size // m) * m - 1) * w.stride + (w.kernel - 1) * w.dilation + 1
            return one.at(at[axis]) * w.stride - w.padding, length

        return along(0), along(1)

    def bytes(self, itemsize: int) -> tuple[int, int]:
        """Of the largest tensor of one position, and of all windows that are kept for others."""
        largest, kept = 1, 1
        nothing, nodes = np.zeros(1, np.int64), self.graph.nodes
        for slot, node in nodes.items():
            places = self.size(slot) if node.mapped else node.shape[-2:]
            own = prod(node.shape[1:-2]) * prod(places) * itemsize
            largest = max(largest, own)
            kept += own if slot in self.cut else 0
            for source in node.takes:
                if nodes[source].mapped and self.cuts(source, slot):
                    down, across = self.wanted(source, slot, (nothing, nothing))
                    channels = prod(nodes[source].shape[1:-2])
                    largest = max(largest, channels * down[1] * across[1] * itemsize)
        return largest, kept

    def divide(self, width: int, memory: float, itemsize: int) -> None:
        """Into portions. width: positions along a row; memory: bytes for all of a portion."""
        largest, kept = self.bytes(itemsize)
        most = max(1, int(min(LARGEST / largest, memory / (kept + TEMPORARY * largest))))
        rows, columns = self.group
        down, across = (part.ravel() for part in np.indices((len(rows), len(columns))))
        numbers = rows[down] * width + columns[across]
        self.portions = [
            Portion((down[part], across[part]), numbers[part])
            for part in np.array_split(np.arange(len(self)), ceil(len(self) / most))
        ]


def plans(graph: Graph, patches: Patches, memory: float, itemsize: int) -> list[Plan]:
    """The plans of all positions. memory: bytes for all windows of a portion together."""
    starts = (patches.tops, patches.lefts)
    changed = [_changed(graph, axis, starts[axis], patches.size[axis]) for axis in (0, 1)]
    both = _groups(graph, changed[0], changed[1]), _groups(graph, changed[1], changed[0])
    made = [Plan(graph, _axes(graph, changed, group), group) for group in product(*both)]
    for slot, node in graph.mapped.items():
        m, chosen = tile(node, [(*plan.size(slot), len(plan)) for plan in made])
        for plan, tiled in zip(made, chosen, strict=True):
            if tiled:
                plan.tiles[slot] = m
    for plan in made:
        plan.divide(len(patches.lefts), memory, itemsize)
    return made


def _changed(graph: Graph, axis: int, starts: Sequence[int], size: int) -> dict[int, Changed]:
    """axis: 0 for rows, 1 for columns. starts, size: of the patch along that axis."""
    changed: dict[int, Changed] = {}
    for slot, node in graph.mapped.items():
        if slot == PICTURE:
            low = np.array(starts, np.int64)
            changed[slot] = Changed(low, low + size)
        elif node.windows is not None:
            before = changed[node.takes[0]]
            changed[slot] = _reached(before, node.windows[axis], node.shape[axis - 2])
        else:
            taken = [changed[s] for s in node.takes]
            low = np.min([one.low for one in taken], axis=0)
            changed[slot] = Changed(low, np.max([one.high for one in taken], axis=0))
    return changed


def _reached(before: Changed, window: Window, extent: int) -> Changed:
    """The places of which some window reads what changed; at least one, where none does."""
    reach = (window.kernel - 1) * window.dilation
    low = -((reach - before.low - window.padding) // window.stride)
    high = (before.high - 1 + window.padding) // window.stride + 1
    low = np.clip(low, 0, extent - 1)
    return Changed(low, np.clip(high, low + 1, extent))


def _axes(
    graph: Graph, changed: Sequence[dict[int, Changed]], group: tuple[Places, Places]
) -> dict[int, tuple[Axis, Axis]]:
    """Windows of one size for all these positions; of a value that only one call takes, place by
    place, the same as that call's."""
    users, takers = graph.users, takers_of(graph)
    made: dict[int, tuple[Axis, Axis]] = {}
    for slot, node in reversed(graph.mapped.items()):
        above = takers[slot]
        if slot != PICTURE and users[slot] == len(above) == 1 and _is_point(graph, above[0]):
            made[slot] = made[above[0]]
        else:
            down, across = (_axis(changed[n][slot], node.shape[n - 2], group[n]) for n in (0, 1))
            made[slot] = (down, across)
    return made


def _is_point(graph: Graph, slot: int) -> bool:
    return graph.nodes[slot].kind == "point"


def _axis(changed: Changed, extent: int, positions: Places) -> Axis:
    size = int(changed.size[positions].max())
    return Axis(size, np.minimum(changed.low[positions], extent - size), extent)


def takers_of(graph: Graph) -> dict[int, list[int]]:
    """The nodes that take each value."""
    takers: dict[int, list[int]] = {slot: [] for slot in graph.nodes}
    for slot, node in graph.nodes.items():
        for source in node.takes:
            takers[source].append(slot)
    return takers


def _groups(graph: Graph, changed: dict[int, Changed], other: dict[int, Changed]) -> list[Places]:
    """Positions along an axis with windows of like sizes: those at a border, and those inside.

    other: along the other axis. Beginning with positions of equal sizes, those two groups are
    joined that cost least by it, in computing.
    """
    sizes = np.stack([one.size for one in changed.values()], axis=1)
    across = [int(other[slot].size.sum()) for slot in changed]
    work = np.array(
        [(MOVED + graph.nodes[s].work) * n for s, n in zip(changed, across, strict=True)]
    )
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
        if len(tops) <= GROUPS and cost[a, b] > least:
            break
        tops[a] = np.maximum(tops[a], tops[b])
        members[a] = np.concatenate([members[a], members[b]])
        tops = np.delete(tops, b, axis=0)
        del members[b]
    return [np.sort(group) for group in members]
