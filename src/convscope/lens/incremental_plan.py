"""In which portions are the positions of a patch computed, and which windows are cut out?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod

import numpy as np

from convscope.lens.incremental_patches import Patches
from convscope.lens.incremental_rows import Wanted
from convscope.lens.incremental_windows import Axes, Axis, Places, axes, groups, spans
from convscope.lens.incremental_winograd import tile
from convscope.trace.graph import Graph

LARGEST = 24e6
"""Bytes of the largest tensor of a portion: more, and the system hands out fresh pages each time
(measured: SqueezeNet 2.6 times slower)."""
TEMPORARY = 3
"""Tensors as large as the largest that are there at once."""
GROUPS = 3
"""Most groups of positions along each axis."""


@dataclass(frozen=True, eq=False)
class Portion:
    """Positions that are computed together, by their numbers in a plan along both axes."""

    down: Places
    across: Places
    numbers: Places
    """Among all positions, row after row."""

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(eq=False)
class Plan:
    """Windows of one size for a group of positions."""

    graph: Graph
    down: Axes
    across: Axes
    portions: list[Portion]
    tiles: dict[int, int] = field(default_factory=dict)
    """Sides of the tiles in which some convolutions are computed."""

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

    def axes(self, slot: int) -> tuple[Axis, Axis]:
        return self.down[slot], self.across[slot]

    def size(self, slot: int) -> tuple[int, int]:
        return self.down[slot].size, self.across[slot].size

    def whole(self, slot: int) -> bool:
        return self.down[slot].whole and self.across[slot].whole

    def cuts(self, source: int, taker: int) -> bool:
        """Must windows be cut out of the source's map for this taker of it?"""
        node = self.graph.nodes[taker]
        if node.kind == "mean":
            return False
        if node.kind == "whole":
            return not self.whole(source)
        if node.kind == "slide" and self.whole(source) and self.whole(taker):
            return False
        both = zip(self.axes(source), self.axes(taker), strict=True)
        fits = all(one.fits(other) for one, other in both)
        return not (fits and (node.kind == "point" or node.in_place))

    def wanted(self, source: int, taker: int, portion: Portion) -> tuple[Wanted, Wanted]:
        """The windows of the source that this taker reads."""
        node, found = self.graph.nodes[taker], []
        for axis, at in enumerate((portion.down, portion.across)):
            if node.kind == "whole":
                found.append((np.zeros(len(at), np.int64), self.axes(source)[axis].extent))
                continue
            one = self.axes(taker)[axis]
            if node.windows is None:
                found.append((one.at(at), one.size))
                continue
            w = node.windows[axis]
            places = -(-one.size // m) * m if (m := self.tiles.get(taker, 0)) else one.size
            length = (places - 1) * w.stride + (w.kernel - 1) * w.dilation + 1
            found.append((one.at(at) * w.stride - w.padding, length))
        return found[0], found[1]


def plans(graph: Graph, patches: Patches, memory: float, itemsize: int) -> list[Plan]:
    """The plans of all positions. memory: bytes for all windows of a portion together."""
    ends = (patches.tops, patches.lefts)
    found = [spans(graph, axis, ends[axis], patches.size[axis]) for axis in (0, 1)]
    parts = [groups(graph, found[axis], found[1 - axis], GROUPS) for axis in (0, 1)]
    made = []
    for rows in parts[0]:
        down = axes(graph, 0, found[0], rows)
        for columns in parts[1]:
            plan = Plan(graph, down, axes(graph, 1, found[1], columns), [])
            made.append((plan, rows, columns))
    for slot, node in graph.mapped.items():
        windows = [(*plan.size(slot), len(rows) * len(columns)) for plan, rows, columns in made]
        m, chosen = tile(node, windows)
        for (plan, *_), tiled in zip(made, chosen, strict=True):
            if tiled:
                plan.tiles[slot] = m
    for plan, rows, columns in made:
        largest, kept = sizes_of(plan, itemsize)
        most = max(1, int(min(LARGEST / largest, memory / (kept + TEMPORARY * largest))))
        plan.portions = list(_portions(rows, columns, len(patches.lefts), most))
    return [plan for plan, *_ in made]


def _portions(rows: Places, columns: Places, width: int, most: int) -> Iterator[Portion]:
    down, across = (part.ravel() for part in np.indices((len(rows), len(columns))))
    numbers = rows[down] * width + columns[across]
    count = ceil(len(numbers) / most)
    for part in np.array_split(np.arange(len(numbers)), count):
        yield Portion(down[part], across[part], numbers[part])


def sizes_of(plan: Plan, itemsize: int) -> tuple[int, int]:
    """Bytes of the largest tensor of one position, and of all windows that are kept for others."""
    largest, kept = 1, 1
    nothing = np.zeros(1, np.int64)
    first = Portion(nothing, nothing, nothing)
    for slot, node in plan.graph.nodes.items():
        places = plan.size(slot) if node.mapped else node.shape[-2:]
        own = prod(node.shape[1:-2]) * prod(places) * itemsize
        largest = max(largest, own)
        kept += own if slot in plan.cut else 0
        for source in node.takes:
            if plan.graph.nodes[source].mapped and plan.cuts(source, slot):
                down, across = plan.wanted(source, slot, first)
                channels = prod(plan.graph.nodes[source].shape[1:-2])
                largest = max(largest, channels * down[1] * across[1] * itemsize)
    return largest, kept
