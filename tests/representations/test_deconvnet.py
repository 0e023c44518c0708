"""Is a projection what Zeiler and Fergus describe, for any network, and honestly labelled?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convscope.core.errors import ConvscopeError, ModelError
from convscope.core.run import Run
from convscope.core.units import Unit
from convscope.network.zfnet import alexnet, zfnet
from convscope.representations.deconvnet import deconvnet, project
from tests.nets import (
    RECTIFIERS,
    Fire,
    Residual,
    Spelled,
    Stumbling,
    pictures,
    sequential,
    state_of,
)
from tests.oracles.deconvnet import Deconvnet


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ConvscopeError) as caught:
        call()
    return caught.value.code


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> bool:
    """Equal to within a part of the largest pixel, which must not be nothing."""
    largest = np.abs(theirs).max()
    return largest > 0 and np.abs(ours - theirs).max() <= tolerance * largest


def narrow(make: Callable[..., nn.Sequential], side: int) -> tuple[nn.Sequential, Tensor]:
    """The convolutions of ZFNet or AlexNet with few maps, and a picture, not square."""
    net = nn.Sequential()
    for name, layer in make(classes=7, width=0.0625, norm="lrn").named_children():
        net.add_module(name, layer)
        if name == "pool5":
            break
    return net, pictures(1, side, side + 11)


@pytest.mark.parametrize("overlap", ["add", "overwrite"])
@pytest.mark.parametrize("layer", ["conv1", "relu1", "norm1", "pool1", "conv2", "pool2", "conv3"])
def test_an_explicit_deconvnet_says_the_same_to_nine_digits(layer, overlap):
    net, x = sequential().double(), pictures(1).double()
    slow = Deconvnet(net.eval(), x[0].numpy())
    active = np.flatnonzero(slow.after[layer].max((1, 2)) > 0)[:3]
    assert len(active) == 3
    for channel in map(int, active):
        at = slow.peak(layer, channel)
        expected = slow.down(layer, channel, at, overlap=overlap)
        ours = project(net, x[0], layer, [(channel, *at)], overlap=overlap)[0].numpy()
        if np.abs(expected).max() == 0:
            # A later window shares the one maximum, and overwrites it by its own zero.
            assert overlap == "overwrite"
            assert layer.startswith("pool")
            assert np.abs(ours).max() == 0
        else:
            assert close(ours, expected, 1e-9)
        (record,) = deconvnet(net.float(), x.float(), [Unit(layer, channel)], overlap=overlap)
        assert record.unit == f"{layer}:{channel}@{at[0]},{at[1]}"
        assert record.value == pytest.approx(slow.after[layer][channel][at], rel=1e-5)
        assert np.abs(record.pixels - expected).max() <= 1e-5 * np.abs(expected).max()
        net.double()


def test_whole_maps_and_units_without_a_place_agree_with_the_explicit_deconvnet():
    net, x = sequential().eval(), pictures(1)
    slow = Deconvnet(net, x[0].numpy())
    (record,) = deconvnet(net, x, [Unit("conv2", 4)], whole_map=True)
    assert close(record.pixels, slow.down("conv2", 4, whole_map=True), 1e-5)
    assert record.unit == "conv2:4"
    channel = int(slow.after["fc"].argmax())
    (record,) = deconvnet(net, x, [Unit("fc", channel)])
    assert close(record.pixels, slow.down("fc", channel), 1e-5)
    assert record.unit == f"fc:{channel}"


@pytest.mark.parametrize(("make", "side"), [(zfnet, 117), (alexnet, 131)])
def test_zfnet_and_alexnet_are_projected_as_the_paper_says(make, side):
    net, x = narrow(make, side)
    slow = Deconvnet(net, x[0].numpy())
    for layer, rectified in (("conv2", 1), ("conv5", 4), ("pool5", 5)):
        channel = int(slow.after[layer].max((1, 2)).argmax())
        (record,) = deconvnet(net, x, [Unit(layer, channel)])
        assert close(record.pixels, slow.down(layer, channel, slow.peak(layer, channel)), 1e-5)
        assert record.pixels.shape == (3, side, side + 11)
        assert (record.rewritten, record.rectifiers) == (rectified, rectified)
        assert record.origin["normalisations_passed_by"] == min(rectified, 2)
        assert record.origin["plain_gradient"] == []


@pytest.mark.parametrize("start", ["one", "whole"])
def test_without_the_papers_rectifier_it_is_the_gradient_of_the_unit(start):
    net, x = Residual().eval(), pictures(2).requires_grad_()
    y = net.conv3(F.relu(net.bn2(net.conv2(F.relu(net.bn1(net.conv1(x)))))))
    maps = y[:, 5]
    if start == "one":
        total = sum(m.max() * m.max().detach() for m in maps)
    else:
        total = (maps * maps.detach()).sum()
    (expected,) = torch.autograd.grad(total, x)
    options = {"rule": "gradient", "whole_map": start == "whole"}
    records = deconvnet(net, x, [Unit("conv3", 5)], **options)
    for record, of_picture in zip(records, expected, strict=True):
        assert np.array_equal(record.pixels, of_picture.numpy())
        assert np.abs(record.pixels).max() > 0


def test_the_linear_way_down_is_the_transpose_of_the_way_up():
    """⟨A x, s⟩ = ⟨x, Aᵀ s⟩ for strides, paddings, groups and dilations without a rectifier."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, (5, 3), stride=(3, 2), padding=(2, 0), bias=False),
        nn.AvgPool2d(3, 2, padding=1),
        nn.Conv2d(6, 4, 3, padding=2, dilation=2, groups=2, bias=False),
        nn.BatchNorm2d(4, affine=False),
    )
    net = net.double().eval()
    x = pictures(1, 33, 28).double()
    for channel, row, column in [(0, 0, 0), (3, 2, 4), (1, 5, 6)]:
        value = float(net(x)[0, channel, row, column].detach())
        place = [(channel, row, column)]
        down = project(net, x[0], "3", place, rule="gradient")[0] / value
        assert float((down * x[0]).sum()) == pytest.approx(value, rel=1e-11)


def test_starting_below_or_above_a_rectifier_gives_the_same_picture():
    """The first rectification does nothing to a single activation; nor does the pool on its way
    up to a map's strongest activation."""
    net, x = sequential(pool=2).eval(), pictures(1)
    first, second, third = (
        deconvnet(net, x, [Unit(layer, 2)])[0] for layer in ("conv2", "relu2", "pool2")
    )
    assert first.value == second.value == third.value > 0
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.pixels, third.pixels)
    assert (first.rectifiers, second.rectifiers, third.rectifiers) == (1, 2, 2)


def test_pixels_are_signed_as_no_rectifier_follows_the_last_filtering():
    (record,) = deconvnet(sequential(), pictures(1), [Unit("conv3", 3)])
    assert record.pixels.min() < 0 < record.pixels.max()


def test_twice_the_activation_is_twice_the_picture():
    net, x = Fire().eval(), pictures(1)
    (once,) = deconvnet(net, x, [Unit("expand3", 2)])
    with torch.no_grad():
        net.expand3.weight *= 2
        net.expand3.bias *= 2
    (twice,) = deconvnet(net, x, [Unit("expand3", 2)])
    assert twice.value == 2 * once.value
    assert np.array_equal(twice.pixels, 4 * once.pixels)  # the filter doubles, too
    assert once.origin["peak"] == np.abs(once.pixels).max() > 0


@pytest.mark.parametrize("rule", ["deconvnet", "guided", "gradient"])
def test_all_pixels_outside_the_receptive_field_are_exactly_zero(rule):
    """conv1 5/2 pad 1, pool 3/2, conv2 3/1 pad 1: a neuron of conv2 sees 17 pixels, 4 apart."""
    net, x = sequential().eval(), pictures(1, 65, 57)
    maps = nn.Sequential(*list(net.children())[:5])(x)[0].detach()
    for row, column in [(0, 0), (5, 6), (15, 13)]:
        channel = int(maps[:, row, column].argmax())
        (projection,) = project(net, x[0], "conv2", [(channel, row, column)], rule=rule)
        top, left = 4 * row - 5, 4 * column - 5
        inside = torch.zeros(65, 57, dtype=torch.bool)
        inside[max(top, 0) : top + 17, max(left, 0) : left + 17] = True
        assert projection[:, inside].abs().max() > 0
        assert projection[:, ~inside].abs().max() == 0


def test_pixels_that_no_filter_reads_are_there_and_zero():
    """37 pixels under a 5/4 convolution: the last four rows belong to nobody, and a transposed
    convolution without output_padding would drop them."""
    net = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU())
    x = pictures(1, 36, 40)
    short = F.conv_transpose2d(net(x), net[0].weight, stride=4)
    assert short.shape[2:] == (33, 37)
    (record,) = deconvnet(net, x, [Unit("1", 2)], whole_map=True)
    assert record.pixels.shape == (3, 36, 40)
    assert np.abs(record.pixels[:, 33:]).max() == np.abs(record.pixels[:, :, 37:]).max() == 0
    expected = F.conv_transpose2d(
        F.relu(net(x)) * torch.eye(4)[2][:, None, None], net[0].weight, stride=4
    )
    assert close(record.pixels[:, :33, :37], expected[0].detach().numpy(), 1e-6)


def test_every_spelling_of_a_network_gives_the_same_picture_bit_for_bit():
    x = pictures(2)
    units = [Unit("conv3", 4), Unit("conv2", 1, (2, 3))]
    expected = deconvnet(Spelled(nn.ReLU()), x, units, target=3)
    for spelling, rectifier in RECTIFIERS.items():
        for ours, theirs in zip(
            deconvnet(Spelled(rectifier), x, units, target=3), expected, strict=True
        ):
            assert np.array_equal(ours.pixels, theirs.pixels), spelling
            assert ours.unit == theirs.unit
            assert (ours.rewritten, ours.rectifiers) == (theirs.rewritten, theirs.rectifiers)
    assert [record.rectifiers for record in expected] == [2, 1, 3] * 2


def test_pictures_come_first_and_units_second_in_the_order_given():
    net, x = Fire(), pictures(3)
    units = [Unit("expand3", 1), Unit("conv1", 2), Unit("expand3", 0)]
    records = deconvnet(net, x, units, target=5)
    assert len(records) == 12
    assert [record.origin["picture"] for record in records] == [0] * 4 + [1] * 4 + [2] * 4
    layers = [record.unit.split("@")[0] for record in records[4:8]]
    assert layers == ["expand3:1", "conv1:2", "expand3:0", "class:5"]
    alone = deconvnet(net, x[1:2], units, target=5)
    for together, single in zip(records[4:8], alone, strict=True):
        assert together.unit == single.unit
        assert np.abs(together.pixels - single.pixels).max() <= 1e-5 * np.abs(single.pixels).max()
    assert sum(record.value > 0 for record in alone) >= 2


def test_a_tie_is_won_by_the_first_place_in_row_major_order():
    net = nn.Sequential(nn.Conv2d(3, 2, 1))
    (record,) = deconvnet(net, torch.ones(1, 3, 4, 5), [Unit("0", 1)])
    assert record.unit == "0:1@0,0"


def test_a_class_score_starts_from_one_and_may_be_any_function_of_the_scores():
    net, x = sequential().eval(), pictures(2)
    by_index = deconvnet(net, x, target=3, rule="guided")
    by_function = deconvnet(net, x, target=lambda scores: scores[:, 3] * 2, rule="guided")
    for one, two in zip(by_index, by_function, strict=True):
        assert np.array_equal(2 * one.pixels, two.pixels)
        assert two.value == 2 * one.value
    assert by_index[0].unit == "class:3"
    assert by_index[0].value == float(net(x)[0, 3].detach())
    slow = Deconvnet(net, x[0].numpy())
    slow.after["fc"][3] = 1.0
    (record,) = deconvnet(net, x[:1], target=3)
    assert close(record.pixels, slow.down("fc", 3), 1e-5)
    assert record.origin["start"] == "score"
    (record,) = deconvnet(net, x[:1], target=lambda scores: scores[:, 3].relu())
    assert (record.rewritten, record.rectifiers) == (4, 4)
    each = deconvnet(net, x, target=[3, 5], rule="guided")
    assert [record.unit for record in each] == ["class:3", "class:5"]
    assert np.array_equal(each[0].pixels, by_index[0].pixels)


def test_a_unit_that_is_not_active_gives_nothing_and_says_so():
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
    nn.init.constant_(net[0].bias, -100.0)
    (below, above) = deconvnet(net, pictures(1), [Unit("0", 1), Unit("1", 1)])
    assert below.value < 0
    assert above.value == 0
    for record in (below, above):
        assert record.origin["silent"] is True
        assert np.abs(record.pixels).max() == 0
    (gradient,) = deconvnet(net, pictures(1), [Unit("0", 1)], rule="gradient")
    assert gradient.origin["silent"] is False
    (active,) = deconvnet(Fire(), pictures(1), [Unit("conv1", 1)])
    assert active.origin["silent"] is False


def test_a_projection_says_how_it_was_made(tmp_path):
    (record,) = deconvnet(
        Residual(), pictures(1), [Unit("conv2", 3, (4, 5))], rule="guided", overlap="overwrite"
    )
    told = ("weights_sha256", "pictures_sha256", "device", "convscope", "torch", "numpy", "pillow")
    origin = {name: fact for name, fact in record.origin.items() if name not in told}
    assert all(record.origin[name] for name in told)
    assert origin.pop("peak") == pytest.approx(float(np.abs(record.pixels).max()))
    assert origin == {
        "method": "deconvnet",
        "rule": "guided",
        "overlap": "overwrite",
        "other": "refuse",
        "start": "one activation",
        "layer": "conv2",
        "picture": 0,
        "silent": bool(record.value <= 0),
        "plain_gradient": [],
        "normalisations_passed_by": 0,
        "network": "Residual",
        "precision": "float32",
    }
    again = type(record).load(record.save(tmp_path / "projection"))
    assert np.array_equal(again.pixels, record.pixels)
    assert again.origin == record.origin


def test_progress_is_told_for_each_unit():
    told: list[tuple[int, int]] = []
    units = [Unit("conv1", 0), Unit("squeeze", 1)]
    deconvnet(
        Fire(), pictures(2), units, target=1, run=Run(progress=lambda *step: told.append(step))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def everything(net: nn.Module, x: Tensor) -> list[np.ndarray]:
    records = deconvnet(net, x, [Unit("conv1", 2), Unit("conv2", 3)], target=1)
    return [record.pixels for record in records]


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_modes_do_not_matter_and_the_model_is_left_as_it_was(caller, train, frozen):
    net, x = Residual().train(train).requires_grad_(not frozen), pictures(2)
    net.conv1.register_forward_hook(lambda *_: None)
    expected = everything(Residual(), x)
    before = state_of(net)
    with caller():
        ours = everything(net, x * 1)
    assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert state_of(net) == before


def test_networks_and_pictures_made_under_inference_mode_can_be_projected():
    with torch.inference_mode():
        net, x = Residual(), pictures(2)
    assert net.conv1.weight.is_inference()
    expected = everything(Residual(), pictures(2))
    assert all(np.array_equal(a, b) for a, b in zip(everything(net, x), expected, strict=True))


def test_an_error_in_the_network_leaves_it_as_it_was():
    net = Stumbling().train()
    before = state_of(net)
    with pytest.raises(ModelError, match="channels"):
        deconvnet(net, pictures(), [Unit("conv2", 0)])
    assert state_of(net) == before


def test_layers_above_the_unit_do_not_run():
    (record,) = deconvnet(Stumbling(), pictures(1), [Unit("relu#1", 1)])
    assert record.value > 0


def test_a_network_may_work_in_place_on_its_input():
    class Shifting(Fire):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.relu_(x.sub_(0.1)))

    x = pictures(1)
    before = x.clone()
    (record,) = deconvnet(Shifting(), x, [Unit("squeeze", 2)])
    assert torch.equal(x, before)
    assert record.rectifiers == 2


def test_half_precision_and_double_are_projected_in_their_own():
    x = pictures(1)
    expected = deconvnet(Fire(), x, [Unit("expand3", 2)])[0]
    double = deconvnet(Fire().double(), x, [Unit("expand3", 2)])[0]
    brief = deconvnet(Fire().bfloat16(), x, [Unit("expand3", 2, (3, 3))])[0]
    assert close(double.pixels, expected.pixels, 1e-5)
    assert brief.pixels.dtype == np.float32
    assert np.isfinite(brief.pixels).all()


def test_sixteen_threads_on_one_model_draw_what_one_would():
    net = Residual().eval()
    before = state_of(net)
    barrier = threading.Barrier(16)

    def ask(number: int) -> list[np.ndarray]:
        rule = ("deconvnet", "guided", "gradient")[number % 3]
        x = pictures(1, 17, 15, seed=number)
        units = [Unit("conv3", number % 8), Unit("relu#2", 3)]
        return [record.pixels for record in deconvnet(net, x, units, target=2, rule=rule)]

    def wait_and_ask(number: int) -> list[np.ndarray]:
        barrier.wait()
        return [pixels for turn in range(3) for pixels in ask(number + turn)]

    alone = [[pixels for turn in range(3) for pixels in ask(n + turn)] for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(wait_and_ask, range(16)))
    for ours, expected in zip(together, alone, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert state_of(net) == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_what_cannot_be_projected_is_refused_with_its_reason():
    net, x = Fire(), pictures(2)
    with pytest.raises(ModelError, match="expand_3: no such layer in the model; did you mean"):
        deconvnet(net, x, [Unit("expand_3", 0)])
    with pytest.raises(ModelError, match=r"conv1: has 6 feature maps \(0 to 5\), no 6"):
        deconvnet(net, x, [Unit("conv1", 6)])
    with pytest.raises(ModelError, match="conv1:5@14,12: has 14 rows and 12 columns"):
        deconvnet(net, x, [Unit("conv1", 5, (14, 12))])
    with pytest.raises(ConvscopeError, match="class 7: no such class; the network has 7"):
        deconvnet(net, x, target=7)
    with pytest.raises(ConvscopeError, match="must give one number a picture"):
        deconvnet(net, x, target=lambda scores: scores.sum())
    with pytest.raises(ConvscopeError, match="3 targets for 2 pictures"):
        deconvnet(net, x, target=[1, 2, 3])
    (alone,) = deconvnet(net, x[0], [Unit("conv1", 0)])  # a picture is a batch of one
    assert np.array_equal(alone.pixels, deconvnet(net, x, [Unit("conv1", 0)])[0].pixels)
    assert code_of(lambda: deconvnet(Residual(), x, [Unit("relu", 0)])) == "M503"
    assert code_of(lambda: deconvnet(net, x * torch.nan, [Unit("conv1", 0)])) == "U355"
    scripted = nn.Sequential(nn.Conv2d(3, 3, 1), torch.jit.script(nn.ReLU()))
    assert code_of(lambda: deconvnet(scripted, x, [Unit("0", 0)])) == "M530"
    smooth = nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU(), nn.Conv2d(3, 3, 1))
    assert code_of(lambda: deconvnet(smooth, x, [Unit("2", 0)])) == "M531"
    (allowed,) = deconvnet(smooth, x[:1], [Unit("2", 0)], other="gradient")
    assert (allowed.rewritten, allowed.rectifiers) == (0, 1)
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(33 * 29, 4))
    assert code_of(lambda: deconvnet(tokens, x, [Unit("1", 0)])) == "M506"

    class Cut(Fire):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(x)

    assert code_of(lambda: deconvnet(Cut(), x, [Unit("conv1", 0)])) == "M540"

    class Anew(Fire):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    assert code_of(lambda: deconvnet(Anew(), x, target=1)) == "M532"
