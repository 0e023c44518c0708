"""Is a feature's history what its map found strongest at each epoch?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from convscope.core.errors import DataError
from convscope.core.run import Run
from convscope.core.units import Unit
from convscope.network.load import Network
from convscope.pictures.pictures import Pictures
from convscope.studies.evolution.recorder import EvolutionRecorder


def test_a_map_that_comes_to_see_red_jumps_to_the_red_picture(
    pictures: Path, network: Network
) -> None:
    with Pictures(pictures) as folder:
        units = [Unit("conv1", 1), Unit("conv2", 0)]
        recorder = EvolutionRecorder(
            folder, network.preprocess, units=units, epochs=(0, 2), side=16
        )
        recorder(0, network.model)
        with torch.no_grad():
            network.model.conv1.weight[1] = network.model.conv1.weight[0]
        recorder(1, network.model)
        recorder(2, network.model)
        found = recorder.record()
    assert found.epochs.tolist() == [0, 2]
    assert found.units == ("conv1:1", "conv2:0")
    assert found.image[0].tolist() == [0, 2]
    assert (found.row[0, 1], found.column[0, 1]) == (4, 21)
    assert found.value[0, 1] == pytest.approx(9.0)
    red = found.patches[0, 1].reshape(-1, 3)
    assert np.all(red == (255, 0, 0))
    assert found.patches.shape == found.projections.shape == (2, 2, 16, 16, 3)
    # The projection of a filter that wants red and no green or blue.
    assert np.all(found.projections[0, 1][..., 0] > 128)
    assert np.all(found.projections[0, 1][..., 1:] < 128)


def test_units_are_drawn_once_and_the_same_for_a_seed(pictures: Path, network: Network) -> None:
    with Pictures(pictures) as folder:
        names = []
        for seed in (0, 0, 1, 2, 3):
            recorder = EvolutionRecorder(
                folder, network.preprocess, per_layer=1, run=Run(seed=seed)
            )
            recorder(1, network.model)
            names.append(recorder.record().units)
    assert names[0] == names[1]
    assert len(set(names)) > 1
    assert all([unit.split(":")[0] for unit in name] == ["conv1", "conv2"] for name in names)


def test_nothing_recorded_is_said(pictures: Path, network: Network) -> None:
    with Pictures(pictures) as folder:
        recorder = EvolutionRecorder(folder, network.preprocess, epochs=(5,))
        recorder(1, network.model)
        assert recorder.recorded == ()
        with pytest.raises(DataError, match="no epoch was recorded"):
            recorder.record()
