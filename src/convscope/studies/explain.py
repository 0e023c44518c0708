"""Why this class, by which methods, and how far is each of them to be believed?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from convscope.errors import ConvscopeError, ModelError, UsageError
from convscope.lens.lens import Lens
from convscope.methods.cam_case import finite, forward, prepared
from convscope.methods.explaining import DEFAULT, Method, chosen
from convscope.methods.faithfulness import RANDOM, faithfulness
from convscope.methods.given import Given, one_map, taking, whole_picture
from convscope.methods.labels import class_names
from convscope.methods.pointing import coverage, inside
from convscope.methods.randomisation import agreement, difference, randomisation
from convscope.methods.targets import Aims, Target
from convscope.network.network import Network
from convscope.network.outputs import meaning, understood
from convscope.network.provenance import recorded
from convscope.pictures.pictures import Picture
from convscope.records.explanation import Explanation
from convscope.records.faithfulness import Faithfulness, Randomisation, Sensitivity
from convscope.records.maps import Attribution
from convscope.records.predictions import Prediction
from convscope.units import Box

TOP = 5
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Checks:
    """Which tests the maps are put to, and how hard."""

    steps: int = 8
    """Shares of the picture that are hidden one after the other."""
    random: int = RANDOM
    """Random maps to compare with."""
    road: bool = False
    """Also impute in the place of grey; slow."""
    randomise: bool = True
    """Also make the maps of another class, and of the same network with random weights."""
    cascade: int = 1
    """In how many steps, from the topmost layer down, the weights become random; 1: all at once."""
    seed: int = 0


@taking(picture=whole_picture)
@recorded
def explain(
    network: Network,
    picture: Given,
    methods: Mapping[str, Method] | None = None,
    *,
    target: Target | None = None,
    boxes: Sequence[Box] = (),
    checks: Checks | None = None,
    shown: Callable[[Prediction, Mapping[str, Attribution]], None] | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Explain one picture by several methods and put each map to the test.

    picture: whole, as decoded. methods: as `methods.explaining.chosen` gives them; four without.
    target: class index or name; the likeliest class without. boxes: in the whole picture's
    pixels, where somebody marked something. shown: told the classes and the maps, before the tests
    begin. A method that is not defined for this network is left out, with its reason in `refused`;
    if none is, the first reason is raised. So is a test that cannot be made, in `untested`.

    Each method runs on the network for the target and, with `checks.randomise`, for the likeliest
    other class, and on random weights. With the defaults the maps cost less than 100 passes of one
    picture up the network, and all with its tests less than 600 (`bench/explain.py`).

    Raises UsageError U352, U353, U397 (target), ModelError M520 (no scores), M522,
    M543 (NaN).
    """
    network, checks = understood(network), checks or Checks()
    methods = dict(methods or chosen(DEFAULT))
    pixels, image = seen(network, picture)
    share = probabilities(network, image)
    names = class_names(network, len(share))
    index = target_index(network, share, target)
    tick = _Bar(progress, 4 if checks.randomise else 2)
    maps, refused = explained(network, image, methods, index, tick.part(0))
    kept = {name: methods[name] for name in maps}
    prediction = _prediction(picture.name, share, names)
    if shown is not None:
        shown(prediction, maps)
    untested: dict[str, str] = {}
    tests = [Faithfulness.unknown(one.method, index) for one in maps.values()]
    randomised: tuple[Randomisation, ...] = ()
    with left_out(untested, "hiding and showing"):
        tests = _faithful(network, image, maps, index, checks, tick.part(1))
    with left_out(untested, "random weights"):
        randomised = _randomised(network, image, kept, maps, index, checks, tick.part(2))
    pair = (index, next(i for i in np.argsort(-share, kind="stable").tolist() if i != index))
    return Explanation(
        picture=pixels,
        prediction=prediction,
        target=index,
        target_name=names[index],
        score=float(share[index]),
        label="",
        methods=tuple(maps),
        maps=tuple(maps.values()),
        tests=tuple(tests),
        coverage=tuple(coverage(one.values) for one in maps.values()),
        randomised=randomised,
        sensitive=_sensitive(network, image, kept, maps, pair, checks, tick.part(3)),
        agreement=agreement(maps) if len(maps) > 1 else None,
        boxes=seen_boxes(network, boxes, picture),
        notes=picture.notes,
        refused=refused,
        untested=untested,
        origin=made_by(checks),
    )


@contextmanager
def left_out(untested: dict[str, str], test: str) -> Iterator[None]:
    """A test that cannot be made on this network is left out, with its reason in `untested`."""
    try:
        yield
    except ModelError as fault:
        untested[test] = _reason(fault)


def _faithful(
    network: Network,
    image: Float[Tensor, "c h w"],
    maps: Mapping[str, Attribution],
    target: int,
    checks: Checks,
    progress: Progress,
) -> list[Faithfulness]:
    """Whether what the maps mark is what the network uses."""
    return faithfulness(
        network.model,
        image,
        list(maps.values()),
        target=target,
        steps=checks.steps,
        random=checks.random,
        road=checks.road,
        seed=checks.seed,
        progress=progress,
    )


def made_by(checks: Checks) -> dict[str, Any]:
    """What else decides the numbers."""
    return {
        "steps": checks.steps,
        "random maps": checks.random,
        "seed": checks.seed,
    }


def seen(
    network: Network, picture: Picture
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[Tensor, "c h w"]]:
    """What the network gets to see of a picture: as pixels, and as it takes them."""
    part = network.preprocess.seen(picture.within(network.preprocess.framing).pixels)
    return part, prepared(network.model, network.preprocess.tensor(part))[0]


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
            maps[name] = _map(network, image, method, target)
        except ConvscopeError as fault:
            refused[name] = fault
        if progress is not None:
            progress(number, len(methods))
    if refused and not maps:
        raise next(iter(refused.values()))
    return maps, {name: _reason(fault) for name, fault in refused.items()}


def _map(
    network: Network, image: Float[Tensor, "c h w"], method: Method, target: int
) -> Attribution:
    return one_map(method(network.model, image[None], target=target), tuple(image.shape[1:]))


def _reason(fault: ConvscopeError) -> str:
    return f"{fault.subject}: {fault.what}" if fault.subject else fault.what


def probabilities(
    network: Network, image: Float[Tensor, "c h w"]
) -> Float32[np.ndarray, "classes"]:
    """Of the network's classes. Raises ModelError M520 (no scores), M522, M543 (NaN)."""
    network = understood(network)
    with torch.no_grad(), Lens(network.model, ()) as lens:
        scores = finite("the network", meaning(network).require(forward(lens, image[None])))
    share = meaning(network).probabilities(scores)
    found: Float32[np.ndarray, "classes"] = share[0].cpu().numpy().astype(np.float32)
    return found


def target_index(network: Network, share: np.ndarray, target: Target | None) -> int:
    """The class that is meant, the likeliest where none is told.

    Raises UsageError U352, U353 (no such class), U397 (a function).
    """
    if callable(target):
        what = "the tests of maps follow the probability of a class"
        raise UsageError("U397", "a function as target", what, next_step="name a class")
    aims = Aims.of(target, 1, class_names(network, len(share)))
    return aims.settled(torch.from_numpy(share)[None]).indices[0]


def seen_boxes(network: Network, boxes: Sequence[Box], picture: Picture) -> tuple[Box, ...]:
    """Where they are in what the network sees; those that are cut off are left out."""
    height, width = picture.pixels.shape[:2]
    framing = network.preprocess.framing
    if picture.framing is not None:  # and so are its boxes
        return tuple(one for one in boxes if inside(framing.crop, [one]).any())
    framed_boxes = (framing.box(box, (height, width)) for box in boxes)
    return tuple(one for one in framed_boxes if inside(framing.crop, [one]).any())


def _prediction(
    name: str, share: Float32[np.ndarray, "classes"], names: Sequence[str]
) -> Prediction:
    order = np.argsort(-share, kind="stable")[:TOP].astype(np.int64)
    return Prediction(name, tuple(names[place] for place in order), order, share[order])


def _randomised(
    network: Network,
    image: Float[Tensor, "c h w"],
    methods: Mapping[str, Method],
    maps: Mapping[str, Attribution],
    target: int,
    checks: Checks,
    progress: Progress,
) -> tuple[Randomisation, ...]:
    """Whether the maps depend on what was learned."""
    if not checks.randomise:
        return ()
    found = randomisation(
        network.model,
        image,
        dict(methods),
        target=target,
        steps=checks.cascade,
        seed=checks.seed,
        before=maps,
        progress=progress,
    )
    return tuple(found.values())


def _sensitive(
    network: Network,
    image: Float[Tensor, "c h w"],
    methods: Mapping[str, Method],
    maps: Mapping[str, Attribution],
    pair: tuple[int, int],
    checks: Checks,
    progress: Progress,
) -> tuple[Sensitivity, ...]:
    """Whether the maps depend on the class; NaN where a method fails for the other one."""
    found = []
    for number, (name, one) in enumerate(maps.items() if checks.randomise else (), start=1):
        try:
            found.append(difference(one, _map(network, image, methods[name], pair[1]), pair))
        except ConvscopeError:
            origin = {"variant": one.variant}
            found.append(Sensitivity(one.method, *pair, math.nan, math.nan, origin=origin))
        progress(number, len(maps))
    return tuple(found)


class _Bar:
    """One bar over several parts of the work, each worth as much."""

    def __init__(self, progress: Progress | None, parts: int) -> None:
        self._progress, self._parts = progress, parts

    def part(self, number: int) -> Progress:
        def moved(done: int, total: int) -> None:
            if self._progress is not None:
                self._progress(round(100 * (number + done / max(1, total))), 100 * self._parts)

        return moved
