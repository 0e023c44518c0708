"""Why this class, by which methods, and how far is each of them to be believed?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from convscope.errors import ConvscopeError
from convscope.images.folder import Picture
from convscope.methods.cam_case import forward, prepared, wide
from convscope.methods.explaining import DEFAULT, Method, chosen
from convscope.methods.faithfulness import RANDOM, faithfulness
from convscope.methods.labels import class_names
from convscope.methods.pointing import coverage
from convscope.methods.randomisation import agreement, randomisation, sensitivity
from convscope.methods.targets import Aims, Target, answer, is_probability
from convscope.methods.views import framed
from convscope.models.load import Network
from convscope.records.explanation import Explanation
from convscope.records.faithfulness import Randomisation, Sensitivity
from convscope.records.maps import Attribution
from convscope.records.predictions import Prediction
from convscope.units import Box

TOP = 5
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Checks:
    """Which tests the maps are put to, and how hard."""

    steps: int = 20
    """Shares of the picture that are hidden one after the other."""
    random: int = RANDOM
    """Random maps to compare with."""
    road: bool = False
    """Also impute in the place of grey; slow."""
    randomise: bool = True
    """Also make the maps of another class, and of the same network with random weights: in its
    topmost layer, and in all."""
    seed: int = 0


def explain(
    network: Network,
    picture: Picture,
    methods: Mapping[str, Method] | None = None,
    *,
    target: Target | None = None,
    boxes: Sequence[Box] = (),
    checks: Checks | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Explain one picture by several methods and put each map to the test.

    picture: whole, as decoded. methods: as `methods.explaining.chosen` gives them; four without.
    target: class index or name; the likeliest class without. boxes: in the whole picture's
    pixels, where somebody marked something. A method that is not defined for this network is
    left out, with its reason in `refused`; if none is, the first reason is raised.

    Raises UsageError U352, U353 (target), ModelError M520, M522, M560.
    """
    checks = checks or Checks()
    methods = dict(methods or chosen(DEFAULT))
    size = (picture.pixels.shape[0], picture.pixels.shape[1])
    pixels = framed(network.preprocess.framing, picture.pixels)
    image = prepared(network.model, network.preprocess.tensor(pixels))[0]
    share = probabilities(network, image)
    names = class_names(network, len(share))
    index = _index(target, share, names)
    tick = _Bar(progress, checks)
    maps, refused = explained(network, image, methods, index, tick.maps)
    kept = {name: methods[name] for name in maps}
    tests = faithfulness(
        network.model,
        image,
        list(maps.values()),
        target=index,
        steps=checks.steps,
        random=checks.random,
        road=checks.road,
        seed=checks.seed,
        progress=tick.tests,
    )
    randomised, sensitive = _sanity(network, image, kept, index, share, checks, tick)
    return Explanation(
        picture=pixels,
        prediction=_prediction(picture.name, share, names),
        target=index,
        target_name=names[index],
        score=float(share[index]),
        label="",
        methods=tuple(maps),
        maps=tuple(maps.values()),
        tests=tuple(tests),
        coverage=tuple(coverage(one.values) for one in maps.values()),
        randomised=randomised,
        sensitive=sensitive,
        agreement=agreement(maps) if len(maps) > 1 else None,
        boxes=tuple(network.preprocess.framing.box(box, size) for box in boxes),
        refused=refused,
    )


def explained(
    network: Network,
    image: Float[Tensor, "c h w"],
    methods: Mapping[str, Method],
    target: int,
    progress: Progress | None = None,
) -> tuple[dict[str, Attribution], dict[str, str]]:
    """One map by each method, and why others are not defined here.

    Raises the first reason where no method is left.
    """
    maps: dict[str, Attribution] = {}
    refused: dict[str, ConvscopeError] = {}
    for number, (name, method) in enumerate(methods.items(), start=1):
        try:
            (maps[name],) = method(network.model, image[None], target=target)
        except ConvscopeError as fault:
            refused[name] = fault
        if progress is not None:
            progress(number, len(methods))
    if refused and not maps:
        raise next(iter(refused.values()))
    return maps, {name: f"{fault.subject}: {fault.what}" for name, fault in refused.items()}


def probabilities(
    network: Network, image: Float[Tensor, "c h w"]
) -> Float32[np.ndarray, "classes"]:
    """Softmax of the network's scores, unless they are probabilities already."""
    with torch.inference_mode():
        scores = wide(answer(forward(network.model, image[None]), Aims((None,))))
        share = scores if is_probability(scores) else scores.softmax(1)
    found: Float32[np.ndarray, "classes"] = share[0].cpu().numpy().astype(np.float32)
    return found


def _index(target: Target | None, share: np.ndarray, names: Sequence[str]) -> int:
    aims = Aims.of(target, 1, names).settled(torch.from_numpy(share)[None])
    return aims.indices[0]


def _prediction(
    name: str, share: Float32[np.ndarray, "classes"], names: Sequence[str]
) -> Prediction:
    order = np.argsort(-share, kind="stable")[:TOP].astype(np.int64)
    return Prediction(name, tuple(names[place] for place in order), order, share[order])


def _sanity(
    network: Network,
    image: Float[Tensor, "c h w"],
    methods: Mapping[str, Method],
    target: int,
    share: Float32[np.ndarray, "classes"],
    checks: Checks,
    tick: _Bar,
) -> tuple[tuple[Randomisation, ...], tuple[Sensitivity, ...]]:
    """Whether the maps depend on what was learned, and on the class."""
    if not checks.randomise:
        return (), ()
    made = randomisation(
        network.model,
        image,
        dict(methods),
        target=target,
        steps=2,
        seed=checks.seed,
        progress=tick.sanity,
    )
    others = [int(index) for index in np.argsort(-share, kind="stable")[:2] if index != target]
    if not others:
        return tuple(made.values()), ()
    pair = (target, others[0])
    compared = [sensitivity(network.model, image, one, pair=pair) for one in methods.values()]
    return tuple(made.values()), tuple(compared)


class _Bar:
    """One bar over maps, tests and sanity checks, each worth a third."""

    def __init__(self, progress: Progress | None, checks: Checks) -> None:
        self._progress = progress
        self._parts = 3 if checks.randomise else 2

    def maps(self, done: int, total: int) -> None:
        self._move(0, done, total)

    def tests(self, done: int, total: int) -> None:
        self._move(1, done, total)

    def sanity(self, done: int, total: int) -> None:
        self._move(2, done, total)

    def _move(self, part: int, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(round(100 * (part + done / max(1, total))), 100 * self._parts)
