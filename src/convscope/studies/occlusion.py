"""What do the answers to each picture of a folder rest on, if a square hides it part by part?

One row of the paper's figure 7 a picture: probability, likeliest class and activity of the
strongest feature map for every place of the square, and that map's projection beside those of the
pictures that excite it most. Where boxes mark objects, these are hidden too, and beside them areas
as large.
Source: Zeiler and Fergus 2014, §4.2 and figure 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from convscope.errors import DataError, ModelError
from convscope.lens.ends import ends
from convscope.methods.fills import Fill
from convscope.methods.given import FolderLike, Layer, pictures_of, taking
from convscope.methods.hiding import Hiding, part
from convscope.methods.labels import class_names
from convscope.methods.occlusion import occlusion
from convscope.methods.targets import Target
from convscope.network.network import Network, whole
from convscope.network.outputs import understood
from convscope.network.provenance import recorded
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Folder, Picture
from convscope.records.occlusion import Occlusions
from convscope.studies.explain import probabilities, seen, seen_boxes
from convscope.studies.occlusion_areas import drawn_square, without
from convscope.studies.occlusion_kept import Kept
from convscope.studies.occlusion_plan import Boxes, Case, Followed, followed, require_boxes
from convscope.studies.occlusion_projections import Projecting
from convscope.units import Box

PAPER_PATCH, PAPER_STRIDE, PAPER_SIDE = 50, 6, 224
"""Pixels, measured in the paper's figure; inputs of another size get squares in proportion."""
NOT_FINITE = ("M514", "M543")
Progress = Callable[[int, int], None]


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
    seed: int = 0,
    kept: Path | str | None = None,
    searching: Progress | None = None,
    progress: Progress | None = None,
) -> Occlusions:
    """Hide a square of each picture at every place, and whatever boxes mark.

    target: the class to follow in all pictures; without one each picture's true class, as
    `labels` (see `evaluate`) or class folders have it, or else the likeliest. boxes: by picture
    name, in the pictures' own pixels. others: where to look for the pictures that excite the same
    feature map most; the folder itself. layer: whose strongest map is followed; by default the
    last convolution's with its rectifier and pool, the paper's layer 5. patch, stride: 50 and 6
    of 224 pixels, in proportion for inputs of another size. fill: as of `occlusion`. kept: a
    folder in which every picture's part is kept at once; the same call goes on from there.
    searching: progress of the pass over `others`; progress: over all squares.

    A picture that cannot be used is left out and listed in `folder.skipped`; one that the network
    breaks down on is left out too, and told in `origin["left out"]`.

    Raises DataError D118, D161 (no usable picture), D196 (no picture has boxes), OutputError O580
    (other parts are kept there), UsageError U311, U352, U353, U376, U377, U530, U531, ModelError
    M500, M501, M506, M514, M520, M522.
    """
    network = understood(whole(network))
    side = min(network.preprocess.size)
    with opened(folder) as pictures, opened(others or pictures) as source:
        layer = layer or ends(network.model, network.preprocess.shape).middle
        case = Case(
            network,
            layer,
            max(1, round(side * PAPER_PATCH / PAPER_SIDE)) if patch is None else patch,
            max(1, round(side * PAPER_STRIDE / PAPER_SIDE)) if stride is None else stride,
            fill,
            seed,
        )
        _require_square(case)
        require_boxes(pictures, boxes)
        aims = followed(network, pictures, target, labels)
        made = case.made(pictures, source, aims, boxes)
        store = None if kept is None else Kept(Path(kept), made)
        projecting = Projecting.of(network, layer, source, len(pictures), searching)
        parts, failed = _parts(case, pictures, aims, boxes or {}, projecting, store, progress)
    made["projections"] = projecting.why_not or f"of whole maps, by {projecting.rule}"
    return replace(Occlusions.joined(parts), origin={**made, "left out": failed})


def _require_square(case: Case) -> None:
    """Raises UsageError U530, U531 before any search."""
    blank = torch.zeros(case.network.preprocess.shape)
    Hiding.of(blank[None], case.patch, case.stride, case.fill, case.seed).patches(blank)


def _parts(
    case: Case,
    folder: Folder,
    aims: Followed,
    boxes: Boxes,
    projecting: Projecting,
    store: Kept | None,
    progress: Progress | None,
) -> tuple[list[Occlusions], dict[str, str]]:
    """A record of each picture, and why there is none of others."""
    parts: list[Occlusions] = []
    failed: dict[str, str] = {}
    for picture in folder.read(None):
        found = None if store is None else store.part(picture.number)
        if found is None:
            tick = part(progress, picture.number, len(folder))
            try:
                marked = boxes.get(picture.name, ())
                found = _one(case, folder, picture, aims, marked, projecting, tick)
            except ModelError as fault:
                if fault.code not in NOT_FINITE:
                    raise
                failed[picture.name] = str(fault)
                continue
            if store is not None:
                store.keep(picture.number, found)
        parts.append(found)
    if progress is not None:
        progress(1, 1)
    folder.check_bad()
    if not parts:
        raise DataError("D161", str(folder.root), "holds no picture that the network answers to")
    return parts, failed


def _one(
    case: Case,
    folder: Folder,
    picture: Picture,
    aims: Followed,
    marked: Sequence[Box],
    projecting: Projecting,
    progress: Progress | None,
) -> Occlusions:
    """The record of one picture."""
    network = case.network
    pixels, image = seen(network, picture)
    share = probabilities(network, image)
    target, why = aims.of(network, picture.number, share)
    found = occlusion(
        network.model,
        image,
        target=target,
        layer=case.layer,
        patch=case.patch,
        stride=case.stride,
        fill=case.fill,
        seed=case.seed,
        progress=progress,
    )
    boxes = seen_boxes(network, marked, picture)
    return Occlusions(
        pictures=(picture.name,),
        number=np.array([picture.number], np.int64),
        classes=class_names(network, len(share)),
        target=np.array([target], np.int32),
        why=(why,),
        layer=found.layer,
        channel=np.array([found.channel], np.int32),
        tops=found.tops,
        lefts=found.lefts,
        sides=found.sides,
        base_probability=np.array([found.base_probability], np.float32),
        base_likeliest=np.array([share.argmax()], np.int32),
        base_activity=np.array([found.base_activity], np.float32),
        probability=found.probability[None],
        likeliest=found.likeliest[None],
        activity=found.activity[None],
        seen=pixels[None],
        square=drawn_square(network.preprocess, image, found, case.fill, case.seed)[None],
        **projecting.of_map(image, found.channel, picture.number, folder),
        **without(network, image, target, boxes, case.fill, case.seed),
        origin=found.origin,
    )
