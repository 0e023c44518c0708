"""Which small networks are awkward on purpose, and whose answers are easy to check?"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "x.relu()": lambda x: x.relu(),
    "x.relu_()": lambda x: x.relu_(),
    "x.relu_() without its result": lambda x: (x.relu_(), x)[1],
    "torch.clamp(min=0)": lambda x: torch.clamp(x, min=0),
    "torch.clamp(0)": lambda x: torch.clamp(x, 0),
    "torch.clip": lambda x: torch.clip(x, 0.0),
    "x.clamp(min=0)": lambda x: x.clamp(min=0),
    "x.clamp_(min=0)": lambda x: x.clamp_(min=0),
    "x.clip_(0)": lambda x: x.clip_(0),
    "x.clamp_min(0)": lambda x: x.clamp_min(0),
    "x.clamp_min_(0)": lambda x: x.clamp_min_(0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
    "F.threshold": lambda x: F.threshold(x, 0, 0),
    "F.threshold in place": lambda x: F.threshold(x, 0.0, 0.0, inplace=True),
    "nn.Threshold": nn.Threshold(0, 0),
    "torch.maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "torch.max": lambda x: torch.max(torch.zeros(()).to(x), x),
    "x.maximum": lambda x: x.maximum(x.new_zeros(1)),
    "x * (x > 0)": lambda x: x * (x > 0),
    "(x > 0).float() * x": lambda x: (x > 0).to(x.dtype) * x,
    "x.gt(0).type_as(x) * x": lambda x: x.gt(0).type_as(x) * x,
    "x.mul_(x > 0)": lambda x: x.mul_(x > 0),
    "torch.where": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "torch.where(…, 0.0)": lambda x: torch.where(x > 0, x, 0.0),
    "hardtanh(0, big)": lambda x: F.hardtanh(x, 0.0, 1e30),
    "torch.ops.aten.relu": torch.ops.aten.relu,
    "torch.ops.aten.relu_": torch.ops.aten.relu_.default,
}
"""Every spelling that we know of the same function."""


def lively(net: nn.Module) -> None:
    """Filters drawn so that signals neither die out nor explode on their way through."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


class Spelled(nn.Module):
    """Two convolutions, each rectified in the given spelling, overlapping pools, a skip path,
    and a classifier. The same seed gives the same weights whatever the spelling."""

    def __init__(self, rectifier: Callable[[Tensor], Tensor], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 6, (5, 3), stride=(2, 1), padding=(1, 2))
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 7)
        self.rectify = [rectifier]  # in a list: a plain function is no submodule
        lively(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.rectify[0](self.conv1(x)))
        x = self.rectify[0](self.conv2(x))
        x = x + self.rectify[0](self.conv3(x))
        return self.fc(x.amax((2, 3)))


def sequential(inplace: bool = True, seed: int = 0, *, pool: int = 3) -> nn.Sequential:
    """Convolutions with stride, padding and bias, in-place ReLU, pools of side `pool` at stride 2,
    contrast normalisation, dropout left in train mode, and a linear head for 33×29 pixels."""
    torch.manual_seed(seed)
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 6, 5, stride=2, padding=1),
        "relu1": nn.ReLU(inplace),
        "norm1": nn.LocalResponseNorm(3, alpha=0.5),
        "pool1": nn.MaxPool2d(pool, 2, ceil_mode=True),
        "conv2": nn.Conv2d(6, 8, 3, padding=1, groups=2),
        "relu2": nn.ReLU(inplace),
        "pool2": nn.MaxPool2d(pool, 2),
        "conv3": nn.Conv2d(8, 10, 3, padding=2, dilation=2),
        "relu3": nn.ReLU(inplace),
        "drop": nn.Dropout(0.5),
        "flat": nn.Flatten(),
        "fc": nn.LazyLinear(7),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    net.eval()(torch.zeros(1, 3, 33, 29))
    lively(net)
    return net.train()


class Residual(nn.Module):
    """A stem and a residual block in the manner of ResNet: one ReLU module used everywhere, in
    place, `out += identity`, batch normalisation with uneven statistics."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 7)
        for bn in (self.bn1, self.bn2, self.bn3):
            nn.init.uniform_(bn.weight, 0.5, 2.0)
            nn.init.normal_(bn.bias)
            nn.init.normal_(bn.running_mean)
            nn.init.uniform_(bn.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        identity = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(identity)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.fc(self.relu(out).mean((2, 3)))


class Fire(nn.Module):
    """Two branches joined by `cat`, in the manner of SqueezeNet, with an average pool and a
    convolution as classifier."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(3, 6, 7, stride=2)
        self.squeeze = nn.Conv2d(6, 4, 1)
        self.expand1 = nn.Conv2d(4, 5, 1)
        self.expand3 = nn.Conv2d(4, 6, 3, padding=1)
        self.classify = nn.Conv2d(11, 7, 1)
        lively(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.relu(self.squeeze(x))
        x = torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)
        return F.relu(self.classify(F.dropout(x, 0.5, self.training))).mean((2, 3))


class Telling(nn.Module):
    """Puts out what `answer` makes of the scores: a dict, a tuple, …"""

    def __init__(self, answer: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net = Fire()
        self.answer = [answer]

    def forward(self, x: Tensor) -> object:
        return self.answer[0](self.net(x))


class Stumbling(nn.Module):
    """Raises in the middle of its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(5, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.relu(self.conv1(x)))


def pictures(count: int = 2, height: int = 33, width: int = 29, seed: int = 1) -> Tensor:
    """Pictures of noise, not square."""
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def state_of(model: nn.Module) -> dict[str, object]:
    """All that a user could find changed: hooks, modes, flags, attributes, weights, gradients."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            contents = dict(value) if isinstance(value, dict) else value
            found[f"{name}.{key}"] = repr(contents) if key not in ("_modules",) else list(contents)
        found[f"{name} itself"] = id(module)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        found[f"{name} weight"] = (value.detach().clone().numpy().tobytes(), value._version)
        found[f"{name} flags"] = (id(value), value.data_ptr(), value.requires_grad, value.grad)
    return found


class Slow(Residual):
    """The same, which takes its time over every batch."""

    def __init__(self, seconds: float = 0.3) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return super().forward(x)


class Wide(nn.Module):
    """Its scores depend in their last bits on torch's number of threads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4 * 38 * 38, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.maps(x).flatten(1))


class Ender(nn.Module):
    """Kills its process, or sends it another signal, on a picture that is all white, as often as
    `times` says: a file counts."""

    def __init__(self, counter: str, times: int, number: int = signal.SIGKILL) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 4, 3)
        self.counter, self.times, self.number = counter, times, number

    def forward(self, x: Tensor) -> Tensor:
        if (x >= 255).flatten(1).all(1).any():
            with Path(self.counter).open("a+") as file:
                file.write(".")
                file.seek(0)
                if len(file.read()) <= self.times:
                    os.kill(os.getpid(), self.number)
        return self.maps(x)
