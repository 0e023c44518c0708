"""Ablation: variants of a network without layers, or with others, each trained again (table 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from convscope.studies.base import BESIDE, Option, Study


@dataclass(frozen=True)
class Options:
    """Of `convscope ablation`."""

    recipe: Annotated[
        str,
        Option("tutorial, paper, best, demo or a .toml file, for all variants.", command_only=True),
    ] = "tutorial"
    changes: Annotated[
        list[str] | None, Option("FIELD=VALUE of the recipe.", names=("--set",), command_only=True)
    ] = None
    variants: Annotated[
        list[str] | None,
        Option(
            "Names with commas, or one NAME=NETWORK; several times if need be.", command_only=True
        ),
    ] = None
    common: Annotated[
        str, Option("Options of all variants: width=0.25,norm=batch.", names=("--with",))
    ] = ""
    seeds: Annotated[int, Option("Trainings of each variant.")] = 1
    validation: Annotated[
        str | None, Option("Pictures to judge by; else a tenth of PICTURES.", command_only=True)
    ] = None
    views: Annotated[
        int, Option("1: the centre; 10: corners and centre and their mirror images.")
    ] = 1
    threads: Annotated[int, Option("Threads that make batches.", min=1, command_only=True)] = 1
    accelerator: Annotated[str, Option("auto, cpu, gpu, mps.", command_only=True)] = "auto"
    beside: Annotated[bool, BESIDE] = False


STUDY = Study(
    folder="ablation",
    records=("Ablation",),
    title="Ablation",
    shows="What is lost when layers are removed or resized and the network is trained again.",
    limits="One recipe for all variants favours those that it suits.",
    summary="Retrain variants of AlexNet and ZFNet without layers or with larger ones (table 3).",
    example="convscope ablation flower_photos --recipe best --with width=0.25,norm=batch",
    options=Options,
    page="ablation",
    needs=("training pictures",),
    pictures="Class folders, a folder with train and val in it, or builtin:photos.",
    paper="table 3",
    resumable=True,
)
