"""Explanations as a study would make them, from arithmetic alone: each area is what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convscope.records.maps import Agreement, Attribution, Faithfulness, Randomisation, Sensitivity
from convscope.records.predictions import Prediction
from convscope.studies.explain.record import METRICS, Explanation, Explanations

SIZE = (60, 90)
"""Height and width: not square."""
SHARE = np.linspace(0, 1, 6, dtype=np.float32)


def flat(*areas: float) -> np.ndarray:
    """Curves that do not fall or rise, so that each one's area is its height."""
    return np.repeat(np.array(areas, np.float32)[:, None], len(SHARE), axis=1)


def outcome(
    deletion: float = 0.2,
    insertion: float = 0.8,
    chance: Sequence[tuple[float, float]] = ((0.5, 0.4), (0.4, 0.5)),
    blob: tuple[float, float] = (0.45, 0.45),
    score: float = 0.9,
) -> Faithfulness:
    """chance, blob: deletion and insertion area of each random map, and of the blob."""
    return Faithfulness(
        method="made",
        target=1,
        score=score,
        share=SHARE,
        deletion=flat(deletion)[0],
        insertion=flat(insertion)[0],
        random_deletion=flat(*(one[0] for one in chance)),
        random_insertion=flat(*(one[1] for one in chance)),
        blob_deletion=flat(blob[0])[0],
        blob_insertion=flat(blob[1])[0],
        drop=0.25,
        increase=False,
        road_share=np.empty(0, np.float32),
        road_most=np.empty(0, np.float32),
        road_least=np.empty(0, np.float32),
    )


def a_map(values: np.ndarray | None = None, **more: Any) -> Attribution:
    if values is None:
        values = np.zeros(SIZE)
        values[10:30, 50:70] = 4.0
    told = {"target": 1, "raw": values[::10, ::10].astype(np.float32), "method": "Grad-CAM"}
    told |= {"variant": "authors", "layer": "features.12", "origin": {"notes": []}, **more}
    return Attribution(values=values.astype(np.float32), **told)  # type: ignore[arg-type]


def forgotten(*absolute: float) -> Randomisation:
    numbers = np.array(absolute, np.float32)
    layers = tuple(f"fc{place}" for place in range(len(absolute)))
    return Randomisation("made", layers, numbers, numbers, numbers)


def of_other(spearman: float, second: int = 2) -> Sensitivity:
    return Sensitivity("made", 1, second, spearman, 0.1)


def prediction(name: str = "a picture.png", names: Sequence[str] = ("ant", "bee", "cat")) -> Any:
    share = np.array([0.6, 0.3, 0.1], np.float32)
    return Prediction(name, tuple(names), np.array([1, 2, 0]), share)


def explanation(
    maps: Sequence[Attribution] = (),
    tests: Sequence[Faithfulness] = (),
    methods: Sequence[str] = (),
    **more: Any,
) -> Explanation:
    """One map by Grad-CAM of the likeliest class, unless told otherwise."""
    maps = tuple(maps) or (a_map(),)
    methods = tuple(methods) or ("gradcam", "saliency", "occlusion", "mine:own")[: len(maps)]
    light = np.linspace(0, 255, SIZE[1]).astype(np.uint8)
    table = np.eye(len(maps), dtype=np.float32)
    told = {
        "picture": np.broadcast_to(light[None, :, None], (*SIZE, 3)).copy(),
        "prediction": prediction(),
        "target": 1,
        "target_name": "ant",
        "score": 0.6,
        "label": "",
        "coverage": (0.1,) * len(maps),
        "origin": {"model": "package.module:<net>", "seed": 0},
        "agreement": Agreement(methods, table) if len(maps) > 1 else None,
    }
    tests = tuple(tests) or (outcome(),) * len(maps)
    return Explanation(methods=methods, maps=maps, tests=tests, **(told | more))  # type: ignore[arg-type]


def many(
    count: int = 12,
    methods: Sequence[str] = ("gradcam", "saliency"),
    classes: Sequence[str] = ("ant", "bee", "cat"),
    **more: Any,
) -> Explanations:
    """Pictures whose maps all do as well, half of them of the first class, half of the second."""
    chance = np.random.default_rng(0)
    values = np.tile(
        np.linspace(0.1, 0.9, len(METRICS), dtype=np.float32), (count, len(methods), 1)
    )
    told = {
        "pictures": tuple(f"{number}.png" for number in range(count)),
        "target": np.arange(count) % 2,
        "likeliest": np.arange(count) % 2,
        "label": np.full(count, -1),
        "score": np.full(count, 0.7, np.float32),
        "metrics": METRICS,
        "values": values,
        "crops": chance.integers(0, 255, (count, len(methods), 48, 48, 3)).astype(np.uint8),
        "elsewhere": chance.integers(0, 255, (count, len(methods), 48, 48, 3)).astype(np.uint8),
        "boxed": np.full(count, np.nan, np.float32),
        "box_hidden": np.full(count, np.nan, np.float32),
        "other_hidden": np.full(count, np.nan, np.float32),
        "box_turned": np.full(count, -1),
        "origin": {"model": "zfnet", "layers": dict.fromkeys(methods, "conv5")},
    }
    return Explanations(methods=tuple(methods), classes=tuple(classes), **(told | more))  # type: ignore[arg-type]
