"""What do the answers to each picture of a folder rest on, if a square hides it part by part?

One row of the paper's figure 7 a picture: probability, likeliest class and activity of the
strongest feature map for every place of the square, and that map's projection beside those of the
pictures that excite it most. Where boxes mark objects, these are hidden too, and beside them areas
as large.
Source: Zeiler and Fergus 2014, §4.2 and figure 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from convscope.attribution.occlusion import Fill, SlidingMask, named, occlusion
from convscope.core.errors import DataError, ModelError
from convscope.core.record import Record
from convscope.core.run import PLAIN, Progress, Run
from convscope.core.units import Box
from convscope.network.arguments import FolderLike, Layer, pictures_of, taking
from convscope.network.network import Network, whole
from convscope.network.outputs import Target, understood
from convscope.network.provenance import recorded
from convscope.network.tuning import blank
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Picture, Pictures
from convscope.representations.predict import class_names, true_classes
from convscope.scale.rows import RowJob, digest
from convscope.studies.base import Ask, arguments, boxes_of, spread
from convscope.studies.explain.study import probabilities, seen, seen_boxes, target_index
from convscope.studies.occlusion import Options
from convscope.studies.occlusion.areas import Projecting, drawn_square, hidden_objects, without
from convscope.studies.occlusion.record import ASKED, LIKELIEST, TRUE, Occlusions
from convscope.trace.layers import ends

Boxes = Mapping[str, Sequence[Box]]


@dataclass(frozen=True)
class Followed:
    """Which class of each picture is followed."""

    told: int | None
    truth: Int64[np.ndarray, "pictures"] | None
    """-1 where it is not known."""

    def of(self, network: Network, number: int, share: np.ndarray) -> tuple[int, str]:
        if self.told is not None:
            return target_index(network, share, self.told), ASKED
        if self.truth is not None and self.truth[number] >= 0:
            return int(self.truth[number]), TRUE
        return int(share.argmax()), LIKELIEST


@dataclass(frozen=True)
class Case:
    """What is done to every picture."""

    network: Network
    pictures: Pictures
    layer: str
    patch: int
    stride: int
    fill: Fill
    followed: Followed
    boxes: Boxes | None
    run: Run

    def origin(self, source: Pictures) -> dict[str, Any]:
        """All that decides the numbers."""
        truth, boxes = self.followed.truth, self.boxes
        return {
            "method": "occlusion study",
            **{name: fact for name, fact in self.network.provenance().items() if name != "device"},
            "pictures_sha256": self.pictures.sha256,
            "pictures": self.pictures.place,
            "others": f"{len(source)} pictures of {source.place}",
            "layer": self.layer,
            "patch": self.patch,
            "stride": self.stride,
            "fill": named(self.fill),
            "seed": self.run.seed,
            "target": self.followed.told,
            "true classes": digest([] if truth is None else truth.tolist()),
            "boxes": digest(sorted(boxes.items())) if boxes is not None else "",
        }

    def require_square(self) -> None:
        """Raises UsageError U530, U531 before any search."""
        blank = torch.zeros(self.network.preprocess.shape)
        how = (self.patch, self.stride, self.fill, self.run.seed)
        SlidingMask.of(blank[None], *how).patches(blank)


def followed(
    network: Network, folder: Pictures, target: Target | None, labels: Mapping[str, int] | None
) -> Followed:
    share = probabilities(network, blank(network.model, network.preprocess.shape)[0])
    if target is not None:
        return Followed(target_index(network, share, target), None)
    try:
        return Followed(None, true_classes(network, folder, len(share), labels))
    except DataError:
        if labels is not None:
            raise
    return Followed(None, None)


def require_boxes(folder: Pictures, boxes: Boxes | None) -> None:
    if boxes is not None and not any(boxes.get(name) for name in folder.names):
        step = "name pictures in the file of boxes as they are named in the folder"
        raise DataError("D196", folder.place, "no picture here has boxes", next_step=step)


PAPER_PATCH, PAPER_STRIDE, PAPER_SIDE = 50, 6, 224
"""Pixels, measured in the paper's figure; inputs of another size get squares in proportion."""
NOT_FINITE = ("M514", "M543")


@taking(folder=pictures_of, others=pictures_of)
@recorded
def occlusion_study(
    network: Network,
    folder: FolderLike,
    layer: Layer = None,
    *,
    target: Target | None = None,
    labels: Mapping[str, int] | None = None,
    boxes: Boxes | None = None,
    others: FolderLike | None = None,
    patch: int | None = None,
    stride: int | None = None,
    fill: Fill = 0.0,
    searching: Progress | None = None,
    run: Run = PLAIN,
) -> Occlusions:
    """Hide a square of each picture at every place, and whatever boxes mark.

    target: the class to follow in all pictures; without one each picture's true class, as
    `labels` (see `evaluate`) or class folders have it, or else the likeliest. boxes: by picture
    name, in the pictures' own pixels. others: where the pictures that excite the same feature map
    most are looked for; the folder itself. layer: whose strongest map is followed; by default the
    paper's layer 5, the last convolution's. patch, stride: 50 and 6 of 224 pixels, or in
    proportion. fill: as of `occlusion`. searching: progress of the pass over `others`; run: of all
    squares. Left out are pictures that cannot be used (see `folder.skipped`), and those that the
    network breaks down on (see `origin["left out"]`).

    Raises DataError D118, D161, D196 (no boxes), UsageError U311, U352, U353, U376, U377, U530,
    U531, ModelError M500, M501, M506, M514, M520, M522, and as `scale.engine.passed`.
    """
    network = understood(whole(network))
    with opened(folder) as pictures, opened(others or pictures) as source:
        layer = layer or ends(network.model, network.preprocess.shape).middle
        square = _square(network, patch, stride)
        classes = followed(network, pictures, target, labels)
        case = Case(network, pictures, layer, *square, fill, classes, boxes, run)
        case.require_square()
        require_boxes(pictures, boxes)
        return _record(case, source, run.telling(searching))


def _square(network: Network, patch: int | None, stride: int | None) -> tuple[int, int]:
    """Its side and its steps, as asked for or in the paper's proportion to the picture."""
    side = min(network.preprocess.size)
    return (
        max(1, round(side * PAPER_PATCH / PAPER_SIDE)) if patch is None else patch,
        max(1, round(side * PAPER_STRIDE / PAPER_SIDE)) if stride is None else stride,
    )


def _record(case: Case, source: Pictures, searching: Run) -> Occlusions:
    """The record of all pictures, with projections beside those of the source's."""
    folder = case.pictures
    projecting = Projecting.of(case.network, case.layer, source, len(folder), searching)
    origin = case.origin(source)
    job = OcclusionJob(case, projecting, origin)
    inside = case.run if case.run.engine else case.run.telling(None)  # it tells of every square
    rows = list(job.rows(folder, inside))
    case.run.tick(1, 1)
    folder.check_bad()
    parts = [row.result for row in rows if row.result is not None]
    if not parts:
        raise DataError("D161", folder.place, "holds no picture that the network answers to")
    origin = {
        **origin,
        "projections": projecting.why_not or f"of whole maps, by {projecting.rule}",
        "left out": {row.name: row.failed for row in rows if row.failed},
    }
    return replace(Occlusions.joined(parts), origin=origin)


@dataclass(frozen=True)
class _Row:
    """The record of one picture, or why there is none."""

    name: str
    result: Occlusions | None = None
    failed: str = ""


class OcclusionJob(RowJob[_Row]):
    """The square at every place of each picture."""

    name, kind, may_be_empty = "occlusion", _Row, True

    def __init__(self, case: Case, projecting: Projecting, origin: Mapping[str, Any]) -> None:
        super().__init__({**origin, **case.network.facts, "strongest": projecting.digest})
        self.case, self.projecting, self.network = case, projecting, case.network

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "case": replace(self.case, run=Run(self.case.run.seed))}

    def row(self, picture: Picture) -> _Row:
        try:
            return _Row(picture.name, _one(self.case, picture, self.projecting))
        except ModelError as fault:
            if fault.code not in NOT_FINITE:
                raise
            return _Row(picture.name, failed=str(fault))


def _one(case: Case, picture: Picture, projecting: Projecting) -> Occlusions:
    """The record of one picture."""
    network, seed, boxes = case.network, case.run.seed, case.boxes or {}
    pixels, image = seen(network, picture)
    share = probabilities(network, image)
    target, why = case.followed.of(network, picture.number, share)
    result = occlusion(
        network.model,
        image,
        target=target,
        layer=case.layer,
        patch=case.patch,
        stride=case.stride,
        fill=case.fill,
        run=case.run.part(picture.number, len(case.pictures)),
    )
    marked = seen_boxes(network, boxes.get(picture.name, ()), picture)
    return Occlusions.one(
        replace(result, origin={}),  # that of all is told once
        name=picture.name,
        number=picture.number,
        classes=class_names(network, len(share)),
        why=why,
        likeliest=int(share.argmax()),
        seen=pixels,
        square=drawn_square(network.preprocess, image, result, case.fill, seed),
        **projecting.of_map(image, result.channel, picture.number, case.pictures),
        **without(network, image, target, marked, case.fill, seed),
    )


def from_command(ask: Ask, options: Options) -> dict[str, Record]:
    """The study, and in `objects` whether hidden objects matter more, where any are marked."""
    whole, network = ask.pictures(), ask.network()
    numbers = spread(len(whole), options.limit)
    chosen = whole if numbers is None else whole.subset(numbers)
    source = chosen if options.others is None else ask.pictures(options.others)
    with chosen as folder, source:
        result = occlusion_study(
            network,
            folder,
            **arguments(options, ask.run("hiding parts")),
            boxes=_boxes(ask, folder, options.boxes),
            others=source,
            searching=ask.progress("strongest pictures"),
        )
    if not any(result.boxes):
        return {"": result}
    return {"": result, "objects": hidden_objects(result, run=Run(seed=options.seed))}


def _boxes(ask: Ask, folder: Pictures, path: Path | None) -> Boxes | None:
    if path is None and folder.loose:
        return None
    boxes = boxes_of(folder, path, ask.say)
    of_these = boxes is not None and any(boxes.get(name) for name in folder.names)
    return boxes if path is not None or of_these else None
