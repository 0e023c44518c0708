"""What is done to every picture of an occlusion study, and which class of each is followed?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from convscope.errors import DataError
from convscope.methods.fills import Fill, named
from convscope.methods.labels import true_classes
from convscope.methods.targets import Target
from convscope.methods.tuning import blank
from convscope.network.network import Network
from convscope.pictures.pictures import Folder
from convscope.records.occlusion import ASKED, LIKELIEST, TRUE
from convscope.studies.explain import probabilities, target_index
from convscope.units import Box

Boxes = Mapping[str, Sequence[Box]]


@dataclass(frozen=True)
class Case:
    """What is done to every picture."""

    network: Network
    layer: str
    patch: int
    stride: int
    fill: Fill
    seed: int

    def made(
        self, folder: Folder, source: Folder, aims: Followed, boxes: Boxes | None
    ) -> dict[str, Any]:
        """All that decides the numbers."""
        truth = [] if aims.truth is None else aims.truth.tolist()
        return {
            "method": "occlusion study",
            **{name: fact for name, fact in self.network.provenance().items() if name != "device"},
            "pictures_sha256": folder.sha256,
            "pictures": str(folder.root),
            "others": f"{len(source)} pictures of {source.root}",
            "layer": self.layer,
            "patch": self.patch,
            "stride": self.stride,
            "fill": named(self.fill),
            "seed": self.seed,
            "target": aims.told,
            "true classes": _digest(truth),
            "boxes": _digest(sorted(boxes.items())) if boxes is not None else "",
        }


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


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


def followed(
    network: Network, folder: Folder, target: Target | None, labels: Mapping[str, int] | None
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


def require_boxes(folder: Folder, boxes: Boxes | None) -> None:
    if boxes is not None and not any(boxes.get(name) for name in folder.names):
        step = "name pictures in the file of boxes as they are named in the folder"
        raise DataError("D196", str(folder.root), "no picture here has boxes", next_step=step)
