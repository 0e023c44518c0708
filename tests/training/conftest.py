"""What do the training tests train on? Three colours in noise, not square, in class folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.pictures.pictures import Pictures
from convscope.training.recipe import Recipe

COLOURS = {"blue": (40, 60, 200), "green": (30, 180, 60), "red": (200, 40, 50)}
TINY = Recipe(
    model="zfnet:width=0.1,norm=batch,head=compact,dropout=0.2",
    epochs=4,
    batch=12,
    optimiser="adamw",
    learning_rate=4e-3,
    size=48,
    test_size=48,
    test_resize=52,
    scale_min=0.4,
    jitter=0.1,
    erase=0.3,
    ema=0.9,
    schedule="onecycle",
    warmup=0.2,
)
"""Every kind of memory a run can have: moments, running means, statistics, dropout."""


def paint(folder: Path, each: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            noise = random.normal(0, 60, (56, 70, 3)) + colour
            pixels = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
            pixels.save(folder / name / f"{number:02d}.png")


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` (3 × 13) and `val` (3 × 5)."""
    root = tmp_path_factory.mktemp("painted")
    paint(root / "train", 13, 0)
    paint(root / "val", 5, 1)
    return root


@pytest.fixture(scope="session")
def training(painted: Path) -> Iterator[Pictures]:
    with Pictures(painted / "train") as folder:
        yield folder


@pytest.fixture(scope="session")
def validation(painted: Path) -> Iterator[Pictures]:
    with Pictures(painted / "val") as folder:
        yield folder
