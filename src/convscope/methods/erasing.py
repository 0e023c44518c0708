"""What does the network say while a picture is hidden or shown, in the order of a map?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torchvision.transforms import GaussianBlur

from convscope.lens.lens import Lens
from convscope.lens.survey import survey
from convscope.methods.cam_case import forward, wide
from convscope.methods.imputation import imputed
from convscope.methods.targets import Aims, answer, is_probability

BYTES = 24e6
"""What the largest activation of one batch may take: more and the system pages (measured)."""
BLUR, REACH = 5.0, 11
"""Width of the blur that insertion begins with, and the side of its kernel, in pixels."""
NOISE = 0.01
"""Spread of what ROAD adds to imputed pixels, as in its authors' code."""

Order = Int[np.ndarray, "h w"]
"""Each pixel's place in the order of a map: 0 is what the map marks most."""


def order(values: Float[np.ndarray, "h w"], seed: int = 0) -> Order:
    """Equal values stand in random order: row by row would erase the picture from its top."""
    chance = np.random.default_rng(seed).permutation(values.size)
    ranks = np.empty(values.size, np.int64)
    ranks[np.lexsort((chance, -values.ravel()))] = np.arange(values.size)
    return ranks.reshape(values.shape)


@dataclass
class Asked:
    """A network that is asked about variations of one picture, with one target."""

    model: nn.Module
    image: Float[Tensor, "c h w"]
    aim: Aims
    batch: int
    score: float

    @classmethod
    def of(cls, model: nn.Module, image: Float[Tensor, "c h w"], aim: Aims) -> Asked:
        seen, output = survey(model, image[None], lambda _, out: out.numel())
        aim = aim.settled(answer(output, aim).detach())
        largest = max((count for _, count in seen), default=1)
        asked = cls(model, image, aim, max(1, min(64, int(BYTES // (4 * largest)))), math.nan)
        asked.score = float(asked([image])[0])
        return asked

    def __call__(self, pictures: Iterable[Float[Tensor, "c h w"]]) -> Float32[np.ndarray, "n"]:
        """The target's probability in each, or the function's value, in batches."""
        with torch.inference_mode(), Lens(self.model, ()) as lens:
            found = [self._scores(forward(lens, part)) for part in _batches(pictures, self.batch)]
        return np.asarray(torch.cat(found).cpu().numpy(), np.float32)

    def _scores(self, output: Tensor) -> Float[Tensor, "b"]:
        scores = answer(output, self.aim)
        if self.aim.indices != (-1,) and not is_probability(scores):
            scores = wide(scores).softmax(1)
        return wide(self.aim.times(len(scores)).scores(scores))

    def deleted(self, ranks: Order, counts: Sequence[int]) -> Float32[np.ndarray, "steps"]:
        """The first `counts` pixels replaced by 0, which is the mean picture."""
        return self(self._mixed(ranks, counts, self.image, torch.zeros_like(self.image)))

    def inserted(self, ranks: Order, counts: Sequence[int]) -> Float32[np.ndarray, "steps"]:
        """The first `counts` pixels sharp, the rest blurred."""
        return self(self._mixed(ranks, counts, blurred(self.image), self.image))

    def _mixed(
        self, ranks: Order, counts: Sequence[int], start: Tensor, end: Tensor
    ) -> Iterator[Tensor]:
        place = torch.from_numpy(ranks).to(self.image.device)
        for count in counts:
            yield torch.where(place < count, end, start)

    def imputed(
        self, ranks: Order, counts: Sequence[int], seed: int
    ) -> Float32[np.ndarray, "steps"]:
        """The first `counts` pixels replaced by what surrounds them, and a little noise."""
        picture = self.image.double().cpu().numpy()
        noise = np.random.default_rng(seed).normal(0, NOISE, picture.shape)
        return self(
            torch.from_numpy(imputed(picture, ranks < count, noise)).to(self.image)
            for count in counts
        )


def _batches(pictures: Iterable[Tensor], size: int) -> Iterator[Float[Tensor, "b c h w"]]:
    part: list[Tensor] = []
    for picture in pictures:
        part.append(picture)
        if len(part) == size:
            yield torch.stack(part)
            part = []
    if part:
        yield torch.stack(part)


def blurred(image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """By a Gaussian of 5 pixels within 11 by 11, as in the code of Petsiuk et al. 2018."""
    kernel = [min(REACH, 2 * side - 1) for side in image.shape[:0:-1]]
    soft: Tensor = GaussianBlur(kernel, BLUR)(image)
    return soft
