"""What does a network say to a picture with a patch, at each of many positions?

The picture without any patch is run once. Then, for a portion of the positions at a time, each
node computes only the window that the patch can change; its surroundings are that first run's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.lens.incremental_head import Head
from convscope.lens.incremental_patches import Patches
from convscope.lens.incremental_plan import TEMPORARY, Plan, Portion, plans, sizes_of
from convscope.lens.incremental_rows import Rows, row_numbers
from convscope.lens.incremental_sums import Sums
from convscope.lens.incremental_winograd import Take, Tiled, Tiling
from convscope.trace.graph import Graph, plain_pass
from convscope.trace.nodes import Node
from convscope.trace.recorder import PICTURE

INDICES = 64e6
"""Bytes of row numbers that are kept for the next picture."""
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


class Run:
    """All positions of a patch, for one picture after the other."""

    def __init__(self, graph: Graph, patches: Patches, like: Tensor, memory: float) -> None:
        self.graph, self.patches = graph, patches
        self.plans = plans(graph, patches, memory, like.element_size())
        sizes = [sizes_of(plan, like.element_size()) for plan in self.plans]
        self.needs = max(kept + TEMPORARY * largest for largest, kept in sizes)
        """Bytes for one position."""
        self._head, self._device = Head(graph), like.device
        self._summed = {n.takes[0] for n in graph.nodes.values() if n.kind == "mean"}
        self._rows: dict[int, Rows] = {}
        rooms: dict[int, int] = {}
        for plan in self.plans:
            most = max(len(portion) for portion in plan.portions)
            for slot in plan.cut:
                rows, columns = plan.size(slot)
                rooms[slot] = max(rooms.get(slot, 0), most * rows * columns)
        self._rows = {slot: Rows(room) for slot, room in rooms.items()}
        tiled = {slot: m for plan in self.plans for slot, m in plan.tiles.items()}
        self.tiled = {slot: Tiled(graph.nodes[slot], m) for slot, m in tiled.items()}
        self._sums: dict[int, Sums] = {}
        self._watched: dict[int, Tensor] = {}
        self._indices: dict[tuple[int, int, int], Tensor] = {}
        self._kept = 0.0
        self._probes: list[Portion] = []

    @property
    def wanted(self) -> set[int]:
        """The slots whose values for the picture without any patch are needed."""
        return {*self._rows, *self._summed, *self.graph.layers.values()}

    def begin(
        self, picture: Float[Tensor, "1 c h w"], patches: Patches, known: Known | None = None
    ) -> Answers:
        """Run the picture without any patch, unless what it makes is known."""
        self.patches = patches

        def keep(slot: int, value: Tensor) -> None:
            if slot in self._rows:
                self._rows[slot].begin(_maps(value))
            if slot in self._summed:
                self._sums[slot] = Sums(value)
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
                _Pass(self, plan, portion, watches).run(self._head)
                done += len(portion)
                if progress is not None:
                    progress(done, total)
        activity = {layer: watches[slot].found for layer, slot in self.graph.layers.items()}
        return Answers(self._head.scores(), activity)

    def unchanged(self, picture: Float[Tensor, "c h w"]) -> Float[Tensor, "1 classes"]:
        """The scores by way of windows, of the picture seen through the patch at one position."""
        work = {
            plan: sum(prod(plan.size(slot)) for slot in plan.graph.mapped) for plan in self.plans
        }
        plan = min(self.plans, key=work.__getitem__)
        first = plan.portions[0]
        one = Portion(first.down[:1], first.across[:1], first.numbers[:1])
        self._probes.append(one)  # indices are kept by the ids of portions
        patches, self.patches = self.patches, replace(self.patches, fill=picture)
        self._head.begin(len(patches))
        _Pass(self, plan, one, {}).run(self._head)
        self.patches = patches
        return self._head.scores()[one.numbers]

    def index(
        self, plan: Plan, portion: Portion, source: int, taker: int, tiles: Tiling | None = None
    ) -> Tensor:
        """Which rows of the source the taker's windows, or their tiles, are made of."""
        key = (id(portion), source, taker)
        if key in self._indices:
            return self._indices[key]
        wanted = plan.wanted(source, taker, portion)
        at = (portion.down, portion.across)
        index = row_numbers(*plan.axes(source), at, wanted).to(self._device)
        index = tiles.picked(index) if tiles else index
        if self._kept < INDICES:
            self._indices[key] = index
            self._kept += index.numel() * index.element_size()
        return index


class Watch:
    """The activity of one map of a watched layer."""

    def __init__(self, base: Float[Tensor, "1 c h w"], channel: int, count: int) -> None:
        self._map = slice(channel, channel + 1)
        self._sums = Sums(base[:, self._map])
        self.found = base.new_empty(count)

    def see(self, value: Float[Tensor, "n c r k"], plan: Plan, slot: int, portion: Portion) -> None:
        active = value[:, self._map].relu()
        if not plan.graph.nodes[slot].mapped or plan.whole(slot):
            found = active.sum((1, 2, 3))
        else:
            at = (portion.down, portion.across)
            found = self._sums.with_windows(active, plan.axes(slot), at)[:, 0]
        self.found[torch.from_numpy(portion.numbers)] = found.to(self.found.dtype)


class _Pass:
    """One portion of the positions on its way through the network."""

    def __init__(self, run: Run, plan: Plan, portion: Portion, watches: dict[int, Watch]) -> None:
        self.of, self.plan, self.portion, self.watches = run, plan, portion, watches
        self.held: dict[int, Tensor] = {}
        self.left = run.graph.users

    def run(self, head: Head) -> None:
        for slot, node in self.of.graph.nodes.items():
            if slot in head.nodes:
                continue
            value = self.held[slot] = self._value(slot, node)
            if slot in self.watches:
                self.watches[slot].see(value, self.plan, slot, self.portion)
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
            place = self.of._rows[slot].fresh(len(self.portion), *self.plan.size(slot))
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
        made = self.of.graph.nodes[source]
        return made.weight is not None and self.left[source] == 1 and source not in self.plan.cut

    def _taken(self, source: int, taker: int) -> Tensor:
        node = self.of.graph.nodes[source]
        if not node.mapped or not self.plan.cuts(source, taker):
            return self.held[source]
        index = self.of.index(self.plan, self.portion, source, taker)
        cut = self.of._rows[source].cut(index, self.of.graph.nodes[taker].outside)
        return (
            cut
            if len(node.shape) == 4
            else cut.reshape(len(index), *node.shape[1:-2], *index.shape[1:])
        )

    def _slide(self, slot: int, node: Node) -> Tensor:
        source = node.takes[0]
        cut = self.plan.cuts(source, slot)
        if m := self.plan.tiles.get(slot):
            tiles = Tiling(m, len(self.portion), *self.plan.size(slot))
            return self.of.tiled[slot](self._tiles(source, slot, tiles), tiles)
        x = self._taken(source, slot)
        if not cut and not node.in_place:
            return node.run(x)
        assert node.bare is not None
        value = node.bare(x)
        if node.share is not None:
            for axis, at in enumerate((self.portion.down, self.portion.across)):
                one = self.plan.axes(slot)[axis]
                places = torch.from_numpy(one.at(at))[:, None] + torch.arange(one.size)
                share = node.share[axis][places].to(value)
                value *= share[:, None, :, None] if axis == 0 else share[:, None, None]
        return value

    def _tiles(self, source: int, taker: int, tiles: Tiling) -> Take:
        node = self.of.graph.nodes[taker]
        assert node.windows is not None
        if not self.plan.cuts(source, taker):
            down, across = node.windows
            return tiles.of(self.held[source], (down.padding, across.padding))
        index = self.of.index(self.plan, self.portion, source, taker, tiles)
        return lambda part: self.of._rows[source].picked(index[part], tiles.m + 2)

    def _mean(self, node: Node) -> Tensor:
        source = node.takes[0]
        value = self.held[source]
        if self.plan.whole(source):
            return node.run(value)
        at = (self.portion.down, self.portion.across)
        sums = self.of._sums[source].with_windows(value, self.plan.axes(source), at)
        rows, columns = self.of.graph.nodes[source].shape[-2:]
        means = (sums / (rows * columns)).to(value.dtype)
        return means.view(len(value), *node.shape[1:])


def _maps(value: Tensor) -> Float[Tensor, "n c r k"]:
    return value if value.dim() == 4 else value.reshape(len(value), -1, *value.shape[-2:])
