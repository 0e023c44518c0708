"""Ablation-CAM's question: how far does the score fall when one feature map is silent?

The exact short cuts, from the fastest on; all give the same numbers:
all that follows is affine (average pool and linear layer): the gradient says it without a run;
the maps are first mixed by one convolution or linear layer: its results without each map follow
from one run of it, and only what comes after runs again; otherwise what follows the layer runs on
batches of changed activations, and only where even that cannot be done exactly, the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from convscope.errors import UsageError
from convscope.lens.lens import Lens
from convscope.lens.mixing import Mixing
from convscope.lens.step import AFFINE, allows
from convscope.lens.tail import Tail, record

Reshape = Callable[[Tensor], Tensor]
"""From a layer's output (b, …) to its feature maps (b, maps, h, w)."""
BYTES = 24e6
"""What one batch of changed activations may take: more and the system pages (measured)."""


@dataclass(frozen=True)
class Ablation:
    """One picture, one layer: what the score is with all maps, and without each."""

    model: nn.Module
    image: Float[Tensor, "1 c h w"]
    layer: str
    score: Callable[[Any], Tensor]
    """From the network's output to the score (b,)."""
    reshape: Reshape

    def drops(
        self, progress: Callable[[int], None] | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "maps"], str]:
        """(score, score − score without each map, how it was computed).

        progress: called with the number of maps that are done.
        """
        tail = record(self.model, self.image, self.layer, self.score)
        y = _wide(tail.score.detach()[0])
        mixing = None if tail.obstacle else Mixing.of(tail)
        if not tail.obstacle and all(allows(AFFINE, step) for step in tail.steps):
            return y, self._by_gradient(tail), "closed form"
        loud = self._loud(tail)
        drops = y.new_zeros(len(self._maps(tail.activation)))
        without, room, how = self._way(tail, mixing)
        for part in _parts(loud, room):
            drops[part] = y - _wide(without(part))
            if progress is not None:
                progress(int(part[-1]) + 1)
        return y, drops, how

    def _way(
        self, tail: Tail, mixing: Mixing | None
    ) -> tuple[Callable[[Tensor], Tensor], int, str]:
        """(scores without each one of some maps, bytes for one map, its name)."""
        if mixing is not None:
            floats = max(mixing.floats, *_sizes(tail, mixing.number + 1))
            return mixing.scores, 4 * floats, "from the first mixing of maps on"
        if not tail.obstacle:
            run = lambda maps: tail.again(self._without(tail.activation, maps))  # noqa: E731
            return run, 4 * max(_sizes(tail, 0)), "what follows the layer"
        run = lambda maps: self._whole(self._without(tail.activation, maps))  # noqa: E731
        return run, int(BYTES / 8), f"the whole network, as {tail.obstacle}"

    def _maps(self, output: Tensor) -> Float[Tensor, "maps h w"]:
        return _wide(self.reshape(output.detach())[0])

    def _loud(self, tail: Tail) -> Int[Tensor, "n"]:
        """A silent map changes nothing."""
        return self._maps(tail.activation).flatten(1).ne(0).any(1).nonzero()[:, 0]

    def _by_gradient(self, tail: Tail) -> Float[Tensor, "maps"]:
        (gradient,) = torch.autograd.grad(tail.score.sum(), tail.activation)
        return (self._maps(gradient) * self._maps(tail.activation)).flatten(1).sum(1)

    def _without(self, output: Tensor, maps: Tensor) -> Float[Tensor, "n ..."]:
        """The layer's output with one of these maps set to zero in each copy."""
        places = self._places(output)[maps].flatten(1)
        copies = output.detach().flatten().repeat(len(maps), 1)
        return copies.scatter_(1, places, 0).reshape(len(maps), *output.shape[1:])

    def _places(self, output: Tensor) -> Int[Tensor, "maps h w"]:
        """Where in the layer's own layout the maps' numbers are: `reshape` only moves numbers, so
        it may as well move their addresses."""
        addresses = torch.arange(output.numel(), dtype=torch.float64, device=output.device)
        places = self.reshape(addresses.reshape(output.shape))[0].long()
        if not torch.equal(output.detach().flatten()[places], self.reshape(output.detach())[0]):
            what = "computes; for Ablation-CAM it may only move numbers"
            raise UsageError("U356", getattr(self.reshape, "__name__", "reshape"), what)
        return places

    def _whole(self, outputs: Tensor) -> Tensor:
        images = self.image.expand(len(outputs), *self.image.shape[1:])
        with torch.no_grad(), Lens(self.model, (), {self.layer: lambda _: outputs}) as lens:
            return self.score(lens(images))


def _parts(maps: Tensor, room: int) -> Iterator[Tensor]:
    return iter(torch.split(maps, max(1, min(256, int(BYTES // room)))) if len(maps) else ())


def _sizes(tail: Tail, number: int) -> list[int]:
    """Numbers in each tensor that the steps from this one on give."""
    given = [slot for step in tail.steps[number:] for slot in step.gives if slot is not None]
    return [tail.activation.numel(), *(tail.outputs[slot].numel() for slot in given)]


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
