"""Is what stands in the place of hidden pixels what their surroundings suggest?"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from convscope.metrics.faithfulness import faithfulness, imputed
from tests.metrics.faithful_nets import Lookalike, a_map, noise
from tests.nets import pictures
from tests.oracles import faithfulness as slow

OLD_NUMPY = pytest.mark.filterwarnings("ignore:.*__array_wrap__:DeprecationWarning")
"""The library hands tensors to NumPy functions."""


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("size", [(9, 14), (1, 13), (2, 2)])
def test_hidden_pixels_solve_the_full_system(share: float, size: tuple[int, int]) -> None:
    picture = noise(2, *size)
    hidden = noise(*size, seed=1).argsort(axis=None).argsort().reshape(size) < share * np.prod(size)
    hidden[0, 0] = False
    found = imputed(picture, hidden)
    assert found == pytest.approx(slow.imputed(picture, hidden), abs=1e-9)
    assert (found[:, ~hidden] == picture[:, ~hidden]).all()


def test_one_hidden_pixel_is_the_mean_of_its_neighbours_corners_counting_half() -> None:
    picture = np.zeros((1, 3, 3))
    picture[0] = [[12, 6, 0], [0, 99, 0], [0, 0, 0]]
    hidden = np.zeros((3, 3), bool)
    hidden[1, 1] = True
    assert imputed(picture, hidden)[0, 1, 1] == pytest.approx(12 / 12 + 6 / 6)


def test_at_a_corner_of_the_picture_three_neighbours_share_all_weight() -> None:
    picture = np.array([[[99.0, 4.0], [8.0, 1.0]]])
    hidden = np.array([[True, False], [False, False]])
    assert imputed(picture, hidden)[0, 0, 0] == pytest.approx((2 * 4 + 2 * 8 + 1) / 5)


def test_imputed_pixels_lie_between_those_that_are_seen() -> None:
    picture, hidden = noise(3, 20, 15), noise(20, 15, seed=2) > -0.5
    found = imputed(picture, hidden)
    for colour, seen in zip(found, picture[:, ~hidden], strict=True):
        assert seen.min() - 1e-9 <= colour.min() <= colour.max() <= seen.max() + 1e-9


def test_nothing_hidden_is_the_picture_and_all_hidden_its_mean() -> None:
    picture = noise(3, 6, 5)
    assert (imputed(picture, np.zeros((6, 5), bool)) == picture).all()
    whole = imputed(picture, np.ones((6, 5), bool))
    assert whole == pytest.approx(np.broadcast_to(picture.mean((1, 2))[:, None, None], (3, 6, 5)))


def test_noise_falls_on_hidden_pixels_only() -> None:
    picture, hidden = noise(3, 6, 5), noise(6, 5, seed=1) > 0
    added = noise(3, 6, 5, seed=2)
    gap = imputed(picture, hidden, added) - imputed(picture, hidden)
    assert gap == pytest.approx(added * hidden)


def peer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("pytorch_grad_cam")
        from pytorch_grad_cam.metrics import road
    return road


@OLD_NUMPY
def test_the_pixels_are_those_of_pytorch_grad_cam() -> None:
    picture, hidden = noise(3, 30, 21), noise(30, 21, seed=1) > -0.7
    library = peer().NoisyLinearImputer(noise=0)
    theirs = library(torch.from_numpy(picture).float(), torch.from_numpy(1.0 - hidden))
    assert imputed(picture, hidden) == pytest.approx(theirs.numpy(), abs=1e-5)


@OLD_NUMPY
def test_road_is_that_of_pytorch_grad_cam(monkeypatch: pytest.MonkeyPatch) -> None:
    road = peer()
    monkeypatch.setattr(import_module("convscope.metrics.faithfulness"), "NOISE", 0.0)
    calm = (0.0, road.neighbors_weights)
    monkeypatch.setattr(road.NoisyLinearImputer.__init__, "__defaults__", calm)
    # 1000 different values, so that both hide the same pixels at every tenth.
    values = np.random.default_rng(0).permutation(1000).reshape(40, 25) / 1000
    net, image = Lookalike().eval(), pictures(1, 40, 25)
    theirs = road.ROADCombined()(image, values[None], [lambda s: s.softmax(-1)[2]], net)
    most = road.ROADMostRelevantFirst(percentile=70)(
        image, values[None], [lambda s: s.softmax(-1)[2]], net, return_diff=False
    )
    (found,) = faithfulness(net, image[0], [a_map(values, 2)], road=True)
    assert abs(found.road) > 1e-4
    assert found.road == pytest.approx(float(theirs[0]), abs=1e-6)
    assert found.road_most[2] == pytest.approx(float(most[0]), abs=1e-6)
    assert found.road_share == pytest.approx(np.arange(1, 10) / 10)


def test_what_is_not_asked_for_is_not_there() -> None:
    (found,) = faithfulness(Lookalike(), pictures(1, 9, 8)[0], [a_map(noise(9, 8), 2)])
    assert len(found.road_share) == len(found.road_most) == len(found.road_least) == 0
    assert np.isnan(found.road)
