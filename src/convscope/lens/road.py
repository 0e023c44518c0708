"""Which steps lead from a network's layers down to its pixels?

Read off the graph of a pass up. Two passes that take the same steps share one road; what differs
between their pictures is read apart. A graph with a step that is not known here has no road.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from convscope.lens.coverage import below, on_the_way
from convscope.lens.downward import BRANCHING, STEPS, Step
from convscope.lens.pools import LastWins
from convscope.lens.rectify import PassedBy, Rectify
from convscope.lens.signal import Pair


class Road:
    """The steps below some layers, highest first."""

    def __init__(self, maps: Mapping[str, Tensor], pixels: Float[Tensor, "b 3 h w"]) -> None:
        end = torch.autograd.graph.get_gradient_edge(pixels).node
        roots = [each.grad_fn for each in maps.values() if each.grad_fn is not None]
        order = below(roots)
        way = on_the_way(order, {end})
        self._nodes = [node for node in reversed(order) if node in way and node is not end]
        numbers = {node: number for number, node in enumerate(self._nodes)}
        numbers[end] = len(self._nodes)
        self.end = len(self._nodes)
        """The number of the pixels, where a step would have one."""
        self.size: Pair = _size(end)
        self.steps = [_step(node, numbers) for node in self._nodes]
        self.layers = {
            layer: numbers[each.grad_fn] for layer, each in maps.items() if each.grad_fn in numbers
        }
        """The number of each layer's first step."""

    def below(self, start: int) -> list[Step] | None:
        """The steps from one on, in order; None if one of them is not known."""
        reached = {start}
        found = []
        for number, step in enumerate(self.steps):
            if number in reached:
                if step is None:
                    return None
                found.append(step)
                reached.update(step.targets)
        return found or None

    def same(self) -> tuple[object, ...]:
        """Two passes of which this is equal take the same steps."""
        steps = (None if step is None else step.same() for step in self.steps)
        return (self.size, tuple(self.layers.items()), *steps)

    def kept(self, rules: Mapping[str, Sequence[str]]) -> dict[int, Shaped[Tensor, "b h w c"]]:
        """What the steps need of each picture of this pass, if signals of layers go down by these
        rules."""
        return {
            step.number: step.kept(self._nodes[step.number]).contiguous()
            for step in {
                step.number: step
                for layer, start in self.layers.items()
                for step in self.below(start) or ()
                if any(step.looks_under(rule) for rule in rules[layer])
            }.values()
        }

    def forget(self) -> None:
        """Let the pass go, and with it its maps."""
        self._nodes = []


def _step(node: Any, numbers: Mapping[Any, int]) -> Step | None:
    """The step of a node between maps, from the first of its inputs or from all."""
    kind = STEPS.get(_name(node))
    if kind is None or not kind.holds(node):
        return None
    taken = [edge for edge in node.next_functions if edge[0] in numbers]
    expected = node.next_functions if kind in BRANCHING else node.next_functions[:1]
    maps = [node, *(target for target, _ in taken)]
    known = (
        taken == [edge for edge in expected if edge[0] is not None]
        and all(number == 0 for _, number in taken)
        and all(len(each._input_metadata[0].shape) == 4 for each in maps)
    )
    if not known:
        return None
    targets = [target for target, _ in taken]
    return kind(node, numbers[node], [numbers[each] for each in targets], _size(targets[0]))


def _name(node: Any) -> str:
    function = getattr(node, "_forward_cls", None)
    if function is not None:
        return str(function.__name__) if function in (Rectify, PassedBy, LastWins) else ""
    return re.sub(r"Backward\d*$", "", node.name())


def _size(node: Any) -> Pair:
    """Height and width of the maps whose signals a node takes."""
    height, width = node._input_metadata[0].shape[2:]
    return int(height), int(width)
