"""How much of a photograph can still be told from what a layer made of it?

A picture is looked for that the layer answers as it does to the photograph. What is alike in both
the layer has kept; what differs it does not see, or the penalties have smoothed away.
Source: Mahendran and Vedaldi 2015, "Understanding deep image representations by inverting them".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.methods.cam_case import wide
from convscope.methods.given import Given, Layer, photograph, taking
from convscope.methods.optimise_plan import How
from convscope.methods.optimise_record import Case, as_tensor, finished
from convscope.methods.optimise_sight import Look, canvas, sight
from convscope.network.network import Network
from convscope.network.provenance import recorded
from convscope.records.optimise import OptimisedPicture

USUAL: How = {
    "steps": 128,
    "learning_rate": 0.03,
    "noise": 0.02,
    "regularise": {"alpha": 0.001, "tv": 0.02},
}


@dataclass(frozen=True)
class FeatureGoal:
    """How far a layer's output is from that for the photograph: ‖Φ − Φ0‖² / ‖Φ0‖²."""

    look: Look
    name: str
    wanted: Tensor
    size: Float[Tensor, ""]
    sign: int = -1

    @classmethod
    def of(cls, look: Look, layer: str, image: Float[Tensor, "c h w"]) -> FeatureGoal:
        """Raises ModelError M543 (NaN), M548 where the layer puts out nothing but zeros."""
        with torch.no_grad():
            wanted = wide(look(image))
        size = wanted.square().sum()
        if not bool(torch.isfinite(size)):
            raise ModelError("M543", layer, "has NaN or infinite numbers")
        if not bool(size > 0):
            raise ModelError("M548", layer, "is silent: it puts out only zeros for this picture")
        return cls(look, layer, wanted, size)

    def __call__(self, pixels: Float[Tensor, "c h w"]) -> Float[Tensor, ""]:
        return (wide(self.look(pixels)) - self.wanted).square().sum() / self.size


@taking(image=photograph)
@recorded
def invert(
    model: nn.Module | Network,
    image: Given,
    layer: Layer,
    **how: Unpack[How],
) -> OptimisedPicture:
    """The picture that minimises ‖Φ(x) − Φ0‖² / ‖Φ0‖² + λ_α R_α(x) + λ_V R_V(x).

    image: one preprocessed photograph; Φ0 is what the layer puts out for it. The λ are
    `regularise["alpha"]` and `regularise["tv"]`, per place and in halves of the range from black
    to white, so that they mean the same for every size and network. `value` of the result is the
    first term: the relative error is its root. how: see `How`.

    Raises ModelError M500, M502, M503, M520, M530 (see `Lens`), M522 (size), M540, M548, M549
    (no gradient, silent, NaN); UsageError U365, U366 (options), U367 (no picture).
    """
    case = Case.of(model, USUAL, how)
    with sight(case.model, layer) as look:
        photograph = canvas(case.model, as_tensor(image))
        colours, rows, columns = photograph.shape
        goal = FeatureGoal.of(look, layer, photograph)
        way = case.begin(goal, (colours, rows, columns))
        way.go()
        return finished(case, way, "inversion", original=photograph)
