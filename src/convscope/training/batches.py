"""Which pictures make a step, and what becomes of them on the way to the network?"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from convscope.network.preprocess import Numbers, Preprocess
from convscope.training.augment import CROP, MIX, order, stream, view
from convscope.training.recipe import Recipe
from convscope.training.stock import Stock

AHEAD = 3
"""Batches made in advance: the network never waits, and memory stays small."""


class Mixing(NamedTuple):
    """How a batch is mixed with itself in reverse order."""

    kept: float
    """Weight of a picture's own label."""
    box: tuple[int, int, int, int] | None
    """Top, left, bottom, right of what cutmix pastes; None for mixup."""


class Batch(NamedTuple):
    """One process's share of a step."""

    pixels: UInt8[Tensor, "b size size 3"]
    colour: Float[Tensor, "b 3 3"]
    offset: Float[Tensor, "b 3"]
    labels: Int64[Tensor, "b"]
    mixing: Mixing | None
    weight: float
    """Makes the mean over processes of weight × mean loss the mean loss over all pictures."""


class Batches:
    """The batches of one epoch, made ahead by threads: Pillow works beside the network.

    The order is that of all processes together; of each step's pictures, process `rank` takes
    every `world`-th. An epoch's last batch, if it has fewer pictures than there are processes,
    is left out; with `drop_last` also if it is not full, unless it is the only one.
    """

    def __init__(
        self,
        stock: Stock,
        recipe: Recipe,
        epoch: int,
        *,
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
    ) -> None:
        """epoch: counted from 0."""
        self.stock = stock
        self.recipe = recipe
        self.epoch = epoch
        self.rank = rank
        self.world = world
        self.threads = threads

    def __len__(self) -> int:
        return steps(len(self.stock), self.recipe, self.world)

    def __iter__(self) -> Iterator[Batch]:
        sequence = order(self.recipe.seed, self.epoch, len(self.stock))
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="batches")
        try:
            waiting: deque[Future[Batch]] = deque()
            for number in range(len(self)):
                waiting.append(pool.submit(self._make, sequence, number))
                if len(waiting) > AHEAD + self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, sequence: Int64[np.ndarray, "pictures"], number: int) -> Batch:
        everyone = sequence[number * self.recipe.batch : (number + 1) * self.recipe.batch]
        places = [int(place) for place in everyone[self.rank :: self.world]]
        size = self.recipe.size_at(self.epoch)
        seed, epoch = self.recipe.seed, self.epoch
        views = [
            view(pixels, size, self.recipe, stream(seed, CROP, epoch, place))
            for place, pixels in zip(places, self.stock.take(places), strict=True)
        ]
        return Batch(
            torch.from_numpy(np.stack([one.pixels for one in views])),
            torch.from_numpy(np.stack([one.colour for one in views])),
            torch.from_numpy(np.stack([one.offset for one in views])),
            torch.tensor([self.stock.labels[place] for place in places]),
            mixing(self.recipe, epoch, stream(seed, MIX, epoch, number)),
            len(places) * self.world / len(everyone),
        )


def steps(pictures: int, recipe: Recipe, world: int = 1) -> int:
    """Number of steps in an epoch; fewer pictures than a batch are one step all the same."""
    full, rest = divmod(pictures, recipe.batch)
    left_out = rest < world or (recipe.drop_last and full > 0)
    return full if left_out else full + 1


def mixing(recipe: Recipe, epoch: int, random: Generator) -> Mixing | None:
    """Whether and how a batch is mixed. Source: Zhang et al. 2018 (mixup), Yun et al. 2019."""
    if random.random() >= recipe.mix or epoch >= recipe.epochs * (1 - recipe.mix_off):
        return None
    if random.random() >= recipe.mix_cut:
        return Mixing(float(random.beta(recipe.mixup, recipe.mixup)), None)
    size = recipe.size_at(epoch)
    half = math.sqrt(1 - random.beta(recipe.cutmix, recipe.cutmix)) * size / 2
    x, y = random.uniform(0, size, 2)
    top, left = max(0, int(y - half)), max(0, int(x - half))
    bottom, right = min(size, int(y + half)), min(size, int(x + half))
    return Mixing(1 - (bottom - top) * (right - left) / size**2, (top, left, bottom, right))


def network_input(batch: Batch, preprocess: Preprocess) -> Float[Tensor, "b 3 size size"]:
    """Recoloured, mixed, and with the network's own mean, std and range.

    All that is linear in a pixel's colour is one matrix product, which saves half of the time.
    """
    b, size = batch.pixels.shape[:2]
    mean, std = (
        _column(numbers, batch.pixels.device) for numbers in (preprocess.mean, preprocess.std)
    )
    white, alike = preprocess.scale * 255, mean.numel() == 3
    colour = batch.colour * (white / 255) / std.view(3, 1)
    offset = (batch.offset * white - (mean.view(3) if alike else 0.0)) / std.view(3)
    pixels = batch.pixels.view(b, size * size, 3).to(torch.float32)
    pixels = torch.baddbmm(offset[:, None], pixels, colour.transpose(1, 2))
    images = pixels.view(b, size, size, 3).permute(0, 3, 1, 2)
    return _mixed(images if alike else images - mean / std, batch.mixing)


def _column(numbers: Numbers, device: torch.device) -> Float[Tensor, "3 _ _"]:
    values = torch.tensor(np.asarray(numbers, np.float32), device=device)
    return values.reshape(3, 1, 1) if values.ndim == 1 else values


def targets(batch: Batch, classes: int) -> Float[Tensor, "b classes"]:
    """Each picture's share of every class."""
    own = F.one_hot(batch.labels, classes).float()
    if batch.mixing is None:
        return own
    return own * batch.mixing.kept + own.flip(0) * (1 - batch.mixing.kept)


def _mixed(
    images: Float[Tensor, "b 3 size size"], mixing: Mixing | None
) -> Float[Tensor, "b 3 size size"]:
    if mixing is None:
        return images
    others = images.flip(0)
    if mixing.box is None:
        return images * mixing.kept + others * (1 - mixing.kept)
    top, left, bottom, right = mixing.box
    images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return images
