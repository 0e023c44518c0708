"""Where does a signal go when it meets a max pool, and what if two windows share a maximum?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.trace.backward_rule import BackwardRule, last_of_each
from tests.nets import pictures, sequential
from tests.trace.test_backward_rule import sent


def pool_and_switches(x: Tensor, *args, **options) -> tuple[Tensor, Tensor]:
    return F.max_pool2d(x, *args, **options, return_indices=True)


def test_two_windows_that_share_a_maximum_add_their_signals_or_the_last_one_wins():
    """The small example: 6 and 4 meet in one pixel, which gets 10, or 4."""
    x = torch.tensor([[0.0, 0, 9, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])[None, None]
    signal = torch.tensor([6.0, 4.0])[None, None, None]
    pool = nn.MaxPool2d(3, 2)
    for overlap, arrived in (("add", 10), ("overwrite", 4)):
        got = sent(BackwardRule("deconvnet", overlap=overlap), pool, x, signal)
        expected = torch.zeros_like(x)
        expected[0, 0, 0, 2] = arrived
        assert torch.equal(got, expected), overlap


@pytest.mark.parametrize(
    ("side", "stride", "padding", "ceil"),
    [(3, 2, 0, False), (3, 2, 0, True), (3, 2, 1, False), (2, 2, 0, True), (3, 1, 1, False)],
)
def test_overwriting_is_what_max_unpool_draws(side, stride, padding, ceil):
    x = pictures(12, 14, 11)
    pooled, switches = pool_and_switches(x, side, stride, padding, ceil_mode=ceil)
    signal = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more of them its winner is a matter of luck
    drawn = F.max_unpool2d(signal, switches, side, stride, padding, output_size=x.shape)
    torch.set_num_threads(threads)
    pool = nn.MaxPool2d(side, stride, padding, ceil_mode=ceil)
    assert torch.equal(sent(BackwardRule("guided", overlap="overwrite"), pool, x, signal), drawn)
    added = sent(BackwardRule("guided"), pool, x, signal)
    assert torch.equal(added, drawn) == (side == stride)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(3, 2),
        lambda x: F.max_pool2d(x, 3, stride=2),
        lambda x: torch.max_pool2d(x, 3, 2),
        lambda x: F.max_pool2d(x, 3, 2, return_indices=True)[0],
        lambda x: F.max_pool2d_with_indices(x, 3, 2)[0],
        lambda x: F.max_pool2d(x.flatten(0, 1), 3, 2).unflatten(0, (2, 3)),
        lambda x: torch.ops.aten.max_pool2d(x, [3, 3], [2, 2]),
    ],
)
def test_every_spelling_of_a_pool_overwrites(pool):
    x = pictures()
    expected = sent(BackwardRule("deconvnet", overlap="overwrite"), nn.MaxPool2d(3, 2), x)
    assert torch.equal(sent(BackwardRule("deconvnet", overlap="overwrite"), pool, x), expected)
    assert not torch.equal(sent(BackwardRule("deconvnet"), pool, x), expected)


def test_adaptive_pools_overwrite_too():
    x = torch.tensor([[0.0, 5, 0, 0, 0, 0, 0]])[None].expand(1, 2, 1, 7).clone()
    x[0, 0, 0, 2] = 7  # windows of 3 cells at 0, 2 and 4 share columns 2 and 4
    signal = torch.tensor([1.0, 2, 4]).expand(1, 2, 1, 3)
    for overlap, arrived in (("add", [0, 0, 3, 0, 4, 0, 0]), ("overwrite", [0, 0, 2, 0, 4, 0, 0])):
        rule = BackwardRule("deconvnet", overlap=overlap)
        got = sent(rule, nn.AdaptiveMaxPool2d((1, 3)), x, signal)
        assert got[0, 0, 0].tolist() == arrived, overlap


def test_a_network_may_work_in_place_on_what_a_pool_put_out():
    def net(x: Tensor) -> Tensor:
        return F.relu_(F.max_pool2d(x, 2))

    x = pictures()
    rule = BackwardRule("deconvnet", overlap="overwrite")
    assert torch.equal(sent(rule, net, x), sent(BackwardRule("deconvnet"), net, x))
    assert rule.rewritten == 1


def test_the_last_of_several_windows_is_found_whatever_they_share():
    places = torch.tensor([[[4, 4, 7], [4, 7, 1]]])
    assert last_of_each(places).tolist() == [[[False, False, False], [True, True, True]]]


@pytest.mark.parametrize("pool", [2, 3])
def test_the_tutorials_network_of_unpooling_and_transposed_convolutions_is_met_exactly(pool):
    """Their decoder: MaxUnpool2d, ReLU, ConvTranspose2d without a bias, top to bottom."""
    net, x = sequential(pool=pool).eval(), pictures(1)
    del net.norm1, net.drop, net.flat, net.fc
    stages, value = [], x
    for layer in net:
        if isinstance(layer, nn.MaxPool2d):
            shape, (value, switches) = (
                value.shape,
                pool_and_switches(
                    value, layer.kernel_size, layer.stride, ceil_mode=layer.ceil_mode
                ),
            )
            stages.append((layer, shape, switches))
        else:
            stages.append((layer, value.shape, None))
            value = nn.ReLU()(value) if isinstance(layer, nn.ReLU) else layer(value)
    signal = value.detach().clone()
    for layer, shape, switches in reversed(stages):
        if isinstance(layer, nn.MaxPool2d):
            signal = F.max_unpool2d(signal, switches, pool, 2, output_size=shape)
        elif isinstance(layer, nn.ReLU):
            signal = signal.relu()
        else:
            back = nn.ConvTranspose2d(
                layer.out_channels,
                layer.in_channels,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                groups=layer.groups,
                dilation=layer.dilation,
                bias=False,
            )
            back.weight = layer.weight
            signal = back(signal, output_size=shape[2:]).detach()
    start = value.detach()
    overwritten = sent(BackwardRule("deconvnet", overlap="overwrite"), net, x, start)
    added = sent(BackwardRule("deconvnet"), net, x, start)
    assert torch.allclose(overwritten, signal, rtol=1e-5, atol=1e-7 * float(signal.abs().max()))
    assert torch.equal(added, overwritten) == (pool == 2)
    assert signal.abs().max() > 0
