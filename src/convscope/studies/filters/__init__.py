"""Filters: what the first layer learned, wasted maps, frequencies and aliasing (figure 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convscope.studies.base import Option, Study


@dataclass(frozen=True)
class Options:
    """Of `convscope filters`."""

    clip: Annotated[float, Option("Also show filters clipped to this RMS (paper: 0.1).", min=0)] = (
        0.0
    )
    against: Annotated[
        str | None, Option("Another network, or the same after a change.", command_only=True)
    ] = None
    against_checkpoint: Annotated[
        Path | None, Option("Weights of that network.", command_only=True)
    ] = None


STUDY = Study(
    folder="filters",
    records=("Filters",),
    title="Filters",
    shows="What the first layer learned, which maps are wasted, and what strides fold back.",
    limits="A filter that looks like noise may still serve; a smooth one may be of no use.",
    summary="First filters, wasted maps, frequencies and aliasing, with advice (figure 6).",
    example="convscope filters alexnet --against zfnet",
    options=Options,
    page="filters",
    needs=("network", "pictures or none"),
    pictures="Pictures, to find wasted maps and what strides fold.",
    paper="figure 6",
)
