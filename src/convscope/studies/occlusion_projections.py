"""What does a picture's strongest feature map show in it, and in the pictures it likes best?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from convscope.errors import ModelError
from convscope.lens.backward import Rule
from convscope.methods.deconvnet import deconvnet
from convscope.methods.topk import topk
from convscope.methods.tuning import blank
from convscope.methods.ways_down import ways_down
from convscope.network.network import Network
from convscope.pictures.pictures import Folder
from convscope.records.topk import TopK
from convscope.studies.display import GREY, cut, limit, quantised
from convscope.units import Box, Unit

OTHERS = 3
"""Pictures beside the one itself, as in the paper's montage of two by two."""
SIDE = 160
"""Of a projection as it is kept, at most."""


@dataclass(frozen=True)
class Projecting:
    """A network's layer, and the pictures that excite each of its maps most."""

    network: Network
    layer: str
    source: Folder
    strongest: TopK | None
    """None where there are no other pictures."""
    rule: Rule = "deconvnet"
    """The one that fits the layer."""
    why_not: str = ""
    """Why this network has no projections."""

    @classmethod
    def of(
        cls,
        network: Network,
        layer: str,
        source: Folder,
        pictures: int,
        progress: Callable[[int, int], None] | None,
    ) -> Projecting:
        """pictures: in the folder that is explained. Raises as `topk`."""
        black = blank(network.model, network.preprocess.shape)
        try:
            (rule,) = ways_down(network.model, black, [layer])[layer].rules
            deconvnet(network.model, black, [Unit(layer, 0)], rule=rule)
        except ModelError as fault:
            if not fault.code.startswith("M53") and fault.code != "M540":
                raise
            return cls(network, layer, source, None, why_not=str(fault))
        alone = len(source) < 2 and pictures < 2
        strongest = None
        if not alone:
            strongest = topk(network, source, layers=[layer], k=OTHERS + 1, progress=progress)
        return cls(network, layer, source, strongest, rule)

    def of_map(
        self, image: Float[Tensor, "c h w"], channel: int, number: int, folder: Folder
    ) -> dict[str, Any]:
        """The record's fields for one picture, whose number in `folder` this is."""
        height, width = self.network.preprocess.size
        side = min(SIDE, max(height, width))
        tiles = np.full((1 + OTHERS, side, side, 3), GREY, np.uint8)
        scale = np.full((1 + OTHERS, 2), np.nan, np.float32)
        if self.why_not:
            return {"projections": tiles[None], "scale": scale[None], "others": ((),)}
        shown, names = [image], []
        for other in self._others(channel, folder.digest(number)):
            picture = self.source.one(other, self.network.preprocess.framing)
            shown.append(self.network.preprocess.tensor(picture.pixels).to(image))
            names.append(picture.name)
        unit = Unit(self.layer, channel)
        for place, each in enumerate(shown):
            square = self._projected(each, unit, side)
            high = limit(square)
            tiles[place], scale[place] = quantised(square, -high, high), (-high, high)
        return {"projections": tiles[None], "scale": scale[None], "others": (tuple(names),)}

    def _others(self, channel: int, own: bytes) -> list[int]:
        """Pictures of other content in which the map has its strongest neurons."""
        if self.strongest is None:
            return []
        units = self.strongest.units(self.layer, channel)
        found = [number for _, number, value in units if value > 0]
        return [number for number in found if self.source.digest(number) != own][:OTHERS]

    def _projected(
        self, image: Float[Tensor, "c h w"], unit: Unit, side: int
    ) -> Float[np.ndarray, "side side 3"]:
        (found,) = deconvnet(
            self.network.model, image[None], [unit], rule=self.rule, whole_map=True
        )
        height, width = image.shape[-2:]
        pixels = torch.from_numpy(np.array(found.pixels))
        square = cut(pixels, Box(0, 0, height, width), side, 0.0)
        return square.expand(3, -1, -1).permute(1, 2, 0).numpy()
