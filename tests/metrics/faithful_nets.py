"""Which networks are so simple that it is known what a true map of them looks like?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convscope.core.units import Box
from convscope.records.maps import Attribution


class Linear(nn.Module):
    """score_k = w_k · x."""

    def __init__(self, channels: int = 3, height: int = 12, width: int = 9, classes: int = 3):
        super().__init__()
        self.fc = nn.Linear(channels * height * width, classes, bias=False)
        with torch.no_grad():
            draw = torch.Generator().manual_seed(5)
            self.fc.weight.copy_(torch.randn(self.fc.weight.shape, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class Square(nn.Module):
    """Class 1 of 2 where one square of the picture is bright; the rest is not looked at."""

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.box = box
        self.gain = nn.Parameter(torch.tensor(12.0))

    def forward(self, x: Tensor) -> Tensor:
        top, left, bottom, right = self.box
        light = x[:, :, top:bottom, left:right].mean((1, 2, 3)) - 0.5
        return torch.stack([torch.zeros_like(light), self.gain * light], 1)


class Lookalike(nn.Module):
    """Convolutions with batch norm, an in-place rectifier and dropout in train mode; puts out what
    `answer` makes of the scores."""

    def __init__(self, answer: Any = None, channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)
        self.answer = [answer or (lambda scores: scores)]
        nn.init.normal_(self.bn.running_mean, std=0.1)
        nn.init.normal_(self.fc.weight, std=2.0)

    def forward(self, x: Tensor) -> Any:
        x = self.relu(self.bn(self.conv1(x)))
        x = self.relu(self.conv2(x))
        return self.answer[0](self.fc(self.drop(x.mean((2, 3)))))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def a_map(values: np.ndarray, target: int = 0, **fields: Any) -> Attribution:
    return Attribution(values=values.astype(np.float32), target=target, method="made", **fields)
