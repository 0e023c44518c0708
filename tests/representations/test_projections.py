"""Are projections of many pictures at once those of each neuron alone?"""

from __future__ import annotations

import copy
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.core.errors import ConvscopeError
from convscope.core.run import Run
from convscope.core.units import Unit
from convscope.representations import projections as module
from convscope.representations.deconvnet import deconvnet
from convscope.representations.projections import Projected, projections
from convscope.trace.backward.descent import Neuron, forward_pass
from convscope.trace.backward_rule import BackwardRule
from tests.nets import Fire, Residual, pictures, sequential, state_of

torchvision = pytest.importorskip("torchvision")


class Tower(nn.Sequential):
    """AlexNet in small: overlapping pools, one with ceil_mode, strides that do not divide, and
    enough maps that tiles are taken."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 24, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(24, 64, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 96, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(96, 48, 3, padding=1),
            nn.ReLU(inplace=True),
        )


class Branching(nn.Module):
    """SqueezeNet in small, its pictures halved by a convolution of stride 3."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 16, 7, stride=3)
        self.squeeze = nn.Conv2d(16, 4, 1)
        self.one = nn.Conv2d(4, 12, 1)
        self.three = nn.Conv2d(4, 12, 3, padding=1)
        self.fire = nn.Identity()
        self.squeeze2 = nn.Conv2d(24, 6, 1)
        self.last = nn.Conv2d(6, 10, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.relu(self.squeeze(x))
        x = torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)
        x = F.max_pool2d(self.fire(x), 3, 2, ceil_mode=True)
        return self.last(F.relu(self.squeeze2(x)))


def edges(net: nn.Module, x: Tensor, layer: str, step: int = 1) -> list[Neuron]:
    """In corners, at borders and inside, over all pictures, each place with another map."""
    with forward_pass(net, x, [layer], BackwardRule("deconvnet")) as way:
        _, channels, height, width = way.maps(layer).shape
    places = itertools.product(
        sorted({0, 1, 2, height // 2, height - 2, height - 1} & set(range(height))),
        sorted({0, 1, width // 3, width // 2, width - 1} & set(range(width))),
    )
    return [Neuron(n % len(x), (n * 7) % channels, *place) for n, place in enumerate(places)][
        ::step
    ]


def alone(net: nn.Module, x: Tensor, neuron: Neuron, found: Projected, **how) -> Tensor:
    """By whole maps and autograd: from this neuron only, of the activation that was found, as a
    small one is not the same to rounding when pictures are passed up together."""
    image = x[neuron.picture : neuron.picture + 1]
    rule = BackwardRule(how.pop("rule", found.rule), **how)
    with forward_pass(net, image, [found.layer], rule) as way:
        maps = way.maps(found.layer)
        signal = torch.zeros_like(maps)
        sent = found.activation if rule.rule == "gradient" else max(0.0, found.activation)
        signal[0, neuron.channel, neuron.row, neuron.column] = sent
        own = maps.detach()[0, neuron.channel, neuron.row, neuron.column]
        assert abs(float(own) - found.activation) <= 1e-5 * float(maps.detach().abs().max())
        return way.down(maps, signal)[0]


def laid(found: Projected, x: Tensor) -> Tensor:
    whole = torch.zeros_like(x[0])
    height, width = found.pixels.shape[1:]
    whole[:, found.top : found.top + height, found.left : found.left + width] = found.pixels
    return whole


CASES = {
    "tower": (Tower, (197, 251), ["0", "3", "6", "8", "9"]),
    "branching": (Branching, (97, 83), ["conv1", "squeeze", "three", "fire", "last"]),
    "residual": (Residual, (31, 46), ["conv1", "conv2", "relu#3"]),
    "sequential": (sequential, (33, 29), ["relu1", "conv2", "pool2", "conv3"]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("rule", "overlap"), [("deconvnet", "add"), ("deconvnet", "overwrite")])
def test_many_together_are_each_alone(name, rule, overlap):
    make, size, layers = CASES[name]
    net, x = make().eval(), pictures(4, *size)
    wanted = {layer: edges(net, x, layer) for layer in layers}
    found = list(projections(net, x, wanted, rule=rule, overlap=overlap))
    assert [f.layer for f in found] == [layer for layer in layers for _ in wanted[layer]]
    largest = 0.0
    for layer in layers:
        mine = {f.number: f for f in found if f.layer == layer}
        assert sorted(mine) == list(range(len(wanted[layer])))
        for number, neuron in enumerate(wanted[layer]):
            expected = alone(net, x, neuron, mine[number], rule=rule, overlap=overlap)
            peak = float(expected.abs().max())
            difference = float((laid(mine[number], x) - expected).abs().max())
            assert difference <= 1e-5 * peak or by_rounding(net, x, layer, neuron, rule, overlap)
            assert (mine[number].activation > 0) >= (peak > 0)
            largest = max(largest, peak)
    assert largest > 0


def by_rounding(net, x, layer, neuron, rule, overlap) -> bool:
    """Is a neuron projected rightly in double precision? Of two values in a pool that are equal but
    for rounding, which is the larger depends on how many pictures are passed up together, and on
    the processor: with AVX2, that happens to one neuron here."""
    net, x = copy.deepcopy(net).double(), x.double()
    (found,) = projections(net, x, {layer: [neuron]}, rule=rule, overlap=overlap)
    expected = alone(net, x, neuron, found, rule=rule, overlap=overlap)
    peak = float(expected.abs().max())
    return float((laid(found, x) - expected).abs().max()) <= 1e-9 * peak


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
def test_in_double_precision_only_the_last_digits_differ(name, rule):
    make, size, layers = CASES[name]
    net, x = make().double().eval(), pictures(2, *size).double()
    layer = layers[-1]
    neurons = edges(net, x, layer, step=3)
    for found in projections(net, x, {layer: neurons}, rule=rule):
        expected = alone(net, x, neurons[found.number], found, rule=rule)
        assert found.pixels.dtype == torch.float64
        assert (laid(found, x) - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_of_equal_maxima_the_signal_goes_where_the_pass_up_took_it_from():
    """A flat picture: every window of every pool is a tie."""
    net, x = Tower().eval(), torch.ones(2, 3, 95, 119)
    x[1, :, ::2] = 0.5
    for overlap in ("add", "overwrite"):
        neurons = edges(net, x, "6", step=2)
        for found in projections(net, x, {"6": neurons}, overlap=overlap):
            expected = alone(net, x, neurons[found.number], found, overlap=overlap)
            assert (laid(found, x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("memory", [0, 20_000])
def test_with_little_memory_the_same_comes_in_the_same_order_of_layers(memory):
    net, x = Branching().eval(), pictures(15, 49, 51)
    wanted = {layer: edges(net, x, layer) for layer in ("last", "three")}
    plenty = {(f.layer, f.number): f for f in projections(net, x, wanted)}
    little = list(projections(net, x, wanted, run=Run(memory=memory)))
    assert [f.layer for f in little] == [layer for layer in wanted for _ in wanted[layer]]
    for f in little:
        expected = laid(plenty[f.layer, f.number], x)
        assert (laid(f, x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_pictures_are_read_once_in_order_and_only_those_that_are_needed():
    net, x = Branching().eval(), pictures(9, 49, 51)
    asked: list[list[int]] = []

    def read(numbers):
        asked.append(list(numbers))
        return ((number, x[number]) for number in numbers if number != 5)

    wanted = {
        "three": [Neuron(7, 1, 0, 0), Neuron(5, 1, 2, 2), Neuron(2, 3, 1, 4)],
        "last": [Neuron(7, 0, 1, 1)],
    }
    found = {(f.layer, f.number) for f in projections(net, read, wanted)}
    assert asked == [[2, 5, 7]]
    assert found == {("three", 0), ("three", 2), ("last", 0)}  # 5 was not given


def test_a_record_of_deconvnet_says_the_same():
    net, x = Fire().eval(), pictures(2)
    (record, _) = deconvnet(net, x, [Unit("expand3", 2)])
    at = Unit.parse(record.unit).at
    (found,) = projections(net, x, {"expand3": [Neuron(0, 2, *at)], "conv1": []})
    assert found.activation == pytest.approx(record.value, rel=1e-5)
    assert (found.rewritten, found.rectifiers) == (record.rewritten, record.rectifiers)
    difference = (laid(found, x) - torch.tensor(record.pixels)).abs().max()
    assert difference <= 1e-5 * record.origin["peak"] > 0


def test_a_step_that_windows_do_not_know_takes_whole_maps():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Conv2d(4, 5, 3))
    x, neurons = pictures(3), [Neuron(n % 3, n % 4, n, n) for n in range(7)]
    found = list(projections(net, x, {"3": neurons, "0": neurons}))
    assert len(found) == 14
    for f in found:
        assert (f.pixels.shape == x[0].shape) == (f.layer == "3")
        expected = alone(net, x, neurons[f.number], f)
        assert (laid(f, x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_networks_whose_steps_depend_on_the_picture_are_taken_apart():
    class Choosing(Branching):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.mean() > 0 else F.relu(x))

    net, x = Choosing().eval(), pictures(4, 49, 51)
    x[0], x[1] = x[0] - x[0].mean() - 0.1, x[1] - x[1].mean() + 0.1
    x[2], x[3] = x[2] - x[2].mean() - 0.2, x[3] - x[3].mean() + 0.2
    neurons = edges(net, x[:1], "last")
    neurons = [neuron._replace(picture=n % 4) for n, neuron in enumerate(neurons)]
    module_at_once, module.AT_ONCE = module.AT_ONCE, 1
    try:
        found = list(projections(net, x, {"last": neurons}))
    finally:
        module.AT_ONCE = module_at_once
    assert len(found) == len(neurons)
    for f in found:
        expected = alone(net, x, neurons[f.number], f)
        assert (laid(f, x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_progress_is_told_and_the_model_is_left_as_it_was():
    net, x = Residual().train(), pictures(2)
    before, told = state_of(net), []
    wanted = {"conv2": [Neuron(0, 1, 2, 3), Neuron(1, 2, 0, 0)], "conv1": [Neuron(0, 0, 0, 0)]}
    list(projections(net, x, wanted, run=Run(progress=lambda *step: told.append(step))))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert state_of(net) == before


def test_threads_draw_what_one_would():
    net, barrier = Branching().eval(), threading.Barrier(6)

    def draw(number: int) -> list[Tensor]:
        x = pictures(2, 49, 51, seed=number)
        found = projections(net, x, {"last": [Neuron(number % 2, 3, 2, 1), Neuron(0, 4, 0, 0)]})
        return [laid(f, x) for f in found]

    def wait_and_draw(number: int) -> list[Tensor]:
        barrier.wait()
        return draw(number)

    expected = [draw(number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(wait_and_draw, range(6)))
    for ours, theirs in zip(together, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_cannot_be_projected_is_refused_with_its_reason():
    net, x = Branching().eval(), pictures(2, 49, 51)

    def code(wanted, images=x, **options) -> str:
        with pytest.raises(ConvscopeError) as caught:
            list(projections(net, images, wanted, **options))
        return caught.value.code

    assert code({"last": [Neuron(0, 10, 0, 0)]}) == "M504"
    assert code({"last": [Neuron(0, 0, 4, 0)]}) == "M505"
    assert code({"last": [Neuron(0, 0, -1, 0)]}) == "M505"
    assert code({"lost": [Neuron(0, 0, 0, 0)]}) == "M500"
    assert code({"last": [Neuron(0, 0, 0, 0)]}, x * torch.nan) == "U355"
    assert code({"last": [Neuron(0, 0, 0, 0)]}, overlap="both") == "U512"
    mixed = {0: x[0], 1: x[1, :, :40]}

    def read(numbers):
        return ((number, mixed[number]) for number in numbers)

    assert code({"last": [Neuron(0, 0, 0, 0), Neuron(1, 0, 0, 0)]}, read) == "U520"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_0", "vgg11", "resnet18", "googlenet"])
def test_networks_of_torchvision_at_odd_sizes(name):
    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, weights=None, **options).eval()
    x = torch.randn(2, 3, 197, 251)
    layers = [key for key, part in net.named_modules() if isinstance(part, nn.Conv2d)]
    for layer in (layers[len(layers) // 3], layers[2 * len(layers) // 3]):
        neurons = edges(net, x, layer, step=4)
        for found in projections(net, x, {layer: neurons}):
            expected = alone(net, x, neurons[found.number], found)
            assert (laid(found, x) - expected).abs().max() <= 1e-5 * expected.abs().max()
