"""Invariance: features and answer while a picture is moved, enlarged or turned (figure 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.studies.base import BESIDE, Option, Study, labels, names


@dataclass(frozen=True)
class Options:
    """Of `convscope invariance`."""

    labels: Annotated[
        Mapping[str, int] | None,
        Option(
            "JSON: class index by file name; without, the likeliest is followed.",
            shell=Path | None,
            read=labels,
        ),
    ] = None
    layers: Annotated[
        Sequence[str] | None,
        Option(
            "Names with commas, low to high; default: first and last.",
            shell=str | None,
            read=names,
        ),
    ] = None
    border: Annotated[str, Option("Where the picture ends: mean, edge or mirror.")] = "mean"
    beyond: Annotated[
        bool,
        Option(
            "Let the border begin at the edge of the picture, or at the network's crop.",
            names=("--whole/--crop",),
        ),
    ] = True
    beside: Annotated[bool, BESIDE] = False


STUDY = Study(
    folder="invariance",
    records=("Invariance",),
    title="Invariance",
    shows="How far features and answer change while a picture is moved, enlarged or turned.",
    limits="Only changes of place, size and angle are tried; what comes in at the borders is "
    "filled.",
    summary="Distances and probability under translation, scale and rotation (figure 5).",
    example="convscope invariance torchvision:squeezenet1_0 dog.jpg car.jpg",
    options=Options,
    page="invariance",
    needs=("network", "pictures"),
    scores=True,
    doing="moving pictures",
    paper="figure 5",
)
