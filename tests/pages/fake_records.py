"""Records as a study would make them, from arithmetic alone: awkward names, dead maps, one map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from convscope.records.features import LayerFeatures, LayerTable, ModelCard, Pictures
from convscope.records.maps import Occlusion, OcclusionExample, Projection
from convscope.records.predictions import Evolution, Series

SIZE = (96, 128)
"""Height and width of the pretended network's input: not square."""
HOSTILE = '<img src=x onerror=alert(1)>/a "b".jpg'
NAMES = (
    HOSTILE,
    "</script><script>alert(2)</script>.jpg",
    "größe/Füße 🌻.jpg",
    "line\u2028separator & 'quotes'.jpg",
    "right\u202eto left.png",
)
CLASSES = ("daisy", "<b>bold</b>", "rösé & co", "tulips")
LAYERS = (("conv1", 7, 12, 2), ("features.3", 27, 40, 8), ("co/nv <5>", 96, 1, 16))
"""Name, receptive field, feature maps, stride."""


class Atlas(NamedTuple):
    card: ModelCard
    table: LayerTable
    pictures: Pictures
    layers: Sequence[LayerFeatures]
    training: Series
    evolution: Evolution
    occlusion: Sequence[OcclusionExample]


def colours(seed: int, count: int, side: int) -> np.ndarray:
    """`count` smooth pictures, no two alike."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    turn = random.uniform(0, 6.3, (count, 3, 1, 1))
    speed = random.uniform(2, 14, (count, 3, 1, 1))
    wave = np.sin(turn + speed * (x * np.cos(turn) + y * np.sin(turn)))
    return np.moveaxis(127.5 + 120 * wave, 1, -1).astype(np.uint8)


def pictures(count: int = 31) -> Pictures:
    thumbs = colours(1, count, 48)
    thumbs[:, :6] = thumbs[:, -6:] = 128  # 3 : 4 in the middle of a square
    names = [*NAMES, *(f"tulips/{i}.jpg" for i in range(len(NAMES), count))]
    return Pictures(
        number=np.arange(count, dtype=np.int64) * 3,
        name=tuple(names),
        label=(np.arange(count) % 5 - 1).astype(np.int64),
        classes=CLASSES,
        thumbs=thumbs,
        size=SIZE,
    )


def layer(
    name: str, field: int, maps: int, stride: int, *, k: int = 9, seed: int = 0
) -> LayerFeatures:
    random = np.random.default_rng([seed, field, maps])
    height, width = SIZE[0] // stride, SIZE[1] // stride
    value = -np.sort(-random.gamma(2, 3, (maps, k)).astype(np.float32), axis=1)
    image = np.argsort(random.random((maps, 31)), axis=1)[:, :k].astype(np.int64) * 3
    row = random.integers(0, height, (maps, k)).astype(np.int32)
    column = random.integers(0, width, (maps, k)).astype(np.int32)
    top, left = row * stride - field // 2, column * stride - field // 2
    active = random.integers(1, 101, maps)
    if maps > 4:  # a dead map, and one that has seen fewer pictures than k
        value[3], image[3], active[3] = -np.inf, -1, 0
        value[4, 2:], image[4, 2:] = -np.inf, -1
    side = min(field, 48)
    projections = (127 + (colours(seed + 9, maps * k, side).astype(np.float64) - 127) / 3).astype(
        np.uint8
    )
    return LayerFeatures(
        layer=name,
        kind="Conv2d",
        shape=(maps, height, width),
        field=(field, field),
        stride=(stride, stride),
        value=value,
        image=image,
        row=row,
        column=column,
        box=np.stack([top, left, top + field, left + field], axis=-1).astype(np.int32),
        active=active.astype(np.int64),
        invalid=np.zeros(maps, np.int64),
        seen=100,
        patches=colours(seed, maps * k, side).reshape(maps, k, side, side, 3),
        projections=projections.reshape(maps, k, side, side, 3),
        low=np.full(maps, -0.25, np.float32),
        high=np.full(maps, 0.75, np.float32),
        rewritten=5,
        rectifiers=5,
        origin={"rule": "deconvnet", "overlap": "add", "<i>": "</script>", "parts": [1, 2]},
    )


def table() -> LayerTable:
    rows = [("conv1", "Conv2d", (12, 48, 64), 7, 2), ("relu1", "ReLU", (12, 48, 64), 7, 2)]
    rows += [
        ("pool1", "MaxPool2d", (12, 24, 32), 11, 4),
        ("features.3", "Conv2d", (40, 12, 16), 27, 8),
    ]
    rows += [("co/nv <5>", "Conv2d", (1, 6, 8), 96, 16)]
    return LayerTable(
        name=(*(r[0] for r in rows), "fc"),
        kind=(*(r[1] for r in rows), "Linear"),
        shape=(*(r[2] for r in rows), (4,)),
        parameters=np.array([1776, 0, 0, 12040, 361, 196], np.int64),
        multiply_adds=np.array([5_419_008, 0, 0, 2_304_000, 17_280, 192], np.int64),
        field=np.array([[r[3]] * 2 for r in rows] + [[0, 0]], np.int64),
        stride=np.array([[r[4]] * 2 for r in rows] + [[0, 0]], np.int64),
        input=(3, *SIZE),
    )


def card() -> ModelCard:
    return ModelCard(
        name="zfnet:width=0.125 <script>",
        weights="best & last.safetensors",
        sha256="0123456789abcdef" * 4,
        parameters=14373,
        multiply_adds=7_740_480,
        input=(3, *SIZE),
        classes=CLASSES,
        preprocessing="resize 96, centre crop 96 × 128, scale 1/255, mean 0.5, std 0.5",
        top1=0.875,
        top5=1.0,
    )


def training(epochs: int = 8) -> Series:
    e = np.arange(1, epochs + 1)
    wrong = np.exp(-e / 3)
    values = [1.6 * wrong + 0.1, 0.9 - 0.6 * wrong, 1.4 * wrong + 0.4, 0.85 - 0.5 * wrong, 1e-3 / e]
    values[2][2] = np.nan
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")
    return Series(columns=names, epochs=e, values=np.stack(values, axis=1))


def evolution() -> Evolution:
    units, epochs, side = ("conv1:3", "features.3:39", "gone:7"), np.array([1, 2, 5, 10, 20]), 24
    shape = (len(units), len(epochs))
    return Evolution(
        units=units,
        epochs=epochs,
        value=np.arange(15, dtype=np.float32).reshape(shape),
        image=np.array([[3, 3, 6, 6, 6], [9, 9, 9, 9, 9], [0, 3, 6, 9, 12]]),
        row=np.zeros(shape, np.int32),
        column=np.zeros(shape, np.int32),
        patches=colours(3, 15, side).reshape(*shape, side, side, 3),
        projections=colours(4, 15, side).reshape(*shape, side, side, 3),
        low=np.full(3, -1, np.float32),
        high=np.full(3, 2, np.float32),
    )


def occlusion(likeliest_classes: int = 3) -> OcclusionExample:
    tops, lefts, patch = np.arange(0, 65, 8), np.arange(0, 97, 8), 32
    y, x = np.meshgrid(tops + patch / 2, lefts + patch / 2, indexing="ij")
    near = np.exp(-((y - 40) ** 2 + (x - 80) ** 2) / 600).astype(np.float32)
    likeliest = np.where(near > 0.4, 1, 0)
    likeliest[-2:, :2] = np.arange(2, likeliest_classes + 2)[: 2 * 2].repeat(4)[:4].reshape(2, 2)
    result = Occlusion(
        probability=0.9 - 0.8 * near,
        likeliest=likeliest.astype(np.int32),
        activity=100 - 60 * near,
        tops=tops.astype(np.int32),
        lefts=lefts.astype(np.int32),
        patch=patch,
        target=0,
        base_probability=0.93,
        base_activity=104.0,
        layer="features.3",
        channel=7,
    )
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    picture = np.stack([x, y * 2, 255 - x], axis=-1).astype(np.uint8)
    seen = np.sin(x / 5) * np.exp(-((y - 40) ** 2 + (x - 80) ** 2) / 400)
    projection = Projection(
        pixels=np.stack([seen, seen, -seen]).astype(np.float32), unit="features.3:7@5,10", value=8.5
    )
    return OcclusionExample(picture, HOSTILE, 0, CLASSES, result, projection)


def atlas() -> Atlas:
    layers = [layer(*fields, seed=i) for i, fields in enumerate(LAYERS)]
    examples = [occlusion()]
    return Atlas(card(), table(), pictures(), layers, training(), evolution(), examples)


def lazily(layers: Sequence[LayerFeatures], taken: list[str]) -> Iterator[LayerFeatures]:
    """The layers one by one, writing down which have been asked for."""
    for record in layers:
        taken.append(record.layer)
        yield record
