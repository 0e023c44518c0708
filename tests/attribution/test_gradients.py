"""Is every map of the gradient family what its authors define?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convscope
from convscope.attribution.gradients import METHODS, RULES, TITLES, Options
from convscope.core.run import Run
from convscope.records.maps import Attribution
from tests.attribution.cam_nets import SIZE, Split, by_hand, net_of, pictures
from tests.nets import Fire, Residual, sequential
from tests.nets import pictures as noise_of
from tests.oracles import cam as cam_oracle
from tests.oracles import gradients as oracle

TARGETS = [2, 1, 2]
CHAINS = (
    "average and linear, as ResNet",
    "maps of classes, as SqueezeNet",
    "linear layers, as VGG",
)
RULE = {"guided-backprop": "guided", "deconvnet": "deconvnet"}


def chain(net: Split) -> Callable[[np.ndarray], oracle.Chain]:
    return lambda picture: oracle.Chain([*net.trunk, *net.head], picture)


def close(ours: np.ndarray | None, theirs: np.ndarray) -> bool:
    assert ours is not None
    return bool(np.abs(ours - theirs).max() <= 1e-9 * max(1.0, float(np.abs(theirs).max())))


def assert_is(found: Attribution, pixels: np.ndarray, reduced: Callable[..., np.ndarray]) -> None:
    assert found.values.dtype == np.float64
    assert close(found.pixels, pixels)
    assert close(found.values, reduced(pixels))
    assert found.raw is None


@pytest.mark.parametrize("head", CHAINS)
@pytest.mark.parametrize("name", ["saliency", "gradient-x-input", *RULE])
def test_maps_from_one_pass_are_the_authors(name: str, head: str) -> None:
    net, images = net_of(head), pictures()
    drawn = 0
    for number, found in enumerate(METHODS[name](net, images, target=TARGETS)):
        picture = images[number].numpy()
        expected = chain(net)(picture).down(TARGETS[number], RULE.get(name, "gradient"))
        drawn += np.abs(expected).max() > 1e-2
        if name == "gradient-x-input":
            assert_is(found, expected * picture, oracle.summed)
        else:
            assert_is(found, expected, oracle.strongest)
    assert drawn >= 2, "empty maps agree with anything"


def test_guided_grad_cam_is_the_enlarged_grad_cam_times_guided_backpropagation() -> None:
    net, images = net_of("average and linear, as ResNet"), pictures()
    targets = [1, 2, 3]  # all but the second are not the likeliest
    found = METHODS["guided-gradcam"](net, images, target=targets, layer="trunk")
    for number, target in enumerate(targets):
        map_ = cam_oracle.gradcam(*by_hand(net, images[number], target))
        guided = chain(net)(images[number].numpy()).down(target, "guided")
        expected = guided * cam_oracle.upsampled(map_, *SIZE)
        assert close(found[number].pixels, expected)
        assert close(found[number].values, oracle.strongest(expected))
        assert found[number].peak > 1e-2
        assert found[number].layer == "trunk"
        assert found[number].origin["layer chosen"] == "by name"


@pytest.mark.parametrize("variant", ["authors", "squared"])
def test_smoothgrad_is_the_mean_over_noisy_copies(variant: str) -> None:
    net, images = net_of("linear layers, as VGG"), pictures(2)
    how = {"samples": 7, "noise": 0.2, "run": Run(seed=5), "variant": variant}
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(3, *SIZE, generator=generator).double().numpy() for _ in range(7)]
    for number, found in enumerate(METHODS["smoothgrad"](net, images, target=[2, 3], **how)):
        expected = oracle.smoothgrad(
            chain(net),
            images[number].numpy(),
            [2, 3][number],
            drawn,
            0.2,
            squared=variant == "squared",
        )
        assert_is(found, expected, oracle.sizes)
        assert found.peak > 1e-3
        assert (found.pixels.min() < 0) == (variant == "authors")


@pytest.mark.parametrize("quadrature", RULES)
def test_integrated_gradients_are_the_way_times_the_mean_gradient_on_it(quadrature: str) -> None:
    net, images = net_of("linear layers, as VGG"), pictures(2)
    start = pictures(2, seed=9)
    nodes = oracle.nodes(quadrature, 6)
    found = METHODS["integrated-gradients"](
        net, images, target=[2, 3], baseline=start, steps=6, quadrature=quadrature
    )
    for number, target in enumerate([2, 3]):
        picture, origin = images[number].numpy(), start[number].numpy()
        expected = oracle.integrated(chain(net), picture, target, origin, nodes)
        assert_is(found[number], expected, oracle.summed)
        assert found[number].peak > 1e-3
        complete = found[number].origin["completeness"]
        assert complete["sum"] == pytest.approx(expected.sum(), rel=1e-9)
        for key, at in (("score", picture), ("baseline score", origin)):
            assert complete[key] == pytest.approx(chain(net)(at).scores[target], rel=1e-9)
        rise = complete["score"] - complete["baseline score"]
        gap = abs(expected.sum() - rise) / abs(rise)
        assert complete["relative gap"] == pytest.approx(gap, rel=1e-6)


def test_several_baselines_give_the_mean_of_their_maps() -> None:
    net, images = net_of("linear layers, as VGG"), pictures(2)
    starts = [torch.zeros(3, 1, 1), pictures(1, seed=9)[0], pictures(2, seed=8)]
    method = METHODS["integrated-gradients"]
    together = method(net, images, target=1, baseline=starts, steps=6)
    each = [method(net, images, target=1, baseline=start, steps=6) for start in starts]
    without = method(net, images, target=1, steps=6)
    for number in range(2):
        mean = sum(maps[number].pixels for maps in each) / 3
        assert close(together[number].pixels, mean)
        assert np.array_equal(without[number].pixels, each[0][number].pixels)
        scores = [maps[number].origin["completeness"]["baseline score"] for maps in each]
        complete = together[number].origin["completeness"]
        assert complete["baseline score"] == pytest.approx(sum(scores) / 3)


def test_a_gradient_is_the_slope_that_small_steps_find() -> None:
    net, images = net_of("smooth").eval(), pictures(1)
    (found,) = METHODS["saliency"](net, images, target=1)
    for place in [(0, 3, 4), (2, 20, 15), (1, 0, 0), (2, 11, 7)]:
        scores = []
        for step in (-1e-5, 1e-5):
            moved = images.clone()
            moved[(0, *place)] += step
            scores.append(float(net(moved)[0, 1].detach()))
        assert (scores[1] - scores[0]) / 2e-5 == pytest.approx(found.pixels[place], abs=1e-6)
    assert np.abs(found.pixels[:, :3, :3]).max() > 1e-3


class Weighing(nn.Module):
    """Scores that are sums over pixels with whole numbers as weights, and one of their squares."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.arange(12, dtype=x.dtype).reshape(1, 3, 2, 2) - 5
        return torch.stack([(x * weights).sum((1, 2, 3)), x.square().sum((1, 2, 3)) / 2], 1)


def test_of_a_weighted_sum_every_method_gives_the_weights_in_whole_numbers() -> None:
    image = torch.tensor([[3.0, 1, 2, 4], [0, 1, 0, 2], [1, 1, 5, 1]]).double().reshape(1, 3, 2, 2)
    weights, x = np.arange(12.0).reshape(3, 2, 2) - 5, image[0].numpy()
    found = {name: method(Weighing(), image, target=0)[0] for name, method in unguided().items()}
    assert np.array_equal(found["saliency"].pixels, weights)
    assert np.array_equal(found["saliency"].values, [[5, 4], [5, 6]])
    assert np.array_equal(found["gradient-x-input"].pixels, weights * x)
    assert np.array_equal(found["gradient-x-input"].values, [[-12, 0], [19, 2]])
    assert np.allclose(found["integrated-gradients"].pixels, weights * x, atol=1e-12)
    assert np.allclose(found["smoothgrad"].pixels, weights, atol=1e-12)
    assert found["gradient-x-input"].score == 9 == (weights * x).sum()
    for name in RULE:  # without a rectifier there is nothing to rewrite, and the map says so
        (one,) = METHODS[name](Weighing(), image, target=0)
        assert np.array_equal(one.pixels, weights)
        assert one.origin["coverage"] == "0 of 0 rectifiers rewritten"
        assert "plain gradient" in one.origin["notes"][0]


def test_of_a_sum_of_squares_integrated_gradients_give_each_its_half_square() -> None:
    image = torch.tensor([[3.0, -1, 2, 4], [0, 1, 0, 2], [1, 1, 5, 1]]).double().reshape(1, 3, 2, 2)
    x = image[0].numpy()
    (found,) = METHODS["integrated-gradients"](Weighing(), image, target=1, steps=1)
    assert np.allclose(found.pixels, x**2 / 2, atol=1e-12)  # gradient × input would give x²
    assert found.origin["completeness"]["relative gap"] < 1e-12
    assert np.array_equal(METHODS["gradient-x-input"](Weighing(), image, target=1)[0].pixels, x**2)


def test_the_rules_for_rectifiers_in_whole_numbers() -> None:
    """Two rectifiers, one open and one closed, and weights of both signs above them."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        net[0].weight[:] = torch.tensor([1.0, 10, 100, 1000])[:, None, None, None]
        net[0].bias[:] = torch.tensor([0.0, -20, 0, -2000])
        net[3].weight[:] = torch.tensor([1.0, 1, -1, -1])
    image = torch.ones(1, 1, 1, 1)  # opens the first and the third
    expected = {"saliency": 1 - 100, "guided-backprop": 1, "deconvnet": 1 + 10}
    for name, number in expected.items():
        assert METHODS[name](net, image, target=1)[0].pixels.item() == number


@pytest.mark.parametrize("net", [Residual, Fire, sequential])
def test_a_class_score_goes_down_as_with_the_deconvnet_of_units(net: Callable[[], object]) -> None:
    network, images = net(), noise_of(2)
    ours = METHODS["deconvnet"](network, images, target=[3, 5])
    theirs = convscope.deconvnet(network, images, target=[3, 5])
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(other.pixels).max() > 0
        assert np.allclose(one.pixels, other.pixels, rtol=1e-4, atol=1e-6 * other.pixels.max())
        assert one.score == pytest.approx(other.value, rel=1e-5)
        said = f"{other.rewritten} of {other.rectifiers} rectifiers rewritten"
        assert one.origin["coverage"] == said
        assert other.rewritten == other.rectifiers > 1


def unguided() -> dict[str, Callable[..., list[Attribution]]]:
    return {n: m for n, m in METHODS.items() if n not in RULE and n != "guided-gradcam"}


def test_the_page_names_every_method_and_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gradients.md").read_text(encoding="utf-8")
    assert METHODS.keys() == TITLES.keys()
    for name in METHODS:
        assert f"| `{name}` |" in page
    own = ("samples", "noise", "baseline", "steps", "quadrature", "layer", "other")
    for option in (*Options.__annotations__, *own):
        assert f"| `{option}` |" in page
    for rule in RULES:
        assert f'"{rule}"' in page
    assert '"squared"' in page
