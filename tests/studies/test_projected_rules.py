"""Do a layer's features say by which rule they were drawn, how alike they are, and their grids?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convscope.core.units import Box, Unit
from convscope.metrics.randomisation import mean_correlation
from convscope.network.load import Network, load
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.records.features import LayerFeatures, grid_words
from convscope.representations.deconvnet import Energy, deconvnet
from convscope.studies.features.study import features
from convscope.trace.operations import Stride
from convscope.trace.receptive_field import ReceptiveField
from tests.studies.conftest import SIZE


def strided() -> Network:
    """No pool on the way."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU6(), nn.Conv2d(8, 5, 3, padding=1),
    )  # fmt: skip
    return load(net, preprocess=Preprocess(Framing(None, SIZE), (0.4,) * 3, (0.3,) * 3))


def made(network: Network, pictures: Path, layer: str, **options: object) -> LayerFeatures:
    with Pictures(pictures) as folder:
        _, _, layers = features(network, folder, [layer], k=4, **options)
        return next(layers)


def test_without_switches_guided_backpropagation_is_drawn_and_both_on_demand(
    pictures: Path,
) -> None:
    network = strided()
    alone = made(network, pictures, "4")
    assert (alone.rule, alone.origin["rule"], alone.beside) == ("guided", "guided", "")
    assert "Springenberg" in alone.origin["rule_chosen"]
    both = made(network, pictures, "4", rule="both")
    assert [shown.rule for shown in both.shown] == ["guided", "deconvnet"]
    assert np.array_equal(both.projections, alone.projections)
    other = made(network, pictures, "4", rule="deconvnet")
    assert (other.rule, other.origin["rule_chosen"]) == ("deconvnet", "as asked")
    assert np.array_equal(both.shown[1].projections, other.projections)
    assert np.array_equal(both.shown[1].similarity, other.similarity, equal_nan=True)
    assert not np.array_equal(both.projections, other.projections)


def test_projections_that_are_the_same_for_any_picture_are_told(
    pictures: Path,
) -> None:
    both = made(strided(), pictures, "4", rule="both")
    guided, deconv = both.shown
    alive = both.active > 0
    assert alive.any()
    assert (deconv.similarity[alive] > 0.95).all()
    assert (guided.similarity < deconv.similarity)[alive].all()
    assert both.alike(deconv.similarity)[alive].any()
    assert not both.alike(guided.similarity).all()
    assert np.isnan(deconv.similarity[~alive]).all()
    assert not both.alike(deconv.similarity)[~alive].any()


def test_below_all_rectifiers_a_projection_is_the_filter_and_nothing_is_warned_of(
    pictures: Path,
) -> None:
    first = made(strided(), pictures, "0")
    assert (first.rule, first.rectifiers) == ("deconvnet", 0)
    alive = first.active > 1
    assert first.similarity[alive] == pytest.approx(1, abs=1e-3)
    assert not first.alike(first.similarity).any()


def test_the_measure_is_the_mean_of_numpy_s_correlations_at_the_field(
    pictures: Path, network: Network
) -> None:
    """Fields that hang over the border count by the part that both have."""
    with Pictures(pictures) as folder:
        _, _, layers = features(network, folder, ["conv2"], k=4)
        conv2 = next(layers)
        height, width = SIZE
        for channel in np.flatnonzero(conv2.active > 1):
            cut = []
            for place in np.flatnonzero(conv2.image[channel] >= 0):
                picture = folder.one(int(conv2.image[channel, place]), network.preprocess.framing)
                at = (int(conv2.row[channel, place]), int(conv2.column[channel, place]))
                image = network.preprocess.tensor(picture.pixels)[None]
                (found,) = deconvnet(network.model, image, [Unit("conv2", int(channel), at)])
                padded = np.pad(found.pixels, ((0, 0), (99, 99), (99, 99)), constant_values=np.nan)
                top, left, bottom, right = conv2.box[channel, place]
                cut.append(padded[:, top + 99 : bottom + 99, left + 99 : right + 99].ravel())
            each = []
            for i, one in enumerate(cut):
                for other in cut[:i]:
                    there = ~np.isnan(one) & ~np.isnan(other)
                    if one[there].std() > 0 and other[there].std() > 0:
                        each.append(np.corrcoef(one[there], other[there])[0, 1])
            assert conv2.similarity[channel] == pytest.approx(np.mean(each), abs=2e-3)
        assert height > 0 < width


def test_flat_pictures_correlate_with_nothing() -> None:
    chance = np.random.default_rng(0)
    three = chance.normal(size=(3, 5, 5, 3)).astype(np.float32)
    seen = np.ones((3, 5, 5), bool)
    three[2] = 0
    expected = np.corrcoef(three[0].ravel(), three[1].ravel())[0, 1]
    assert mean_correlation(three, seen) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(mean_correlation(three[2:], seen[2:]))
    assert np.isnan(mean_correlation(np.zeros((4, 5, 5, 3), np.float32), np.ones((4, 5, 5), bool)))
    assert mean_correlation(np.stack([three[0], 1e-20 * three[0]]), seen[:2]) == pytest.approx(1)
    seen[0, :3], seen[1, 3:] = False, False
    assert np.isnan(mean_correlation(three[:2], seen[:2]))


def field(side: int) -> ReceptiveField:
    nothing = tuple((0, side) for _ in range(3))
    return ReceptiveField(
        (side, side), (8, 8), (0, 0), (4, 3, 3), (64, 64), False, nothing, nothing
    )


STRIDES = [
    Stride("deep", (5, 5), (2, 2), (8, 8), False),
    Stride("stem", (3, 3), (2, 2), (2, 2), False),
]


@pytest.mark.parametrize("period", [2, 8])
def test_the_grid_of_a_stride_is_named_with_its_convolution(period: int) -> None:
    energy, chance = Energy(field(64)), np.random.default_rng(1)
    hill = np.hanning(66)[1:-1]
    for _ in range(40):
        pixels = chance.normal(size=(3, 64, 64)) * hill[:, None] * hill
        pixels *= 1 + 0.3 * np.cos(2 * np.pi * np.arange(64) / period)[:, None]
        energy.add(torch.tensor(pixels), Box(0, 0, 64, 64))
    (found,) = energy.grids(STRIDES)
    name, kernel = ("stem", 3) if period == 2 else ("deep", 5)
    assert found[:4] == (name, kernel, 2, period)
    assert found[4] >= 0.1
    said = f"grid of period {period} px from stride 2 of {name} (kernel {kernel} is no multiple)"
    assert grid_words(found) == said


def test_no_grid_is_named_where_none_is_or_the_period_is_no_stride_s() -> None:
    for period in (1, 5):
        energy, chance = Energy(field(64)), np.random.default_rng(2)
        for _ in range(40):
            pixels = chance.normal(size=(3, 64, 64))
            pixels[:, ::period] *= 1.6
            energy.add(torch.tensor(pixels), Box(-3, 2, 61, 66))
        assert energy.grids(STRIDES) == ()
    assert Energy(field(64)).grids(STRIDES) == ()


def test_a_field_larger_than_its_picture_is_shown_as_far_as_the_picture_is_large(
    pictures: Path,
) -> None:
    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        parts += [nn.Conv2d(4, 4, 5, stride=2, padding=2), nn.ReLU()]
    network = load(
        nn.Sequential(*parts), preprocess=Preprocess(Framing(None, SIZE), (0.4,) * 3, (0.3,) * 3)
    )
    found = made(network, pictures, "8")
    assert min(found.field) > max(SIZE)
    assert found.patches.shape[2] == max(SIZE)


def test_records_with_both_rules_are_saved_and_read_again(pictures: Path, tmp_path: Path) -> None:
    both = made(strided(), pictures, "4", rule="both")
    both.save(tmp_path / "kept")
    again = LayerFeatures.load(tmp_path / "kept")
    assert [shown.rule for shown in again.shown] == ["guided", "deconvnet"]
    assert again.grids == both.grids
    assert np.array_equal(again.beside_projections, both.beside_projections)
    some = again.of([2, 0])
    assert np.array_equal(some.beside_projections, both.beside_projections[[2, 0]])
    alone = made(strided(), pictures, "4").of([1])
    assert alone.shown[0].similarity.shape == (1,)
    assert len(alone.shown) == 1
