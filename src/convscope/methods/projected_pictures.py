"""What is kept of pictures that a network has passed up, so that signals can be sent down?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from convscope.errors import ModelError
from convscope.trace.backward.descent import Neurons
from convscope.trace.backward.forward_pass import ForwardPass, Neuron
from convscope.trace.backward.steps import BackwardGraph
from convscope.trace.backward_rule import Rule


class Kept:
    """What is kept of pictures from whose layers one graph leads down."""

    def __init__(self, graph: BackwardGraph, like: Tensor) -> None:
        self.graph = graph
        self.rows: dict[int, int] = {}
        """Number of a picture → where it stands among these."""
        self.like = like.new_empty(0)
        """Of which kind signals are, and on which device."""
        self._maps: dict[int, list[Shaped[Tensor, "b h w c"]]] = {}

    def add(self, numbers: Sequence[int], maps: Mapping[int, Tensor]) -> None:
        for number in numbers:
            self.rows[number] = len(self.rows)
        for step, values in maps.items():
            self._maps.setdefault(step, []).append(values)

    def maps(self) -> dict[int, Shaped[Tensor, "pictures h w c"]]:
        for step, parts in self._maps.items():
            self._maps[step] = [torch.cat(parts)] if len(parts) > 1 else parts
        return {step: parts[0] for step, parts in self._maps.items()}


class Block:
    """Some pictures that have been passed up."""

    def __init__(self, rule: Rule, rules: Mapping[str, Sequence[Rule]]) -> None:
        """rule: that they were passed up under. rules: layer → by which its signals go down."""
        self.rule, self.rules = rule, rules
        self.bytes = 0
        self.count = 0
        self.kept: dict[tuple[object, ...], Kept] = {}
        self.coverage: dict[str, tuple[int, int]] = {}
        self.activations: dict[tuple[str, int], float] = {}
        """By layer and number of the neuron."""

    def add(
        self, way: ForwardPass, numbers: Sequence[int], wanted: Mapping[str, Sequence[Neuron]]
    ) -> None:
        maps = {layer: way.maps(layer) for layer in wanted}
        for layer, values in maps.items():
            if layer not in self.coverage:
                way.rule.look([values], [way.pixels])
                self.coverage[layer] = (way.rule.rewritten, way.rule.rectifiers)
            self._note(layer, values.detach(), numbers, wanted[layer])
        graph = BackwardGraph(maps, way.pixels)
        kept = graph.kept(self.rules)
        graph.forget()
        self.kept.setdefault(graph.same(), Kept(graph, way.pixels.detach())).add(numbers, kept)
        self.bytes += sum(values.nbytes for values in kept.values())
        self.count += len(numbers)

    def starts(
        self, kept: Kept, layer: str, neurons: Sequence[Neuron]
    ) -> tuple[list[int], Neurons]:
        """The neurons of those pictures, by number, and as they are sent down."""
        numbers = [n for n, neuron in enumerate(neurons) if neuron.picture in kept.rows]
        places = [(kept.rows[neurons[n].picture], *neurons[n][1:]) for n in numbers]
        values = torch.tensor([self.activations[layer, n] for n in numbers], dtype=torch.float64)
        return numbers, Neurons.of_each(places, values.to(kept.like).clamp_(min=0))

    def _note(
        self, layer: str, maps: Tensor, numbers: Sequence[int], neurons: Sequence[Neuron]
    ) -> None:
        rows = {number: row for row, number in enumerate(numbers)}
        chosen = [n for n, neuron in enumerate(neurons) if neuron.picture in rows]
        for number in chosen:
            _check(layer, maps, neurons[number])
        places = torch.tensor([[rows[neurons[n].picture], *neurons[n][1:]] for n in chosen])
        values = maps[tuple(places.to(maps.device).T)].tolist() if chosen else []
        for number, value in zip(chosen, values, strict=True):
            if not np.isfinite(value):
                raise ModelError("M514", layer, "has a NaN or an infinity in a picture")
            self.activations[layer, number] = value


def _check(layer: str, maps: Float[Tensor, "b c h w"], neuron: Neuron) -> None:
    channels, height, width = maps.shape[1:]
    if not 0 <= neuron.channel < channels:
        there = f"has {channels} feature maps (0 to {channels - 1}), no {neuron.channel}"
        raise ModelError("M504", layer, there)
    if not (0 <= neuron.row < height and 0 <= neuron.column < width):
        there = f"has {height} rows and {width} columns, counted from 0"
        raise ModelError("M505", f"{layer}:{neuron.channel}@{neuron.row},{neuron.column}", there)
