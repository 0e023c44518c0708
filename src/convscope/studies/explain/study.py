"""What do maps point at over a whole folder, and does the network use what is marked there?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor

from convscope.attribution.base import Method
from convscope.attribution.registry import DEFAULT, chosen, described, methods_of
from convscope.core.errors import ConvscopeError, ModelError, UsageError, shown
from convscope.core.run import PLAIN, Run, with_old_keywords
from convscope.core.units import Box
from convscope.lens.lens import Lens
from convscope.metrics.faithfulness import RANDOM, faithfulness
from convscope.metrics.localisation import (
    boxes_by_name,
    boxes_of,
    coverage,
    energy_inside,
    inside,
    pointing,
    share_inside,
)
from convscope.metrics.randomisation import agreement, difference, randomisation
from convscope.network.arguments import (
    Given,
    Layers,
    is_one,
    layer_names,
    one_map,
    pictures_of,
    taking,
    whole_picture,
)
from convscope.network.network import Network, finite, forward, prepared, whole
from convscope.network.outputs import Target, Targets, meaning, understood
from convscope.network.provenance import recorded
from convscope.network.tuning import blank
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Picture, Pictures
from convscope.records.maps import Attribution, Faithfulness, Randomisation, Sensitivity
from convscope.records.predictions import Prediction
from convscope.representations.predict import class_names
from convscope.scale.rows import RowJob, digest
from convscope.studies.explain.record import METRICS, Explanation, Explanations

TOP = 5


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

    @property
    def parts(self) -> int:
        """Of the work: the maps, and each test that is made."""
        return 4 if self.randomise else 2


@taking(picture=whole_picture)
@recorded
def explain_picture(
    network: Network,
    picture: Given,
    methods: Mapping[str, Method] | None = None,
    *,
    target: Target | None = None,
    boxes: Sequence[Box] = (),
    checks: Checks | None = None,
    shown: Callable[[Prediction, Mapping[str, Attribution]], None] | None = None,
    run: Run = PLAIN,
) -> Explanation:
    """Explain one picture by several methods and put each map to the test; see `explain`.

    picture: whole, as decoded; boxes are in its pixels. shown: told the classes and the maps,
    before the tests. A method that is not defined here is left out, with its reason in `refused`;
    if none is, the first reason is raised. So is a test that cannot be made, in `untested`. By
    default the maps cost less than 100 passes up the network, and all less than 600.

    Raises UsageError U352, U353, U397 (target), ModelError M520 (no scores), M522, M543 (NaN).
    """
    network, checks = understood(network), checks or Checks()
    methods = methods or chosen(DEFAULT)
    pixels, image = seen(network, picture)
    share = probabilities(network, image)
    index = target_index(network, share, target)
    maps, refused = explained(network, image, methods, index, run.part(0, checks.parts))
    prediction = _prediction(network, picture.name, share)
    if shown is not None:
        shown(prediction, maps)
    examined = _Examined(network, image, methods, maps, share, index, checks, run)
    return Explanation(
        picture=pixels,
        prediction=prediction,
        label="",
        **examined.fields(),
        boxes=seen_boxes(network, boxes, picture),
        notes=picture.notes,
        refused=refused,
        origin=made_by(checks),
    )


@dataclass(frozen=True)
class _Examined:
    """One picture, and the maps of it that are put to the tests."""

    network: Network
    image: Float[Tensor, "c h w"]
    methods: Mapping[str, Method]
    maps: Mapping[str, Attribution]
    share: Float32[np.ndarray, "classes"]
    """Each class's probability."""
    target: int
    checks: Checks
    run: Run

    def fields(self) -> dict[str, Any]:
        """What an explanation says of the target, the maps and the tests."""
        target, maps = self.target, self.maps
        return {
            "target": target,
            "target_name": class_names(self.network, len(self.share))[target],
            "score": float(self.share[target]),
            "methods": tuple(maps),
            "maps": tuple(maps.values()),
            "coverage": tuple(coverage(one.values) for one in maps.values()),
            "agreement": agreement(maps) if len(maps) > 1 else None,
            **self._tests(),
        }

    def _tests(self) -> dict[str, Any]:
        """Of each map; and why some could not be made."""
        untested: dict[str, str] = {}
        tests = [Faithfulness.unknown(one.method, self.target) for one in self.maps.values()]
        randomised: tuple[Randomisation, ...] = ()
        with left_out(untested, "hiding and showing"):
            tests = self._faithful(self._part(1))
        with left_out(untested, "random weights"):
            randomised = self._randomised(self._part(2))
        return {
            "tests": tuple(tests),
            "randomised": randomised,
            "sensitive": self._sensitive(self._part(3)),
            "untested": untested,
        }

    def _part(self, number: int) -> Run:
        return self.run.part(number, self.checks.parts)

    def _faithful(self, run: Run) -> list[Faithfulness]:
        """Whether what the maps mark is what the network uses."""
        return faithfulness(
            self.network.model,
            self.image,
            list(self.maps.values()),
            target=self.target,
            steps=self.checks.steps,
            random=self.checks.random,
            road=self.checks.road,
            run=Run(seed=self.checks.seed, progress=run.progress),
        )

    def _randomised(self, run: Run) -> tuple[Randomisation, ...]:
        """Whether the maps depend on what was learned."""
        if not self.checks.randomise:
            return ()
        result = randomisation(
            self.network.model,
            self.image,
            {name: self.methods[name] for name in self.maps},
            target=self.target,
            steps=self.checks.cascade,
            before=self.maps,
            run=Run(seed=self.checks.seed, progress=run.progress),
        )
        return tuple(result.values())

    def _sensitive(self, run: Run) -> tuple[Sensitivity, ...]:
        """Whether the maps depend on the class; NaN where a method fails for the likeliest
        other one."""
        if not self.checks.randomise:
            return ()
        order = np.argsort(-self.share, kind="stable").tolist()
        pair = (self.target, next(index for index in order if index != self.target))
        result = []
        for number, (name, one) in enumerate(self.maps.items(), start=1):
            try:
                other = _map(self.network, self.image, self.methods[name], pair[1])
                result.append(difference(one, other, pair))
            except ConvscopeError:
                origin = {"variant": one.variant}
                result.append(Sensitivity(one.method, *pair, math.nan, math.nan, origin=origin))
            run.tick(number, len(self.maps))
        return tuple(result)


@contextmanager
def left_out(untested: dict[str, str], test: str) -> Iterator[None]:
    """A test that cannot be made on this network is left out, with its reason in `untested`."""
    try:
        yield
    except ModelError as fault:
        untested[test] = _reason(fault)


def made_by(checks: Checks) -> dict[str, Any]:
    """What else decides the numbers."""
    return {"steps": checks.steps, "random maps": checks.random, "seed": checks.seed}


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
    run: Run = PLAIN,
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
        run.tick(number, len(methods))
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
    result: Float32[np.ndarray, "classes"] = share[0].cpu().numpy().astype(np.float32)
    return result


def class_count(network: Network) -> int:
    """How many classes it has scores for. Raises ModelError M520 (none)."""
    known = meaning(network)
    if known.where is None:
        return len(probabilities(network, blank(network.model, network.preprocess.shape)[0]))
    return known.classes


def target_index(network: Network, share: np.ndarray, target: Target | None) -> int:
    """The class that is meant, the likeliest where none is told.

    Raises UsageError U352, U353 (no such class), U397 (a function).
    """
    if callable(target):
        what = "the tests of maps follow the probability of a class"
        raise UsageError("U397", "a function as target", what, next_step="name a class")
    aims = Targets.of(target, 1, class_names(network, len(share)))
    return aims.settled(torch.from_numpy(share)[None]).indices[0]


def seen_boxes(network: Network, boxes: Sequence[Box], picture: Picture) -> tuple[Box, ...]:
    """Where they are in what the network sees; those that are cut off are left out."""
    height, width = picture.pixels.shape[:2]
    framing = network.preprocess.framing
    if picture.framing is not None:  # and so are its boxes
        return tuple(one for one in boxes if inside(framing.crop, [one]).any())
    framed_boxes = (framing.box(box, (height, width)) for box in boxes)
    return tuple(one for one in framed_boxes if inside(framing.crop, [one]).any())


def _prediction(network: Network, name: str, share: Float32[np.ndarray, "classes"]) -> Prediction:
    names = class_names(network, len(share))
    order = np.argsort(-share, kind="stable")[:TOP].astype(np.int64)
    return Prediction(name, tuple(names[place] for place in order), order, share[order])


QUICK = Checks(steps=10, random=2, randomise=False)
CROP = 48
"""Side of the crops that are kept, in pixels …"""
PART = 4
"""… which show this part of the picture's shorter side."""
TRIES = 30
"""Places that are tried for a box that hides something else."""
MARGIN = 0
"""Pixels by which a peak may miss a box here."""


@with_old_keywords
def explain(
    network: Network,
    pictures: Given,
    methods: str | Sequence[str] | Mapping[str, Method] | None = None,
    *,
    target: Target | None = None,
    layer: Layers = None,
    boxes: Any = None,
    checks: Checks | None = None,
    run: Run = PLAIN,
) -> Explanation | Explanations:
    """Explain pictures by several methods, each map put to the test: as `convscope explain` does.

    pictures: one, of which an Explanation is given; or a list or folder of them. methods: names
    as the command takes them (with commas; "all" for every one), a list of them, or functions by
    name; four without. layer: for the methods that take one. boxes: where somebody marked
    something; of several pictures by their names. checks: which tests, and how hard.

    Raises UsageError U352, U353, U397 (target), U376, U377 (no network, no picture), U395 (no
    such method), ModelError M520 (no scores), M522, M543 (NaN), DataError as `Pictures.read`.
    """
    network = whole(network)
    if checks is not None and not isinstance(checks, Checks):
        raise UsageError("U380", "checks", f"{shown(checks)} is no Checks")
    if isinstance(methods, Mapping):
        methods = methods_of(network, methods)
    else:
        names: Any = DEFAULT if methods is None else methods
        if isinstance(names, str):
            names = [name for name in map(str.strip, names.split(",")) if name]
        several = isinstance(names, list | tuple)
        methods = chosen(names if several else [names], layer_names(network, layer))
    if is_one(pictures):
        picture = whole_picture(network, pictures)
        pictures, boxes = picture, boxes_of(boxes, picture.name)
        how: Any = {"boxes": boxes, "checks": checks, "run": run}
        return explain_picture(network, pictures, methods, target=target, **how)
    with opened(pictures_of(network, pictures)) as folder:
        how = {"boxes": boxes_by_name(boxes), "checks": checks or QUICK, "run": run}
        return explain_folder(network, folder, methods, target=target, **how)


@taking(folder=pictures_of)
@recorded
def explain_folder(
    network: Network,
    folder: Pictures,
    methods: Mapping[str, Method] | None = None,
    *,
    target: Target | None = None,
    boxes: Mapping[str, Sequence[Box]] | None = None,
    numbers: Sequence[int] | None = None,
    checks: Checks = QUICK,
    each: Callable[[int, Explanation], None] | None = None,
    run: Run = PLAIN,
) -> Explanations:
    """Explain every picture, put every map to the test, and keep what stands at its peak.

    target: one class for all pictures; the likeliest of each without. boxes: by picture name, in
    the pictures' own pixels. numbers: of the pictures to take, all without. each: called with the
    picture's number and its explanation, in order, when its part is done. Unusable pictures are
    left out and listed in `folder.skipped`.

    Raises what `explain` raises, DataError D118 or D161 (no usable picture).
    """
    methods = dict(methods or chosen(DEFAULT))
    wanted = range(len(folder)) if numbers is None else list(numbers)
    marked = {name: boxes[name] for name in folder.names if name in boxes} if boxes else {}
    job = ExplainJob(network, folder, methods, target, marked, checks=checks, kept=each is not None)
    rows: list[_Row] = []
    for row in job.rows(folder, run, wanted):
        if each is not None and row.result is not None:
            each(row.number, row.result)
        rows.append(replace(row, result=None))
    return _gathered(network, folder, rows, tuple(methods), checks)


@dataclass(frozen=True)
class _Row:
    """What is kept of one picture."""

    number: int
    name: str
    fields: dict[str, Any]
    """Of the record, one entry of each."""
    middle: float
    """Whether it lies in a box."""
    count: int
    """Of classes, at least."""
    layers: dict[str, str]
    """Of each map."""
    refused: dict[str, str]
    result: Explanation | None = None
    """All of it, where that is asked for."""


class ExplainJob(RowJob[_Row]):
    """Every picture, explained and put to the test."""

    name, kind = "explain", _Row

    def __init__(
        self,
        network: Network,
        folder: Pictures,
        methods: Mapping[str, Method],
        target: Target | None,
        boxes: Mapping[str, Sequence[Box]],
        *,
        checks: Checks,
        kept: bool,
    ) -> None:
        facts = {
            **network.facts,
            "methods": {name: described(one) for name, one in methods.items()},
            "target": target if target is None else str(target),
            "labels": digest([folder.classes, folder.labels]),
            "boxes": digest(sorted(boxes.items())),
            "checks": asdict(checks),
            "explanations": "kept" if kept else "",
        }
        super().__init__(facts)
        self.network, self.methods, self.target = network, methods, target
        self.classes, self.boxes, self.checks, self.kept = folder.classes, boxes, checks, kept

    def row(self, picture: Picture) -> _Row:
        checks, number = self.checks, picture.number
        result = explain_picture(
            self.network,
            picture,
            self.methods,
            target=self.target,
            boxes=self.boxes.get(picture.name, ()),
            checks=replace(checks, seed=checks.seed + number),
        )
        if picture.label is not None:
            result = replace(result, label=self.classes[picture.label])
        chance = np.random.default_rng([checks.seed, number])
        size, boxes = result.picture.shape[:2], result.boxes
        fields = {
            "target": result.target,
            "likeliest": int(result.prediction.classes[0]),
            "label": _label(self.network, result),
            "score": result.score,
            **_of_maps(result, tuple(self.methods), chance),
            "boxed": share_inside(size, boxes) if boxes else np.nan,
            **_without(self.network, result, chance),
        }
        return _Row(
            number=number,
            name=picture.name,
            fields=fields,
            middle=float(inside(size, boxes)[size[0] // 2, size[1] // 2]) if boxes else np.nan,
            count=int(result.prediction.classes.max()) + 1,
            layers={m: one.layer for m, one in zip(result.methods, result.maps, strict=True)},
            refused=dict(result.refused),
            result=result if self.kept else None,
        )


def _of_maps(
    result: Explanation, methods: tuple[str, ...], chance: np.random.Generator
) -> dict[str, np.ndarray]:
    """Of each method: its measures, what stands where its map is highest, and at random."""
    values = np.full((len(methods), len(METRICS)), np.nan, np.float32)
    crops = np.zeros((len(methods), CROP, CROP, 3), np.uint8)
    elsewhere = crops.copy()
    for number, name in enumerate(result.methods):
        place = methods.index(name)
        values[place] = list(_measures(result, number))
        peak = result.maps[number].values
        at = np.unravel_index(int(peak.argmax()), peak.shape)
        crops[place] = _crop(result.picture, (int(at[0]), int(at[1])))
        elsewhere[place] = _crop(result.picture, tuple(chance.integers(peak.shape).tolist()))
    return {"values": values, "crops": crops, "elsewhere": elsewhere}


def _label(network: Network, result: Explanation) -> int:
    names = network.classes
    return names.index(result.label) if result.label in names else -1


def _measures(result: Explanation, number: int) -> Iterator[float]:
    """In the order of METRICS."""
    test, seen = result.tests[number], result.maps[number]
    yield test.deletion_area
    yield float(np.mean(test.random_deletion_areas))
    yield float(np.trapezoid(test.blob_deletion, test.share))
    yield test.insertion_area
    yield float(np.mean(test.random_insertion_areas))
    yield float(np.trapezoid(test.blob_insertion, test.share))
    yield test.drop
    yield float(test.increase) if test.is_known else np.nan
    yield test.road
    yield result.coverage[number]
    yield pointing(seen.values, result.boxes, margin=MARGIN) if result.boxes else np.nan
    yield energy_inside(seen.values, result.boxes) if result.boxes else np.nan
    yield seen.peak


def _crop(picture: UInt8[np.ndarray, "h w 3"], at: tuple[int, ...]) -> UInt8[np.ndarray, "s s 3"]:
    """The part of the picture around a place, moved inside where it would reach out."""
    height, width = picture.shape[:2]
    side = max(1, min(height, width) // PART)
    top = min(max(0, at[0] - side // 2), height - side)
    left = min(max(0, at[1] - side // 2), width - side)
    part = Image.fromarray(picture[top : top + side, left : left + side])
    return np.asarray(part.resize((CROP, CROP), Image.Resampling.BILINEAR))


def _without(
    network: Network, result: Explanation, chance: np.random.Generator
) -> dict[str, float | int]:
    """The target's probability with the boxes grey, with equal boxes elsewhere grey, and what
    the network takes the picture for with the boxes grey."""
    if not result.boxes:
        return {"box_hidden": np.nan, "other_hidden": np.nan, "box_turned": -1}
    image = prepared(network.model, network.preprocess.tensor(result.picture))[0]
    here = inside(result.picture.shape[:2], result.boxes)
    hidden = probabilities(network, _grey(image, here))
    other = probabilities(network, _grey(image, _moved(here, chance)))
    return {
        "box_hidden": float(hidden[result.target]),
        "other_hidden": float(other[result.target]),
        "box_turned": int(hidden.argmax()),
    }


def _moved(here: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """The same pixels moved round to where they cover least of themselves; equal in number."""
    height, width = here.shape
    moves = [(int(chance.integers(height)), int(chance.integers(width))) for _ in range(TRIES)]
    return min(
        (np.roll(here, move, (0, 1)) for move in moves), key=lambda there: int((there & here).sum())
    )


def _grey(image: Float[Tensor, "c h w"], hidden: np.ndarray) -> Float[Tensor, "c h w"]:
    return torch.where(torch.from_numpy(hidden).to(image.device), torch.zeros_like(image), image)


def _gathered(
    network: Network, folder: Pictures, rows: list[_Row], methods: tuple[str, ...], checks: Checks
) -> Explanations:
    kinds: Any = {int: np.int64, float: np.float32}
    fields = {
        name: np.array([row.fields[name] for row in rows], kinds.get(type(one)))
        for name, one in rows[0].fields.items()
    }
    count = len(network.classes) or max(row.count for row in rows)
    return Explanations(
        methods=methods,
        pictures=tuple(row.name for row in rows),
        classes=class_names(network, count),
        metrics=METRICS,
        **fields,
        pointing_random=_mean(fields["boxed"]),
        pointing_blob=_mean(np.array([row.middle for row in rows], np.float32)),
        refused=rows[0].refused,
        origin={**made_by(checks), "pictures": folder.place, "layers": rows[0].layers},
    )


def _mean(values: Float32[np.ndarray, "pictures"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
