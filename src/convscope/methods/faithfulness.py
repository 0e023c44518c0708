"""Does a map mark what the network really uses?

Parts of the picture are hidden or shown in the map's order, and the target's score is watched.
The same is done with random maps of the same grain and with a round blob in the middle of the
picture: most things stand in the middle, so a map must beat that to have said anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn.functional import interpolate

from convscope import __version__
from convscope.errors import UsageError
from convscope.methods.cam_case import prepared
from convscope.methods.erasing import Asked, order
from convscope.methods.targets import Aims, Target
from convscope.records.faithfulness import Faithfulness
from convscope.records.maps import Attribution

STEPS = 20
"""Shares of the picture that are hidden one after the other: 5 % each."""
RANDOM = 4
ROAD_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Progress = Callable[[int, int], None]


def faithfulness(
    model: nn.Module,
    image: Float[Tensor, "c h w"],
    maps: Sequence[Attribution],
    *,
    target: Target | None = None,
    classes: Sequence[str] = (),
    steps: int = STEPS,
    random: int = RANDOM,
    road: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Faithfulness]:
    """Put maps of one picture to the test; one result for each, all against the same controls.

    image: preprocessed. maps: of the picture's size. target: as it was given to the method;
    without it the class that the maps name (the likeliest one for maps of functions). steps:
    equal shares of the picture; the curves have one value more. random: random maps. road: also
    impute instead of grey (Remove And Debias), which takes about as long again.

    Deletion puts 0, the mean picture, in the place of pixels; insertion begins with a blurred
    picture. The average drop shows only what the map lights up: the picture times the map's
    positive part, scaled to [0, 1].

    Raises UsageError U390 (a map of another size), U351 to U354 (targets), ModelError M514, M520.
    Source: Petsiuk et al. 2018, "RISE", §4.2 (deletion, insertion); Chattopadhyay et al. 2018,
    §5.1 (drop, increase); Rong et al. 2022 (ROAD).
    """
    images = prepared(model, image)
    size = tuple(images.shape[2:])
    for found in maps:
        if found.values.shape != size:
            what = f"a map of {found.values.shape} for a picture of {size}"
            raise UsageError("U390", found.method, what)
    done, total = 0, len(maps) * (3 if road else 2)

    def tick(count: int = 1) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    aims = _aims(maps, target, classes)
    trials = {aim: Trial.of(model, images[0], aim, steps, random, seed) for aim in set(aims)}
    plan = Plan(road, seed, tick)
    return [_tested(trials[aim], found, plan) for aim, found in zip(aims, maps, strict=True)]


@dataclass(frozen=True)
class Plan:
    """What is to be done with each map."""

    road: bool
    seed: int
    tick: Callable[[], None]


def _aims(maps: Sequence[Attribution], target: Target | None, classes: Sequence[str]) -> list[Aims]:
    if target is not None:
        return [Aims.of(target, 1, classes)] * len(maps)
    return [Aims((found.target if found.target >= 0 else None,)) for found in maps]


def _tested(trial: Trial, found: Attribution, plan: Plan) -> Faithfulness:
    ranks = order(found.values, plan.seed)
    grain = grain_of(found.values)
    chance_deletion, chance_insertion = trial.chance(grain)
    deletion = trial.asked.deleted(ranks, trial.counts)
    plan.tick()
    insertion = trial.asked.inserted(ranks, trial.counts)
    plan.tick()
    seen = float(trial.asked([_lit(trial.asked.image, found.values)])[0])
    road = trial.road(ranks) if plan.road else (np.empty(0, np.float32),) * 2
    if plan.road:
        plan.tick()
    score = trial.asked.score
    return Faithfulness(
        method=found.method,
        target=trial.asked.aim.indices[0],
        score=score,
        share=np.linspace(0, 1, len(trial.counts), dtype=np.float32),
        deletion=deletion,
        insertion=insertion,
        random_deletion=chance_deletion,
        random_insertion=chance_insertion,
        blob_deletion=trial.blob[0],
        blob_insertion=trial.blob[1],
        drop=max(0.0, score - seen) / score if score > 0 else 0.0,
        increase=seen > score,
        road_share=np.array(ROAD_SHARES if plan.road else (), np.float32),
        road_most=road[0],
        road_least=road[1],
        origin=_origin(trial, found, plan, grain),
    )


def _origin(
    trial: Trial, found: Attribution, plan: Plan, grain: tuple[int, ...]
) -> dict[str, object]:
    return {
        "method": found.method,
        "variant": found.variant,
        "layer": found.layer,
        "hidden": "0 in the network's input",
        "shown over": "the picture blurred by 5 px within 11×11",
        "random maps": f"{trial.random} of {grain[0]}×{grain[1]} numbers",
        "steps": len(trial.counts) - 1,
        "seed": plan.seed,
        "convscope": __version__,
    }


@dataclass(frozen=True)
class Trial:
    """One picture and target: what is asked of the network, and what maps without sense get."""

    asked: Asked
    counts: tuple[int, ...]
    random: int
    seed: int
    kept: dict[tuple[int, ...], tuple[Curves, Curves]]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        image: Float[Tensor, "c h w"],
        aim: Aims,
        steps: int,
        random: int,
        seed: int,
    ) -> Trial:
        pixels = image.shape[1] * image.shape[2]
        counts = tuple(round(step * pixels / steps) for step in range(steps + 1))
        return cls(Asked.of(model, image, aim), counts, random, seed, {})

    @property
    def size(self) -> tuple[int, int]:
        return self.asked.image.shape[1], self.asked.image.shape[2]

    def chance(self, grain: tuple[int, ...]) -> tuple[Curves, Curves]:
        """Deletion and insertion of random maps of this many numbers, enlarged like a map."""
        if grain not in self.kept:
            maps = [
                order(random_map(grain, self.size, self.seed + n), n) for n in range(self.random)
            ]
            deleted = [self.asked.deleted(ranks, self.counts) for ranks in maps]
            inserted = [self.asked.inserted(ranks, self.counts) for ranks in maps]
            self.kept[grain] = self._rows(deleted), self._rows(inserted)
        return self.kept[grain]

    def _rows(self, curves: list[Float32[np.ndarray, "steps"]]) -> Curves:
        return np.array(curves, np.float32).reshape(self.random, len(self.counts))

    @cached_property
    def blob(self) -> tuple[Float32[np.ndarray, "steps"], Float32[np.ndarray, "steps"]]:
        ranks = order(blob(self.size), self.seed)
        return self.asked.deleted(ranks, self.counts), self.asked.inserted(ranks, self.counts)

    def road(
        self, ranks: np.ndarray
    ) -> tuple[Float32[np.ndarray, "shares"], Float32[np.ndarray, "shares"]]:
        counts = [round(share * ranks.size) for share in ROAD_SHARES]
        last = ranks.size - 1 - ranks
        return (
            self.asked.imputed(ranks, counts, self.seed),
            self.asked.imputed(last, counts, self.seed),
        )


Curves = Float32[np.ndarray, "maps steps"]


def grain_of(values: Float[np.ndarray, "h w"]) -> tuple[int, int]:
    """How many numbers a random map must have to be as smooth as this one when enlarged: rows and
    columns, the picture's size halved as often as fits, down to 4.

    Measured where the map's correlation with itself, moved, falls to one half: enlarged random
    numbers do that at 0.72 of their distance (a cubic B-spline at half of its height).
    """
    wave = np.abs(np.fft.fft2(values - values.mean())) ** 2
    alike = np.fft.ifft2(wave).real
    cells = []
    for side, line in zip(values.shape, (alike[:, 0], alike[0]), strict=True):
        low = np.flatnonzero(line[: side // 2 + 1] < line[0] / 2)
        reach = _crossing(line / (line[0] or 1.0), int(low[0])) if len(low) else side / 2
        halvings = max(0, round(np.log2(max(1.0, reach / 0.72))))
        cells.append(max(min(4, side), side // 2**halvings))
    return cells[0], cells[1]


def _crossing(line: Float[np.ndarray, "n"], first: int) -> float:
    """Where a falling line passes one half, between `first` and the place before."""
    above, below = float(line[first - 1]), float(line[first])
    return first - 1 + (above - 0.5) / (above - below)


def random_map(
    grain: tuple[int, ...], size: tuple[int, int], seed: int
) -> Float[np.ndarray, "h w"]:
    """Uniform random numbers, enlarged bilinearly to the picture's size as a layer's map is."""
    small = torch.from_numpy(np.random.default_rng(seed).random(grain))
    if tuple(grain) == size:
        return small.numpy()
    large = interpolate(small[None, None], size, mode="bilinear", align_corners=False)
    found: Float[np.ndarray, "h w"] = large[0, 0].numpy()
    return found


def blob(size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Falls off from the picture's middle, evenly along both of its sides."""
    down, across = (np.linspace(-1, 1, side) if side > 1 else np.zeros(1) for side in size)
    falling: Float[np.ndarray, "h w"] = np.exp(-2 * (down[:, None] ** 2 + across**2))
    return falling


def _lit(image: Float[Tensor, "c h w"], values: Float[np.ndarray, "h w"]) -> Tensor:
    """What of the picture a map lights up."""
    positive = np.maximum(values, 0)
    top = float(positive.max())
    light = positive / top if top > 0 else positive
    return image * torch.from_numpy(np.ascontiguousarray(light)).to(image)
