"""Is the one map that carries the class found, and are all numbers those of the slow way?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from convscope.core.errors import ConvscopeError
from convscope.core.run import Run
from convscope.core.text import lines
from convscope.network.load import load
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.studies.unit_ablation.figure import silence_figure, silence_table
from convscope.studies.unit_ablation.record import Silence
from convscope.studies.unit_ablation.study import silence
from tests.nets import Spelled

SIZE = (66, 58)
EACH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pictures]:
    """Red and green pictures in noise, four of each; blue says nothing."""
    root = tmp_path_factory.mktemp("silence")
    draw = np.random.default_rng(0)
    for number in range(2 * EACH):
        pixels = draw.integers(0, 60, (*SIZE, 3)).astype(np.uint8)
        pixels[..., 0 if number < EACH else 1] += 150
        place = root / ("red" if number < EACH else "green") / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place)
    with Pictures(root) as found:
        yield found


def network_of(model: nn.Module, classes: tuple[str, ...] = ("green", "red")) -> Network:
    plain = Preprocess(Framing(None, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(model.train(), plain, classes, "made", "by hand", "")


def only_map_2() -> nn.Sequential:
    """Map 2 is red, 0 and 3 are green and blue, which nobody asks; map 1 is always silent.

    The score of red is the red map's mean, that of green a constant between.
    """
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(3, 4, 3, padding=1, bias=False))
    model.add_module("relu", nn.ReLU(inplace=True))
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    model.add_module("fc", nn.Linear(4, 2))
    with torch.no_grad():
        model.conv.weight.zero_()
        for number, colour, sign in ((0, 1, 1), (1, 0, -1), (2, 0, 1), (3, 2, 1)):
            model.conv.weight[number, colour, 1, 1] = sign
        model.fc.weight.zero_()
        model.fc.weight[1, 2] = 20
        model.fc.bias[:] = torch.tensor([7.0, 0.0])
    return model


def test_only_the_map_that_carries_the_class_matters(folder: Pictures, tmp_path: Path) -> None:
    ticks: list[tuple[int, int]] = []
    model = only_map_2()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = silence(
        network_of(model), folder, "relu", run=Run(progress=lambda *tick: ticks.append(tick))
    )
    assert found.base_accuracy == 1
    assert found.accuracy.tolist() == [1, 1, 0.5, 1]  # all green: chance
    assert found.lost.tolist() == [0, 0, EACH, 0]
    assert found.gained.tolist() == [0, 0, 0, 0]
    assert found.p.tolist() == [1, 1, 2 / 2**EACH, 1]
    assert found.rise[[0, 1, 3]] == pytest.approx([0, 0, 0], abs=1e-7)
    assert found.changed.tolist() == [2 * EACH, 0, 2 * EACH, 2 * EACH]
    assert found.classes == ("green", "red")
    assert found.by_class[2, 1] > 5 > 0 > found.by_class[2, 0]  # green is even surer
    assert found.own(0)[0] == 2
    assert found.beyond_chance(0).tolist() == [2]
    assert ticks[-1] == (8, 8)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    table = "\n".join(lines(silence_table(found, first=2)))
    assert "100.0% right" in table
    assert "1 matter beyond chance, 1 change nothing; without one map between 50.0% and" in table
    assert "| 50.0% | −4 +0 | 0.12 | red (" in " ".join(table.split())
    left, right = silence_figure(found).axes
    assert left.get_title(loc="left") == "relu: 1 of 4 maps beyond chance"
    assert left.collections[-1].get_offsets().tolist() == [[1, found.rise[2]]]
    assert right.get_yticklabels()[0].get_text() == "2"
    found.save(tmp_path / "record")
    assert Silence.load(tmp_path / "record").rise.tolist() == found.rise.tolist()


def test_its_mean_takes_away_what_a_map_tells_apart_but_not_what_it_always_says(
    folder: Pictures,
) -> None:
    found = silence(network_of(only_map_2()), folder, "relu", fill="mean")
    red = np.stack([picture.pixels[..., 0] for picture in folder.read()]) / 255
    assert found.level[2] == pytest.approx(red.mean(), rel=1e-5)
    logit = 20 * red.mean() - 7
    p = np.where(np.arange(8) < EACH, 1, -1) * logit  # red: 1, green: −1 … for the true class
    expected = np.log1p(np.exp(-p)).mean()
    assert found.base_loss + found.rise[2] == pytest.approx(expected, rel=1e-5)
    assert found.accuracy[2] == 0.5


def test_with_many_classes_the_first_maps_are_shown_with_their_noise(folder: Pictures) -> None:
    found = silence(network_of(only_map_2()), folder, "relu")
    many = replace(found, classes=tuple("abcdefghijklm"), by_class=np.zeros((4, 13)))
    right = silence_figure(many).axes[1]
    assert [text.get_text() for text in right.texts] == ["−4 +0", "−0 +0", "−0 +0", "−0 +0"]


def test_of_maps_without_effect_hardly_one_lies_beyond_chance(folder: Pictures) -> None:
    found = silence(network_of(only_map_2()), folder, "relu")
    draw, noise = np.random.default_rng(1), np.full(400, 0.02)
    alike = {name: np.zeros(400, np.int64) for name in ("of", "lost", "gained", "changed")}
    counts = []
    for _ in range(50):
        idle = replace(found, rise=draw.normal(0, noise), noise=noise, map=np.arange(400), **alike)
        counts.append(len(idle.beyond_chance(0)))
    assert np.mean(counts) < 0.5  # 400 maps at p < 0.05 would be 10 in each draw
    real = replace(idle, rise=idle.rise + np.where(np.arange(400) == 7, 0.2, 0))
    assert real.beyond_chance(0)[0] == 7


def slowly(network: Network, folder: Pictures, layer: str, level: np.ndarray) -> np.ndarray:
    """ln p(true class) without each map, by a hook on a copy and a whole run for each map."""
    model = network.model.eval()
    rows = []
    for picture in folder.read(network.preprocess.framing):
        image = network.preprocess.batch([picture.pixels])
        label = network.classes.index(folder.classes[picture.label or 0])
        row = []
        for number in range(-1, len(level)):

            def hook(_: nn.Module, __: object, output: Tensor, number: int = number) -> Tensor:
                changed = output.clone()
                if number >= 0:
                    changed[:, number] = float(level[number])
                return changed

            handle = dict(model.named_modules())[layer].register_forward_hook(hook)
            with torch.no_grad():
                row.append(float(model(image).double().log_softmax(1)[0, label]))
            handle.remove()
        rows.append(row)
    return np.array(rows)


class Reads(Spelled):
    """Looks at a number in the middle, so that only the whole network can be run again."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.conv1(x)))
        if float(x.detach().sum()) > 1e9:
            x = -x
        return self.fc(F.relu(self.conv2(x)).amax((2, 3)))


def nets() -> dict[str, tuple[nn.Module, str]]:
    torch.manual_seed(3)
    tower = load("zfnet:width=0.06,norm=lrn,fc=400", classes=7).model
    for module in tower.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.bias, std=0.1)
    skipping = Spelled(F.relu)
    return {
        "a skip path": (skipping, "conv2"),
        "the first convolution": (skipping, "conv1"),
        "a read value": (Reads(F.relu), "conv1"),
        "a tower's rectifier": (tower, "relu3"),
        "a tower's last pool": (tower, "pool5"),
        "units before the classifier": (tower, "relu7"),
        "units before units": (tower, "relu6"),
    }


@pytest.mark.parametrize("fill", ["zero", "mean"])
@pytest.mark.parametrize("name", nets())
def test_every_number_is_that_of_a_hook_and_whole_runs(
    name: str, fill: str, folder: Pictures
) -> None:
    model, layer = nets()[name]
    names = ("a", "green", "c", "red", "e", "f", "g")
    network = network_of(model, names)
    found = silence(network, folder, [layer], fill=fill)  # type: ignore[arg-type]
    assert (found.level != 0).any() == (fill == "mean")
    expected = slowly(network, folder, layer, found.level)
    base, without = expected[:, :1], expected[:, 1:]
    rise = (base - without).mean(0)
    assert np.abs(rise).max() > 1e-3
    assert found.base_loss == pytest.approx(-base.mean(), abs=1e-5)
    np.testing.assert_allclose(found.rise, rise, atol=2e-5)
    np.testing.assert_allclose(found.probability, np.exp(without).mean(0), atol=2e-5)
    np.testing.assert_allclose(found.noise, (base - without).std(0, ddof=1) / np.sqrt(8), atol=2e-5)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"layers": "rleu"}, "M500"),
        ({"fill": "one"}, "U404"),
        ({"labels": {"red": 9}}, "U311"),
        ({"labels": {}}, "D160"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    options: dict[str, object], code: str, folder: Pictures
) -> None:
    with pytest.raises(ConvscopeError) as caught:
        silence(network_of(only_map_2()), folder, **options)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_scores_that_are_no_numbers_are_told_with_the_picture(folder: Pictures) -> None:
    model = only_map_2()
    with torch.no_grad():
        model.fc.bias[0] = torch.nan
    with pytest.raises(ConvscopeError, match=r"red/0\.png|green/4\.png") as caught:
        silence(network_of(model), folder)
    assert caught.value.code == "M514"
