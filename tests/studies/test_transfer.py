"""Do probes and transfer find knowledge in the layer in which it is, and only there?"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.core.errors import UsageError
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.studies.probes.figure import probes_figure
from convscope.studies.probes.record import Probes
from convscope.studies.probes.study import probes
from convscope.studies.retrieval.study import duplicates
from convscope.studies.transfer.figure import transfer_figure
from convscope.studies.transfer.record import Transfer
from convscope.studies.transfer.study import transfer
from convscope.training.recipe import Recipe

SIZE = (12, 20)
EACH = 12


class Sums(nn.Module):
    """Left half's red less right half's, and another number that knows nothing of it."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[3] // 2
        turned = x[:, 0, :, :half].mean((1, 2)) - x[:, 0, :, half:].mean((1, 2))
        return torch.stack([turned, turned.abs(), -turned], 1)


class Forget(nn.Module):
    """Keeps only how strong the difference is, not its direction."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 1], x[:, 1] * 0 + 1], 1)


@pytest.fixture
def network() -> Network:
    model = nn.Sequential()
    model.add_module("knows", Sums())
    model.add_module("forgets", Forget())
    plain = Preprocess(Framing(None, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(model.train(), plain, (), "made", "by hand", "")


@pytest.fixture
def sides(tmp_path: Path) -> Path:
    """Red on the left or on the right, in noise; a third class of one picture."""
    draw = np.random.default_rng(0)
    for number in range(2 * EACH + 1):
        pixels = draw.integers(0, 120, (*SIZE, 3)).astype(np.uint8)
        side = ("left", "right", "lonely")[number // EACH]
        half = slice(0, 10) if side == "left" else slice(10, 20)
        pixels[:, half, 0] += np.uint8(40 + 4 * (number % EACH))
        path = tmp_path / "sides" / side / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "sides"


def test_a_probe_finds_what_a_layer_knows_and_not_what_it_forgot(
    network: Network, sides: Path, tmp_path: Path
) -> None:
    ticks: list[tuple[int, int]] = []
    found = probes(
        network,
        sides,
        ["knows", "forgets"],
        per_class=7,
        folds=3,
        training=lambda done, total: ticks.append((done, total)),
    )
    assert found.short == ("lonely",)
    assert found.classes == ("left", "right")
    assert found.test == 2 * (EACH - 7)
    assert found.accuracy[0].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert found.accuracy[1].mean() < 0.85
    assert ticks[-1] == (12, 12)
    found.save(tmp_path / "record")
    again = Probes.load(tmp_path / "record")
    assert again.accuracy.tolist() == found.accuracy.tolist()
    assert "forgets" in [text.get_text() for text in probes_figure(again).axes[0].get_xticklabels()]


def test_a_new_softmax_learns_from_one_picture_a_class_what_the_layer_knows(
    network: Network, sides: Path, tmp_path: Path
) -> None:
    found = transfer(network, sides, "knows", per_class=(7, 1), folds=2, test=4)
    assert found.per_class == (1, 7)
    assert found.accuracy.tolist() == [[1, 1], [1, 1]]
    assert found.precision.tolist() == [[1, 1], [1, 1]]
    assert found.each.shape == (2, 2)
    assert found.test == 8
    assert found.duplicates == -1
    assert np.isnan(found.scratch).all()
    nothing = transfer(network, sides, "forgets", per_class=[7], folds=6, test=4)
    assert nothing.accuracy.mean() < 0.85
    found.save(tmp_path / "record")
    again = Transfer.load(tmp_path / "record")
    drawn = transfer_figure(again, beside="caltech-101").axes[0]
    assert len(drawn.get_legend().get_texts()) == 4


def test_pictures_of_the_source_are_left_out(network: Network, sides: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for name in ("left/00.png", "right/12.png", "right/13.png"):
        shutil.copy(sides / name, tmp_path / "source" / name.replace("/", "-"))
    twice = duplicates(network, sides, tmp_path / "source", "pixels")
    found = transfer(network, sides, "knows", per_class=[3], folds=1, without=twice)
    assert found.duplicates == found.left_out == 3
    assert found.test == (EACH - 1 - 3) + (EACH - 2 - 3)


def test_what_cannot_be_asked_is_refused(network: Network) -> None:
    with pytest.raises(UsageError) as fault:
        transfer(network, "nowhere", per_class=[3], scratch=Recipe())
    assert fault.value.code == "U431"
    with pytest.raises(UsageError) as fault:
        probes(network, "nowhere", kinds=["forest"])
    assert fault.value.code == "U430"


@pytest.mark.slow
def test_the_same_pictures_also_teach_a_network_from_scratch(
    network: Network, sides: Path, tmp_path: Path
) -> None:
    shutil.rmtree(sides / "lonely")
    plan = Recipe(
        model="zfnet:width=0.1,head=compact", epochs=2, batch=4, size=64, test_size=64, cache=64
    )
    more = {"scratch": plan, "runs": tmp_path / "runs"}
    found = transfer(network, sides, "knows", per_class=[4], folds=1, test=4, **more)  # type: ignore[arg-type]
    assert 0 <= found.scratch[0, 0] <= 1
    assert (tmp_path / "runs" / "4-fold0").is_dir()
