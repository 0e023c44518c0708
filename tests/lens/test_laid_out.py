"""Convolutions whose weights are kept in oneDNN's order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convscope.lens.incremental_packed import lays_out
from convscope.lens.laid_out import LaidOut, laid_out
from convscope.lens.lens import Lens
from convscope.methods.tuning import Way

needs = pytest.mark.skipif(not lays_out(torch.ones(1)), reason="oneDNN's calls do not work here")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 7, 3, 2),
        nn.ReLU(),
        nn.Conv2d(24, 40, 3, padding=(2, 1), dilation=2, bias=False),
        nn.Conv2d(40, 16, 1, groups=4),
        nn.Conv2d(16, 8, 3, padding="same"),
    ).eval()


def pictures(count: int, side: int = 40) -> Tensor:
    made = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))
    return made.contiguous(memory_format=torch.channels_last)


def kept(model: nn.Module) -> list[int]:
    """Of each such convolution, for how many sizes weights are laid out."""
    found = [module for module in model.modules() if isinstance(module, LaidOut)]
    return [sum(laid is not None for laid in one._sizes.values()) for one in found]


@needs
@torch.no_grad()
def test_outputs_are_the_same_to_the_last_bit_whatever_sizes_come() -> None:
    plain = net()
    made = laid_out(plain)
    for images in [pictures(4)] * 3 + [pictures(2), pictures(4, 31), pictures(2)] + [pictures(4)]:
        assert torch.equal(made(images), plain(images))
    assert kept(made) == [1, 1]


@needs
def test_the_network_itself_is_not_touched() -> None:
    plain = net()
    made = laid_out(plain)
    assert [type(module) for module in plain] == [nn.Conv2d, nn.ReLU, *[nn.Conv2d] * 3]
    assert [type(module) for module in made.children()].count(LaidOut) == 2
    assert made.get_parameter("0.weight") is plain[0].weight


@needs
def test_gradients_other_numbers_and_other_memory_go_the_usual_way() -> None:
    plain = net()
    made, images = laid_out(plain), pictures(2)
    for _ in range(3):
        assert torch.equal(made(images), plain(images))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert made(images).dtype == torch.bfloat16
        with torch.no_grad():
            torch.testing.assert_close(made(images.contiguous()), plain(images.contiguous()))
    assert kept(made) == [0, 0]
    made(images).sum().backward()
    assert plain[0].weight.grad is not None


@needs
@torch.no_grad()
def test_a_twin_of_it_keeps_what_is_laid_out() -> None:
    plain = net()
    made, images = laid_out(plain), pictures(3)
    for _ in range(3):
        with Lens(made, ("2",)) as lens:
            lens(images)
            seen = lens["2"]
    assert kept(made) == [1, 1]
    assert torch.equal(seen, plain[:3](images))


def test_a_network_without_any_stays_as_it_is() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    double = net().double()
    assert laid_out(flat) is flat
    assert laid_out(double) is double


@needs
@torch.no_grad()
def test_jobs_run_networks_so() -> None:
    plain, images = net(), pictures(2)
    way = Way(plain, images[:1])
    for _ in range(2):
        assert torch.equal(way.model(way.laid(images)), plain(images))
    assert kept(way.model) == [1, 1]
