"""Which layers are a network's own steps, from pixels to classes?

A step is a layer with weights and what follows it up to the next one: convolution, normalisation,
rectifier and pool, or a whole block of a residual network. Its output is what is meant by
"layer 5" in Zeiler and Fergus 2014, table 7. (`ends` looks into blocks for single convolutions.)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.lens.lens import Lens, layers_in_order
from convscope.lens.survey import IDLE
from convscope.lens.twin import bare

MOST = 0.8
"""A part with more of the leaves than this is a wrapper of the network, not a step of it."""
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)


def stages(model: nn.Module, blank: Float[Tensor, "1 c h w"]) -> list[str]:
    """The last layer of each step, in the order in which this input meets them.

    The last of them gives the scores. Layers without a single tensor as output, or that run
    several times, are left out. Raises ModelError M522 if the network does not take the input.
    """
    model = bare(model)
    with torch.inference_mode():
        leaves = layers_in_order(model, blank)
    modules = dict(model.named_modules())
    found: list[str] = []
    fresh = True
    for name in _units(modules, leaves):
        module = modules[name.partition("#")[0]]
        if isinstance(module, IDLE):
            continue
        weights = next(module.parameters(), None) is not None
        if (weights and not isinstance(module, NORMS)) or fresh:
            found.append(name)
            fresh = False
        else:
            found[-1] = name
    return [name for name in found if _tells(model, name, blank)]


def _units(modules: dict[str, nn.Module], leaves: list[str]) -> Iterator[str]:
    """The parts in which leaves stand, each once, in the order of their first leaf."""
    seen: set[str] = set()
    for leaf in leaves:
        name = _unit(modules, leaf, leaves)
        if name not in seen:
            seen.add(name)
            yield name


def _unit(modules: dict[str, nn.Module], leaf: str, leaves: list[str]) -> str:
    """The largest part around a leaf that is neither a sequence nor a wrapper; or the leaf."""
    steps = leaf.split(".")
    for deep in range(1, len(steps)):
        name = ".".join(steps[:deep])
        inside = sum(other.startswith(f"{name}.") for other in leaves)
        if not isinstance(modules[name], nn.Sequential) and inside <= MOST * len(leaves):
            return name
    return leaf


def _tells(model: nn.Module, layer: str, blank: Float[Tensor, "1 c h w"]) -> bool:
    try:
        with Lens(model, layer) as lens, torch.inference_mode():
            lens(blank)
            return lens[layer].dim() >= 2
    except ModelError:
        return False
