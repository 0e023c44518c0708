"""What does a network say to whole pictures, a batch at a time, if nothing can be spared?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.lens.incremental_patches import Patches
from convscope.lens.incremental_run import Answers, Progress
from convscope.lens.lens import Lens, only_scores

LARGEST = 24e6
"""Bytes of the largest activation of a batch: more, and the system hands out fresh pages each
time."""
MOST = 64
"""Pictures of a batch."""


class Whole:
    """The network as it is; the same questions and answers as `incremental_run.Run`."""

    def __init__(
        self, model: nn.Module, layers: Sequence[str], patches: Patches, largest: float
    ) -> None:
        """largest: bytes of the largest activation of one picture; 0: take one at a time."""
        self._model, self._layers = model, tuple(layers)
        self._batch = int(min(MOST, max(1, LARGEST // largest))) if largest else 1
        self._patches = patches

    def begin(self, picture: Float[Tensor, "1 c h w"], patches: Patches) -> Answers:
        self._picture, self._patches = picture[0], patches
        return self._ask(picture, None)

    def follow(self, maps: Mapping[str, int], progress: Progress = None) -> Answers:
        total = len(self._patches)
        found = []
        for start in range(0, total, self._batch):
            numbers = range(start, min(start + self._batch, total))
            found.append(self._ask(self._patches.paint(self._picture, numbers), maps))
            if progress is not None:
                progress(numbers[-1] + 1, total)
        scores = torch.cat([answer.scores for answer in found])
        joined = {layer: torch.cat([a.activity[layer] for a in found]) for layer in self._layers}
        return Answers(scores, joined)

    def _ask(self, pictures: Float[Tensor, "b c h w"], maps: Mapping[str, int] | None) -> Answers:
        with Lens(self._model, self._layers) as lens:
            scores = only_scores(lens(pictures))
            seen = {layer: lens[layer] for layer in self._layers}
        for layer, value in seen.items():
            refuse_flat(layer, tuple(value.shape))
        if maps is not None:
            seen = {layer: value[:, maps[layer]] for layer, value in seen.items()}
        return Answers(scores, {k: value.relu().sum((-2, -1)) for k, value in seen.items()})


def refuse_flat(layer: str, shape: tuple[int, ...]) -> None:
    """Raises ModelError M506 where a layer puts out no feature maps."""
    if len(shape) != 4:
        raise ModelError("M506", layer, f"puts out {shape}, which are no feature maps")
