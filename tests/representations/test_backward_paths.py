"""Which rule fits a layer, do both come from one pass up, and are they what others compute?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.core.errors import ConvscopeError
from convscope.core.run import Run
from convscope.representations.projections import backward_paths, projections
from convscope.trace.backward.descent import Neuron
from convscope.trace.backward.steps import packed, unpacked
from convscope.trace.operations import is_even
from tests.nets import lively, pictures, sequential
from tests.representations.test_projections import Branching, Tower, edges, laid


class Block(nn.Module):
    """A residual block whose main branch and short cut both halve the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.short = nn.Conv2d(8, 8, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))) + self.short(x))


class ResNet(nn.Sequential):
    """A stem with a pool, then strides only."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 7, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), Block(), nn.Conv2d(8, 6, 1),
        )  # fmt: skip
        lively(self)


class Mobile(nn.Sequential):
    """No pool; ReLU6 that is often at its ceiling; filters of single maps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 12, 1), nn.Hardtanh(0.0, 6.0),
            nn.Conv2d(12, 12, 4, stride=2, padding=1), nn.ReLU6(), nn.Conv2d(12, 5, 3, padding=1),
        )  # fmt: skip
        for convolution in self:
            if isinstance(convolution, nn.Conv2d):
                nn.init.normal_(convolution.weight, std=0.8)


class Averaging(nn.Sequential):
    """With a step that windows do not know."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(),
            nn.Conv2d(5, 5, 3),
        )  # fmt: skip


RULES = {
    "switches next": (Tower, ["3", "6", "8"], "deconvnet"),
    "in blocks of two branches": (Branching, ["squeeze", "three", "last"], "deconvnet"),
    "below all rectifiers": (Mobile, ["0"], "deconvnet"),
    "strides only": (Mobile, ["2", "5", "7", "9"], "guided"),
    "the stem's pool next": (ResNet, ["3", "5.conv1", "5.short"], "deconvnet"),
    "a stride above the stem's pool": (ResNet, ["5.conv2", "5", "6"], "guided"),
    "averages": (Averaging, ["3", "5"], "guided"),
}


@pytest.mark.parametrize("case", RULES)
def test_the_rule_follows_what_next_makes_maps_smaller(case):
    make, layers, rule = RULES[case]
    ways = backward_paths(make().eval(), pictures(1, 97, 97), layers)
    assert {layer: way.rules for layer, way in ways.items()} == dict.fromkeys(layers, (rule,))
    beside = {"deconvnet": "guided", "guided": "deconvnet"}[rule]
    both = backward_paths(make().eval(), pictures(1, 97, 97), layers, rule="both")
    assert {way.rules for way in both.values()} == {(rule, beside)}


def test_strides_are_told_with_their_names_and_periods():
    ways = backward_paths(ResNet().eval(), pictures(1, 97, 97), ["0", "5.conv1", "6"])
    assert ways["0"].strides == ()
    told = [(each.layer, each.stride, each.period) for each in ways["5.conv1"].strides]
    assert told == [("0", (2, 2), (2, 2))]  # its own stride lays down one filter
    told = {(each.layer, each.kernel, each.period) for each in ways["6"].strides}
    assert told == {("0", (7, 7), (2, 2)), ("5.conv1", (3, 3), (8, 8)), ("5.short", (1, 1), (8, 8))}
    even = {s.layer: s.is_even for s in backward_paths(Mobile(), pictures(1), ["9"])["9"].strides}
    assert even == {"0": False, "2": False, "7": True}


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "even"),
    [(3, 2, 1, False), (4, 2, 1, True), (1, 2, 1, False), (2, 2, 1, True), (11, 4, 1, False),
     (12, 4, 1, True), (2, 2, 2, False), (3, 3, 2, True), (5, 1, 1, True)],
)  # fmt: skip
def test_taps_divide_evenly_where_a_transposed_filter_of_ones_gives_a_flat_map(
    kernel, stride, dilation, even
):
    ones = torch.ones(1, 1, 80)
    laid_down = F.conv_transpose1d(ones, torch.ones(1, 1, kernel), stride=stride, dilation=dilation)
    inside = laid_down[0, 0, 20:60]
    assert is_even(kernel, stride, dilation) == bool((inside == inside[0]).all()) == even


NETS = {
    "tower": (Tower, ["0", "3", "8"], (97, 131)),
    "branching": (Branching, ["squeeze", "three", "last"], (97, 83)),
    "mobile": (Mobile, ["0", "5", "9"], (61, 75)),
    "residual": (ResNet, ["3", "5.conv2", "6"], (97, 81)),
    "normalising": (sequential, ["conv2", "conv3"], (33, 29)),
    "averaging": (Averaging, ["3", "5"], (25, 31)),
}


@pytest.mark.parametrize("memory", [1 << 29, 0])
@pytest.mark.parametrize("name", NETS)
def test_both_rules_at_once_are_each_alone(name, memory):
    make, layers, size = NETS[name]
    net, x = make().double().eval(), pictures(5, *size).double()
    wanted = {layer: edges(net, x, layer, step=2) for layer in layers}
    found = list(projections(net, x, wanted, rule="both", run=Run(memory=memory)))
    assert len(found) == 2 * sum(map(len, wanted.values()))
    together = {(f.rule, f.layer, f.number): laid(f, x) for f in found}
    largest = 0.0
    for rule in ("deconvnet", "guided"):
        for f in projections(net, x, wanted, rule=rule):
            expected = laid(f, x)
            difference = (together[rule, f.layer, f.number] - expected).abs().max()
            assert difference <= 1e-10 * expected.abs().max()
            largest = max(largest, float(expected.abs().max()))
    assert largest > 0


@pytest.mark.parametrize("name", ["branching", "mobile", "averaging"])
def test_both_rules_share_what_is_read_and_the_pass_up(name):
    make, layers, size = NETS[name]
    net, x = make().eval(), pictures(8, *size)
    counts = {}
    for rule in ("guided", "both"):
        passes, read = [], []
        handle = net.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        first = next(net.children())
        inner = first.register_forward_hook(lambda *_, seen=passes: seen.append(1))

        def given(numbers, seen=read):
            seen.extend(numbers)
            return ((number, x[number]) for number in numbers)

        wanted = {layers[-1]: edges(net, x, layers[-1])}
        list(projections(net, given, wanted, rule=rule))
        handle.remove()
        inner.remove()
        counts[rule] = (len(passes), len(read))
    assert counts["both"] == counts["guided"]


def by_hand(net: nn.Sequential, x: Tensor, layer: int, neuron: Neuron) -> Tensor:
    """Guided backpropagation through a chain, a module at a time."""
    given = [x[neuron.picture][None]]
    for module in list(net)[: layer + 1]:
        given.append(module(given[-1]))
    signal = torch.zeros_like(given[-1])
    at = (0, *neuron[1:])
    signal[at] = given[-1][at].clamp(min=0)
    for module, before in reversed(list(zip(list(net)[: layer + 1], given, strict=False))):
        if isinstance(module, nn.ReLU6 | nn.Hardtanh):
            signal = signal * (signal > 0) * (before > 0) * (before < 6)
        else:
            start = before.detach().requires_grad_()
            (signal,) = torch.autograd.grad(module(start), start, signal)
    return signal[0]


def test_guided_backpropagation_through_rectifiers_with_a_ceiling():
    net, x = Mobile().double().eval(), pictures(3, 61, 75).double()
    x *= 3
    at_ceiling = (net[1](net[0](x)) == 6).double().mean()
    assert 0.05 < at_ceiling < 0.5
    neurons = edges(net, x, "9")
    arrived = 0.0
    for f in projections(net, x, {"9": neurons}):
        assert f.rule == "guided"
        expected = by_hand(net, x, 9, neurons[f.number])
        assert (laid(f, x) - expected).abs().max() <= 1e-10 * expected.abs().max()
        arrived += float(expected.abs().max())
    assert arrived > 0


def test_guided_windows_are_those_of_captum():
    attr = pytest.importorskip("captum.attr")
    net, x = ResNet().eval(), pictures(2, 97, 81)
    chain = nn.Sequential(*list(net)[:4], nn.ReLU(), nn.Conv2d(8, 7, 3, stride=2)).eval()
    neurons = edges(chain, x, "5")
    theirs = attr.NeuronGuidedBackprop(chain, chain[5])
    for f in projections(chain, x, {"5": neurons}, rule="guided"):
        picture, *at = neurons[f.number]
        with pytest.warns(UserWarning, match="backward hooks"):
            found = theirs.attribute(x[picture][None].clone().requires_grad_(), tuple(at))
        expected = found[0] * max(0.0, f.activation)
        assert (laid(f, x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_marks_of_rectifiers_are_kept_as_bits():
    marks = torch.rand(3, 5, 4, 19) < 0.5
    assert packed(marks).shape == (3, 5, 4, 3)
    assert torch.equal(unpacked(packed(marks), 19), marks)


def test_a_rule_that_is_none_is_told():
    for call in (lambda: backward_paths(Tower(), pictures(1), ["0"], rule="guide"),
                 lambda: list(projections(Tower(), pictures(1), {}, rule="guide"))):  # fmt: skip
        with pytest.raises(ConvscopeError) as fault:
            call()
        assert fault.value.code == "U512"
        assert "guided" in str(fault.value)
