"""The graph of what a network computes, batch normalisation folded into convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from convscope.trace.folding import fold
from convscope.trace.nodes import Node, Result, convolution, same
from convscope.trace.recorder import PICTURE, Call, Recording


@dataclass
class Graph:
    """The nodes that scores and watched layers need, by their slots, in the order of the calls."""

    nodes: dict[int, Node]
    output: int
    layers: dict[str, int]

    @property
    def users(self) -> Counter[int]:
        """How often each value is taken, also by those who ask."""
        taken = Counter(slot for node in self.nodes.values() for slot in node.takes)
        return taken + Counter([self.output, *self.layers.values()])

    @property
    def mapped(self) -> dict[int, Node]:
        """The nodes whose values are kept as windows."""
        return {slot: node for slot, node in self.nodes.items() if node.mapped}

    def wholes(self) -> list[Node]:
        """Nodes that compute whole maps for others that do, too."""
        below = {s for node in self.nodes.values() if len(node.shape) > 2 for s in node.takes}
        return [
            node
            for slot, node in self.nodes.items()
            if node.kind == "whole" and slot in below and max(node.shape[-2:], default=1) > 1
        ]


def graph_of(recording: Recording) -> Graph:
    """What was recorded, ready to be run for windows."""
    nodes = {PICTURE: Node("picture", same, shape=recording.shapes[PICTURE])}
    alias: dict[int, int] = {}
    makers: dict[int, Call] = {}
    for call in recording.calls:
        mapped = all(nodes[alias.get(s, s)].mapped for s in call.takes)
        shapes = [recording.shapes[slot] for slot in call.takes]
        for part, slot in enumerate(call.gives):
            if slot is None:
                continue
            makers[slot] = call
            node = Result(call, part, shapes, recording.shapes[slot]).node(mapped)
            takes = tuple(alias.get(s, s) for s in node.takes)
            nodes[slot] = replace(node, takes=takes)
            if node.run is same:
                alias[slot] = takes[0]
    layers = {layer: alias.get(slot, slot) for layer, slot in recording.layers.items()}
    graph = Graph(nodes, alias.get(recording.output, recording.output), layers)
    _prune(graph)
    _fold(graph, makers)
    _prune(graph)
    return graph


def _prune(graph: Graph) -> None:
    """Leave out what nobody needs."""
    needed = {PICTURE, graph.output, *graph.layers.values()}
    for slot, node in reversed(graph.nodes.items()):
        if slot in needed:
            needed |= set(node.takes)
    graph.nodes = {slot: node for slot, node in graph.nodes.items() if slot in needed}


def _fold(graph: Graph, makers: Mapping[int, Call]) -> None:
    """Give batch normalisation that follows a convolution to that convolution's weights."""
    users = graph.users
    for slot, node in list(graph.nodes.items()):
        if node.name != "batch_norm" or len(node.takes) != 1:
            continue
        before = graph.nodes[node.takes[0]]
        if before.weight is None or users[node.takes[0]] != 1:
            continue
        norm = makers[slot]
        names = ("running_mean", "running_var", "weight", "bias")
        numbers = [norm.option(1 + place, name) for place, name in enumerate(names)]
        weight, bias = fold(before.weight, before.bias, numbers, norm.option(7, "eps", 1e-5))
        made = convolution(weight, bias, *before.how)
        graph.nodes[slot] = replace(
            before, run=made.run, bare=made.bare, weight=made.weight, bias=made.bias
        )


def plain_pass(
    graph: Graph,
    picture: Float[Tensor, "n c h w"],
    keep: Callable[[int, Tensor], None] = lambda *_: None,
) -> Tensor:
    """The network's output for whole pictures; `keep` is shown every value."""
    left = graph.users
    held: dict[int, Tensor] = {}
    for slot, node in graph.nodes.items():
        taken = [held[s] for s in node.takes]
        held[slot] = picture if slot == PICTURE else node.run(*taken)
        keep(slot, held[slot])
        for s in node.takes:
            left[s] -= 1
            if not left[s]:
                del held[s]
    return held[graph.output]
