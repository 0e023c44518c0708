"""Which small networks have a layer whose maps, and what follows them, can be taken by hand?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = (21, 16)
"""Of the pictures: not square, and no multiple of the maps' size."""


class Split(nn.Module):
    """`trunk`, then `head`: every second call of them is in place, so that who does not copy
    what is seen reads overwritten numbers."""

    def __init__(self, head: nn.Module, maps: int = 5, seed: int = 0, *, rectified: bool = True):
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 7, 5, stride=2, padding=1),
            nn.BatchNorm2d(7),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            nn.Conv2d(7, maps, 3, padding=1),
        )
        if rectified:
            self.trunk.append(nn.ReLU(inplace=True))
        uneven(self.trunk[1])
        self.head = head
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=0.4)
                nn.init.normal_(layer.bias, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


class Skip(nn.Module):
    """A residual block of its own, `out += identity`, then an average and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 5, 3, padding=1)
        self.bn = uneven(nn.BatchNorm2d(5))
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(F.relu(x)))
        out += x
        return self.fc(out.relu_().mean((2, 3)))


def uneven(bn: nn.BatchNorm2d) -> nn.BatchNorm2d:
    nn.init.uniform_(bn.weight, 0.5, 2.0)
    nn.init.normal_(bn.bias)
    nn.init.normal_(bn.running_mean)
    nn.init.uniform_(bn.running_var, 0.5, 2.0)
    return bn


HEADS: dict[str, Callable[[], nn.Module]] = {
    "average and linear, as ResNet": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(5, 4)
    ),
    "maps of classes, as SqueezeNet": lambda: nn.Sequential(
        nn.Dropout(),
        nn.Conv2d(5, 4, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ),
    "linear layers, as VGG": lambda: nn.Sequential(
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 2 * 2, 6), nn.ReLU(True), nn.Linear(6, 4)
    ),
    "norm first, as DenseNet": lambda: nn.Sequential(
        uneven(nn.BatchNorm2d(5)),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 6, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ),
    "skip path": Skip,
    "smooth": lambda: nn.Sequential(
        nn.Conv2d(5, 5, 3, groups=5), nn.Softplus(), nn.Flatten(), nn.Linear(5 * 3 * 2, 4)
    ),
}
"""What may follow the maps (5, 5, 4), one for each short cut and for none."""


def net_of(head: str, **how: object) -> Split:
    torch.manual_seed(7)
    return Split(HEADS[head](), **how).double().train()


def pictures(count: int = 3, seed: int = 1) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *SIZE, generator=noise, dtype=torch.float64)


def by_hand(net: Split, image: Tensor, target: int) -> tuple[np.ndarray, np.ndarray]:
    """(A, g) of one picture, from the two parts of the network called one after the other."""
    net = net.eval()
    A = net.trunk(image[None].clone()).detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(net.head(A.clone())[0, target], A)
    net.train()
    return A.detach()[0].numpy(), g[0].numpy()


def scores_by_hand(net: Split, image: np.ndarray) -> np.ndarray:
    net = net.eval()
    with torch.no_grad():
        scores = net(torch.from_numpy(image)[None])[0].numpy()
    net.train()
    return scores


def head_by_hand(net: Split, target: int) -> Callable[[np.ndarray], float]:
    def head(A: np.ndarray) -> float:
        net.eval()
        with torch.no_grad():
            score = float(net.head(torch.from_numpy(A.copy())[None])[0, target])
        net.train()
        return score

    return head
