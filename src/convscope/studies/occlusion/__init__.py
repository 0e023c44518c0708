"""Occlusion: probability, answer and activity with a square at every place (figure 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.core.errors import UsageError, nearest
from convscope.studies.base import BESIDE, BOXES, Option, Study, class_asked, labels

GREY = "grey"


def fill(name: str) -> str | float:
    """Raises UsageError U531."""
    from convscope.attribution.occlusion import NAMED

    if name not in (GREY, *NAMED):
        raise UsageError("U531", name, f"is no fill; {nearest(name, (GREY, *NAMED))}")
    return 0.0 if name == GREY else name


@dataclass(frozen=True)
class Options:
    """Of `convscope occlusion`."""

    target: Annotated[
        str | int | None,
        Option(
            "Class name or index; default: each one's true class, or likeliest.",
            shell=str | None,
            read=class_asked,
        ),
    ] = None
    labels: Annotated[
        Mapping[str, int] | None,
        Option(
            "JSON: class index by file name, or by class folder.", shell=Path | None, read=labels
        ),
    ] = None
    boxes: Annotated[Path | None, BOXES] = None
    others: Annotated[
        str | None,
        Option(
            "Pictures in which to look for what else excites a map; default: the same.",
            command_only=True,
        ),
    ] = None
    patch: Annotated[
        int | None, Option("Side of the square; default: 50 of 224 pixels.", min=1)
    ] = None
    stride: Annotated[int | None, Option("Its step; default: 6 of 224.", min=1)] = None
    fill: Annotated[
        str | float,
        Option(
            "Of the square: grey (the preprocessing's), mean, blur or noise.",
            shell=str,
            read=fill,
            default=GREY,
        ),
    ] = 0.0
    layer: Annotated[str | None, Option("Whose strongest map is followed; default: layer 5's.")] = (
        None
    )
    limit: Annotated[
        int | None, Option("Pictures of a folder, spread evenly.", min=1, command_only=True)
    ] = None
    draw: Annotated[
        int, Option("Pictures in figures, from the first.", min=0, command_only=True)
    ] = 24
    seed: Annotated[int, Option("Of noise and of permutations.")] = 0
    beside: Annotated[bool, BESIDE] = False


STUDY = Study(
    folder="occlusion",
    records=("Occlusions", "HiddenObjects"),
    title="Occlusion",
    shows="What a feature map and the network's answer do while a square hides part of the "
    "picture.",
    limits="A grey square is itself a picture that the network never learned from.",
    summary="Probability, answer and activity with a square at every place; objects hidden "
    "(figure 7).",
    example="convscope occlusion torchvision:squeezenet1_0 dog.jpg wheel.jpg",
    options=Options,
    page="occlusion",
    needs=("network", "pictures"),
    scores=True,
    paper="figure 7",
    function="occlusion_study",
)
