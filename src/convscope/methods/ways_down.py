"""By which rule should a layer's signals go down to the pixels, and what stands on their way?

Deconvnet draws what the switches of max pools say of a picture; guided backpropagation also needs
each rectifier to have been open. Without switches a deconvnet's projection is the same for every
picture, up to what the border cuts off.
Sources: Zeiler and Fergus 2014, §2.1; Springenberg et al. 2015, "Striving for Simplicity", §3.4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import UsageError, nearest
from convscope.lens.twin import bare
from convscope.network.network import Network
from convscope.trace.autograd import Stride, reductions
from convscope.trace.backward.forward_pass import forward_pass
from convscope.trace.backward_rule import BackwardRule, Other, Rule

Choice = Literal["auto", "deconvnet", "guided", "both", "gradient"]


class Way(NamedTuple):
    """From one layer down to the pixels."""

    rules: tuple[Rule, ...]
    """By which signals go down, the one that fits the layer first."""
    has_switches: bool
    """Is the pool or stride that comes first on the way a max pool?"""
    strides: tuple[Stride, ...]
    """Convolutions that do not stop at every place, without the layer's own."""
    rectifiers: int
    normalisations: int
    """Contrast normalisations, which the deconvnet passes by and guided backpropagation does
    not: their passes up differ."""


def ways_down(
    model: nn.Module | Network,
    image: Float[Tensor, "1 c h w"],
    layers: Sequence[str],
    *,
    rule: Choice = "auto",
    other: Other = "refuse",
) -> dict[str, Way]:
    """Look at the way from each layer to the pixels in one pass up.

    rule: "auto" takes the deconvnet's where switches say where a signal goes on, at the first step
    below the layer's own convolution that makes maps smaller, and guided backpropagation where
    that is a stride or there is none; below all rectifiers both are the same, and the deconvnet's
    is taken. "both" takes the other one as well.

    Raises UsageError U512 for a rule that is none, and what `deconvnet` raises.
    """
    require_choice(rule)
    up: Rule = "deconvnet" if rule == "auto" or rule == "both" else rule
    backward = BackwardRule(up, other=other)
    found = {}
    with forward_pass(bare(model), image, layers, backward) as way:
        maps = {layer: way.maps(layer) for layer in layers}
        reduced = reductions(bare(model), maps, way.pixels)
        for layer, (switches, strides) in reduced.items():
            backward.look([maps[layer]], [way.pixels])
            fits: Rule = "deconvnet" if switches or not backward.rectifiers else "guided"
            rules: dict[str, tuple[Rule, ...]] = {"auto": (fits,), "both": (fits, _beside(fits))}
            chosen = rules.get(rule, (up,))
            met = (backward.rectifiers, backward.skipped)
            found[layer] = Way(chosen, switches, strides, *met)
    return found


def passes_up(ways: Mapping[str, Way]) -> list[tuple[Rule, dict[str, tuple[Rule, ...]]]]:
    """The rules under which pictures have to be passed up, each with the layers and the rules that
    it serves. A pass under "guided" serves the deconvnet too, unless a normalisation is met."""
    rules = {rule for way in ways.values() for rule in way.rules}
    is_shared = "guided" in rules and not any(way.normalisations for way in ways.values())
    found: dict[Rule, dict[str, tuple[Rule, ...]]] = defaultdict(dict)
    for layer, way in ways.items():
        if is_shared:
            found["guided"][layer] = way.rules
        else:
            for rule in way.rules:
                found[rule][layer] = (rule,)
    return list(found.items())


def require_choice(rule: str) -> None:
    """Raises UsageError U512."""
    if rule not in get_args(Choice):
        raise UsageError("U512", str(rule), f"is no rule; {nearest(str(rule), get_args(Choice))}")


def _beside(rule: Rule) -> Rule:
    return "guided" if rule == "deconvnet" else "deconvnet"
