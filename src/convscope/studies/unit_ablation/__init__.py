"""Unit ablation: accuracy and loss without each feature map of a layer, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.studies.base import Option, Study, labels, names


@dataclass(frozen=True)
class Options:
    """Of `convscope unit-ablation`."""

    layers: Annotated[
        Sequence[str] | None,
        Option("Layers, with commas; else the last convolution's.", shell=str | None, read=names),
    ] = None
    fill: Annotated[str, Option("What a silent map is set to: zero, or its mean.")] = "zero"
    labels: Annotated[
        Mapping[str, int] | None,
        Option(
            "JSON: class index by file name, or by class folder.", shell=Path | None, read=labels
        ),
    ] = None
    first: Annotated[int, Option("Maps of each layer in the table.", min=1, command_only=True)] = 10


STUDY = Study(
    folder="unit_ablation",
    records=("Silence",),
    title="Unit ablation",
    shows="What accuracy is lost when one feature map is switched off.",
    limits="Maps that stand in for each other look unimportant one by one.",
    summary="Accuracy and loss without each map of a layer, one by one, and without training.",
    example="convscope unit-ablation run builtin:photos-val --layers relu4,relu5",
    options=Options,
    page="silence",
    pictures="Pictures, with their classes as folders.",
    scores=True,
    doing="ablating maps",
    function="silence",
    aliases=("silence",),
)
