"""Are the parts of optimised pictures right: penalties, moves, coordinates, ranges?"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convscope.attribution.occlusion import blurred
from convscope.core.errors import UsageError
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.visualisation import optimise
from convscope.visualisation.parameterise import (
    BASES,
    PENALTIES,
    Options,
    Plan,
    Range,
    RedirectedReLU,
    alpha_norm,
    basis,
    moved,
    penalty,
    total_variation,
    turned,
)
from tests.nets import RECTIFIERS
from tests.oracles import optimise as slow

USUALS = (optimise.USUAL, optimise.USUAL_INVERT, optimise.USUAL_DREAM)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("alpha", [1.5, 2, 6])
def test_the_alpha_norm_is_that_of_the_paper_for_each_place(alpha: float) -> None:
    u = noise(3, 5, 7)
    assert float(alpha_norm(u, alpha)) == pytest.approx(slow.alpha_norm(u.numpy(), alpha), 1e-12)


@pytest.mark.parametrize("beta", [1, 2, 3])
def test_total_variation_is_that_of_the_paper_for_each_place(beta: float) -> None:
    u = noise(2, 6, 5)
    expected = slow.total_variation(u.numpy(), beta)
    assert float(total_variation(u, beta)) == pytest.approx(expected, 1e-12 if beta == 2 else 1e-8)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_s_gradient_is_its_slope(name: str) -> None:
    u = noise(2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(PENALTIES[name], u)


def test_total_variation_without_squares_has_a_slope_where_nothing_varies() -> None:
    u = torch.ones(1, 4, 3, requires_grad=True)
    total_variation(u, 1).backward()
    assert u.grad is not None
    assert float(u.grad.abs().max()) < 1e-3


def test_penalties_add_up_by_their_weights() -> None:
    u = noise(3, 4, 5)
    expected = 2 * slow.alpha_norm(u.numpy(), 2) + 0.5 * slow.total_variation(u.numpy(), 2)
    assert float(penalty(u, {"l2": 2, "tv": 0.5})) == pytest.approx(expected, 1e-12)


def test_an_unknown_penalty_is_named_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="l1: no such penalty; it has l2, alpha, tv") as caught:
        penalty(noise(3, 2, 2), {"l1": 1})
    assert caught.value.code == "U365"


@pytest.mark.parametrize("sigma", [0.3, 1.2])
def test_blur_is_a_bell_and_keeps_the_border_s_colour(sigma: float) -> None:
    u = noise(2, 6, 9)
    assert np.allclose(
        blurred(u, sigma, max(1, round(3 * sigma))).numpy(),
        slow.blurred(u.numpy(), sigma),
        atol=1e-12,
    )


def test_a_turn_is_rigid_but_for_its_zoom_whatever_the_picture_s_sides() -> None:
    u = noise(2, 14, 9)
    found = turned(u, 0.4, torch.Generator().manual_seed(3)).numpy()
    drawn = torch.rand(2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    angle, zoom = (0.4 * (2 * drawn - 1)).tolist()
    expected = slow.turned(u.numpy(), angle, math.exp(zoom))
    inside = ~np.isnan(expected)
    assert inside.mean() > 0.4
    assert abs(angle) > 0.02
    assert np.allclose(found[inside], expected[inside], atol=1e-9)


def test_moving_loses_no_pixel() -> None:
    u = noise(3, 6, 5)
    found = moved(u, 4, torch.Generator().manual_seed(1))
    assert not torch.equal(found, u)
    assert torch.equal(found.flatten(1).sort(1)[0], u.flatten(1).sort(1)[0])


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("shape", [(3, 7, 10), (1, 8, 5), (4, 6, 6)])
def test_a_picture_comes_back_from_its_coordinates(name: str, shape: tuple[int, int, int]) -> None:
    u = noise(*shape)
    way = basis(name, u)
    assert torch.allclose(way.decode(way.encode(u)), u, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 40, 61), (1, 64, 32)])
def test_waves_of_unit_variance_make_a_picture_of_about_unit_variance(
    shape: tuple[int, int, int],
) -> None:
    way = basis("fourier", noise(*shape))
    like = way.encode(noise(*shape))
    drawn = [way.decode(noise(*like.shape, seed=seed)) for seed in range(30)]
    assert 0.9 < float(torch.stack(drawn).square().mean().sqrt()) < 1.1


def test_waves_are_as_strong_as_their_length() -> None:
    """A picture of white coordinates has power that falls with the square of the frequency."""
    way = basis("fourier", noise(1, 64, 64))
    power = torch.zeros(64, 33, dtype=torch.float64)
    for seed in range(60):
        coordinates = noise(1, 64, 33, 2, seed=seed)
        power += torch.fft.rfft2(way.decode(coordinates)).abs().square()[0]
    octave = power[0, 4:8].mean() / power[0, 8:16].mean()
    expected = np.mean([1 / k**2 for k in range(4, 8)]) / np.mean([1 / k**2 for k in range(8, 16)])
    assert float(octave) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("bounds", ["soft", "clip"])
def test_nothing_is_darker_than_black_or_lighter_than_white(bounds: str) -> None:
    preprocess = Preprocess(Framing(None, (4, 5)), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    like = torch.zeros(3, 4, 5)
    span = Range.of(Plan(preprocess=preprocess, bounds=bounds), like)
    pixels = span.bound(50 * noise(3, 4, 5).float())
    levels = (pixels * torch.tensor(preprocess.std)[:, None, None]) + torch.tensor(preprocess.mean)[
        :, None, None
    ]
    assert float(levels.min()) == pytest.approx(0, abs=1e-6)
    assert float(levels.max()) == pytest.approx(1, abs=1e-6)
    inner = span.bound(0.4 * noise(3, 4, 5).float().clamp(-2, 2))
    assert torch.allclose(span.bound(span.free(inner)), inner, atol=1e-5)


def test_a_mean_for_each_pixel_is_averaged_for_pictures_of_another_size() -> None:
    mean = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4)
    preprocess = Preprocess(Framing(None, (2, 4)), mean, (1.0, 1.0, 1.0), scale=1.0)
    whole = Range.of(Plan(preprocess=preprocess), torch.zeros(3, 2, 4))
    other = Range.of(Plan(preprocess=preprocess), torch.zeros(3, 5, 5))
    assert np.array_equal(whole.black.numpy(), -mean)
    assert other.white[:, 0, 0].tolist() == [255 - 3.5, 255 - 11.5, 255 - 19.5]


@pytest.mark.parametrize("spelling", [name for name in RECTIFIERS if "without" not in name])
def test_a_closed_rectifier_sends_back_what_would_open_it(spelling: str) -> None:
    x = torch.tensor([-1.0, -2.0, 3.0, 4.0], requires_grad=True)
    signal = torch.tensor([5.0, -5.0, 5.0, -5.0])
    with RedirectedReLU():
        y = RECTIFIERS[spelling](x.clone())
        (y * signal).sum().backward()
    assert y.tolist() == [0, 0, 3, 4]
    assert x.grad is not None
    assert x.grad.tolist() == [5, 0, 5, -5]


def test_waking_leaves_what_is_no_rectifier_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.GELU())
    x = noise(1, 3, 8, 8).float().requires_grad_()
    (plain,) = torch.autograd.grad(net(x).sum(), x)
    with RedirectedReLU():
        (found,) = torch.autograd.grad(net(x).sum(), x)
    assert torch.equal(plain, found)


def test_the_page_has_every_option_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "optimise.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+(\|[^\n]+)\|$", page, re.M))
    for name in ("steps", "learning_rate", "noise", "settle", "jitter", "turn"):
        told = [float(cell) for cell in rows[name].strip("| ").split("|")]
        assert told == [getattr(Plan.of(usual, {}), name) for usual in USUALS]
    for name in ("basis", "rule", "bounds"):
        told = [cell.strip(" `") for cell in rows[name].strip("| ").split("|")]
        assert told == [getattr(Plan.of(usual, {}), name) for usual in USUALS]
    for option in Options.__annotations__:
        assert f"`{option}`" in page


def test_the_page_tells_the_weights_of_penalties() -> None:
    assert optimise.USUAL_CLASS["regularise"] == {"l2": 1.0}
    assert optimise.USUAL_INVERT["regularise"] == {"alpha": 0.001, "tv": 0.02}
