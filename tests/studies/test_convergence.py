"""Do the numbers say when each layer settled, where that is known?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from convscope.core.errors import DataError
from convscope.lens.lens import Lens
from convscope.network.network import Network
from convscope.pictures.pictures import Pictures
from convscope.records.predictions import Convergence
from convscope.studies.evolution.recorder import (
    EvolutionRecorder,
    arrived,
    centre,
    convergence,
    ranked,
    responses,
    way,
)

EPOCHS = np.array([0, 1, 2, 3, 4, 5, 6])
TRAINED = {"conv1": (0.0, 0.4, 1, 1, 1, 1, 1), "conv2": (0.0, 0.1, 0.2, 0.3, 0.4, 1, 1)}
"""How far each layer's weights are from where they start to where they end."""


def train(network: Network, epoch: int) -> None:
    """As a training would that ends layer 1 at epoch 2 and layer 2 at epoch 5."""
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, share in TRAINED.items():
            weight: Tensor = network.model.get_submodule(name).weight  # type: ignore[assignment]
            start, end = torch.randn(2, *weight.shape, generator=draw)
            weight.copy_((1 - share[epoch]) * start + share[epoch] * end)


@pytest.fixture
def found(pictures: Path, network: Network) -> Convergence:
    with Pictures(pictures) as folder:
        recorder = EvolutionRecorder(folder, network.preprocess, epochs=None, side=16)
        for epoch in EPOCHS.tolist():
            train(network, epoch)
            recorder(epoch, network.model)
        return recorder.convergence()


def test_each_layer_arrives_at_the_epoch_after_which_it_was_not_trained(found: Convergence) -> None:
    assert found.layers == ("conv1", "conv2")
    assert found.arrived.tolist() == [[2, 2, 2], [5, 5, 5]]
    assert found.centre[0, 0] < 2 < found.centre[1, 0] < 5
    for layer, settled in enumerate((2, 5)):
        rows = found.responses[found.maps(layer)]
        assert rows[:, settled:] == pytest.approx(1, abs=1e-6)
        assert rows[:, :settled].max() < 0.95
        assert found.responses_curve[layer, settled:] == pytest.approx(1, abs=1e-6)
        assert np.all(found.settled_image[found.maps(layer)] <= settled)
        assert np.all(found.settled_projection[found.followed(layer)] <= settled)
    assert found.settled_projection[found.followed(1)].max() == 5
    assert found.same_curve[:, -1] == pytest.approx(1)


def test_the_share_of_maps_with_their_last_picture_is_counted(found: Convergence) -> None:
    for layer in range(2):
        image = found.image[found.maps(layer)]
        share = [np.mean([row[epoch] == row[-1] for row in image]) for epoch in range(7)]
        assert found.same_curve[layer, :, 0] == pytest.approx(share)
    assert found.jumps.sum() == sum((row[1:] != row[:-1]).sum() for row in found.image)
    assert found.jumps.any()


def test_the_epoch_of_arrival_is_the_first_from_which_nine_tenths_are_gone_for_good() -> None:
    epochs = np.array([0, 2, 10, 30])
    curves = np.array([[0.0, 0.95, 0.5, 1], [0.5, 0.96, 0.97, 1], [1, 1, 1, 1], [0, 0, 0.89, 1]])
    assert arrived(curves, epochs).tolist() == [30, 2, 0, 30]
    assert way(curves[1]) == pytest.approx([0, 0.92, 0.94, 1])


def test_the_middle_of_the_way_weighs_epochs_by_what_was_gone_there() -> None:
    epochs = np.array([0, 2, 10])
    curves = np.array([[0.2, 0.6, 1], [0, 0, 1], [1, 1, 1]])
    assert centre(curves, epochs) == pytest.approx([0.5 * 1 + 0.5 * 6, 6, 0])


def test_a_settled_map_that_changes_once_more_was_not_settled() -> None:
    image = [np.array([[3, 3, 3]]), np.array([[5, 3, 3]]), np.array([[3, 3, 9]])]
    record = made([{"a": row[0]} for row in image], np.ones((1, 3, 4)))
    assert record.settled_image.tolist() == [7, 1, 7]
    assert record.jumps.astype(int).tolist() == [[1, 1], [0, 0], [0, 1]]


def test_projections_are_compared_whatever_their_size_and_picture() -> None:
    pixels = np.array([[[0, 1.0], [2, 0.2], [5, 0]], [[0, 0], [1, 0], [0, 0]]])
    record = made([{"a": np.arange(2)}] * 3, pixels)
    assert record.projection[0] == pytest.approx([0, 2 / np.hypot(2, 0.2), 1])
    assert np.isnan(record.projection[1]).all(), "a map that is silent at the end has no answer"
    assert record.settled_projection[0] == 4
    assert record.projection_curve[0, :, 0] == pytest.approx(record.projection[0])


def made(image: list[dict[str, np.ndarray]], projections: np.ndarray) -> Convergence:
    """Epochs 1, 4, 7 of a layer `a`."""
    ranks = ranked(np.random.default_rng(0).random((len(image[0]["a"]), 50)))
    units = [f"a:{n}" for n in range(len(projections))]
    return convergence(["a"], [1, 4, 7], image, [{"a": ranks}] * 3, units, projections)


def test_the_interval_holds_the_mean_and_is_wider_for_fewer_maps() -> None:
    draw = np.random.default_rng(3)
    wide = []
    for maps in (5, 500):
        start, end = draw.random((2, maps, 300))
        ranks = [{"a": ranked(a * end + (1 - a) * start)} for a in (0, 0.3, 1)]
        image = [{"a": np.zeros(maps, np.int64)}] * 3
        record = convergence(["a"], [0, 1, 2], image, ranks, [], np.zeros((0, 3, 1)))
        mean, low, high = record.responses_curve[0, 1]
        assert low < mean < high
        assert mean == pytest.approx(record.responses[:, 1].mean(), abs=1e-6)
        wide.append(high - low)
        assert np.isnan(record.projection_curve).all()
    assert wide[1] < wide[0] / 4


def test_rank_products_are_spearmans_correlation_with_ties() -> None:
    a, b = np.random.default_rng(1).integers(0, 6, (2, 3, 40))
    products = (ranked(a) * ranked(b)).sum(axis=1)
    assert products == pytest.approx([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert np.isnan(ranked(np.ones((1, 5)))).all()


def test_responses_are_what_the_layer_puts_out_at_the_same_share_of_its_size(
    pictures: Path, network: Network
) -> None:
    layers, numbers = ["conv1", "conv2", "fc"], [4, 1, 5]
    with Pictures(pictures) as folder:
        network.model.train()
        got = responses(
            network.model, folder, network.preprocess, layers, numbers, places=7, seed=3
        )
        again = responses(
            network.model, folder, network.preprocess, ["conv2"], [1], places=7, seed=3
        )
        assert network.model.training
        images = [network.preprocess.tensor(folder.one(n).pixels) for n in numbers]
    assert {name: part.shape for name, part in got.items()} == {
        "conv1": (3, 21),
        "conv2": (2, 21),
        "fc": (2, 21),
    }
    with Lens(network.model, layers) as lens, torch.no_grad():
        for place, (number, image) in enumerate(zip(numbers, images, strict=True)):
            lens(image[None])
            for down, across in np.random.default_rng((3, number)).random((7, 2)):
                row, column = int(down * 20), int(across * 26)
                one = lens["conv1"][0, :, row, column]
                assert (
                    abs(torch.from_numpy(got["conv1"]).T[place * 7 : place * 7 + 7] - one)
                    .amin(0)
                    .max()
                    < 1e-5
                )
            assert got["fc"][:, place * 7 : place * 7 + 7] == pytest.approx(
                lens["fc"][0][:, None].expand(2, 7).numpy(), abs=1e-4
            )
    assert again["conv2"] == pytest.approx(got["conv2"][:, 7:14], abs=1e-5)


def test_one_epoch_cannot_be_compared(pictures: Path, network: Network) -> None:
    with Pictures(pictures) as folder:
        recorder = EvolutionRecorder(folder, network.preprocess, per_layer=1)
        recorder(5, network.model)
        with pytest.raises(DataError, match="only epoch 5 was recorded") as fault:
            recorder.convergence()
    assert fault.value.code == "D194"


def test_looking_leaves_the_network_and_chance_as_they_were(
    pictures: Path, network: Network
) -> None:
    model = network.model.train()
    model(torch.rand(2, 3, 20, 26)).sum().backward()
    model.conv1.requires_grad_(False)
    before = [(p.detach().clone(), p.grad.clone(), p.requires_grad) for p in model.parameters()]  # type: ignore[union-attr]
    chance = torch.get_rng_state()
    with Pictures(pictures) as folder:
        EvolutionRecorder(folder, network.preprocess, per_layer=2).look(3, model)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    for weight, (value, grad, wanted) in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, value)
        assert torch.equal(weight.grad, grad)  # type: ignore[arg-type]
        assert weight.requires_grad == wanted
