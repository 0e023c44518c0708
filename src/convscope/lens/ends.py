"""Which layer is a network's first, which its last, in the sense of the paper's layers 1, 5 and 7?

A layer of the paper is a convolution with what follows it before the next one: rectifier, pool,
normalisation. Its output is what comes last of these; dropout, which does nothing at test time,
does not count. Layer 7 is what the classifier, the last layer with weights, is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.lens.origins import Run, run_seen
from convscope.lens.survey import IDLE
from convscope.lens.twin import bare

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Ends:
    """Layers by name, as a Lens takes them."""

    low: str
    """Output of the first convolution's layer, as long as it has places: the paper's layer 1."""
    middle: str
    """Output of the last convolution's layer that has more than one place: its layer 5."""
    high: str
    """What the classifier is given: its layer 7. The same as `middle` where nothing is between."""


@dataclass(frozen=True)
class _Seen:
    weighted: bool
    convolution: bool
    idle: bool
    shape: tuple[int, ...]
    content: tuple[float, float]
    """Two sums of the output, by which the same numbers are known again."""


def ends(model: nn.Module, size: tuple[int, int, int]) -> Ends:
    """size: channels, height, width of the input. The model is not touched.

    Raises ModelError M501 (no convolution), M522 (it does not take such a picture), M530.
    """
    like = next(bare(model).parameters(), torch.empty(0))
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0)).to(like)
    met = _on_the_way(run_seen(model, noise, _see))
    weighted = [place for place, (_, seen) in enumerate(met) if seen.weighted]
    convolved = [place for place in weighted if met[place][1].convolution]
    if not convolved:
        raise ModelError("M501", "the network", "has no convolution to look into")
    stops = [*weighted[1:], len(met)]
    after = dict(zip(weighted, stops, strict=True))
    classifier = weighted[-1] if len(weighted) > 1 else len(met)
    inner = [place for place in convolved if place < classifier]
    return Ends(
        low=_last(met, inner[0], after[inner[0]], spread=True),
        middle=_last(met, inner[-1], after[inner[-1]], spread=True),
        high=_last(met, max(p for p in weighted if p < classifier), classifier),
    )


def _on_the_way(run: Run) -> list[tuple[str, _Seen]]:
    """Without side branches from which nothing reaches the scores, where that can be seen."""
    reaching = run.reaching(run.output) if isinstance(run.output, Tensor) else frozenset()
    kept = [(name, seen) for name, seen in run.seen if name in reaching]
    return kept if any(seen.convolution for _, seen in kept) else list(run.seen)


def _see(module: nn.Module, output: Tensor) -> _Seen:
    numbers = output.detach().double()
    return _Seen(
        weighted=isinstance(module, (*CONVOLUTIONS, nn.Linear)),
        convolution=isinstance(module, CONVOLUTIONS),
        idle=isinstance(module, IDLE),
        shape=tuple(output.shape),
        content=(float(numbers.sum()), float(numbers.square().sum())),
    )


def _last(met: list[tuple[str, _Seen]], first: int, stop: int, *, spread: bool = False) -> str:
    """The last output from `first` on and before `stop`; of equal ones the first that is no
    repeated call. spread: only of those with rows and columns."""
    wanted = [
        (name, seen)
        for name, seen in met[first:stop]
        if not seen.idle and not (spread and _single(seen.shape))
    ]
    wanted = wanted or met[first : first + 1]
    last = wanted[-1][1]
    same = [
        name for name, seen in wanted if (seen.shape, seen.content) == (last.shape, last.content)
    ]
    return next((name for name in same if "#" not in name), same[0])


def _single(shape: tuple[int, ...]) -> bool:
    return len(shape) < 4 or shape[-1] * shape[-2] == 1
