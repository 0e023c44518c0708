"""What does the demo show first: a real network, and one that learned while you watched?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from convscope.core.errors import printable
from convscope.core.publish import publish_file, publish_folder
from convscope.drawing.plots import png
from convscope.drawing.tiles import block, class_name
from convscope.pages.describe import save
from convscope.pages.explain import render, save_style
from convscope.records.features import LayerFeatures
from convscope.records.maps import OcclusionExample, lowest
from convscope.records.predictions import Evolution, Prediction
from convscope.studies.evolution.figure import evolution_figure
from convscope.studies.explain.figure import summary, verdict
from convscope.studies.explain.record import Explanation
from convscope.studies.occlusion.figure import occlusion_figure

ASSETS = "page"
"""Folder of the page's pictures, beside index.html."""


@dataclass(frozen=True)
class RealNetwork:
    """The first act: what a network with published weights sees."""

    told: str
    """Its name, weights and licence, in one line."""
    seen: Sequence[tuple[UInt8[np.ndarray, "h w 3"], Prediction]]
    """Photographs as it saw them, and its answers."""
    explanation: Explanation
    explained: str
    """Address of the explanation's own page, from the demo's folder."""
    occlusion: OcclusionExample
    features: Sequence[LayerFeatures]


@dataclass(frozen=True)
class LearningNetwork:
    """The second act: a network that was trained here."""

    told: str
    """What it is and how well it does, in one or two sentences."""
    evolution: Evolution | None
    atlas: str
    """Address of its atlas, from the demo's folder."""


def write_demo(out: Path, real: RealNetwork, learning: LearningNetwork) -> Path:
    """Write index.html and its pictures into the demo's folder; return the page's path.

    Raises EnvironmentFault R602 or R603 if it cannot be written.
    """
    act: dict[str, Any] = {}

    def write(folder: Path) -> None:
        save_style(folder)
        act.update(_act(real, folder))
        if learning.evolution is not None:
            drawn = png(evolution_figure(learning.evolution))
            (folder / "evolution.png").write_bytes(drawn)

    publish_folder(out / ASSETS, write)
    page = render(
        "demo.html.j2",
        f"{ASSETS}/",
        real=act,
        learning=learning,
        told=printable(learning.told),
    )
    publish_file(out / "index.html", page)
    return out / "index.html"


def _act(real: RealNetwork, folder: Path) -> dict[str, Any]:
    photographs = []
    for number, (pixels, prediction) in enumerate(real.seen):
        save(pixels, folder / f"photo{number}.webp", exact=False)
        chances = zip(prediction.names, prediction.probability.tolist(), strict=True)
        photographs.append(
            {
                "file": f"{ASSETS}/photo{number}.webp",
                "name": printable(prediction.picture),
                "answers": [(printable(name), f"{chance:.0%}") for name, chance in chances][:3],
            }
        )
    (folder / "occlusion.png").write_bytes(png(occlusion_figure(real.occlusion)))
    found = real.explanation
    return {
        "told": printable(real.told),
        "photographs": photographs,
        "target": printable(found.target_name),
        "summary": summary(found),
        "why": real.explained,
        "verdicts": [
            (one.method, verdict(found, number).level, verdict(found, number).headline)
            for number, one in enumerate(found.maps)
        ],
        "hidden": hidden_words(real.occlusion),
        "layers": [_layer(record, place, folder) for place, record in enumerate(real.features)],
    }


def hidden_words(example: OcclusionExample) -> str:
    """What hiding changes, in one sentence."""
    found = example.occlusion
    row, column = lowest(found.probability)
    target = class_name(example.classes, found.target)
    low = float(found.probability[row, column])
    fall = f"“{target}” falls from {found.base_probability:.0%} to {low:.0%}"
    others = found.likeliest[found.likeliest != found.target]
    if not len(others):
        return printable(f"At its worst place the square makes {fall}.")
    values, counts = np.unique(others, return_counts=True)
    other = class_name(example.classes, int(values[counts.argmax()]))
    share = len(others) / found.likeliest.size
    return printable(
        f"At its worst place the square makes {fall}; at {share:.0%} of its places the answer "
        f"changes, most often to “{other}”."
    )


def _layer(record: LayerFeatures, place: int, folder: Path) -> dict[str, Any]:
    maps = []
    for row in range(len(record.value)):
        files = []
        for kind, tiles in (("patches", record.patches), ("projections", record.projections)):
            name = f"map-{place}-{row}-{kind}.webp"
            sheet = block(list(tiles[row][:9]), shape=(3, 3), empty=128)
            save(sheet, folder / name, exact=False)
            files.append(f"{ASSETS}/{name}")
        channel = record.channels[row] if record.channels else row
        maps.append({"name": f"{record.layer}:{channel}", "files": files})
    height, width = record.field
    return {
        "name": printable(record.layer),
        "field": f"{height} × {width} px",
        "rule": record.rule,
        "maps": maps,
    }
