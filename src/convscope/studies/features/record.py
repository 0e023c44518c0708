"""Features that were kept: records of `convscope features`, or those inside an atlas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convscope.core.errors import DataError, ModelError, UsageError, nearest
from convscope.core.record import INDEX
from convscope.core.units import Unit
from convscope.records.features import COUNTS, LayerFeatures, random_maps

RECORDS = "records"
"""Folder of an atlas with a record for each layer."""
KEPT = "layer-"
"""Records in what the command writes: layer-0, layer-1, …"""


def kept_features(
    folder: Path,
    layers: Sequence[str] | None,
    units: Sequence[str] = (),
    count: int | None = None,
    seed: int = 0,
) -> list[LayerFeatures]:
    """Out of what `convscope features` or `atlas` wrote: the layers and maps asked for.

    Raises UsageError U389 if the folder is neither, or maps are asked for that were chosen before,
    ModelError M500 (no such layer), and as `atlas_layers` and `atlas_features`.
    """
    if (folder / "data" / "atlas.js").is_file():
        return _from_atlas(folder, layers, units, count, seed)
    numbered = {path.name.removeprefix(KEPT): path for path in folder.glob(f"{KEPT}*")}
    places = [numbered[name] for name in sorted(filter(str.isdecimal, numbered), key=int)]
    records = [LayerFeatures.load(place) for place in places]
    if not records:
        what = "is neither an atlas nor what `convscope features` wrote"
        raise UsageError("U389", str(folder), what, next_step="name PICTURES too")
    if units or count is not None:
        what = "the maps were chosen when these records were made"
        raise UsageError("U389", str(folder), what, next_step="leave out --maps, or name an atlas")
    kept = [record.layer for record in records]
    for layer in layers or ():
        _require_layer(layer, kept)
    return [record for record in records if record.layer in (layers or kept)]


def _from_atlas(
    folder: Path,
    layers: Sequence[str] | None,
    units: Sequence[str],
    count: int | None,
    seed: int,
) -> list[LayerFeatures]:
    active, wanted = atlas_layers(folder), [Unit.parse(unit) for unit in units]
    even = np.linspace(0, len(active) - 1, min(len(COUNTS), len(active))).round().astype(int)
    names = layers or list(dict.fromkeys(unit.layer for unit in wanted))
    names = names or [list(active)[place] for place in even]
    chance, records = np.random.default_rng(seed), []
    for place, layer in enumerate(names):
        _require_layer(layer, list(active))
        chosen = [unit.channel for unit in wanted if unit.layer == layer]
        chosen = chosen or random_maps(active[layer], count, place, chance)
        records.append(atlas_features(folder, layer, chosen))
    return records


def _require_layer(layer: str, there: Sequence[str]) -> None:
    if layer not in there:
        raise ModelError("M500", layer, f"no such layer here; {nearest(layer, there)}")


def atlas_layers(atlas: Path) -> dict[str, np.ndarray]:
    """The layers by name: in how many pictures each map was active.

    Raises DataError D195 if there are no records in the folder, D140 if one is damaged.
    """
    return {
        LayerFeatures.part(place, "layer"): LayerFeatures.part(place, "active")
        for place in _places(atlas)
    }


def atlas_features(atlas: Path, layer: str, maps: Sequence[int]) -> LayerFeatures:
    """Some maps of a layer, as they were found.

    Raises as `atlas_layers`, and UsageError U204 if there is no such map.
    """
    places = {LayerFeatures.part(place, "layer"): place for place in _places(atlas)}
    result = LayerFeatures.load(places[layer])
    for channel in maps:
        if channel >= len(result.value):
            what = f"no such feature map; the layer has {len(result.value)}, counted from 0"
            raise UsageError("U204", f"{layer}:{channel}", what)
    return result.of(maps)


def _places(atlas: Path) -> list[Path]:
    """Of the records, in the order of the layers."""
    there = [path for path in (atlas / RECORDS).glob("*") if path.name.isdecimal()]
    places = sorted((path for path in there if (path / INDEX).exists()), key=_number)
    if [_number(place) for place in places] != [*range(len(places) or 1)]:
        what = "holds no records of an atlas" if not places else "has lost some of its records"
        step = "make the atlas again; without its folder records it is pages only"
        raise DataError("D195", str(atlas), what, next_step=step)
    return places


def _number(place: Path) -> int:
    return int(place.name)
