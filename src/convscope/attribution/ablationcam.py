"""Ablation-CAM's weights: how far the score falls without one feature map, by exact short cuts.

The short cuts, from the fastest on; all give the same numbers:
all that follows is affine (average pool and linear layer): the gradient says it without a run;
the maps are first mixed by one convolution or linear layer: its results without each map follow
from one run of it, and only what comes after runs again; otherwise what follows the layer runs on
batches of changed activations, and only where even that cannot be done exactly, the whole network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convscope.attribution.base import ForwardPass, Request
from convscope.attribution.cam import Map, weighted
from convscope.attribution.reshape import as_is
from convscope.core.errors import UsageError
from convscope.lens.lens import Lens, gradients_of
from convscope.lens.torch_private import unseen
from convscope.network.network import finite, forward, wide
from convscope.network.outputs import Targets
from convscope.trace.tail import Mixing, Tail, Without, record

ROUNDING = 0.02
"""How far off a sum may be in the lowest precision, relative to its terms."""


def by_ablation(run: ForwardPass, layer: str, weigh: Weigh) -> Map:
    """ReLU(Σ w_k A_k), picture by picture; what the weights are made of is one variant's."""
    request = run.request
    all_of = [Ablation.of(request, layer, number) for number in range(len(request.images))]
    request.targets = Targets(tuple(one.target.each[0] for one in all_of))
    request.scores = torch.stack([one.score for one in all_of])
    request.spaces = tuple(one.space for one in all_of)
    weights = torch.stack([weigh(one) for one in all_of])
    for number, one in enumerate(all_of):
        request.fact(number, ablation=one.how)
    return weighted(weights, torch.stack([one.maps for one in all_of]))


@dataclass(frozen=True)
class Ablation:
    """One picture, one layer: what the score is with all maps, and without each."""

    request: Request
    layer: str
    number: int
    target: Targets
    space: str
    tail: Tail

    @classmethod
    def of(cls, request: Request, layer: str, number: int) -> Ablation:
        """Run the network on one picture and write down what follows the layer."""
        settled: list[tuple[Targets, str]] = []

        def score(output: Any) -> Tensor:
            scores = request.targets.answer(output)
            with unseen():  # that the target is chosen is no part of it
                target = request.targets.only(number).settled(scores.detach())
                settled.append((target, request.space(target)[0]))
            return target.scores(scores)

        run = partial(forward, images=request.images[number : number + 1])
        tail = record(request.model, run, layer, score)
        return cls(request, layer, number, *settled[-1], tail)

    @cached_property
    def score(self) -> Float[Tensor, ""]:
        return wide(self.tail.score.detach()[0])

    @cached_property
    def maps(self) -> Float[Tensor, "maps h w"]:
        return self._shown(self.tail.activation)

    @cached_property
    def closed(self) -> Float[Tensor, "maps"] | None:
        """The drops from the gradient, where all that follows is affine. What the drops add up to
        is checked, as a network may have gradients of its own making."""
        if self.tail.obstacle or not all(call.is_affine for call in self.tail.calls):
            return None
        (gradient,) = gradients_of(self.tail.score.sum(), [self.tail.activation])
        if gradient is None:
            return None
        drops = (self._shown(gradient) * self.maps).flatten(1).sum(1)
        silent = wide(self.tail.again(torch.zeros_like(self.tail.activation))[0])
        off = (self.score - silent - drops.sum()).abs()
        return drops if bool(off <= ROUNDING * (1 + drops.abs().sum())) else None

    @cached_property
    def mixing(self) -> Mixing | None:
        plain = self.request.maps(self.tail.activation) is as_is
        return Mixing.of(self.tail) if plain and not self.tail.obstacle else None

    @property
    def how(self) -> str:
        """Which short cut is taken."""
        if self.closed is not None:
            return "closed form"
        if self.mixing is not None:
            return "from the first mixing of maps on"
        obstacle = self.tail.obstacle
        return f"the whole network, as {obstacle}" if obstacle else "what follows the layer"

    @cached_property
    def drops(self) -> Float[Tensor, "maps"]:
        """The score less the score without each map. A silent map changes nothing."""
        maps, output = self.maps, self.tail.activation.detach()
        places = self._places(output)
        if self.closed is not None:
            return self.closed
        without = Without(self.tail, places, torch.zeros_like(output), self.mixing, self._whole)
        drops = self.score.new_zeros(len(maps))
        for part in without.parts(maps.flatten(1).ne(0).any(1).nonzero()[:, 0]):
            drops[part] = self.score - wide(without.scores(part))
            done = self.number * len(drops) + int(part[-1]) + 1
            self.request.run.tick(done, len(drops) * len(self.request.images))
        return drops

    def _whole(self, outputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n"]:
        """The score for other outputs of the layer, from pixels on."""
        image = self.request.images[self.number]
        images = image.expand(len(outputs), *image.shape)
        with torch.no_grad(), Lens(self.request.model, (), {self.layer: lambda _: outputs}) as lens:
            return self.target.scores(self.target.answer(forward(lens, images)))

    def _shown(self, output: Tensor) -> Float[Tensor, "maps h w"]:
        return finite(self.layer, wide(self.request.maps(output)(output.detach())[0]))

    def _places(self, output: Tensor) -> Int[Tensor, "maps at"]:
        """Where in the layer's own layout the maps' numbers are: a reshape only moves numbers, so
        it may as well move their addresses."""
        reshape = self.request.maps(output)
        addresses = torch.arange(output.numel(), dtype=torch.float64).reshape(output.shape)
        places = reshape(addresses)[0].flatten(1).long().to(output.device)
        if not torch.equal(
            output.flatten()[places % output.numel()], reshape(output)[0].flatten(1)
        ):
            what = "computes; for Ablation-CAM it may only move numbers"
            raise UsageError("U356", getattr(reshape, "__name__", "reshape"), what)
        return places


Weigh = Callable[[Ablation], Float[Tensor, "maps"]]


def drop_over_score(found: Ablation) -> Float[Tensor, "maps"]:
    """(y − y_k) / y. For y < 0 the quotient would turn the map over, so |y| divides, with a note;
    where a logit's zero lies means nothing to a softmax."""
    if found.score > 0:
        return found.drops / found.score
    y = float(found.score)
    text = f"the score is {y:.4g}, not positive: divided by its size, to keep the map's sign"
    found.request.note(found.number, text)
    return found.drops / (abs(y) or 1.0)


def slope(found: Ablation) -> Float[Tensor, "maps"]:
    """(y − y_k) / ‖A_k‖: by how much the score falls for each unit of activation taken away."""
    size = found.maps.flatten(1).norm(dim=1)
    return found.drops / torch.where(size > 0, size, 1)


def plain(found: Ablation) -> Float[Tensor, "maps"]:
    """(y − y_k) / y whatever the sign of y. Raises UsageError U357 where the layer's smallest
    activation is not 0: there the library puts numbers around −10⁷ in the place of a map."""
    if float(found.maps.amin()) != 0:
        what = "its smallest activation is not 0, for which pytorch-grad-cam's way is not defined"
        step = "take a layer after a rectifier, or the authors' variant"
        raise UsageError("U357", found.layer, what, next_step=step)
    return found.drops / found.score
