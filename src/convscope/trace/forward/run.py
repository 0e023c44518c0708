"""All positions of a patch through a network: only the window that changes is computed.

Maps lie in memory place after place, all channels of a place together. A map's rows are

    one row for what lies outside | the map without any patch | the window of each position

and a window, wherever it lies, is a list of row numbers.

The picture without any patch is run once. Then, for a portion of the positions at a time, each
node computes only the window that the patch can change; its surroundings are that first run's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from convscope.trace.forward.plan import (
    TEMPORARY,
    Axis,
    Patches,
    Places,
    Plan,
    Portion,
    Wanted,
    plans,
    takers_of,
)
from convscope.trace.graph import Graph, Node, plain_pass
from convscope.trace.recorder import PICTURE
from convscope.trace.winograd import Tiled

NOWHERE = -(2**29)
"""A row number so small that adding any other leaves it below 0."""


class Rows:
    """One map's rows."""

    def __init__(self, room: int) -> None:
        """room: rows of windows at once."""
        self._room = room
        self._first = 0
        self._rows = torch.empty(0)

    def begin(self, base: Float[Tensor, "1 c h w"]) -> None:
        """Take in the map of another picture, without any patch."""
        _, channels, height, width = base.shape
        self._first = 1 + height * width
        shape = (self._first + self._room, channels)
        if self._rows.shape != shape or self._rows.dtype != base.dtype:
            self._rows = base.new_empty(shape)
        place = self._rows[1 : self._first].view(1, height, width, channels)
        place.permute(0, 3, 1, 2).copy_(base)

    def fresh(self, count: int, rows: int, columns: int) -> Float[Tensor, "n c r k"]:
        """The place for the windows of `count` positions, to be written."""
        part = self._rows[self._first : self._first + count * rows * columns]
        return part.view(count, rows, columns, -1).permute(0, 3, 1, 2)

    def cut(self, index: Int[Tensor, "n r k"], outside: float) -> Float[Tensor, "n c r k"]:
        """The windows of these rows. outside: what lies there."""
        self._rows[0].fill_(outside)
        count, rows, columns = index.shape
        windows = self._rows.index_select(0, index.view(-1))
        return windows.view(count, rows, columns, -1).permute(0, 3, 1, 2)


def row_numbers(
    axes: tuple[Axis, Axis], at: tuple[Places, Places], wanted: tuple[Wanted, Wanted]
) -> Int[Tensor, "n r k"]:
    """Rows of the windows `wanted` of a map whose own windows are `axes`.

    at: of each position, its number along both axes.
    """
    down, across = axes
    tall, wide = down.size * across.size, across.size
    count = np.arange(len(at[0]))
    first = 1 + down.extent * across.extent
    base_y, own_y = _numbers(down, at[0], wanted[0], across.extent, wide)
    base_x, own_x = _numbers(across, at[1], wanted[1], 1, 1)
    own_y += (first + count * tall)[:, None]
    base_y += 1
    # Rows of windows come after those of the map, so the larger number is the one that counts.
    base = _table(base_y)[:, :, None] + _table(base_x)[:, None]
    own = _table(own_y)[:, :, None] + _table(own_x)[:, None]
    return torch.maximum(base, own, out=base).clamp_(min=0)


def _numbers(
    axis: Axis, at: Places, wanted: Wanted, step: int, own_step: int
) -> tuple[np.ndarray, np.ndarray]:
    starts, length = wanted
    place = starts[:, None] + np.arange(length)
    inside = (place >= 0) & (place < axis.extent)
    own = place - axis.at(at)[:, None]
    new = (own >= 0) & (own < axis.size)
    return np.where(inside, place * step, NOWHERE), np.where(new, own * own_step, NOWHERE)


def _table(numbers: np.ndarray) -> Tensor:
    return torch.from_numpy(np.maximum(numbers, NOWHERE).astype(np.int32))


class Sums:
    """The sums of a map's windows without any patch, in float64: differences of large numbers."""

    def __init__(self, base: Float[Tensor, "1 c h w"]) -> None:
        table = base[0].double().cumsum(1).cumsum(2)
        self._table = F.pad(table, (1, 0, 1, 0)).permute(1, 2, 0).contiguous()

    def with_windows(
        self, fresh: Float[Tensor, "n c r k"], axes: tuple[Axis, Axis], at: tuple[Places, Places]
    ) -> Float[Tensor, "n c"]:
        """Sums over the whole map with each of these windows in its place."""
        device = fresh.device
        top, left = (
            torch.from_numpy(axis.at(a)).to(device) for axis, a in zip(axes, at, strict=True)
        )
        bottom, right = top + axes[0].size, left + axes[1].size
        t = self._table
        old = t[bottom, right] - t[top, right] - t[bottom, left] + t[top, left]
        return t[-1, -1] - old + fresh.sum((2, 3)).double()


INDICES = 64e6
"""Bytes of row numbers that are kept for the next picture."""
TOGETHER = 64e6
"""Bytes of vectors that are gathered before the head is run."""
Progress = Callable[[int, int], None] | None


@dataclass(frozen=True)
class Answers:
    """What a network says to several versions of a picture."""

    scores: Float[Tensor, "n classes"]
    activity: Mapping[str, Float[Tensor, "n ..."]]
    """Sum of the positive part: of each map of each watched layer in the picture as it is, of
    the one map that is followed with the patch at each position."""


@dataclass(frozen=True)
class Known:
    """What the picture without any patch makes, where somebody has run it before."""

    scores: Float[Tensor, "1 classes"]
    values: Mapping[int, Tensor]
    """Of all wanted slots."""


class Windowed:
    """All positions of a patch by way of windows, for one picture after the other."""

    def __init__(self, graph: Graph, patches: Patches, like: Tensor, memory: float) -> None:
        self.graph, self.patches = graph, patches
        self.plans = plans(graph, patches, memory, like.element_size())
        sizes = [plan.bytes(like.element_size()) for plan in self.plans]
        self.needs = max(kept + TEMPORARY * largest for largest, kept in sizes)
        """Bytes for one position."""
        self._head, self._device = Head(graph), like.device
        self._summed = {n.takes[0] for n in graph.nodes.values() if n.kind == "mean"}
        rooms: dict[int, int] = {}
        for plan in self.plans:
            most = max(len(portion) for portion in plan.portions)
            for slot in plan.cut:
                rooms[slot] = max(rooms.get(slot, 0), most * prod(plan.size(slot)))
        self.rows = {slot: Rows(room) for slot, room in rooms.items()}
        tiled = {slot: m for plan in self.plans for slot, m in plan.tiles.items()}
        self.tiled = {slot: Tiled(graph.nodes[slot], m) for slot, m in tiled.items()}
        self.sums: dict[int, Sums] = {}
        self._watched: dict[int, Tensor] = {}
        self._indices: dict[tuple[Portion, int, int], Tensor] = {}
        self._kept = 0.0

    @property
    def wanted(self) -> set[int]:
        """The slots whose values for the picture without any patch are needed."""
        return {*self.rows, *self._summed, *self.graph.layers.values()}

    def begin(
        self, picture: Float[Tensor, "1 c h w"], patches: Patches, known: Known | None = None
    ) -> Answers:
        """Run the picture without any patch, unless what it makes is known."""
        self.patches = patches

        def keep(slot: int, value: Tensor) -> None:
            if slot in self.rows:
                self.rows[slot].begin(_maps(value))
            if slot in self._summed:
                self.sums[slot] = Sums(value)
            if slot in self.graph.layers.values():
                self._watched[slot] = value.relu()

        if known is None:
            scores = plain_pass(self.graph, picture, keep)
        else:
            scores = known.scores
            for slot in self.wanted:
                keep(slot, known.values[slot])
        layers = self.graph.layers.items()
        return Answers(scores, {name: self._watched[slot].sum((2, 3)) for name, slot in layers})

    def follow(self, maps: Mapping[str, int], progress: Progress = None) -> Answers:
        """All positions. maps: the map of each watched layer whose activity is wanted."""
        total = len(self.patches)
        self._head.begin(total)
        watches = {
            slot: Watch(self._watched[slot], maps[layer], total)
            for layer, slot in self.graph.layers.items()
        }
        done = 0
        for plan in self.plans:
            for portion in plan.portions:
                _Pass(self, plan, portion).run(self._head, watches)
                done += len(portion)
                if progress is not None:
                    progress(done, total)
        activity = {layer: watches[slot].sums for layer, slot in self.graph.layers.items()}
        return Answers(self._head.scores(), activity)

    def unchanged(self, picture: Float[Tensor, "c h w"]) -> Float[Tensor, "1 classes"]:
        """The scores by way of windows, of the picture seen through the patch at one position."""
        plan = min(self.plans, key=lambda p: sum(prod(p.size(slot)) for slot in p.axes))
        first = plan.portions[0]
        one = Portion((first.at[0][:1], first.at[1][:1]), first.numbers[:1])
        patches, self.patches = self.patches, replace(self.patches, fill=picture)
        self._head.begin(len(patches))
        _Pass(self, plan, one).run(self._head, {})
        self.patches = patches
        return self._head.scores()[one.numbers]

    def index(self, plan: Plan, portion: Portion, source: int, taker: int) -> Int[Tensor, "n ..."]:
        """Which rows of the source the taker's windows, or their tiles, are made of."""
        key = (portion, source, taker)
        if key in self._indices:
            return self._indices[key]
        wanted = plan.wanted(source, taker, portion.at)
        index = row_numbers(plan.axes[source], portion.at, wanted).to(self._device)
        if taker in plan.tiles:
            index = self.tiled[taker].numbers(index)
        if self._kept < INDICES:
            self._indices[key] = index
            self._kept += index.numel() * index.element_size()
        return index


class Watch:
    """The activity of one map of a watched layer."""

    def __init__(self, base: Float[Tensor, "1 c h w"], channel: int, count: int) -> None:
        self._map = slice(channel, channel + 1)
        self._base = Sums(base[:, self._map])
        self.sums = base.new_empty(count)

    def see(self, value: Float[Tensor, "n c r k"], plan: Plan, slot: int, portion: Portion) -> None:
        active = value[:, self._map].relu()
        if slot not in plan.axes or plan.whole(slot):
            sums = active.sum((1, 2, 3))
        else:
            sums = self._base.with_windows(active, plan.axes[slot], portion.at)[:, 0]
        self.sums[torch.from_numpy(portion.numbers)] = sums.to(self.sums.dtype)


class _Pass:
    """One portion of the positions on its way through the network."""

    def __init__(self, of: Windowed, plan: Plan, portion: Portion) -> None:
        self.of, self.plan, self.portion = of, plan, portion
        self.nodes = of.graph.nodes
        self.held: dict[int, Tensor] = {}
        self.left = of.graph.users

    def run(self, head: Head, watches: Mapping[int, Watch]) -> None:
        for slot, node in self.nodes.items():
            if slot in head.nodes:
                continue
            value = self.held[slot] = self._value(slot, node)
            if slot in watches:
                watches[slot].see(value, self.plan, slot, self.portion)
            for source in node.takes:
                self.left[source] -= 1
                if not self.left[source]:
                    del self.held[source]
        values = [
            self.held[source] if source == taker else self._taken(source, taker)
            for source, taker in head.takes.items()
        ]
        head.give(torch.from_numpy(self.portion.numbers), values)

    def _value(self, slot: int, node: Node) -> Tensor:
        """The node's windows; where they will be cut from, if somebody will."""
        place = None
        if slot in self.plan.cut:
            place = self.of.rows[slot].fresh(len(self.portion), *self.plan.size(slot))
        if slot == PICTURE:
            value = self.of.patches.windows(self.portion.numbers.tolist())
        elif node.kind == "slide":
            value = self._slide(slot, node)
        elif node.kind == "mean":
            value = self._mean(node)
        else:
            taken = [self._taken(source, slot) for source in node.takes]
            if place is not None and node.into is not None:
                node.into(*taken, out=place)
                return place
            mine = node.run is torch.relu and self._mine(node.takes[0])
            value = taken[0].relu_() if mine else node.run(*taken)
        if place is None:
            return value
        place.copy_(_maps(value))
        return place.view(value.shape) if value.dim() != 4 else place

    def _mine(self, source: int) -> bool:
        """May a value be overwritten: made by a convolution, and wanted by nobody else?"""
        made = self.nodes[source].weight is not None
        return made and self.left[source] == 1 and source not in self.plan.cut

    def _taken(self, source: int, taker: int) -> Tensor:
        node = self.nodes[source]
        if not node.mapped or not self.plan.cuts(source, taker):
            return self.held[source]
        index = self.of.index(self.plan, self.portion, source, taker)
        cut = self.of.rows[source].cut(index, self.nodes[taker].outside)
        return cut if len(node.shape) == 4 else cut.reshape(-1, *node.shape[1:-2], *cut.shape[2:])

    def _slide(self, slot: int, node: Node) -> Tensor:
        source = node.takes[0]
        cut, size = self.plan.cuts(source, slot), self.plan.size(slot)
        if cut and slot in self.plan.tiles:
            index = self.of.index(self.plan, self.portion, source, slot)
            return self.of.tiled[slot].picked(self.of.rows[source].cut, index, size)
        x = self._taken(source, slot)
        if slot in self.plan.tiles:
            down, across = (window.padding for window in node.windows or ())
            return self.of.tiled[slot](x, (down, across), size)
        if not cut and not node.in_place:
            return node.run(x)
        assert node.bare is not None
        value = node.bare(x)
        for n, share in enumerate(node.share or ()):
            axis = self.plan.axes[slot][n]
            starts = torch.from_numpy(axis.at(self.portion.at[n]))
            each = share[starts[:, None] + torch.arange(axis.size)].to(value)
            value *= each[:, None, :, None] if n == 0 else each[:, None, None]
        return value

    def _mean(self, node: Node) -> Tensor:
        source = node.takes[0]
        value = self.held[source]
        if self.plan.whole(source):
            return node.run(value)
        sums = self.of.sums[source].with_windows(value, self.plan.axes[source], self.portion.at)
        means = (sums / prod(self.nodes[source].shape[-2:])).to(value.dtype)
        return means.view(len(value), *node.shape[1:])


class Head:
    """The layers at the end that see one vector for each picture: run once for many positions.

    Their weights are many, and reading them takes longer than computing with them.
    """

    def __init__(self, graph: Graph) -> None:
        takers, watched = takers_of(graph), set(graph.layers.values())
        self.nodes: set[int] = set()
        for slot, node in reversed(graph.nodes.items()):
            vector = node.kind == "whole" and len(node.shape) == 2 and slot not in watched
            if vector and self.nodes.issuperset(takers[slot]):
                self.nodes.add(slot)
        self.takes = {
            source: slot
            for slot in self.nodes
            for source in graph.nodes[slot].takes
            if source not in self.nodes
        } or {graph.output: graph.output}
        """What the head takes, and one that takes it."""
        self._graph = graph
        self._waiting: list[tuple[Tensor, Sequence[Tensor]]] = []
        self._bytes = 0.0

    def begin(self, count: int) -> None:
        """Expect this many positions."""
        self._scores: Tensor | None = None
        self._count = count

    def give(self, numbers: Int[Tensor, "n"], values: Sequence[Tensor]) -> None:
        """What the head takes of these positions, in the order of `takes`."""
        self._waiting.append((numbers, values))
        self._bytes += sum(value.numel() * value.element_size() for value in values)
        if self._bytes > TOGETHER:
            self._run()

    def scores(self) -> Float[Tensor, "positions classes"]:
        self._run()
        assert self._scores is not None
        return self._scores

    def _run(self) -> None:
        if not self._waiting:
            return
        numbers, values = zip(*self._waiting, strict=True)
        held = {
            slot: torch.cat(parts)
            for slot, parts in zip(self.takes, zip(*values, strict=True), strict=True)
        }
        self._waiting, self._bytes = [], 0.0
        for slot, node in self._graph.nodes.items():
            if slot in self.nodes:
                held[slot] = node.run(*(held[s] for s in node.takes))
        scores = held[self._graph.output]
        if self._scores is None:
            self._scores = scores.new_empty((self._count, scores.shape[1]))
        self._scores[torch.cat(numbers)] = scores


def _maps(value: Tensor) -> Float[Tensor, "n c r k"]:
    return value if value.dim() == 4 else value.reshape(len(value), -1, *value.shape[-2:])
