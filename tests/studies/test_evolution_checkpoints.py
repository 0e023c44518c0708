"""Is what checkpoints tell afterwards what an observer saw at the time?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from convscope.core.errors import CheckpointError, DataError
from convscope.core.run import Run
from convscope.network.checkpoint import save_weights
from convscope.network.network import Network
from convscope.pictures.pictures import Pictures
from convscope.studies.evolution.recorder import EvolutionRecorder
from convscope.studies.evolution.study import evolution


def keep(network: Network, place: Path) -> None:
    """A plain file, one of Lightning's kind and one of safetensors."""
    state = network.model.state_dict()
    if place.suffix == ".ckpt":
        lightning = {f"net.{name}": value for name, value in state.items()}
        torch.save({"epoch": 1, "global_step": 9, "state_dict": lightning, "loops": {}}, place)
    elif place.suffix == ".pt":
        torch.save(state, place)
    else:
        save_weights(place, state)


@pytest.fixture
def trained(pictures: Path, network: Network, tmp_path: Path) -> tuple[Path, EvolutionRecorder]:
    """Three epochs: at the last one map 1 has come to see red, as map 0 does."""
    folder = Pictures(pictures)
    recorder = EvolutionRecorder(
        folder, network.preprocess, units=["conv1:1", "conv2:0"], epochs=None, side=16
    )
    for epoch, name in ((1, "epoch-1.pt"), (2, "epoch=1-step=9.ckpt"), (3, "03.safetensors")):
        with torch.no_grad():
            network.model.conv2.weight.mul_(1.5)
            if epoch == 3:
                network.model.conv1.weight[1] = network.model.conv1.weight[0]
        recorder(epoch, network.model)
        keep(network, tmp_path / name)
    return tmp_path, recorder


def test_checkpoints_of_any_kind_tell_what_an_observer_saw(
    trained: tuple[Path, EvolutionRecorder], pictures: Path, network: Network
) -> None:
    place, recorder = trained
    with torch.no_grad():
        network.model.conv1.weight.add_(1)  # it need not be as any of the checkpoints
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    ticks: list[tuple[int, int]] = []
    features, layers = evolution(
        place,
        pictures,
        network,
        units=["conv1:1", "conv2:0"],
        side=16,
        run=Run(progress=lambda done, total: ticks.append((done, total))),
    )
    for ours, theirs in ((features, recorder.record()), (layers, recorder.convergence())):
        for name, value in vars(theirs).items():
            if isinstance(value, np.ndarray):
                assert np.array_equal(getattr(ours, name), value, equal_nan=True), name
            elif name != "origin":
                assert getattr(ours, name) == value, name
    assert features.image[0].tolist() == [0, 0, 2]
    assert layers.jumps[1].tolist() == [False, True]
    assert layers.settled_image[1] == 3
    assert ticks[-1] == (18, 18)
    assert ticks == sorted(ticks)
    after = network.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_weights_of_another_network_are_named(
    trained: tuple[Path, EvolutionRecorder], pictures: Path, network: Network
) -> None:
    save_weights(trained[0] / "epoch-9.safetensors", {"other.weight": torch.ones(2, 2)})
    with pytest.raises(CheckpointError, match=r"epoch-9\.safetensors") as fault:
        evolution(trained[0], pictures, network)
    assert fault.value.code == "C410"


def test_without_a_network_the_checkpoints_have_to_say_it(
    trained: tuple[Path, EvolutionRecorder], pictures: Path
) -> None:
    with pytest.raises(CheckpointError, match="name the network with --model") as fault:
        evolution(trained[0], pictures)
    assert fault.value.code == "C441"


def test_a_map_that_nothing_excites_is_silent_and_one_without_pictures_a_fault(
    trained: tuple[Path, EvolutionRecorder], pictures: Path, network: Network
) -> None:
    features, layers = evolution(trained[0], pictures, network, units=["conv1:2"])
    assert np.all(features.value <= 0)
    assert np.all(features.projections == 128)
    assert np.isnan(layers.projection).all()
    with torch.no_grad():
        network.model.conv1.weight[0] = torch.nan
    recorder = EvolutionRecorder(pictures, network.preprocess, units=["conv1:0"])
    with pytest.raises(DataError, match="no picture excites conv1:0") as fault:
        recorder.look(1, network.model)
    assert fault.value.code == "D163"
