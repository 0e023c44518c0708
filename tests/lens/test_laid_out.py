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
    return [len(one._sizes) for one in found]


@needs
@torch.no_grad()
def test_batches_of_the_chosen_number_are_all_computed_alike_and_others_as_ever() -> None:
    plain = net()
    made, first = laid_out(plain, 4), {}
    for images in (
        [pictures(4)] * 3 + [pictures(4, 31), pictures(2)] + [pictures(4), pictures(4, 31)]
    ):
        found = made(images)
        torch.testing.assert_close(found, plain(images))
        side = images.shape[2]
        assert torch.equal(found, first.setdefault((len(images), side), found))
    assert torch.equal(first[2, 40], plain(pictures(2)))
    assert kept(made) == [2, 2]


@needs
@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_the_first_batch_is_computed_as_the_second(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for into, out, kernel, side, batch in ((512, 64, 1, 13, 4), (64, 32, 3, 7, 1)):
            torch.manual_seed(0)
            made = laid_out(nn.Conv2d(into, out, kernel).eval(), batch)
            images = torch.randn(batch, into, side, side)
            images = images.contiguous(memory_format=torch.channels_last)
            assert torch.equal(made(images), made(images))
    finally:
        torch.set_num_threads(before)


@needs
def test_the_network_itself_is_not_touched() -> None:
    plain = net()
    made = laid_out(plain, 2)
    assert [type(module) for module in plain] == [nn.Conv2d, nn.ReLU, *[nn.Conv2d] * 3]
    assert [type(module) for module in made.children()].count(LaidOut) == 2
    assert made.get_parameter("0.weight") is plain[0].weight


@needs
def test_gradients_other_numbers_and_other_memory_go_the_usual_way() -> None:
    plain = net()
    made, images = laid_out(plain, 2), pictures(2)
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
    made, images = laid_out(plain, 3), pictures(3)
    for _ in range(3):
        with Lens(made, ("2",)) as lens:
            lens(images)
            seen = lens["2"]
    assert kept(made) == [1, 1]
    torch.testing.assert_close(seen, plain[:3](images))


def test_a_network_without_any_stays_as_it_is() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    double = net().double()
    assert laid_out(flat, 2) is flat
    assert laid_out(double, 2) is double


@needs
@torch.no_grad()
def test_jobs_run_networks_so() -> None:
    plain, images = net(), pictures(2)
    way = Way(plain, images[:1])
    assert way.model is plain
    way.lay_out(2)
    for _ in range(2):
        torch.testing.assert_close(way.model(way.laid(images)), plain(images))
    assert kept(way.model) == [1, 1]
