"""Transfer to lists: average precision by class, where a picture may show several (table 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.studies.base import BESIDE, CACHE, LAYER, VECTOR, Option, Study

FORM = "FILE.json, FILE.csv, or VOC's ImageSets/Main:PART."


@dataclass(frozen=True)
class Options:
    """Of `convscope transfer-lists`."""

    teach: Annotated[str, Option(f"Classes of pictures to teach by: {FORM}", command_only=True)] = (
        ""
    )
    judge: Annotated[
        str, Option("Classes of pictures to judge by, likewise.", command_only=True)
    ] = ""
    layer: Annotated[str | None, LAYER] = None
    vector: Annotated[str | int, VECTOR] = "auto"
    cache: Annotated[Path | None, CACHE] = None
    beside: Annotated[bool, BESIDE] = False


STUDY = Study(
    folder="transfer_lists",
    records=("ListTransfer",),
    title="Features for other classes",
    shows="How well a linear classifier on frozen features finds each class of labelled lists.",
    limits="A linear classifier finds what lies open; other knowledge may be there.",
    summary="Average precision of each class, where a picture may show several (table 6, PASCAL "
    "VOC).",
    example="convscope transfer-lists run JPEGImages ImageSets/Main:train ImageSets/Main:val",
    options=Options,
    page="transfer",
    pictures="Folder with the pictures of both lists.",
    needs=("network", "picture folder", "teach", "judge"),
    paper="table 6",
)
