"""What does a network put out without one map of a layer, for each of its maps?

The exact short cuts, from the fastest on: the maps are first mixed by one convolution or linear
layer, and its results without each map follow from one run of it; else what follows the layer runs
on batches of changed outputs; and where even that cannot be done exactly, the whole network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from convscope.lens.mixing import Mixing
from convscope.lens.tail import Tail

BYTES = 24e6
"""What one batch of changed outputs may take: more and the system pages (measured)."""
MOST, MOST_WHOLE = 256, 8
"""Maps at a time; where the whole network runs."""


@dataclass(frozen=True)
class Without:
    """One layer in one pass of one picture."""

    tail: Tail
    places: Int[Tensor, "maps at"]
    """Where in the layer's output, laid out flat, each map's numbers are."""
    rest: Float[Tensor, "..."]
    """What the maps put out when they are taken away, in the shape of the layer's output."""
    mixing: Mixing | None
    """Made with the same `rest`; None where the maps are not mixed in one step."""
    whole: Callable[[Float[Tensor, "n ..."]], Float[Tensor, "n ..."]]
    """Runs the whole network with these outputs of the layer."""

    def scores(self, maps: Int[Tensor, "n"]) -> Float[Tensor, "n ..."]:
        """The score without each one of these maps (ascending), or the scores, as recorded."""
        if self.mixing is not None:
            return self.mixing.scores(maps)
        output, places = self.tail.activation.detach(), self.places[maps]
        outputs = output.flatten().repeat(len(maps), 1)
        outputs = outputs.scatter_(1, places, self.rest.flatten()[places])
        outputs = outputs.reshape(len(maps), *output.shape[1:])
        return self.whole(outputs) if self.tail.obstacle else self.tail.again(outputs)

    def parts(self, maps: Int[Tensor, "n"]) -> Iterator[Int[Tensor, "part"]]:
        """Batches in which no tensor is too large."""
        steps = self.tail.steps[0 if self.mixing is None else self.mixing.number + 1 :]
        sizes = [self.tail.outputs[slot].numel() for s in steps for slot in s.gives if slot]
        sizes.append(self.rest.numel() if self.mixing is None else self.mixing.floats)
        few = max(1, min(MOST, int(BYTES / 4 // max(sizes))))
        room = MOST_WHOLE if self.tail.obstacle else few
        return iter(torch.split(maps, room)) if len(maps) else iter(())
