"""Are the maps for a figure in print those asked for, and the same as in an atlas?"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from convscope.core.errors import ModelError, UsageError
from convscope.core.run import Run
from convscope.network.network import Network
from convscope.pictures.pictures import Pictures
from convscope.records.features import random_maps
from convscope.studies.features.study import chosen_features, features

FIELDS = ("value", "image", "row", "column", "box", "active", "patches", "projections", "high")


def test_chosen_maps_are_as_among_all_maps(pictures: Path, network: Network) -> None:
    with Pictures(pictures) as folder:
        _, _, every = features(network, folder, k=4)
        conv1, conv2 = every
    found = chosen_features(network, pictures, units=["conv2:1", "conv1:1", "conv1:0"], k=4)
    assert [(record.layer, record.maps) for record in found] == [
        ("conv2", (1,)),
        ("conv1", (1, 0)),
    ]
    for name in FIELDS:
        assert np.array_equal(getattr(found[0], name), getattr(conv2, name)[[1]]), name
        assert np.array_equal(getattr(found[1], name), getattr(conv1, name)[[1, 0]]), name
    assert found[1].shape == conv1.shape == (3, 20, 26)
    assert conv1.maps == (0, 1, 2)


def test_random_maps_are_those_that_any_picture_excites(pictures: Path, network: Network) -> None:
    for seed in (0, 1):
        conv1, conv2 = chosen_features(network, pictures, count=2, run=Run(seed=seed))
        assert conv1.maps == (0, 1), "map 2 sees nothing ever"
        assert conv2.maps == (0, 1)
    (named,) = chosen_features(network, pictures, ["conv2"], count=1)
    assert len(named.maps) == 1


def test_the_papers_numbers_of_maps_are_drawn_by_place() -> None:
    active = np.ones(400, np.int64)
    chance = np.random.default_rng(1)
    drawn = [random_maps(active, None, place, chance) for place in range(7)]
    assert [len(maps) for maps in drawn] == [9, 16, 12, 10, 10, 10, 10]
    assert all(maps == sorted(set(maps)) for maps in drawn)
    assert random_maps(np.zeros(3, np.int64), 5, 0, chance) == [0, 1, 2]


def test_five_layers_are_spread_from_the_first_to_the_last(
    pictures: Path, network: Network
) -> None:
    convs = [nn.Conv2d(3, 3, 1) for _ in range(9)]
    deep = dataclasses.replace(network, model=nn.Sequential(*convs).eval())
    found = chosen_features(deep, pictures, k=1, count=1)
    assert [record.layer for record in found] == ["0", "2", "4", "6", "8"]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"count": 0}, "U387"),
        ({"units": ["conv1:0"], "layers": ["conv2"]}, "U387"),
        ({"units": ["conv1:3"]}, "M504"),
        ({"units": ["conv_1:0"]}, "M500"),
    ],
)
def test_maps_that_cannot_be_are_refused_before_the_search(
    pictures: Path, network: Network, asked: dict[str, object], code: str
) -> None:
    def never(done: int, total: int) -> None:
        raise AssertionError("it has begun to search")

    with pytest.raises((UsageError, ModelError)) as fault:
        chosen_features(network, pictures, run=Run(progress=never), **asked)  # type: ignore[arg-type]
    assert fault.value.code == code
