"""What can be left out if only some classes' scores are asked for?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch

from convscope.lens.incremental_packed import Convolution, Product
from convscope.trace.graph import Graph
from convscope.trace.nodes import Node, convolution


def narrow(graph: Graph, classes: Sequence[int]) -> bool:
    """Let the graph put out these classes' scores only; False (and nothing done) if it cannot.

    It can where the scores come from a fully connected layer, or from a convolution of which only
    a rectifier, a mean over places and a change of shape separate them.
    """
    users = graph.users
    way, slot = [], graph.output
    while not isinstance(graph.nodes[slot].run, (Convolution, Product)):
        node = graph.nodes[slot]
        passes = node.kind == "mean" or node.run is torch.relu or node.name == "flatten"
        flat = node.name == "flatten" and prod(graph.nodes[node.takes[0]].shape[2:]) > 1
        if (
            not passes
            or flat
            or users[slot] != 1
            or len(graph.nodes[node.takes[0]].shape) not in (2, 4)
        ):
            return False
        way.append(slot)
        slot = node.takes[0]
    if users[slot] != 1 or graph.nodes[slot].how[3:] not in ((), (1,)):
        return False
    graph.nodes[slot] = _fewer(graph.nodes[slot], list(classes))
    for above in way:
        node = graph.nodes[above]
        graph.nodes[above] = replace(node, shape=(1, len(classes), *node.shape[2:]))
    return True


def _fewer(node: Node, classes: list[int]) -> Node:
    shape = (1, len(classes), *node.shape[2:])
    if isinstance(node.run, Product):
        return replace(node, run=node.run.of(classes), shape=shape)
    assert node.weight is not None
    bias = None if node.bias is None else node.bias[classes]
    made = convolution(node.weight[classes], bias, *node.how)
    return replace(node, run=made.run, bare=made.bare, weight=made.weight, bias=bias, shape=shape)
