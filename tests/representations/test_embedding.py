"""Are features what the layer puts out, kept once, and renewed when anything changes?"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convscope.core.errors import ModelError, UsageError
from convscope.core.run import Run
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.representations.embedding import ROOM, default_layer, embedding, vectors
from convscope.trace.layers import stages
from tests.nets import Residual, pictures, sequential, state_of

SIZE = (33, 29)


def network(model: nn.Module | None = None) -> Network:
    """In train mode, with in-place rectifiers, for pictures that are not square."""
    plain = Preprocess(Framing(None, SIZE), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return Network(model or sequential(), plain, (), "made", "by hand", "")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Nineteen pictures, number 3 no picture: a batch and a bit."""
    draw = np.random.default_rng(0)
    for number in range(19):
        place = tmp_path / "in" / ("a" if number < 9 else "b") / f"{number:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        if number == 3:
            place.write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
        else:
            Image.fromarray(draw.integers(0, 256, (*SIZE, 3)).astype(np.uint8)).save(place)
    return tmp_path / "in"


def test_rows_are_the_layer_s_outputs_one_by_one(noise: Path) -> None:
    net = network()
    before = state_of(net.model)
    folder = Pictures(noise, max_bad=0.1)
    found = embedding(net, folder, ["pool1", "conv2", "fc"], vector="flat")
    assert state_of(net.model) == before
    assert found["fc"].number.tolist() == [n for n in range(19) if n != 3]
    assert found["fc"].label.tolist() == [0] * 8 + [1] * 10
    net.model.eval()
    for row, number in enumerate(found["fc"].number):
        x = net.preprocess.tensor(folder.one(int(number), net.preprocess.framing).pixels)[None]
        with torch.no_grad():
            for name, layer in net.model.named_children():
                x = layer(x)
                if name in found:  # before the in-place rectifier that follows
                    expected = x.flatten().clone().numpy()
                    np.testing.assert_allclose(found[name].values[row], expected, atol=1e-5)
    assert found["pool1"].vector == "flattened"


def test_features_are_computed_once_and_anew_when_something_changed(
    noise: Path, tmp_path: Path
) -> None:
    net, cache = network(), tmp_path / "cache"
    passes: list[int] = []

    def ask(**more: object) -> np.ndarray:
        ticks: list[int] = []
        found = embedding(
            net,
            Pictures(noise, max_bad=0.1),
            "relu3",
            cache=cache,
            run=Run(progress=lambda done, _: ticks.append(done)),
            **more,  # type: ignore[arg-type]
        )
        passes.append(len(ticks))
        return np.array(found["relu3"].values)

    first, again, grid = ask(), ask(), ask(vector=1)
    with torch.no_grad():
        net.model.conv3.bias += 1
    changed = ask()
    os.utime(noise / "a" / "00.png", (1, 1))
    ask()
    assert passes == [2, 0, 2, 2, 2]
    assert first.tobytes() == again.tobytes()
    assert grid.shape == (18, 10)
    assert not np.allclose(first, changed)
    assert (first >= 0).all()
    assert (
        first.tobytes()
        == embedding(network(), Pictures(noise, max_bad=0.1), "relu3")["relu3"].values.tobytes()
    )  # in memory as on disk


def test_a_fault_on_the_way_leaves_no_half_of_a_cache(noise: Path, tmp_path: Path) -> None:
    net = network()
    with torch.no_grad():
        net.model.conv3.weight[0] = float("inf")
    with pytest.raises(ModelError) as fault:
        embedding(net, Pictures(noise, max_bad=0.1), ["pool1", "conv3"], cache=tmp_path / "cache")
    assert fault.value.code == "M600"
    assert "conv3" in str(fault.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_vectors_are_means_of_equal_parts() -> None:
    maps = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(1, 2, 4, 6)
    found = vectors(maps, 2)[0].reshape(2, 2, 2)
    assert found[0, 0, 0] == maps[0, 0, :2, :3].mean()
    assert found[1, 1, 1] == maps[0, 1, 2:, 3:].mean()
    assert vectors(maps, 9).tolist() == maps.flatten(1).tolist()
    assert vectors(torch.zeros(1, ROOM, 3, 3), "auto").shape == (1, ROOM)
    assert vectors(torch.zeros(1, 2, ROOM // 2), "auto").shape == (1, ROOM)
    assert vectors(torch.zeros(1, 7, ROOM), "auto").shape == (1, ROOM)
    with pytest.raises(UsageError) as fault:
        embedding(network(), ".", vector=0)
    assert fault.value.code == "U425"


def test_steps_end_with_the_last_layer_that_changes_the_numbers() -> None:
    assert stages(sequential(), pictures(1)) == ["pool1", "pool2", "relu3", "fc"]
    assert stages(Residual(), pictures(1)) == ["relu#1", "relu#2", "relu#3", "fc"]
    assert stages(nn.Sequential(sequential()), pictures(1)) == [
        "0.pool1",
        "0.pool2",
        "0.relu3",
        "0.fc",
    ]
    assert default_layer(network()) == "relu3"


def test_a_rectifier_that_works_in_place_does_not_reach_the_features_before_it(
    noise: Path,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 33 * 29, 5), nn.ReLU(inplace=True))
    found = embedding(network(model), Pictures(noise, max_bad=0.1), ["1", "2"])
    before, after = found["1"].values, found["2"].values
    assert before.min() < 0
    assert np.maximum(before, 0).tolist() == after.tolist()
