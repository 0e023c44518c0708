"""A folder of small pictures, and a network whose strongest pictures are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convscope.network.load import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing

SIZE = (20, 26)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six noisy dark pictures in two classes; picture i has a bright red spot only if i is 2,
    and a bright green one, less bright with i, in all."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for number in range(6):
        pixels = draw.integers(0, 20, (*SIZE, 3)).astype(np.uint8)
        pixels[12:15, 4 + number : 7 + number, 1] = 250 - 20 * number
        if number == 2:
            pixels[3:6, 20:23] = (255, 0, 0)
        place = root / ("a" if number < 3 else "b")
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return root


@pytest.fixture
def network() -> Network:
    """Map 0 of conv1 sees red, map 1 green, map 2 nothing ever; conv2 sees map 1 around it."""
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(3, 3, 3, padding=1, bias=False))
    model.add_module("relu1", nn.ReLU(inplace=True))
    model.add_module("pool1", nn.MaxPool2d(2))
    model.add_module("conv2", nn.Conv2d(3, 2, 3, stride=2, bias=False))
    model.add_module("relu2", nn.ReLU())
    model.add_module("flat", nn.Flatten())
    model.add_module("fc", nn.Linear(2 * 4 * 6, 2))
    with torch.no_grad():
        for weight in (model.conv1.weight, model.conv2.weight):
            weight.zero_()
        model.conv1.weight[0, 0] = 1
        model.conv1.weight[0, 1:] = -1
        model.conv1.weight[1, 1] = 1
        model.conv1.weight[1, 0] = -0.1
        model.conv1.weight[2] = -1
        model.conv2.weight[:, 1] = 1
        model.conv2.weight[1] *= torch.tensor([[1.0, -1, 1], [-1, 2, -1], [1, -1, 1]])
    return Network(
        model=model.eval(),
        preprocess=Preprocess(Framing(None, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        classes=("a", "b"),
        spec="toy",
        weights="by hand",
        sha256="",
    )
