"""What does a network answer for pictures: the mean over their views?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from convscope.errors import ModelError
from convscope.lens.lens import Lens
from convscope.methods.views import plan
from convscope.network.network import Network
from convscope.network.outputs import meaning
from convscope.network.tuning import Tuning, Way, blank
from convscope.pictures.pictures import Picture, Pictures
from convscope.run import PLAIN, Run

View = UInt8[np.ndarray, "h w 3"] | Float32[torch.Tensor, "c h w"]
"""Framed pixels, or what the network takes of them."""


class Answers(NamedTuple):
    """A network's answers for the usable pictures of a folder."""

    numbers: Int64[np.ndarray, "n"]
    """Of the pictures."""
    probability: Float32[np.ndarray, "n classes"]
    way: Way


def answers(
    network: Network,
    folder: Pictures,
    views: int,
    *,
    tuning: Tuning | None = None,
    first: Callable[[int], object] = id,
    run: Run = PLAIN,
) -> Answers:
    """first: told the number of classes as soon as it is known.

    Raises DataError D118 or D161, UsageError U310, ModelError M520, M522, M560.
    """
    asking = Asking(network, folder, views, tuning=tuning, first=first)
    way = asking.way
    size = max(1, way.batch // views)
    for some in folder.batches(size, asking.framing, workers=way.workers, run=run):
        asking(some)
    return asking.answers()


class Asking:
    """The network's answers for pictures that come in some at a time, framed by `framing`."""

    def __init__(
        self,
        network: Network,
        folder: Pictures,
        views: int = 1,
        *,
        tuning: Tuning | None = None,
        first: Callable[[int], object] = id,
    ) -> None:
        """As `answers`."""
        self.framing, self._cut = plan(network.preprocess, views)
        self.way = Way(network.model, blank(network.model, network.preprocess.shape), tuning=tuning)
        self._network, self._folder, self._first = network, folder, first
        self._numbers: list[int] = []
        self._shares: list[Float32[np.ndarray, "some classes"]] = []

    def __call__(self, pictures: Sequence[Picture]) -> None:
        share = probability(self._network, self.way, [self._cut(one.pixels) for one in pictures])
        require_finite(share, [one.name for one in pictures])
        if not self._shares:
            self._first(share.shape[1])
        self._numbers += [picture.number for picture in pictures]
        self._shares.append(share)

    def answers(self) -> Answers:
        """All so far. Raises DataError D118 or D161 if there are none."""
        self._folder.require_usable(len(self._shares))
        numbers = np.array(self._numbers, dtype=np.int64)
        return Answers(numbers, np.concatenate(self._shares), self.way)


def probability(
    network: Network, way: Way, cuts: Sequence[Sequence[View]]
) -> Float32[np.ndarray, "n classes"]:
    """Mean over each picture's views of each class's probability. way: of a network that is
    `understood`."""
    pixels = [view for views in cuts for view in views]
    images = way.laid(_prepared(network, pixels))
    with torch.inference_mode(), way.running():
        with Lens(way.model, ()) as lens:
            scores = lens(images)
        shares = meaning(network).probabilities(scores.float())
    shares = shares.reshape(len(cuts), -1, shares.shape[1]).mean(1)
    return np.asarray(shares.cpu().numpy(), dtype=np.float32)


def _prepared(network: Network, views: list[View]) -> Float32[torch.Tensor, "b c h w"]:
    """Pixels made ready; tensors are that already."""
    ready = [view for view in views if isinstance(view, torch.Tensor)]
    if ready:
        return torch.stack(ready)
    pixels = [view for view in views if isinstance(view, np.ndarray)]
    return network.preprocess.batch(pixels, channels_last=True)


def strongest(
    share: Float32[np.ndarray, "n classes"], top: int
) -> tuple[Float32[np.ndarray, "n top"], Int64[np.ndarray, "n top"]]:
    """Values and class indices, the largest first; of equals the lower index."""
    index = np.argsort(-share, axis=1, kind="stable")[:, :top].astype(np.int64)
    return np.take_along_axis(share, index, axis=1), index


def require_finite(share: Float32[np.ndarray, "n classes"], names: Sequence[str]) -> None:
    wrong = ~np.isfinite(share).all(1)
    if wrong.any():
        name = names[int(wrong.argmax())]
        raise ModelError("M560", name, "the network's scores for it are not finite")
