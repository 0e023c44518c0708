"""Do windows sent down a network arrive as whole maps would?"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.trace.backward import descent as ascents
from convscope.trace.backward import descent as descents
from convscope.trace.backward.descent import Neuron, Neurons, WindowedBackward, forward_pass
from convscope.trace.backward.steps import BackwardGraph
from convscope.trace.backward_rule import BackwardRule
from tests.nets import Fire, Residual, Spelled, pictures, sequential


class Wide(nn.Module):
    """Even kernels, strides that differ down and across, padding on one axis, groups, dilation,
    a pool with gaps between its windows, one with padding, and rows that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 8, (4, 3), stride=(2, 3), padding=(0, 2))
        self.pool1 = nn.MaxPool2d((2, 3), (3, 1), padding=(1, 0))
        self.conv2 = nn.Conv2d(8, 8, 3, padding=(2, 1), dilation=(2, 1), groups=4)
        self.bn = nn.BatchNorm2d(8, affine=False)
        self.pool2 = nn.MaxPool2d(2, 1, dilation=2)
        self.rows = nn.Conv2d(8, 8, (1, 5), padding=(0, 2))
        self.columns = nn.Conv2d(8, 8, (5, 1), padding=(2, 0))
        self.conv3 = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.conv1(x)))
        x = F.relu(self.bn(self.conv2(x)))
        x = self.pool2(x)
        return self.conv3(F.relu(self.rows(x) + self.columns(x)) + x)


def headless() -> nn.Sequential:
    net = sequential()
    del net.flat, net.fc
    return net


class Padded(nn.Module):
    """Unevenly padded before strides and before a pool, as networks from TensorFlow are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2)
        self.conv2 = nn.Conv2d(6, 6, 5, stride=2, groups=6)
        self.conv3 = nn.Conv2d(6, 5, 1)
        self.pool = nn.MaxPool2d(3, 2)
        self.conv4 = nn.Conv2d(5, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.conv1(F.pad(x, (0, 1, 0, 1))))
        x = self.conv3(F.relu6(self.conv2(F.pad(x, (1, 2, 2, 1)))))
        x = self.pool(F.pad(F.relu(x), (0, 1), value=-torch.inf))
        return self.conv4(x)


CASES = {
    "padded": (Padded, ["conv1", "conv2", "conv3", "pool", "conv4"]),
    "sequential": (headless, ["conv1", "relu1", "norm1", "pool1", "conv2", "pool2", "conv3"]),
    "residual": (Residual, ["conv1", "bn1", "conv2", "bn3", "relu#3"]),
    "fire": (Fire, ["conv1", "squeeze", "expand1", "expand3", "classify"]),
    "functional": (lambda: Spelled(torch.relu_), ["pool1", "conv2", "conv3"]),
    "wide": (Wide, ["conv1", "pool1", "bn", "pool2", "columns", "conv3"]),
}


def whole(way: ascents.ForwardPass, layer: str, neuron: Neuron, value: float) -> Tensor:
    """What autograd sends down for one neuron."""
    signal = torch.zeros_like(way.maps(layer))
    signal[neuron] = value
    return way.down(way.maps(layer), signal)[neuron.picture]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
@pytest.mark.parametrize("overlap", ["add", "overwrite"])
def test_windows_arrive_as_whole_maps_would(name, rule, overlap):
    make, layers = CASES[name]
    net, x = make().double().eval(), pictures(3, 61, 47).double()
    for layer in layers:
        with forward_pass(net, x, [layer], BackwardRule(rule, overlap=overlap)) as way:
            maps = way.maps(layer)
            normalised = (
                name == "sequential" and rule == "guided" and layer[:5] not in ("conv1", "relu1")
            )
            assert (
                WindowedBackward(BackwardGraph({layer: maps}, way.pixels), layer, rule).is_known
                != normalised
            )
            _, channels, height, width = maps.shape
            edges = itertools.product(
                {0, 1, height // 2, height - 1}, {0, width // 3, width - 2, width - 1}
            )
            neurons = [
                Neuron(number % 3, number % channels, row, column)
                for number, (row, column) in enumerate(edges)
            ]
            values = torch.linspace(0.5, 2, len(neurons)).double()
            ours = way.down_each(layer, neurons, values)
            theirs = torch.stack(
                [whole(way, layer, *pair) for pair in zip(neurons, values.tolist(), strict=True)]
            )
        assert theirs.abs().amax() > 0
        assert (ours - theirs).abs().amax() <= 1e-12 * theirs.abs().amax(), layer


def test_windows_are_small_while_a_neuron_sees_little():
    net, x = sequential().eval(), pictures(1, 65, 57)
    with forward_pass(net, x, ["conv2"], BackwardRule("deconvnet")) as way:
        graph = BackwardGraph({"conv2": way.maps("conv2")}, way.pixels)
        descent, kept = (
            WindowedBackward(graph, "conv2", "deconvnet"),
            graph.kept({"conv2": ["deconvnet"]}),
        )
        for place, side in [((5, 5), (17, 17)), ((0, 5), (12, 17)), ((15, 0), (10, 12))]:
            neurons = Neurons.of_each([(0, 1, *place)], torch.ones(1))
            ((numbers, signal),) = descent.down(neurons, kept)
            assert numbers.tolist() == [0]
            ((top, left, part),) = signal.clipped(graph.size)
            assert part.shape == (3, *side)
            assert (top, left) == tuple(max(0, 4 * at - 5) for at in place)
            assert signal.values.shape[2] <= side[0] + 1


def test_however_many_are_sent_at_once_the_same_arrives(monkeypatch):
    net, x = Fire().eval(), pictures(2)
    neurons = [Neuron(n % 2, n % 5, n % 7, n % 6) for n in range(20)]
    with forward_pass(net, x, ["expand1"], BackwardRule("deconvnet")) as way:
        values = torch.arange(20.0)
        expected = way.down_each("expand1", neurons, values)
        for limit in ("NUMBERS", "HELD"):
            monkeypatch.setattr(descents, limit, 1)
            one_by_one = way.down_each("expand1", neurons, values)
            assert (one_by_one - expected).abs().amax() <= 1e-5 * expected.abs().amax() > 0
        none = way.down_each("expand1", [], values[:0])
    assert none.shape == (0, 3, 33, 29)


class Stacked(nn.Module):
    """Stacked maps that are rectified together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.one, self.three = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, padding=1)
        self.both, self.last = nn.Identity(), nn.Conv2d(9, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.last(self.both(F.relu(torch.cat([self.one(x), self.three(x)], 1))))


def test_what_is_sent_may_be_negative_and_several_times_from_one_place():
    net, x = Stacked().double(), pictures(1, 23, 19).double()
    for layer, channels in (("both", 9), ("last", 4)):
        neurons = [Neuron(0, n // 4 % channels, 3, 2) for n in range(4 * channels)]
        values = torch.tensor([1.0, -1.0, 2.5, 0.0]).double().repeat(channels)
        with forward_pass(net, x, [layer], BackwardRule("deconvnet")) as way:
            ours = way.down_each(layer, neurons, values)
            theirs = torch.stack(
                [whole(way, layer, *pair) for pair in zip(neurons, values.tolist(), strict=True)]
            )
        assert (ours - theirs).abs().amax() <= 1e-12 * theirs.abs().amax() > 0
        negative = theirs[1::4].abs().amax()
        assert (negative == 0) == (layer == "both")  # rectified at once


class Gap(nn.Module):
    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.step = step
        self.conv2 = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.step(self.conv1(x)))


class Step(nn.Module):
    def __init__(self, step) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


def partly(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :2].relu_()
    return x


UNKNOWN = {
    "average pool": nn.AvgPool2d(2, 1),
    "other activation": nn.SiLU(),
    "upsampling": nn.Upsample(scale_factor=2),
    "transposed convolution": nn.ConvTranspose2d(4, 4, 3, padding=1),
    "global gate": Step(lambda x: x * x.mean((2, 3), keepdim=True)),
    "global sum": Step(lambda x: x + x.amax((2, 3), keepdim=True)),
    "weighted sum": Step(lambda x: torch.add(x, x.relu(), alpha=3)),
    "stacked rows": Step(lambda x: torch.cat([x, x.relu()], 2)),
    "filters from the pixels": Step(lambda x: F.conv2d(x, x[:, :, :3, :3].expand(4, 4, 3, 3))),
    "flip": Step(lambda x: x.flip(3)),
    "part in place": Step(partly),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_graph_with_an_unknown_step_is_left_to_autograd(name):
    net, x = Gap(UNKNOWN[name]), pictures(1)
    rule = BackwardRule("deconvnet", other="gradient")
    neurons = [Neuron(0, 1, 3, 4), Neuron(0, 2, 5, 6)]
    with forward_pass(net, x, ["conv2"], rule) as way:
        known = WindowedBackward(
            BackwardGraph({"conv2": way.maps("conv2")}, way.pixels), "conv2", "deconvnet"
        ).is_known
        ours = way.down_each("conv2", neurons, torch.ones(2))
        theirs = torch.stack([whole(way, "conv2", neuron, 1.0) for neuron in neurons])
    assert torch.equal(ours, theirs)
    assert ours.abs().amax() > 0
    assert not known


def test_a_constant_added_is_no_way_down():
    net, x = Gap(Step(lambda x: torch.cat([x[:, :2] * 0, x], 1)[:, 2:] + 1)), pictures(1)
    with forward_pass(net, x, ["conv2"], BackwardRule("deconvnet")) as way:
        ours = way.down_each("conv2", [Neuron(0, 1, 3, 4)], torch.ones(1))
        assert torch.equal(ours[0], whole(way, "conv2", Neuron(0, 1, 3, 4), 1.0))
