"""What does an atlas that was written hold of its layers, so that it can be drawn again?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from convscope.errors import DataError, UsageError
from convscope.records.features import LayerFeatures
from convscope.texts import parsed


def atlas_layers(atlas: Path) -> dict[str, np.ndarray]:
    """The layers by name: in how many pictures each map was active.

    Raises DataError D195 if the folder is not an atlas, or a damaged one.
    """
    layers = _data(atlas, "atlas")["layers"]
    found = [_data(atlas, f"layer{place}") for place in range(len(layers))]
    return {
        layer["name"]: np.array(maps["active"], np.int64)
        for layer, maps in zip(layers, found, strict=True)
    }


def atlas_features(atlas: Path, layer: str, maps: Sequence[int]) -> LayerFeatures:
    """Some maps of a layer as the atlas shows them; its tiles are stored with small losses.

    Raises DataError D195 if anything is damaged, UsageError U204 if there is no such map.
    """
    data = _data(atlas, "atlas")
    place = [each["name"] for each in data["layers"]].index(layer)
    about, rows = data["layers"][place], _data(atlas, f"layer{place}")
    for channel in maps:
        if channel >= about["maps"]:
            what = f"no such feature map; the layer has {about['maps']}, counted from 0"
            raise UsageError("U204", f"{layer}:{channel}", what)
    tiles = [_tiles(atlas / "maps" / str(place) / f"{channel}.webp", about) for channel in maps]
    known = np.array([*data["pictures"]["number"], -1], np.int64)

    def of(name: str, kind: type) -> np.ndarray:
        return np.array([rows[name][channel] for channel in maps], kind)

    value = of("value", float)
    return LayerFeatures(
        layer=layer,
        kind=about["kind"],
        shape=tuple(about["shape"]),
        field=tuple(about["field"]),
        stride=tuple(about["stride"]),
        value=np.where(np.isnan(value), -np.inf, value).astype(np.float32),
        image=known[of("picture", int)],
        row=of("row", int).astype(np.int32),
        column=of("column", int).astype(np.int32),
        box=of("box", int).astype(np.int32),
        active=of("active", int),
        invalid=of("invalid", int),
        seen=about["seen"],
        patches=np.stack([patches for patches, _ in tiles]),
        projections=np.stack([projections for _, projections in tiles]),
        low=of("low", float).astype(np.float32),
        high=of("high", float).astype(np.float32),
        rewritten=about["rewritten"],
        rectifiers=about["rectifiers"],
        channels=tuple(maps),
        origin=dict(about["origin"]),
    )


def _data(atlas: Path, name: str) -> Any:
    """One of the scripts that hold data: `TARGET={…};`."""
    path = atlas / "data" / f"{name}.js"
    try:
        text = path.read_text(encoding="ascii")
        return parsed(text[text.index("={") + 1 :].rstrip().removesuffix(";"))
    except (OSError, ValueError) as fault:
        raise _damaged(path, fault) from fault


def _tiles(path: Path, about: dict[str, Any]) -> tuple[UInt8[np.ndarray, "k s s 3"], ...]:
    """Patches and projections of one map, out of its picture."""
    side, rows, columns, k = (about[name] for name in ("tile", "rows", "columns", "k"))
    try:
        with Image.open(path, formats=("WEBP",)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except OSError as fault:
        raise _damaged(path, fault) from fault
    if pixels.shape != (rows * side, 2 * columns * side, 3):
        raise _damaged(path, f"{pixels.shape} pixels")
    cut = pixels.reshape(rows, side, 2, columns, side, 3).transpose(2, 0, 3, 1, 4, 5)
    patches, projections = cut.reshape(2, rows * columns, side, side, 3)[:, :k]
    return patches, projections


def _damaged(path: Path, fault: object) -> DataError:
    return DataError("D195", str(path), f"is not what an atlas holds ({fault})")
