"""Are batch normalisations folded only where no output changes by more than rounding?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.lens.lens import Lens
from convscope.trace.folding import folded
from tests.nets import Residual, state_of

PICTURE = torch.zeros(1, 3, 19, 24)


def settled(model: nn.Module) -> nn.Module:
    """With statistics that are not those of a fresh network."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
            if module.affine:
                module.weight.data.normal_()
                module.bias.data.normal_()
    return model


class Straight(nn.Module):
    """bias and none, dilation and groups, without affine weights, a ReLU in place, one as F.relu"""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, bias=True)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 12, 3, groups=3, dilation=2, bias=False)
        self.bn2 = nn.BatchNorm2d(12, affine=False, eps=0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


@pytest.mark.parametrize("make", [Straight, Residual])
def test_layers_put_out_the_same_but_for_rounding(make: type[nn.Module]) -> None:
    model = settled(make())
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    twin, count = folded(model, PICTURE, norms)
    assert count == len(norms) >= 2
    pictures = torch.randn(12, 3, 19, 24)
    with Lens(model, norms) as plain, Lens(twin, norms) as other, torch.no_grad():
        assert torch.allclose(other(pictures), plain(pictures), rtol=1e-4, atol=1e-5)
        for norm in norms:
            assert torch.allclose(other[norm], plain[norm], rtol=1e-4, atol=1e-5)
            assert not torch.equal(other[norm], plain[norm])  # or nothing was folded


def test_the_model_itself_is_not_touched() -> None:
    model = settled(Straight())  # in train mode
    before = state_of(model)
    folded(model, PICTURE)
    assert state_of(model) == before
    assert type(model.bn1) is nn.BatchNorm2d


def test_a_convolution_whose_own_output_is_wanted_is_left_alone() -> None:
    model = settled(Straight())
    twin, count = folded(model, PICTURE, ["conv1"])
    assert count == 1
    with Lens(model, ["conv1"]) as plain, Lens(twin, ["conv1"]) as other, torch.no_grad():
        plain(PICTURE + 1), other(PICTURE + 1)
        assert torch.equal(plain["conv1"], other["conv1"])


class ReadTwice(Straight):
    """Something else reads what the convolution puts out."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.bn1(x) + x


class Between(Straight):
    """A rectifier in place between the two: the very same tensor, but not what was put out."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.relu(self.conv1(x)))


class Again(Straight):
    """The convolution runs twice, and only one output is normalised."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv1(x)) + self.conv1(x.flip(3))


@pytest.mark.parametrize("make", [ReadTwice, Between, Again])
def test_where_it_would_be_another_network_nothing_is_folded(make: type[nn.Module]) -> None:
    model = settled(make())
    assert folded(model, PICTURE) == (model, 0)


def test_weights_that_a_hook_makes_are_left_alone() -> None:
    model = settled(Straight())
    model.conv1 = nn.utils.parametrizations.weight_norm(model.conv1)
    model.conv2.register_forward_pre_hook(lambda *_: None)
    assert folded(model, PICTURE) == (model, 0)
