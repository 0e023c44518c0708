"""Are a map's patches what its neurons saw, and its projections what excited them?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convscope.core.errors import ModelError, UsageError
from convscope.core.run import Run
from convscope.core.units import Unit
from convscope.network.load import Network, load
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.representations.deconvnet import GREY, deconvnet, limit, quantised
from convscope.studies.features.study import features
from tests.studies.conftest import SIZE


def test_each_map_shows_its_strongest_pictures_and_where(pictures: Path, network: Network) -> None:
    with Pictures(pictures) as folder:
        found, shown, layers = features(network, folder, k=4)
        conv1, conv2 = layers
        assert (conv1.layer, conv1.kind, conv1.shape) == ("conv1", "Conv2d", (3, *shown.size))
        assert conv1.image[0, 0] == 2
        assert (conv1.row[0, 0], conv1.column[0, 0]) == (4, 21)
        assert conv1.image[1].tolist() == [0, 1, 2, 3]
        assert tuple(conv1.box[0, 0]) == (3, 20, 6, 23)
        assert np.array_equal(conv1.patches[0, 0], np.full((3, 3, 3), (255, 0, 0)))
        assert found.layers == ("conv1", "conv2")
        # 3 pixels of conv1, pooled in twos, 3 of these: 3 + 1 + 2 · 2 pixels, every 4.
        assert (conv2.field, conv2.stride) == ((8, 8), (4, 4))


def test_a_map_that_is_never_active_has_no_pictures(pictures: Path, network: Network) -> None:
    with Pictures(pictures) as folder:
        _, shown, layers = features(network, folder, ["conv1"], k=4)
        conv1 = next(layers)
    assert conv1.active.tolist() == [6, 6, 0]
    assert conv1.image[2].tolist() == [-1] * 4
    assert np.all(conv1.value[2] == -np.inf)
    assert np.all(conv1.patches[2] == GREY)
    assert np.all(conv1.projections[2] == GREY)
    assert shown.name == tuple(f"{'a' if n < 3 else 'b'}/{n}.png" for n in shown.number)
    assert shown.classes == ("a", "b")


def test_projections_are_deconvnet_s_at_the_receptive_field(
    pictures: Path, network: Network
) -> None:
    with Pictures(pictures) as folder:
        _, _, layers = features(network, folder, ["conv2"], k=3)
        conv2 = next(layers)
        for channel in range(2):
            raw = []
            for place in range(3):
                number = int(conv2.image[channel, place])
                picture = folder.one(number, network.preprocess.framing)
                at = (int(conv2.row[channel, place]), int(conv2.column[channel, place]))
                image = network.preprocess.tensor(picture.pixels)[None]
                (expected,) = deconvnet(network.model, image, [Unit("conv2", channel, at)])
                assert expected.value == pytest.approx(conv2.value[channel, place], rel=1e-6)
                top, left, bottom, right = conv2.box[channel, place]
                padded = np.pad(expected.pixels, ((0, 0), (9, 9), (9, 9)))
                raw.append(padded[:, top + 9 : bottom + 9, left + 9 : right + 9].transpose(1, 2, 0))
                outside = padded.copy()
                outside[:, top + 9 : bottom + 9, left + 9 : right + 9] = 0
                assert not outside.any()
            most = limit(np.array(raw))
            assert most > 0
            assert conv2.high[channel] == -conv2.low[channel] == pytest.approx(most, rel=1e-5)
            shown = conv2.projections[channel].astype(int)
            assert np.abs(shown - quantised(np.array(raw), -most, most)).max() <= 1
    assert conv2.rewritten == conv2.rectifiers == 1


def test_the_network_is_left_as_it_was(pictures: Path, network: Network) -> None:
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    network.model.train()
    with Pictures(pictures) as folder:
        list(features(network, folder, k=2)[2])
    assert all(module.training for module in network.model.modules())
    assert all(torch.equal(before[n], v) for n, v in network.model.state_dict().items())
    assert all(p.grad is None for p in network.model.parameters())
    assert not any(module._forward_hooks for module in network.model.modules())


def test_an_activation_without_a_rule_is_told_before_the_search_or_passed_as_asked(
    pictures: Path,
) -> None:
    parts = (nn.Conv2d(3, 2, 3), nn.GELU(), nn.Conv2d(2, 2, 3), nn.SiLU(), nn.Flatten())
    network = load(
        nn.Sequential(*parts), preprocess=Preprocess(Framing(None, SIZE), (0.4,) * 3, (0.3,) * 3)
    )

    def tick(done: int, total: int) -> None:
        raise AssertionError("the search has begun")

    with pytest.raises(ModelError, match=r"^GELU.*--other gradient"):
        features(network, Pictures(pictures), run=Run(progress=tick))
    with pytest.raises(UsageError, match="is no other"):
        features(network, Pictures(pictures), other="gradients", run=Run(progress=tick))  # type: ignore[arg-type]
    _, _, layers = features(network, Pictures(pictures), other="gradient", k=1)
    first, second = list(layers)
    assert (first.rewritten, first.rectifiers) == (0, 0)
    assert (second.rewritten, second.rectifiers) == (0, 1)
    assert second.origin["other"] == "gradient"
    assert len(np.unique(second.projections)) > 10
