"""What does the network say while a picture is hidden or shown, in the order of a map?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from scipy.ndimage import gaussian_filter  # type: ignore[attr-defined]
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.lens.lens import Lens, run_with_hooks
from convscope.methods.cam_case import forward, wide
from convscope.methods.imputation import imputed
from convscope.methods.targets import Aims
from convscope.network.network import Network
from convscope.network.outputs import meaning, scored

BYTES = 24e6
"""What the largest activation of one batch may take: more and the system pages (measured)."""
BLUR, REACH = 5.0, 5
"""Width of the blur that insertion begins with, and how far its kernel of 11 by 11 reaches."""
NOISE = 0.01
"""Spread of what ROAD adds to imputed pixels, as in its authors' code."""

T = TypeVar("T")
Order = Int[np.ndarray, "h w"]
"""Each pixel's place in the order of a map: 0 is what the map marks most."""


def order(values: Float[np.ndarray, "h w"], seed: int = 0) -> Order:
    """Equal values stand in random order: row by row would erase the picture from its top."""
    chance = np.random.default_rng(seed).permutation(values.size)
    ranks = np.empty(values.size, np.int64)
    ranks[np.lexsort((chance, -values.ravel().astype(np.float64)))] = np.arange(values.size)
    return ranks.reshape(values.shape)


@dataclass(frozen=True)
class Asked:
    """A network that is asked about variations of one picture, with one target."""

    model: nn.Module
    image: Float[Tensor, "c h w"]
    aim: Aims
    batch: int
    score: float
    """Of the picture as it is."""

    @classmethod
    def of(cls, model: nn.Module | Network, image: Float[Tensor, "c h w"], aim: Aims) -> Asked:
        """Raises ModelError M514 (NaN), M520 (no scores), M522 (size), UsageError U353."""
        model = scored(model, image[None])
        seen, output = surveyed(model, image[None], lambda _, out: out.numel())
        aim = aim.settled(aim.answer(output).detach())
        largest = max((count for _, count in seen), default=1)
        batch = max(1, min(64, int(BYTES // (4 * largest))))
        asked = cls(model, image, aim, batch, 0.0)
        return replace(asked, score=float(asked([image])[0]))

    def __call__(self, pictures: Iterable[Float[Tensor, "c h w"]]) -> Float32[np.ndarray, "n"]:
        """The target's probability in each, or the function's value, in batches.

        Raises ModelError M514 where one is NaN or infinite.
        """
        with torch.no_grad(), Lens(self.model, ()) as lens:
            parts = [self._scores(forward(lens, part)) for part in _batches(pictures, self.batch)]
        found = np.asarray(torch.cat(parts).cpu().numpy() if parts else (), np.float32)
        if not np.isfinite(found).all():
            what = "has NaN or infinite scores when the picture is changed"
            raise ModelError("M514", "the network", what, next_step="check the weights")
        return found

    def _scores(self, output: Tensor) -> Float[Tensor, "b"]:
        scores = self.aim.answer(output)
        scores = scores if self.aim.has_function else meaning(self.model).probabilities(scores)
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
        picture = self.image.cpu().double().numpy()
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
    """By a Gaussian of 5 pixels within 11 by 11, about as in the code of Petsiuk et al. 2018;
    mirrored at the borders."""
    picture = image.cpu().double().numpy()
    soft = gaussian_filter(picture, BLUR, mode="mirror", radius=REACH, axes=(1, 2))
    return torch.from_numpy(soft).to(image)


def surveyed(
    model: nn.Module, images: Float[Tensor, "b c h w"], see: Callable[[nn.Module, Tensor], T]
) -> tuple[list[tuple[str, T]], Any]:
    """As `run_with_hooks`. Raises ModelError M522 where the network cannot take such pictures."""
    found: tuple[list[tuple[str, T]], Any] = forward(
        lambda seen: run_with_hooks(model, seen, see), images
    )
    return found
