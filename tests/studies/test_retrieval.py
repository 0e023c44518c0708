"""Are the nearest pictures, and those that occur twice, the ones that were put there?"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from convscope.core.errors import UsageError
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.studies.retrieval.record import Duplicates, Neighbours
from convscope.studies.retrieval.study import duplicates, similar

SIZE = (40, 60)
COLOURS = {
    "red/0": (200, 0, 0),
    "red/1": (203, 4, 0),
    "green/0": (0, 200, 0),
    "green/1": (0, 190, 0),
    "green/2": (0, 170, 0),
}


@pytest.fixture
def network() -> Network:
    """Its layer `mean` is the picture's mean colour, 0 to 255."""
    model = nn.Sequential()
    model.add_module("mean", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    model.add_module("fc", nn.Linear(3, 2))
    plain = Preprocess(Framing(None, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0)
    return Network(model.train(), plain, (), "made", "by hand", "")


def write(root: Path, name: str, pixels: np.ndarray) -> None:
    path = root / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        write(tmp_path / "colours", name, np.full((*SIZE, 3), colour))
    return tmp_path / "colours"


def test_the_nearest_pictures_are_those_of_the_nearest_colours(
    network: Network, colours: Path
) -> None:
    found = similar(network, colours, layer="mean", k=2)
    near = {
        query.removesuffix(".png"): [found.names[place].removesuffix(".png") for place in row]
        for query, row in zip(found.queries, found.nearest, strict=True)
    }
    assert near == {
        "green/0": ["green/1", "green/2"],
        "green/1": ["green/0", "green/2"],
        "green/2": ["green/1", "green/0"],
        "red/0": ["red/1", "green/2"],
        "red/1": ["red/0", "green/2"],
    }
    row = found.queries.index("red/0.png")
    assert found.distance[row].tolist() == [5, pytest.approx(np.hypot(200, 170))]
    assert found.same_class.tolist() == pytest.approx([1, 3 / 5])
    assert found.chance == pytest.approx((3 * 2 / 4 + 2 * 1 / 4) / 5)


def test_one_picture_is_looked_for_in_a_folder(
    network: Network, colours: Path, tmp_path: Path
) -> None:
    write(tmp_path, "query", np.full((90, 50, 3), (0, 181, 0)))
    found = similar(network, tmp_path / "query.png", colours, "mean", k=9, metric="cosine")
    assert [found.names[place] for place in found.nearest[0, :3]] == [
        "green/0.png",
        "green/1.png",
        "green/2.png",
    ]  # all at distance 0: brightness does not count, and the lower number comes first
    assert found.nearest[0, 5:].tolist() == [-1] * 4
    assert not found.classed
    assert not found.same_folder
    found.save(tmp_path / "record")
    assert Neighbours.load(tmp_path / "record").nearest.tolist() == found.nearest.tolist()


def test_a_picture_that_occurs_twice_is_found_and_told_how(
    network: Network, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    smooth = draw.integers(0, 256, (6, 5, 6, 3)).repeat(8, 1).repeat(10, 2)
    for number in range(4):
        write(tmp_path / "training", str(number), smooth[number])
    write(tmp_path / "test", "new", smooth[4])
    write(tmp_path / "test", "darker", smooth[2] * 0.7)
    shutil.copy(tmp_path / "training" / "1.png", tmp_path / "test" / "copy.png")
    found = duplicates(network, tmp_path / "test", tmp_path / "training", "mean", features_from=1.0)
    assert list(zip(found.first, found.second, found.kind, strict=True)) == [
        ("copy.png", "1.png", "bytes"),
        ("darker.png", "2.png", "pixels"),
    ]
    assert found.correlation == pytest.approx([1, 1], abs=1e-3)
    assert found.pictures == 2
    assert found.seen == (3, 4)
    loose = duplicates(network, tmp_path / "test", tmp_path / "training", "mean", features_from=0)
    assert "new.png" in loose.first
    assert loose.kind[-1] == "features"
    loose.save(tmp_path / "record")
    assert Duplicates.load(tmp_path / "record").kind == loose.kind


def test_a_folder_is_searched_for_its_own_duplicates_once_each(
    network: Network, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    for number in range(3):
        write(tmp_path / "in", str(number), draw.integers(0, 256, (*SIZE, 3)))
    for name in ("a", "b"):
        shutil.copy(tmp_path / "in" / "1.png", tmp_path / "in" / f"{name}.png")
    found = duplicates(network, tmp_path / "in", None, "mean", features_from=1.0)
    pairs = set(zip(found.first, found.second, found.kind, strict=True))
    equal = {("1.png", "a.png"), ("1.png", "b.png"), ("a.png", "b.png")}
    assert pairs == {(*pair, "bytes") for pair in equal}


def test_what_cannot_be_searched_is_refused_before_anything_is_read(network: Network) -> None:
    with pytest.raises(UsageError) as fault:
        similar(network, "no such folder", k=0)
    assert fault.value.code == "U426"
    with pytest.raises(UsageError) as fault:
        duplicates(network, "no such folder", pixels_from=2)
    assert fault.value.code == "U428"
