"""What does an atlas that was written hold of its layers, so that it can be drawn again?

Its records lie beside its pages, in `records/0`, `records/1`, … layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convscope.errors import DataError, UsageError
from convscope.records.features import LayerFeatures
from convscope.records.record import INDEX

RECORDS = "records"


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
    found = LayerFeatures.load(places[layer])
    for channel in maps:
        if channel >= len(found.value):
            what = f"no such feature map; the layer has {len(found.value)}, counted from 0"
            raise UsageError("U204", f"{layer}:{channel}", what)
    return found.of(maps)


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
