"""Retrieval: the nearest pictures by the features of a layer, and pictures that occur twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.studies.base import CACHE, LAYER, VECTOR, Option, Study


@dataclass(frozen=True)
class Options:
    """Of `convscope similar`."""

    queries: Annotated[str, Option("A picture, or a folder of them.", command_only=True)] = ""
    inside: Annotated[
        str | None,
        Option("Folder to look in; default: the queries' own.", names=("--in",), command_only=True),
    ] = None
    layer: Annotated[str | None, LAYER] = None
    k: Annotated[int, Option("Nearest pictures of each query.", names=("-k",))] = 6
    metric: Annotated[str, Option("euclidean or cosine.")] = "euclidean"
    twice: Annotated[
        bool,
        Option(
            "Instead, find pictures that are in both folders.",
            names=("--duplicates",),
            command_only=True,
        ),
    ] = False
    pixels_from: Annotated[
        float, Option("Correlation of pixels from which a pair is flagged.", command_only=True)
    ] = 0.95
    features_from: Annotated[
        float, Option("Cosine of features from which a pair is flagged.", command_only=True)
    ] = 0.85
    vector: Annotated[str | int, VECTOR] = "auto"
    cache: Annotated[Path | None, CACHE] = None


STUDY = Study(
    folder="retrieval",
    records=("Neighbours", "Duplicates"),
    title="Similar pictures",
    shows="Which pictures the network holds to be alike.",
    limits="Alike for this layer's features; a person may disagree.",
    summary="The nearest pictures by the features of a layer; or what two folders have in common.",
    example="convscope similar run photograph.jpg --in flower_photos",
    options=Options,
    page="similar",
    needs=("network", "queries"),
    function="similar",
    command="similar",
    about={
        "Duplicates": (
            "Duplicates",
            "Which pictures are nearly the same.",
            "A threshold decides; look at the pairs near it.",
        )
    },
)
