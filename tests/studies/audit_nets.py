"""Which networks have just the fault that an audit must find, and what did it say?"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.studies.audit.record import Audit, Finding
from convscope.studies.audit.study import audit
from tests.nets import pictures

IMAGE = pictures(1, 47, 39)[0]


def looked_at(model: nn.Module, image: Tensor = IMAGE) -> Audit:
    return audit(model, image, seconds=0)


def finding(found: Audit, question: str) -> Finding:
    (line,) = (line for line in found.findings if line.question == question)
    return line


def noted(found: Audit, question: str) -> tuple[str, str]:
    line = finding(found, question)
    return line.verdict, line.finding


class Six(nn.Module):
    """Rectifies in every spelling that a newcomer meets, each another number of times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.relu = nn.ReLU()
        self.inplace = nn.ReLU(inplace=True)
        self.six = nn.ReLU6()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.relu(self.conv(x)))
        x = self.inplace(x + 1) - 0.5
        x = F.relu(F.relu(F.relu(x), inplace=True))
        x = torch.relu(x) - 0.1
        x = x.relu().relu_()
        x = x.clamp(min=0).clamp_(min=0)
        x = torch.clamp(x, min=0)
        x = self.six(x) * 1.5
        x = x * (x > 0)
        x = torch.clamp(x, 1e-3, 4)  # a floor that is not 0: no rectifier
        return self.fc(x.mean((2, 3)))


SPELLED = {
    "nn.ReLU": 2,
    "nn.ReLU in place": 1,
    "F.relu": 2,
    "F.relu in place": 1,
    "torch.relu": 1,
    "x.relu()": 1,
    "x.relu_()": 1,
    "x.clamp(min=0)": 1,
    "x.clamp_(min=0)": 1,
    "torch.clamp(min=0)": 1,
    "nn.ReLU6": 1,
    "x * (x > 0)": 1,
}
"""Counted by hand in `Six.forward`."""


class Small(nn.Module):
    """Two convolutions, a rectifier between, a mean and a classifier; what is asked goes after
    the first convolution."""

    def __init__(
        self,
        act: Callable[[Tensor], Tensor] = F.relu,
        *,
        colours: int = 3,
        classes: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(colours, 6, 5, stride=2)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)
        self.act = [act]
        nn.init.uniform_(self.bn.running_mean, -0.1, 0.1)
        nn.init.normal_(self.fc.weight, std=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act[0](self.bn(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 3, 2)
        return self.fc(self.drop(x.mean((2, 3))))


class OfTheBatch(nn.Module):
    """Batch norm by the batch's own statistics, in eval mode too."""

    def __init__(self, *, moving: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4) if moving else None)
        self.register_buffer("var", torch.ones(4) if moving else None)

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.conv(x), self.mean, self.var, training=True)
        return self.fc(F.relu(x).mean((2, 3)))


class Counting(nn.Module):
    """Counts its runs in a buffer, which answers nobody."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Small()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.net(x)


class Stubborn(Small):
    """Cannot be brought to eval mode."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)


class Demanding(nn.Module):
    """Wants more than a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Small()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.net(x * mask)


class OneByOne(nn.Module):
    """Reshapes by 1 where it should by the number of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Small()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).reshape(1, -1)


class Untracked(nn.Module):
    """Answers under no_grad, so that no gradient arrives anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Small()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Tokens(nn.Module):
    """A transformer of patches: a class token, one block, a head."""

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, side, stride=side)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.norm1 = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])
