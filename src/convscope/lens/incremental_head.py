"""What of a network is best done once for all positions, after their maps are known?

The layers at the end that see one vector for each picture: their weights are many, and reading
them takes longer than computing with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convscope.trace.graph import Graph

TOGETHER = 64e6
"""Bytes of vectors that are gathered before the head is run."""


class Head:
    """The end of a graph, and what it is waiting for."""

    def __init__(self, graph: Graph) -> None:
        users: dict[int, list[int]] = {slot: [] for slot in graph.nodes}
        for slot, node in graph.nodes.items():
            for source in node.takes:
                users[source].append(slot)
        self.nodes: set[int] = set()
        watched = set(graph.layers.values())
        for slot, node in reversed(graph.nodes.items()):
            vector = node.kind == "whole" and len(node.shape) == 2 and slot not in watched
            if vector and all(user in self.nodes for user in users[slot]):
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
        found = held[self._graph.output]
        if self._scores is None:
            self._scores = found.new_empty((self._count, found.shape[1]))
        self._scores[torch.cat(numbers)] = found
