"""What do maps point at over a whole folder, and does the network use what is marked there?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor

from convscope.errors import UsageError, shown
from convscope.methods.cam_case import prepared
from convscope.methods.explaining import DEFAULT, Method, chosen, methods_of
from convscope.methods.given import (
    Given,
    Layers,
    is_one,
    layer_names,
    pictures_of,
    taking,
    whole_picture,
)
from convscope.methods.labels import class_names
from convscope.methods.pointing import (
    boxes_by_name,
    boxes_of,
    energy_inside,
    inside,
    pointing,
    share_inside,
)
from convscope.methods.targets import Target
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Folder, Picture
from convscope.records.explanation import METRICS, Explanation, Explanations
from convscope.studies.explain import Checks, made_by, probabilities
from convscope.studies.explain import explain as explain_one
from convscope.units import Box

Progress = Callable[[int, int], None]
QUICK = Checks(steps=10, random=2, randomise=False)
CROP = 48
"""Side of the crops that are kept, in pixels …"""
PART = 4
"""… which show this part of the picture's shorter side."""
TRIES = 30
"""Places that are tried for a box that hides something else."""
MARGIN = 0
"""Pixels by which a peak may miss a box here."""


def explain(
    network: Network,
    pictures: Given,
    methods: str | Sequence[str] | Mapping[str, Method] | None = None,
    *,
    target: Target | None = None,
    layer: Layers = None,
    boxes: Any = None,
    checks: Checks | None = None,
    progress: Progress | None = None,
) -> Explanation | Explanations:
    """Explain pictures by several methods, each map put to the test: as `convscope explain` does.

    pictures: one, of which an Explanation is given; or a list or folder of them. methods: names
    as the command takes them ("all" for every one), or functions by name; four without. layer:
    for the methods that take one. boxes: where somebody marked something; of several pictures by
    their names. checks: which tests, and how hard.

    Raises UsageError U352, U353, U397 (target), U376, U377 (no network, no picture), U395 (no
    such method), ModelError M520 (no scores), M522, M543 (NaN), DataError as `Folder.read`.
    """
    network = whole(network)
    if checks is not None and not isinstance(checks, Checks):
        raise UsageError("U380", "checks", f"{shown(checks)} is no Checks")
    if isinstance(methods, Mapping):
        methods = methods_of(network, methods)
    else:
        names = DEFAULT if methods is None else methods
        several = isinstance(names, list | tuple)
        methods = chosen(names if several else [names], layer_names(network, layer))
    if is_one(pictures):
        picture = whole_picture(network, pictures)
        pictures, boxes = picture, boxes_of(boxes, picture.name)
        how: Any = {"boxes": boxes, "checks": checks, "progress": progress}
        return explain_one(network, pictures, methods, target=target, **how)
    with opened(pictures_of(network, pictures)) as folder:
        how = {"boxes": boxes_by_name(boxes), "checks": checks or QUICK, "progress": progress}
        return explain_folder(network, folder, methods, target=target, **how)


@taking(folder=pictures_of)
@recorded
def explain_folder(
    network: Network,
    folder: Folder,
    methods: Mapping[str, Method] | None = None,
    *,
    target: Target | None = None,
    boxes: Mapping[str, Sequence[Box]] | None = None,
    numbers: Sequence[int] | None = None,
    checks: Checks = QUICK,
    each: Callable[[int, Explanation], None] | None = None,
    progress: Progress | None = None,
) -> Explanations:
    """Explain every picture, put every map to the test, and keep what stands at its peak.

    target: one class for all pictures; the likeliest of each without. boxes: by picture name, in
    the pictures' own pixels. numbers: of the pictures to take, all without. each: called with the
    picture's number and its explanation, which is not kept. Unusable pictures are left out and
    listed in `folder.skipped`.

    Raises what `explain` raises, DataError D118 or D161 (no usable picture).
    """
    methods = dict(methods or chosen(DEFAULT))
    marked = boxes or {}
    rows: list[_Row] = []
    wanted = list(range(len(folder))) if numbers is None else list(numbers)
    for (picture,) in folder.batches(1, None, wanted, progress=progress):
        found = explain_one(
            network,
            picture,
            methods,
            target=target,
            boxes=marked.get(picture.name, ()),
            checks=replace(checks, seed=checks.seed + picture.number),
        )
        if picture.label is not None:
            found = replace(found, label=folder.classes[picture.label])
        if each is not None:
            each(picture.number, found)
        rows.append(_row(network, picture, found, tuple(methods), checks.seed))
    return _gathered(network, folder, rows, tuple(methods), checks)


@dataclass(frozen=True)
class _Row:
    """What is kept of one picture."""

    name: str
    label: int
    found: Explanation
    values: Float32[np.ndarray, "methods metrics"]
    crops: UInt8[np.ndarray, "methods s s 3"]
    elsewhere: UInt8[np.ndarray, "methods s s 3"]
    boxed: float
    hidden: float
    other: float
    turned: int
    chance: float
    middle: float


def _row(
    network: Network, picture: Picture, found: Explanation, methods: tuple[str, ...], seed: int
) -> _Row:
    chance = np.random.default_rng([seed, picture.number])
    values = np.full((len(methods), len(METRICS)), np.nan, np.float32)
    crops = np.zeros((len(methods), CROP, CROP, 3), np.uint8)
    elsewhere = crops.copy()
    for number, name in enumerate(found.methods):
        place = methods.index(name)
        values[place] = list(_measures(found, number))
        peak = found.maps[number].values
        at = np.unravel_index(int(peak.argmax()), peak.shape)
        crops[place] = _crop(found.picture, (int(at[0]), int(at[1])))
        elsewhere[place] = _crop(found.picture, tuple(chance.integers(peak.shape).tolist()))
    size, boxes = found.picture.shape[:2], found.boxes
    return _Row(
        picture.name,
        _label(network, found),
        found,
        values,
        crops,
        elsewhere,
        share_inside(size, boxes) if boxes else np.nan,
        *_without(network, found, chance),
        share_inside(size, boxes) if boxes else np.nan,
        float(inside(size, boxes)[size[0] // 2, size[1] // 2]) if boxes else np.nan,
    )


def _label(network: Network, found: Explanation) -> int:
    names = network.classes
    return names.index(found.label) if found.label in names else -1


def _measures(found: Explanation, number: int) -> Iterator[float]:
    """In the order of METRICS."""
    test, seen = found.tests[number], found.maps[number]
    yield test.deletion_area
    yield float(np.mean(test.random_deletion_areas))
    yield float(np.trapezoid(test.blob_deletion, test.share))
    yield test.insertion_area
    yield float(np.mean(test.random_insertion_areas))
    yield float(np.trapezoid(test.blob_insertion, test.share))
    yield test.drop
    yield float(test.increase) if test.is_known else np.nan
    yield test.road
    yield found.coverage[number]
    yield pointing(seen.values, found.boxes, margin=MARGIN) if found.boxes else np.nan
    yield energy_inside(seen.values, found.boxes) if found.boxes else np.nan
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
    network: Network, found: Explanation, chance: np.random.Generator
) -> tuple[float, float, int]:
    """The target's probability with the boxes grey, with equal boxes elsewhere grey, and what
    the network takes the picture for with the boxes grey."""
    if not found.boxes:
        return np.nan, np.nan, -1
    image = prepared(network.model, network.preprocess.tensor(found.picture))[0]
    here = inside(found.picture.shape[:2], found.boxes)
    hidden = probabilities(network, _grey(image, here))
    other = probabilities(network, _grey(image, _moved(here, chance)))
    return float(hidden[found.target]), float(other[found.target]), int(hidden.argmax())


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
    network: Network, folder: Folder, rows: list[_Row], methods: tuple[str, ...], checks: Checks
) -> Explanations:
    def numbers(name: str) -> Float32[np.ndarray, "pictures"]:
        return np.array([getattr(row, name) for row in rows], np.float32)

    first = rows[0].found
    count = len(network.classes) or int(max(row.found.prediction.classes.max() for row in rows)) + 1
    return Explanations(
        methods=methods,
        pictures=tuple(row.name for row in rows),
        classes=class_names(network, count),
        target=np.array([row.found.target for row in rows], np.int64),
        likeliest=np.array([row.found.prediction.classes[0] for row in rows], np.int64),
        label=np.array([row.label for row in rows], np.int64),
        score=np.array([row.found.score for row in rows], np.float32),
        metrics=METRICS,
        values=np.stack([row.values for row in rows]),
        crops=np.stack([row.crops for row in rows]),
        elsewhere=np.stack([row.elsewhere for row in rows]),
        boxed=numbers("boxed"),
        box_hidden=numbers("hidden"),
        other_hidden=numbers("other"),
        box_turned=np.array([row.turned for row in rows], np.int64),
        pointing_random=_mean(numbers("chance")),
        pointing_blob=_mean(numbers("middle")),
        refused=dict(first.refused),
        origin={
            **made_by(checks),
            "pictures": str(folder.root),
            "layers": {
                name: one.layer for name, one in zip(first.methods, first.maps, strict=True)
            },
        },
    )


def _mean(values: Float32[np.ndarray, "pictures"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
