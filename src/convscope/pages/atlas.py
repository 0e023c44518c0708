"""What does every feature map of a network see, as pages that open anywhere, without a server?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

import convscope
from convscope.core.errors import printable
from convscope.core.publish import publish_folder
from convscope.drawing.tiles import block, enlarged
from convscope.pages import describe
from convscope.pages.explain import save_example
from convscope.pages.store import policy, save, save_sprites, save_thumbs, script
from convscope.pages.studies import Study, save_studies
from convscope.records.features import LayerFeatures, LayerTable, ModelCard, Pictures
from convscope.records.maps import OcclusionExample
from convscope.records.series import Evolution, Series
from convscope.studies.features.record import RECORDS

SCRIPTS = (
    "base",
    "pictures",
    "chart",
    "network",
    "layer",
    "unit",
    "picture",
    "training",
    "evolution",
    "occlusion",
    "studies",
    "find",
    "main",
)
"""Loaded in this order; plain scripts, since an opened file cannot import modules."""
POLICY = policy("convscope")


def write_atlas(
    out: Path,
    card: ModelCard,
    table: LayerTable,
    pictures: Pictures,
    features: Iterable[LayerFeatures],
    *,
    training: Series | None = None,
    evolution: Evolution | None = None,
    occlusion: Sequence[OcclusionExample] | None = None,
    studies: Sequence[Study] = (),
    title: str = "",
) -> Path:
    """Write the atlas into the new folder `out`; return the path of its index.html.

    features: taken one layer at a time, so that only one is in memory. studies: see `read_study`;
    `add_studies` adds more later. title: of the pages; the network's name without. The folder
    appears whole or not at all, opens from disk and loads nothing from elsewhere.

    Raises OutputError O501 (`out` holds anything), EnvironmentFault R602, R603 and as `features`.
    """

    def write(folder: Path) -> None:
        named = printable(title) or describe.readable(card.name)
        save_static(folder, named)
        data = {
            "made": f"convscope {convscope.__version__}",
            "title": named,
            "card": describe.card(card),
            "table": describe.table(table),
            **save_maps(pictures, features, folder),
            "training": None if training is None else describe.training(training),
            "evolution": None if evolution is None else save_evolution(evolution, folder),
            "occlusion": save_occlusion(occlusion or (), folder / "occlusion"),
        }
        (folder / "data" / "atlas.js").write_bytes(script("window.CONVSCOPE", data))
        save_studies(studies, folder)

    publish_folder(Path(out), write)
    return Path(out) / "index.html"


def save_static(folder: Path, title: str) -> None:
    """The page itself, its style and scripts, the same for every atlas but for the title."""
    environment = Environment(
        loader=PackageLoader("convscope.pages"), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("atlas.html.j2").render(
        policy=POLICY,
        scripts=SCRIPTS,
        title=title,
        version=convscope.__version__,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    (folder / "data").mkdir()
    (folder / "static").mkdir()
    source = files("convscope.pages") / "static"
    for name in ("atlas.css", "screens.css", "icon.svg", *(f"{part}.js" for part in SCRIPTS)):
        (folder / "static" / name).write_bytes((source / name).read_bytes())


def save_maps(
    pictures: Pictures, features: Iterable[LayerFeatures], folder: Path
) -> dict[str, Any]:
    """The layers one by one, and the pictures that their maps show."""
    layers = [save_layer(record, place, pictures, folder) for place, record in enumerate(features)]
    thumbs = save_thumbs(pictures, folder / "thumbs")
    return {"pictures": describe.pictures(pictures, thumbs), "layers": layers}


def save_occlusion(examples: Sequence[OcclusionExample], folder: Path) -> list[dict[str, Any]]:
    return [save_example(example, folder / str(place)) for place, example in enumerate(examples)]


def save_layer(
    record: LayerFeatures, place: int, pictures: Pictures, folder: Path
) -> dict[str, Any]:
    """One layer's sprites and numbers; returns what the first screen needs of it."""
    save_sprites(record, folder / "maps" / str(place))
    kept = folder / RECORDS / str(place)
    kept.mkdir(parents=True)
    record.write(kept)
    target = f"(window.CONVSCOPE_MAPS=window.CONVSCOPE_MAPS||{{}})[{place}]"
    maps = describe.maps(record, pictures.number)
    (folder / "data" / f"layer{place}.js").write_bytes(script(target, maps))
    return describe.layer(record)


def save_evolution(record: Evolution, folder: Path) -> dict[str, Any]:
    """One picture a unit: epochs row by row, patches first, then projections."""
    fields = describe.evolution(record)
    columns = fields["per_row"]
    shape = (-(-len(record.epochs) // columns), columns)
    for unit in range(len(record.units)):
        halves = [
            block(enlarged(tiles[unit], fields["tile"]), shape=shape, empty=128)
            for tiles in (record.patches, record.projections)
        ]
        save(np.concatenate(halves), folder / "evolution" / f"{unit}.webp", exact=False)
    return fields
