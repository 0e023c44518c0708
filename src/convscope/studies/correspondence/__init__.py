"""Correspondence: how alike features change when the same part is hidden in each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.studies.base import BESIDE, Option, Study, names


@dataclass(frozen=True)
class Options:
    """Of `convscope correspondence`."""

    parts: Annotated[Path, Option('JSON: {"images": {name: {part: [x, y]}}}, in pixels.')]
    layers: Annotated[
        Sequence[str] | None,
        Option(
            "Names with commas; default: the last convolution's, and the last.",
            shell=str | None,
            read=names,
        ),
    ] = None
    patch: Annotated[
        int | None, Option("Side of the masks; default: a seventh of the input.", min=1)
    ] = None
    draws: Annotated[int, Option("Random masks for each picture.", min=1)] = 20
    around: Annotated[
        float, Option("Random masks: how far around the parts, in their box; or inf.", min=0)
    ] = 0.5
    permutations: Annotated[int, Option("Of the test.", min=1)] = 10_000
    seed: Annotated[int, Option("Of random masks and permutations.")] = 0
    beside: Annotated[bool, BESIDE] = False


STUDY = Study(
    folder="correspondence",
    records=("Correspondence",),
    title="Correspondence",
    shows="Whether hiding the same part in different pictures changes the features alike.",
    limits="A low distance says that features change alike, not that the network knows the part.",
    summary="Sign changes when the same part is hidden in each picture, against random places "
    "(table 1).",
    example="convscope correspondence torchvision:squeezenet1_0 dogs --parts dog_parts.json",
    options=Options,
    page="correspondence",
    pictures="Folder of the pictures with marked parts.",
    doing="hiding parts",
    paper="table 1",
)
