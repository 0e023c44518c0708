"""Linear probes: how well a linear classifier does on the features of every layer (table 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.studies.base import CACHE, FOLDS, TEST, VECTOR, Option, Study, names, some_names


@dataclass(frozen=True)
class Options:
    """Of `convscope probes`."""

    layers: Annotated[
        Sequence[str] | None,
        Option(
            "Names with commas; default: the network's own steps.", shell=str | None, read=names
        ),
    ] = None
    per_class: Annotated[int, Option("Training pictures of each class.")] = 30
    test: Annotated[int, TEST] = 50
    folds: Annotated[int, FOLDS] = 5
    kinds: Annotated[
        Sequence[str],
        Option(
            "svm, softmax, or both with a comma.",
            names=("--kind",),
            shell=str,
            read=some_names,
        ),
    ] = ("svm", "softmax")
    vector: Annotated[str | int, VECTOR] = "auto"
    seed: Annotated[int, Option("Of the divisions.")] = 0
    cache: Annotated[Path | None, CACHE] = None


STUDY = Study(
    folder="probes",
    records=("Probes",),
    title="What each layer knows",
    shows="How well a linear classifier on each layer's features does.",
    limits="A linear classifier finds what lies open; other knowledge may be there.",
    summary="Linear classifiers on the features of every layer: accuracy by depth.",
    example="convscope probes run flower_photos --folds 3",
    options=Options,
    page="probes",
    pictures="Pictures, with their classes as folders.",
    paper="table 7",
)
