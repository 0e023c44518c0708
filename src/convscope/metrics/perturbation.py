"""Perturbation: scores while a picture is hidden, shown or imputed in the order of a map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu
from torch import Tensor, nn

from convscope.attribution.sliding_mask import blurred
from convscope.errors import ModelError
from convscope.lens.lens import Lens
from convscope.network.forward import batch_size, forward, wide
from convscope.network.network import Network
from convscope.network.outputs import meaning, scored
from convscope.network.targets import Targets

SIDE, CORNER = 1 / 6, 1 / 12
"""How much a neighbour counts: across an edge, and across a corner."""
NEIGHBOURS = tuple(
    (down, across, CORNER if down and across else SIDE)
    for down in (-1, 0, 1)
    for across in (-1, 0, 1)
    if down or across
)


def imputed(
    picture: Float[np.ndarray, "c h w"],
    hidden: Bool[np.ndarray, "h w"],
    noise: Float[np.ndarray, "c h w"] | None = None,
) -> Float[np.ndarray, "c h w"]:
    """The picture with every hidden pixel the weighted mean of its eight neighbours.

    The neighbours may be hidden too: one linear system, solved exactly. noise: added to hidden
    pixels. Where the whole picture is hidden, its mean.
    Source: Rong et al. 2022, "A Consistent and Efficient Evaluation Strategy for Attribution
    Methods", §4.2, noisy linear imputation.
    """
    filled = picture.astype(np.float64)
    if hidden.all():
        filled[:] = filled.mean((1, 2), keepdims=True)
    elif hidden.any():
        filled[:, hidden] = _solved(filled, hidden)
    if noise is not None:
        filled[:, hidden] += noise[:, hidden]
    return filled


def _solved(
    picture: Float[np.ndarray, "c h w"], hidden: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "c n"]:
    """Each unknown times the weights of its neighbours = what they add up to."""
    number = np.where(hidden, np.cumsum(hidden).reshape(hidden.shape) - 1, -1)
    places = np.argwhere(hidden)
    count = len(places)
    total, known = np.zeros(count), np.zeros((count, len(picture)))
    rows, columns, weights = [np.arange(count)], [np.arange(count)], [total]
    for down, across, weight in NEIGHBOURS:
        beside = places + np.array((down, across))
        inside = ((beside >= 0) & (beside < hidden.shape)).all(1)
        row, (y, x) = np.flatnonzero(inside), beside[inside].T
        total[row] += weight
        unknown = number[y, x] >= 0
        known[row[~unknown]] += weight * picture[:, y[~unknown], x[~unknown]].T
        rows.append(row[unknown])
        columns.append(number[y, x][unknown])
        weights.append(np.full(int(unknown.sum()), -weight))
    system = csc_matrix(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), (count, count)
    )
    # Symmetric and diagonally dominant, for which this order of elimination keeps most zeros.
    factors = splu(system, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    solved: Float[np.ndarray, "c n"] = factors.solve(known).T
    return solved


BLUR, REACH = 5.0, 5
"""Width of the blur that insertion begins with, and how far its kernel of 11 by 11 reaches."""
NOISE = 0.01
"""Spread of what ROAD adds to imputed pixels, as in its authors' code."""

Order = Int[np.ndarray, "h w"]
"""Each pixel's place in the order of a map: 0 is what the map marks most."""


def order(values: Float[np.ndarray, "h w"], seed: int = 0) -> Order:
    """Equal values stand in random order: row by row would erase the picture from its top."""
    chance = np.random.default_rng(seed).permutation(values.size)
    ranks = np.empty(values.size, np.int64)
    ranks[np.lexsort((chance, -values.ravel().astype(np.float64)))] = np.arange(values.size)
    return ranks.reshape(values.shape)


def softened(image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """By a Gaussian of 5 pixels within 11 by 11, about as in the code of Petsiuk et al. 2018;
    mirrored at the borders."""
    return blurred(image, BLUR, REACH, "mirror")


@dataclass(frozen=True)
class Asked:
    """A network that is asked about variations of one picture, with one target."""

    model: nn.Module
    image: Float[Tensor, "c h w"]
    aim: Targets
    batch: int
    score: float
    """Of the picture as it is."""

    @classmethod
    def of(cls, model: nn.Module | Network, image: Float[Tensor, "c h w"], aim: Targets) -> Asked:
        """Raises ModelError M514 (NaN), M520 (no scores), M522 (size), UsageError U353."""
        model = scored(model, image[None])
        with torch.no_grad(), Lens(model, ()) as lens:
            output = forward(lens, image[None])
        aim = aim.settled(aim.answer(output).detach())
        asked = cls(model, image, aim, batch_size(model, image[None]), 0.0)
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
        return self(self._mixed(ranks, counts, softened(self.image), self.image))

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
