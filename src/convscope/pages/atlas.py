"""The atlas: what every feature map sees, each study's figures; and the demo. Without a server.

A study is what its command left: a folder with `figure….svg` (or `.png`), tables as JSON
and a record. Figures are shown as pictures, which a browser never runs; names and numbers are text.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined

import convscope
from convscope.core.errors import DataError, UsageError, printable
from convscope.core.publish import claimed, publish_file, publish_folder
from convscope.core.record import INDEX, read_index, read_inside
from convscope.core.text import Table, parsed, read_tables
from convscope.drawing.plots import png
from convscope.drawing.tiles import block, class_name, enlarged
from convscope.pages import describe
from convscope.pages.describe import (
    policy,
    safe_json,
    save,
    save_sprites,
    save_thumbs,
    script,
    shown,
    told,
)
from convscope.pages.explain import render, save_example, save_style
from convscope.records.features import LayerFeatures, LayerTable, ModelCard, Pictures
from convscope.records.maps import OcclusionExample, lowest
from convscope.records.predictions import Evolution, Prediction, Series
from convscope.studies.evolution.figure import evolution_figure
from convscope.studies.explain.figure import summary, verdict
from convscope.studies.explain.record import Explanation
from convscope.studies.features.record import RECORDS
from convscope.studies.occlusion.figure import occlusion_figure
from convscope.studies.registry import by_record

TARGET = "window.CONVSCOPE_STUDIES"
PLACE = Path("data") / "studies.js"
LARGEST = 30_000_000
"""Bytes of a figure that a page may show."""
TEXT = 10_000_000
"""Bytes of a page of tables that is read."""
MOST = 500
"""Figures of one study."""


@dataclass(frozen=True)
class Study:
    """One study's folder, read."""

    name: str
    title: str
    shows: str
    limits: str
    figures: tuple[Path, ...]
    tables: tuple[Table, ...]
    origin: dict[str, str]


def read_study(folder: Path | str) -> Study:
    """Read what a study's command wrote.

    Raises UsageError U440 if there is no figure in the folder, or one that cannot be shown: too
    large, a link, no regular file; DataError D140 if its record is damaged.
    """
    place = Path(folder)
    figures = _figures(place)
    if not figures:
        step = "name a folder that a study wrote, such as that of convscope filters"
        raise UsageError("U440", str(place), "holds no figure of a study", next_step=step)
    kind, origin = _record(place)
    title, shows, limits = printable(place.resolve().name), "", ""
    if study := by_record(kind):
        title, shows, limits = study.about.get(kind, (study.title, study.shows, study.limits))
    kept = sorted(path for path in place.glob("*.json") if path.name != INDEX)
    tables = tuple(table for path in kept for table in _tables(path))
    return Study(place.resolve().name, title, shows, limits, figures, tables, origin)


def add_studies(atlas: Path | str, studies: Sequence[Study]) -> Path:
    """Put the studies into a written atlas, each in place of one of the same name.

    Returns the path of the atlas' index.html. Raises UsageError U441 if `atlas` is none,
    OutputError O501 while another process adds to it.
    """
    home = Path(atlas)
    _known(home)
    with claimed(home / "data" / "studies"):
        known = _known(home)
        _drop_unlisted(home, known)
        for study in studies:
            number = 1 + max((entry["place"] for entry in known), default=-1)
            known = [entry for entry in known if entry["name"] != printable(study.name)]
            known.append(_saved(study, home, number))
            publish_file(home / PLACE, script(TARGET, known))
            _drop_unlisted(home, known)
    return home / "index.html"


def _drop_unlisted(home: Path, known: Sequence[Mapping[str, Any]]) -> None:
    """Remove what was replaced, or copied by a command that was then killed."""
    listed = {str(entry["place"]) for entry in known}
    for place in (home / "studies").glob("*"):
        if place.name.isascii() and place.name.isdecimal() and place.name not in listed:
            shutil.rmtree(place, ignore_errors=True)


def save_studies(studies: Iterable[Study], folder: Path) -> None:
    """Those of a new atlas."""
    (folder / PLACE).write_bytes(script(TARGET, []))
    add_studies(folder, list(studies))


def _known(home: Path) -> list[dict[str, Any]]:
    try:
        if (home / "studies").is_symlink():
            raise ValueError("its studies are elsewhere")
        text = read_inside(home, PLACE.parts).decode("ascii")
        if not (home / "index.html").is_file() or not text.startswith(f"{TARGET}="):
            raise ValueError("not a list of studies")
        found = parsed(text.removeprefix(f"{TARGET}=").rstrip().removesuffix(";"))
        return [{**entry, "place": int(entry["place"])} for entry in found]
    except (OSError, ValueError, TypeError, KeyError) as fault:
        step = "name the folder that convscope atlas wrote, or make it anew with this version"
        raise UsageError(
            "U441", str(home), "is not an atlas that takes studies", next_step=step
        ) from fault


def _saved(study: Study, home: Path, number: int) -> dict[str, Any]:
    def write(folder: Path) -> None:
        for figure in study.figures:
            (folder / _plain(study, figure)).write_bytes(_inside(figure, LARGEST))

    publish_folder(home / "studies" / str(number), write)
    fields = {
        "place": number,
        "name": printable(study.name),
        "title": study.title,
        "shows": study.shows,
        "limits": study.limits,
        "figures": [_plain(study, figure) for figure in study.figures],
        "tables": [
            {
                "caption": printable(table.title),
                "rows": [shown(row) for row in (table.head, *table.rows)],
            }
            for table in study.tables
        ],
        "origin": study.origin,
    }
    return dict(json.loads(safe_json(fields)))


def _plain(study: Study, figure: Path) -> str:
    """A name that means nothing to an address."""
    return f"{study.figures.index(figure)}{figure.suffix}"


def _figures(place: Path) -> tuple[Path, ...]:
    """Vector where there is one of a name, otherwise pixels; the one called figure first."""
    pixels = {path.stem: path for path in sorted(place.glob("*.png"))}
    found = pixels | {path.stem: path for path in sorted(place.glob("*.svg"))}
    if len(found) > MOST:
        step = f"leave at most {MOST} in the folder"
        raise UsageError("U440", str(place), f"holds {len(found):,} figures", next_step=step)
    for path in found.values():
        _inside(path, LARGEST)
    return tuple(found[name] for name in sorted(found, key=lambda stem: (stem != "figure", stem)))


def _inside(path: Path, most: int) -> bytes:
    """A file of the study, which lies in its folder itself: no link, pipe or device is opened.

    Raises UsageError U440.
    """
    try:
        return read_inside(path.parent, [path.name], most=most)
    except (ValueError, OSError) as fault:
        step = "put the file itself there, as the study's command wrote it, or leave it out"
        raise UsageError("U440", str(path), f"cannot be shown: {fault}", next_step=step) from fault


def _record(place: Path) -> tuple[str, dict[str, str]]:
    """Kind and origin of the record there, or of the first one below; empty if there is none.

    Raises DataError D140 for a damaged one.
    """
    below = sorted(path.name for path in place.iterdir() if (path / INDEX).is_file())
    for parts in ((), *((name,) for name in below)):
        if not os.path.lexists(place.joinpath(*parts, INDEX)):
            continue
        try:
            index = read_index(place, *parts)
            origin = dict(index["plain"].get("origin", {}))
        except (OSError, ValueError, TypeError) as fault:
            step = "make the study again"
            raise DataError(
                "D140", str(place.joinpath(*parts)), f"is damaged ({fault})", next_step=step
            ) from fault
        return str(index.get("kind", "")), told(origin)
    return "", {}


def _tables(path: Path) -> tuple[Table, ...]:
    """The tables of a file, if it is one of tables. Raises UsageError U440 for a damaged one."""
    try:
        return read_tables(_inside(path, TEXT))
    except ValueError as fault:
        step = "make the study again, or leave it out"
        raise UsageError("U440", str(path), f"cannot be shown: {fault}", next_step=step) from fault


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
