"""Evolution: how feature maps formed while a network was trained, and when layers settled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.studies.base import BESIDE, Option, Study, epochs, names, some_names


@dataclass(frozen=True)
class Options:
    """Of `convscope evolution`."""

    checkpoints: Annotated[
        Path, Option("Folder of checkpoints, or of a run trained with --keep.", command_only=True)
    ] = Path()
    model: Annotated[
        str | None,
        Option("Network that they are weights of, where they do not say so.", command_only=True),
    ] = None
    epochs: Annotated[
        Sequence[int] | None,
        Option(
            "E.g. 1,2,5,10; default: the paper's that are there.", shell=str | None, read=epochs
        ),
    ] = None
    layers: Annotated[
        Sequence[str] | None,
        Option("Names with commas; default: all convolutions.", shell=str | None, read=names),
    ] = None
    units: Annotated[
        Sequence[str],
        Option(
            "Maps to draw, as conv1:3,conv5:41; default: random ones.",
            shell=str | None,
            read=some_names,
        ),
    ] = ()
    per_layer: Annotated[int, Option("Random maps of each layer.", min=1)] = 6
    every: Annotated[
        int, Option("Take only every so many-th picture.", min=1, command_only=True)
    ] = 1
    seed: Annotated[int, Option("Of the random maps and places.", min=0)] = 0
    beside: Annotated[bool, BESIDE] = False


STUDY = Study(
    folder="evolution",
    records=("Convergence", "Evolution"),
    title="Evolution",
    shows="How feature maps formed while the network was trained, and which layers settled first.",
    limits="A strongest picture is an extreme; by the last epoch everything has settled.",
    summary="Feature maps over the epochs of a training, and in which order layers settle "
    "(figure 4).",
    example="convscope evolution run flower_photos",
    options=Options,
    page="evolution",
    pictures="Pictures to find strongest activations in.",
    needs=("checkpoints", "picture folder"),
    paper="figure 4",
)
