"""Pointing game: how often each method's map peaks on what was marked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.studies.base import BOXES, Option, Study, class_asked


@dataclass(frozen=True)
class Options:
    """Of `convscope pointing`."""

    boxes: Annotated[Path | None, BOXES] = None
    target: Annotated[
        str | int | None,
        Option(
            "Class name or index; default: each one's likeliest.",
            shell=str | None,
            read=class_asked,
        ),
    ] = None
    method: Annotated[str, Option("Names with commas, or all.", command_only=True)] = "all"
    layer: Annotated[str | None, Option("For methods that take one.", command_only=True)] = None
    margin: Annotated[
        int, Option("Pixels by which a peak may miss, for the column near.", min=0)
    ] = 15


STUDY = Study(
    folder="pointing",
    records=("PointingGame",),
    title="Pointing game",
    shows="How often each method's map peaks on what was marked.",
    limits="A map may point at the object for another reason, and a blob in the middle often hits.",
    summary="How often each method's map peaks in the boxes, beside a random map and a centred "
    "blob.",
    example="convscope pointing torchvision:squeezenet1_0 kangaroo --target wallaby",
    options=Options,
    page="faithfulness",
    pictures="A folder of pictures.",
    scores=True,
    function="pointing_game",
)
