"""Do the maps avoid what the well-known libraries get wrong? One test for each known defect."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convscope.attribution import gradients
from convscope.attribution.gradients import METHODS
from convscope.core.errors import ModelError
from convscope.core.run import Run
from convscope.records.maps import Attribution
from tests.attribution.cam_nets import net_of, pictures
from tests.nets import RECTIFIERS, Fire, Residual, Spelled
from tests.nets import pictures as noise

FEW: dict[str, dict[str, int]] = {
    "smoothgrad": {"samples": 5},
    "integrated-gradients": {"steps": 5},
}
RULED = ("guided-backprop", "deconvnet", "guided-gradcam")


def maps_of(name: str, net: Any, images: Tensor, **how: Any) -> list[Attribution]:
    return METHODS[name](net, images, **FEW.get(name, {}), **how)


@pytest.mark.parametrize("spelling", RECTIFIERS)
def test_however_a_rectifier_is_spelled_the_map_is_the_same(spelling: str) -> None:
    """Captum returns the plain gradient for functional rectifiers, silently."""
    images = noise(1)
    for name in METHODS:
        layer = {"layer": "conv2"} if name == "guided-gradcam" else {}
        one, other = (
            maps_of(name, Spelled(rectifier), images, target=3, **layer)[0]
            for rectifier in (nn.ReLU(inplace=True), RECTIFIERS[spelling])
        )
        assert one.peak > 0
        assert np.allclose(one.pixels, other.pixels, rtol=1e-4, atol=1e-6 * one.peak), name
        if name in RULED:
            assert other.origin["coverage"] == "3 of 3 rectifiers rewritten"


def test_a_rectifiers_input_that_also_feeds_a_skip_path_sends_back_both_signals() -> None:
    """y = −relu(x) + 3x by arithmetic; captum rectifies the sum of both signals."""

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            return (3 * x - self.relu(x)).sum((2, 3))

    image = torch.tensor([[[[2.0, -2.0]]]])
    expected = {"saliency": [2, 3], "guided-backprop": [3, 3], "deconvnet": [3, 3]}
    for name, numbers in expected.items():
        assert maps_of(name, Skips(), image, target=1)[0].pixels.ravel().tolist() == numbers


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.ELU()])
def test_activations_without_a_rule_are_refused_by_name_unless_allowed(
    activation: nn.Module,
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), activation)
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    for name in RULED:
        with pytest.raises(ModelError, match=type(activation).__name__) as caught:
            maps_of(name, net, noise(1), target=1)
        assert caught.value.code == "M531"
        (found,) = maps_of(name, net, noise(1), target=1, other="gradient")
        assert found.peak > 0
        assert found.origin["coverage"] == "1 of 2 rectifiers rewritten"
        assert "plain gradient" in found.origin["notes"][0]
    assert maps_of("saliency", net, noise(1), target=1)[0].origin["notes"] == []


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripted_parts_are_refused_where_the_rule_could_not_see_inside() -> None:
    part = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    net = nn.Sequential(part, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    for name in RULED:
        with pytest.raises(ModelError, match="scripted") as caught:
            maps_of(name, net, noise(1), target=1)
        assert caught.value.code == "M530"
    assert maps_of("saliency", net, noise(1), target=1)[0].peak > 0


def test_a_network_that_computes_layers_anew_on_the_way_down_is_refused() -> None:
    class Checkpointed(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    for name in RULED[:2]:
        with pytest.raises(ModelError, match="checkpointing") as caught:
            maps_of(name, Checkpointed(), noise(1), target=1)
        assert caught.value.code == "M532"
    one, other = (
        maps_of("saliency", net(), noise(1), target=1) for net in (Residual, Checkpointed)
    )
    assert np.array_equal(one[0].pixels, other[0].pixels)


def test_a_map_does_not_depend_on_how_its_runs_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = net_of("linear layers, as VGG"), pictures(2)
    for name in FEW:
        found = []
        for room in (1, 3, 64):
            monkeypatch.setattr(gradients, "batch_size", lambda *_, room=room: room)
            found.append(maps_of(name, net, images, target=2))
        for other in found[1:]:
            for one, two in zip(found[0], other, strict=True):
                assert one.peak > 1e-3
                assert np.allclose(one.pixels, two.pixels, rtol=1e-9, atol=1e-12)


def test_the_same_seed_is_the_same_map_and_another_seed_another() -> None:
    net, images = Fire(), noise(2)
    smooth = METHODS["smoothgrad"]
    one, same, other = (
        [found.pixels for found in smooth(net, images, target=1, samples=4, run=Run(seed=seed))]
        for seed in (3, 3, 4)
    )
    torch.manual_seed(99)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.allclose(one[0], other[0], rtol=0.01)


def test_noise_is_told_by_each_pictures_own_range() -> None:
    """Twice the contrast is twice the noise: of a bias-free network the same gradient."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    net.append(nn.Flatten())
    images = noise(1)
    both = METHODS["smoothgrad"](net, torch.cat([images, 2 * images]), target=1, samples=9)
    assert both[0].peak > 0
    assert np.allclose(both[0].pixels, both[1].pixels, rtol=1e-4, atol=1e-6)
    assert both[1].origin["sigma"] == pytest.approx(2 * both[0].origin["sigma"])
    spread = float(images.max() - images.min())
    assert both[0].origin["sigma"] == pytest.approx(0.15 * spread)


def test_noise_does_not_change_who_is_explained() -> None:
    """Loud noise changes the likeliest class of most copies; the map is of the clean picture's."""
    net, images = net_of("linear layers, as VGG"), pictures(1)
    top = int(net.eval()(images).argmax())
    free = METHODS["smoothgrad"](net, images, noise=3.0, samples=20)
    said = METHODS["smoothgrad"](net, images, target=top, noise=3.0, samples=20)
    assert free[0].target == top
    assert np.array_equal(free[0].pixels, said[0].pixels)


def test_too_few_steps_are_told_and_enough_are_complete() -> None:
    net, images = net_of("linear layers, as VGG"), pictures(1)
    integrate = METHODS["integrated-gradients"]
    (few,) = integrate(net, images, target=0, steps=1, quadrature="left")
    (many,) = integrate(net, images, target=0, steps=300)
    assert few.origin["completeness"]["relative gap"] > 0.05
    assert "take more steps" in few.origin["notes"][0]
    assert many.origin["completeness"]["relative gap"] < 0.005
    assert many.origin["notes"] == []
    complete = many.origin["completeness"]
    assert many.values.sum() == pytest.approx(complete["sum"])
    rise = complete["score"] - complete["baseline score"]
    assert many.values.sum() == pytest.approx(rise, rel=0.005)


def test_a_constant_added_to_a_score_changes_no_map() -> None:
    net, images = net_of("average and linear, as ResNet"), pictures(1)
    for name in METHODS:
        (one,) = maps_of(name, net, images, target=2)
        with torch.no_grad():
            net.head[3].bias += 100
        (other,) = maps_of(name, net, images, target=2)
        with torch.no_grad():
            net.head[3].bias -= 100
        assert one.peak > 0
        assert np.allclose(one.pixels, other.pixels, rtol=1e-9, atol=1e-12), name


def test_a_map_of_nothing_stays_nothing_and_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.constant_(net[0].bias, -100.0)
    for name in METHODS:
        if name == "deconvnet":
            continue  # asks no rectifier whether it was open
        layer = {"layer": "1"} if name == "guided-gradcam" else {}
        (found,) = maps_of(name, net, noise(1), target=1, **layer)
        assert found.peak == 0
        assert not found.positive
        assert "0 everywhere" in found.origin["notes"][0]


def test_through_a_last_softmax_the_score_before_it_is_explained() -> None:
    net = nn.Sequential(Fire(), nn.Softmax(1))
    for name in ("saliency", "guided-backprop", "deconvnet"):
        (found,) = maps_of(name, net, noise(1), target=1)
        (bare,) = maps_of(name, net[0], noise(1), target=1)
        assert found.space == "logit"
        assert any("score from before that" in note for note in found.origin["notes"])
        assert np.array_equal(found.pixels, bare.pixels)


def test_of_probabilities_made_by_other_calls_maps_say_so() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Fire()

        def forward(self, x: Tensor) -> Tensor:
            shares = self.net(x).exp()
            return shares / shares.sum(1, keepdim=True)

    (found,) = maps_of("saliency", Written(), noise(1), target=1)
    assert found.space == "probability"
    assert any("before the softmax" in note for note in found.origin["notes"])
