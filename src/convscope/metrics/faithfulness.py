"""Faithfulness of attributions: deletion, insertion, masking, what fills; the exact sign test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, lgamma, log

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu
from torch import Tensor, nn
from torch.nn.functional import interpolate

from convscope.attribution.occlusion import blurred
from convscope.core.errors import ModelError
from convscope.core.run import PLAIN, Run
from convscope.lens.lens import Lens
from convscope.network.arguments import Given, Model, alone, at_least, attributions, several, taking
from convscope.network.network import Network, batch_size, forward, wide
from convscope.network.outputs import Target, Targets, meaning, scored
from convscope.network.provenance import recorded
from convscope.records.maps import Attribution, Faithfulness

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


HALF = 0.72
"""Where the correlation of enlarged random numbers falls to one half, in their distances."""
COARSEST = 4


def grain_of(values: Float[np.ndarray, "h w"]) -> tuple[int, int]:
    """How many numbers a random map must have to be as smooth as this one when enlarged: rows and
    columns, the picture's size halved as often as fits, down to 4.

    Measured where the map's correlation with itself, moved, falls to one half: enlarged random
    numbers do that at 0.72 of their distance (a cubic B-spline at half of its height).
    """
    height, width = values.shape
    wave = np.abs(np.fft.fft2(values - values.mean(), (2 * height, 2 * width))) ** 2
    sums = np.fft.ifft2(wave).real  # of products; twice the size keeps the borders apart
    down = sums[:height, 0] / np.arange(height, 0, -1)
    across = sums[0, :width] / np.arange(width, 0, -1)
    return _cells(down), _cells(across)


def _cells(alike: Float[np.ndarray, "side"]) -> int:
    side = len(alike)
    low = np.flatnonzero(alike[: side // 2 + 1] < alike[0] / 2)
    reach = _crossing(alike, int(low[0])) if len(low) else side / 2
    halvings = max(0, round(np.log2(max(1.0, reach / HALF))))
    return int(max(min(COARSEST, side), side // 2**halvings))


def _crossing(line: Float[np.ndarray, "side"], first: int) -> float:
    """Where a falling line passes half its height, between `first` and the place before."""
    above, below, half = float(line[first - 1]), float(line[first]), float(line[0]) / 2
    return first - 1 + (above - half) / (above - below)


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


STEPS = 20
"""Shares of the picture that are hidden one after the other: 5 % each."""
RANDOM = 4
ROAD_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@taking(image=several)
@recorded
def faithfulness(
    model: Model,
    image: Given,
    maps: Sequence[Attribution],
    *,
    target: Target | None = None,
    classes: Sequence[str] = (),
    steps: int = STEPS,
    random: int = RANDOM,
    road: bool = False,
    run: Run = PLAIN,
) -> list[Faithfulness]:
    """Put maps of one picture to the test; one result for each, all against the same controls.

    image: preprocessed. maps: of the picture's size. target: as it was given to the method;
    without it the class that the maps name (the likeliest one for maps of functions). steps:
    equal shares of the picture; the curves have one value more. random: random maps. road: also
    impute instead of grey (Remove And Debias), which takes about as long again.

    Deletion puts 0, the mean picture, in the place of pixels; insertion begins with a blurred
    one. The average drop shows only the picture times the map's positive part, scaled to [0, 1].

    Raises UsageError U351 to U354 (targets), U355 (no picture), U390 (a map of another size),
    U391 (steps or random below 1), U392 (several pictures), U393, U394 (no attributions, NaN in
    one), ModelError M514 (NaN in the scores), M520 (no scores, or only one), M522.
    Source: Petsiuk et al. 2018, "RISE", §4.2 (deletion, insertion); Chattopadhyay et al. 2018,
    §5.1 (drop, increase); Rong et al. 2022 (ROAD).
    """
    at_least(1, steps=steps, random=random)
    (picture,) = alone(model, image)
    checked = attributions(maps, (picture.shape[1], picture.shape[2]))
    aims = _aims(checked, target, classes)
    grains = [grain_of(one.values) for one in checked]
    cases = list(zip(aims, checked, grains, strict=True))
    controls = random * len(set(zip(aims, grains, strict=True))) + len(set(aims))
    done, total = itertools.count(1), 2 * controls + (4 if road else 2) * len(cases)
    plan = Plan(steps, random, road, run.seed, lambda: run.tick(next(done), total))
    trials = {aim: Trial.of(model, picture, aim, plan) for aim in dict.fromkeys(aims)}
    return [_tested(trials[aim], one, grain) for aim, one, grain in cases]


@dataclass(frozen=True)
class Plan:
    """How maps are put to the test."""

    steps: int
    random: int
    road: bool
    seed: int
    tick: Callable[[], object]


def _aims(
    maps: Sequence[Attribution], target: Target | None, classes: Sequence[str]
) -> list[Targets]:
    if target is not None:
        return [Targets.of(target, 1, classes)] * len(maps)
    return [Targets((found.target if found.target >= 0 else None,)) for found in maps]


def _tested(trial: Trial, found: Attribution, grain: tuple[int, int]) -> Faithfulness:
    plan, score = trial.plan, trial.asked.score
    ranks = order(found.values, plan.seed)
    chance_deletion, chance_insertion = trial.chance(grain)
    deletion, insertion = trial.curves(ranks)
    seen = float(trial.asked([_lit(trial.asked.image, found.values)])[0])
    most, least = trial.road(ranks) if plan.road else (np.empty(0, np.float32),) * 2
    return Faithfulness(
        method=found.method,
        target=trial.asked.aim.indices[0],
        score=score,
        share=trial.share,
        deletion=deletion,
        insertion=insertion,
        random_deletion=chance_deletion,
        random_insertion=chance_insertion,
        blob_deletion=trial.blob[0],
        blob_insertion=trial.blob[1],
        drop=max(0.0, score - seen) / score if score > 0 else math.nan,
        increase=seen > score,
        road_share=np.array(ROAD_SHARES if plan.road else (), np.float32),
        road_most=most,
        road_least=least,
        origin=_origin(plan, found, grain),
    )


def _origin(plan: Plan, found: Attribution, grain: tuple[int, int]) -> dict[str, object]:
    return {
        "method": found.method,
        "variant": found.variant,
        "layer": found.layer,
        "hidden": "0 in the network's input",
        "shown over": "the picture blurred by 5 px within 11×11",
        "random maps": f"{plan.random} of {grain[0]}×{grain[1]} numbers",
        "steps": plan.steps,
        "seed": plan.seed,
    }


Curve = Float32[np.ndarray, "steps"]
Curves = Float32[np.ndarray, "maps steps"]


@dataclass(frozen=True)
class Trial:
    """One picture and target: what is asked of the network, and what maps without sense get."""

    asked: Asked
    counts: tuple[int, ...]
    plan: Plan
    kept: dict[tuple[int, int], tuple[Curves, Curves]]

    @classmethod
    def of(cls, model: nn.Module, image: Float[Tensor, "c h w"], aim: Targets, plan: Plan) -> Trial:
        pixels, steps = image.shape[1] * image.shape[2], plan.steps
        counts = tuple(round(step * pixels / steps) for step in range(steps + 1))
        return cls(Asked.of(model, image, aim), counts, plan, {})

    @property
    def size(self) -> tuple[int, int]:
        return self.asked.image.shape[1], self.asked.image.shape[2]

    @property
    def share(self) -> Curve:
        """Of the pixels, at each step."""
        return np.array(self.counts, np.float32) / np.float32(self.counts[-1])

    def curves(self, ranks: Order) -> tuple[Curve, Curve]:
        """Deletion and insertion in this order."""
        (empty, soft), whole, inner = self.ends, self.asked.score, self.counts[1:-1]
        deleted = _with_ends(whole, self.asked.deleted(ranks, inner), empty)
        self.plan.tick()
        inserted = _with_ends(soft, self.asked.inserted(ranks, inner), whole)
        self.plan.tick()
        return deleted, inserted

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The score of nothing and of the picture blurred, where all curves end or begin."""
        image = self.asked.image
        empty, soft = self.asked([torch.zeros_like(image), softened(image)]).tolist()
        return empty, soft

    def chance(self, grain: tuple[int, int]) -> tuple[Curves, Curves]:
        """Deletion and insertion of random maps of this many numbers, enlarged like a map."""
        if grain not in self.kept:
            seeds = range(self.plan.seed, self.plan.seed + self.plan.random)
            maps = (order(random_map(grain, self.size, seed), seed) for seed in seeds)
            deleted, inserted = zip(*map(self.curves, maps), strict=True)
            self.kept[grain] = np.stack(deleted), np.stack(inserted)
        return self.kept[grain]

    @cached_property
    def blob(self) -> tuple[Curve, Curve]:
        return self.curves(order(blob(self.size), self.plan.seed))

    def road(
        self, ranks: Order
    ) -> tuple[Float32[np.ndarray, "shares"], Float32[np.ndarray, "shares"]]:
        """Scores with what is marked most imputed, and with what is marked least."""
        counts = [round(share * ranks.size) for share in ROAD_SHARES]
        most = self.asked.imputed(ranks, counts, self.plan.seed)
        self.plan.tick()
        least = self.asked.imputed(ranks.size - 1 - ranks, counts, self.plan.seed)
        self.plan.tick()
        return most, least


def _with_ends(first: float, inner: Curve, last: float) -> Curve:
    return np.concatenate(([first], inner, [last])).astype(np.float32)


def _lit(image: Float[Tensor, "c h w"], values: Float[np.ndarray, "h w"]) -> Tensor:
    """What of the picture a map lights up."""
    positive = np.maximum(values, 0).astype(np.float64)
    top = float(positive.max())
    light = positive / top if top > 0 else positive
    return image * torch.from_numpy(light.astype(np.float32)).to(image)


def sign_test(lost: int, gained: int) -> float:
    """Two-sided p of the exact sign test: how often would equals differ at least so much?

    lost, gained: pictures that only the one, and only the other, gets right. Pictures on which
    both agree say nothing. 1 where there is no difference at all.
    Source: McNemar 1947, with the binomial distribution in the place of its approximation.
    """
    both, fewer = lost + gained, min(lost, gained)
    if 2 * fewer >= both - 1:
        return 1.0
    whole = both * log(2) - lgamma(both + 1)
    tail = sum(
        exp(-lgamma(count + 1) - lgamma(both - count + 1) - whole) for count in range(fewer + 1)
    )
    return min(1.0, 2 * tail)
