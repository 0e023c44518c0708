"""Transfer: a new softmax on frozen features, of other classes or of lists (tables 4 to 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.core.errors import UsageError
from convscope.studies.base import BESIDE, CACHE, FOLDS, LAYER, TEST, VECTOR, Option, Study


def counts(text: str) -> list[int]:
    """Raises UsageError U429."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise UsageError("U429", f"--per-class {text}", "is no list of numbers such as 15,30")
    return [int(word) for word in words]


@dataclass(frozen=True)
class Options:
    """Of `convscope transfer`."""

    per_class: Annotated[
        Sequence[int],
        Option("Training pictures of each class, with commas.", shell=str, read=counts),
    ] = (1, 2, 3, 5, 7, 10, 15, 30)
    layer: Annotated[str | None, LAYER] = None
    test: Annotated[int, TEST] = 50
    folds: Annotated[int, FOLDS] = 5
    source: Annotated[
        str | None,
        Option(
            "Pictures the network learned from: what occurs there is left out.", command_only=True
        ),
    ] = None
    scratch: Annotated[
        str | None,
        Option("Recipe; also train from scratch on the same pictures.", command_only=True),
    ] = None
    changes: Annotated[
        list[str] | None, Option("FIELD=VALUE of the recipe.", names=("--set",), command_only=True)
    ] = None
    beside: Annotated[
        str,
        Option(
            "The paper's numbers to show: caltech-101 or caltech-256.",
            command_only=True,
        ),
    ] = ""
    vector: Annotated[str | int, VECTOR] = "auto"
    seed: Annotated[int, Option("Of the divisions.")] = 0
    cache: Annotated[Path | None, CACHE] = None


STUDY = Study(
    folder="transfer",
    records=("Transfer",),
    title="Features for other classes",
    shows="How well a linear classifier on frozen features does with few pictures a class.",
    limits="A linear classifier finds what lies open; other knowledge may be there.",
    summary="A new softmax on frozen features, by the number of training pictures a class.",
    example="convscope transfer run caltech101 --per-class 15,30 --beside caltech-101",
    options=Options,
    page="transfer",
    pictures="Pictures, with their classes as folders.",
    paper="tables 4 and 5, figure 9",
)


FORM = "FILE.json, FILE.csv, or VOC's ImageSets/Main:PART."


@dataclass(frozen=True)
class ListOptions:
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


LISTS = Study(
    folder="transfer_lists",
    home="transfer",
    records=("ListTransfer",),
    title="Features for other classes",
    shows="How well a linear classifier on frozen features finds each class of labelled lists.",
    limits="A linear classifier finds what lies open; other knowledge may be there.",
    summary="Average precision of each class, where a picture may show several (table 6, PASCAL "
    "VOC).",
    example="convscope transfer-lists run JPEGImages ImageSets/Main:train ImageSets/Main:val",
    options=ListOptions,
    page="transfer",
    pictures="Folder with the pictures of both lists.",
    needs=("network", "picture folder", "teach", "judge"),
    paper="table 6",
)

STUDIES = (STUDY, LISTS)
