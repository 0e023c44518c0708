"""Features: the strongest pictures of some maps beside their projections, for print (figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from convscope.core.errors import UsageError
from convscope.studies.base import Option, Study, names


def scale(text: str) -> str:
    """Raises UsageError U388."""
    if text not in ("map", "layer"):
        raise UsageError("U388", text, "is no scale", next_step="write map or layer")
    return text


def maps(text: str) -> Sequence[str] | int | None:
    """Maps, or how many random ones, or None: as many as in the paper. Raises UsageError U387."""
    head, _, number = text.partition(":")
    if head != "random":
        return names(text)
    if number and not (number.isascii() and number.isdigit() and 0 < int(number) < 10_000):
        step = "write random, random:16, or conv1:3,conv5:41"
        raise UsageError("U387", text, "is no number of maps", next_step=step)
    return int(number) if number else None


@dataclass(frozen=True)
class Options:
    """Of `convscope features`."""

    layers: Annotated[
        Sequence[str] | None,
        Option(
            "Names with commas; default: five, from first to last.", shell=str | None, read=names
        ),
    ] = None
    maps: Annotated[
        Sequence[str] | int | None,
        Option(
            "random (as many as in the paper), random:16, or conv1:3,conv5:41.",
            shell=str,
            read=maps,
            default="random",
            command_only=True,
        ),
    ] = None
    k: Annotated[int, Option("Pictures of each map.", names=("--top",), min=1, max=100)] = 9
    scale: Annotated[
        str,
        Option(
            "Of projections: one for each map, or one for a layer.", read=scale, command_only=True
        ),
    ] = "map"
    seed: Annotated[int, Option("Of the random maps.", min=0)] = 0
    rule: Annotated[
        str,
        Option(
            "Of projections: deconvnet, guided, both, or auto: deconvnet where the switches of "
            "max pools stand on the way, guided where none do."
        ),
    ] = "auto"
    other: Annotated[
        str, Option("Activations such as GELU on the way down: refuse, or gradient.")
    ] = "refuse"
    fast: Annotated[
        bool,
        Option(
            "Search in bfloat16 where that is faster, candidates again in float32.",
            names=("--fast",),
            command_only=True,
        ),
    ] = False


STUDY = Study(
    folder="features",
    records=("LayerFeatures",),
    title="Features",
    shows="What in its strongest pictures excites each of some feature maps.",
    limits="The strongest pictures flatter a map; projections partly retrace the picture itself.",
    summary="The strongest pictures of some maps beside their projections, for print (figure 2).",
    example="convscope features torchvision:squeezenet1_0 pictures --maps random:12",
    options=Options,
    page="features",
    needs=("network or result", "pictures or none"),
    pictures="Pictures to find the strongest of, e.g. for validation.",
    paper="figure 2",
    function="chosen_features",
)
