"""Do networks whose answer is known stand still, or move, as arithmetic says?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.cli.app import run
from convscope.core.errors import ConvscopeError
from convscope.core.text import lines
from convscope.network.load import load
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.studies.invariance.figure import invariance_figure, invariance_table
from convscope.studies.invariance.record import Invariance
from convscope.studies.invariance.study import invariance, paper_changes
from tests import nets

SIZE = (36, 44)
BLOB = 6
SHIFTS = {"vertical": [-9, -6, 0, 8, 12], "horizontal": [-14, 0, 7, 14]}
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


class Anywhere(nn.Module):
    """Whole-number filters, and the strongest place of each: where it is does not count."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 5, (3, 2), bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(5, 4)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randint(-2, 3, self.conv.weight.shape, generator=draw))
            self.fc.weight.copy_(torch.randint(-2, 3, self.fc.weight.shape, generator=draw) / 512)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.relu(self.conv(x))).flatten(1))


class Place(nn.Module):
    """Hands on its pixels: each shift is another picture to it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1, bias=False)
        self.fc = nn.Linear(SIZE[0] * SIZE[1], 2)
        nn.init.constant_(self.conv.weight, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


def whole_numbers(model: nn.Module) -> Network:
    """Pixels as whole numbers around a grey of 100, so that sums are exact."""
    grey = Preprocess(Framing(None, SIZE), (100.0,) * 3, (1.0,) * 3, 1.0)
    return load(model.train(), preprocess=grey)


@pytest.fixture
def blobs(tmp_path: Path) -> Pictures:
    """Three pictures of a coloured blob in the middle of the mean's grey."""
    draw = np.random.default_rng(0)
    for number in range(3):
        pixels = np.full((*SIZE, 3), 100, np.uint8)
        top, left = (SIZE[0] - BLOB) // 2, (SIZE[1] - BLOB) // 2
        pixels[top : top + BLOB, left : left + BLOB] = draw.integers(0, 256, (BLOB, BLOB, 3))
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return Pictures(tmp_path)


def test_a_shift_invariant_network_has_zero_distance_at_its_high_layer(blobs: Pictures) -> None:
    network = whole_numbers(Anywhere())
    before = nets.state_of(network.model)
    found = invariance(network, blobs, changes=SHIFTS)
    assert found.layers == ("relu", "pool")
    assert (found.distance[:, 1] == 0).all()
    assert (found.distance[:, 0][:, found.amount != 0] > 0).all()
    assert np.ptp(found.probability, axis=1).max() < 1e-6
    assert (found.likeliest == found.base_likeliest[:, None]).all()
    assert nets.state_of(network.model) == before


def test_a_blob_that_has_left_its_place_is_orthogonal_to_itself(blobs: Pictures) -> None:
    found = invariance(whole_numbers(Place()), blobs, changes=SHIFTS, layers="conv")
    away = np.abs(found.amount) >= BLOB
    assert found.normalised[:, 0, away] == pytest.approx(np.full((3, away.sum()), 2**0.5))
    assert (found.distance[:, 0, found.amount == 0] == 0).all()
    pixels = [blobs.one(number).pixels.astype(int) - 100 for number in range(3)]
    expected = [2**0.5 * np.sqrt((one.sum(2) ** 2).sum()) for one in pixels]
    assert found.distance[:, 0, 0] == pytest.approx(expected)


def test_what_moves_out_is_lost_to_a_shift_invariant_network_too(blobs: Pictures) -> None:
    found = invariance(whole_numbers(Anywhere()), blobs, changes={"horizontal": [0, 30]})
    assert (found.distance[:, 1, 1] > 0).all()
    assert found.filled[:, 1] == pytest.approx(30 / SIZE[1])


def test_the_picture_beyond_the_crop_comes_before_the_border(tmp_path: Path) -> None:
    Image.fromarray(np.full((80, 60, 3), 30, np.uint8)).save(tmp_path / "plain.png")
    network = load(
        Anywhere(), preprocess=Preprocess(Framing(60, SIZE), (100.0,) * 3, (1.0,) * 3, 1)
    )
    how = {"changes": {"vertical": [22, 23]}, "layers": "conv"}
    found = invariance(network, tmp_path, **how)  # type: ignore[arg-type]
    assert (found.distance[0, 0] == 0).tolist() == [True, False]
    assert found.filled[0] == pytest.approx([0, 1 / SIZE[0]])
    assert found.border.startswith("the picture itself beyond the crop (shorter side 60)")
    cut = invariance(network, tmp_path, beyond=False, **how)  # type: ignore[arg-type]
    assert (cut.distance[0, 0] > 0).all()
    assert cut.border == "the colour (100, 100, 100) (the mean), from the network's crop on"


def test_the_area_is_the_mean_over_the_range(blobs: Pictures) -> None:
    found = invariance(whole_numbers(Place()), blobs, changes=SHIFTS)
    line = np.abs(found.amount) * 2.0
    sides = {"vertical": (9 * 9 + 12 * 12) / 21, "horizontal": 14.0}
    for change, name in enumerate(found.changes):
        assert found.area(line, change) == pytest.approx(sides[name])


def test_true_classes_are_followed_where_they_are_known(blobs: Pictures) -> None:
    network = whole_numbers(Anywhere())
    told = invariance(network, blobs, changes=SHIFTS, labels={"0.png": 3, "2.png": 1})
    assert told.known.tolist() == [True, False, True]
    assert told.target[[0, 2]].tolist() == [3, 1]
    assert told.target[1] == told.base_likeliest[1]
    image = network.preprocess.batch([blobs.one(0).pixels])
    share = network.model.eval()(image).softmax(1)[0, 3].detach()
    assert told.base_probability[0] == pytest.approx(float(share))


def test_the_papers_ranges_are_the_papers() -> None:
    told = paper_changes((224, 224))
    assert (told["vertical"][0], told["vertical"][-1]) == (-60, 60)
    assert (told["scale"][0], told["scale"][-1]) == (1, 1.8)
    assert (told["rotation"][0], told["rotation"][-1]) == (0, 350)
    assert paper_changes((112, 448))["vertical"][-1] == 30
    assert paper_changes((112, 448))["horizontal"][-1] == 120


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ({"changes": {}}, "U411"),
        ({"changes": {"vertical": []}}, "U411"),
        ({"changes": {"vertikal": [1]}}, "U411"),
        ({"border": "miror"}, "U411"),
        ({"layers": "conv9"}, "M500"),
        ({"labels": {"0.png": 9}}, "U311"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    how: dict[str, object], code: str, blobs: Pictures
) -> None:
    with pytest.raises(ConvscopeError) as fault:
        invariance(whole_numbers(Anywhere()), blobs, **{"changes": SHIFTS, **how})  # type: ignore[arg-type]
    assert fault.value.code == code


@pytest.mark.parametrize("pictures", [3, 10])
def test_the_figure_has_a_curve_a_picture_and_their_mean(pictures: int, blobs: Pictures) -> None:
    many = blobs.subset([number % 3 for number in range(pictures)])
    found = invariance(whole_numbers(Place()), many, changes=SHIFTS)
    panels = invariance_figure(found).axes
    assert len(panels) == len(SHIFTS) * (len(found.layers) + 2)
    probability = panels[len(found.layers) + 1]
    assert len(probability.lines) == pictures + 1
    mean = np.asarray(probability.lines[-1].get_ydata(), np.float64)
    assert mean == pytest.approx(found.probability[:, found.at(0)].mean(0), abs=1e-6)


def test_the_command_keeps_record_table_and_figures(
    tmp_path: Path,
    blobs: Pictures,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = {"vertical": [-2.0, 2.0], "rotation": [0.0, 90.0]}
    monkeypatch.setattr("convscope.studies.invariance.study.paper_changes", lambda size: few)
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"0.png": 3}))
    out = tmp_path / "out"
    spec = "zfnet:width=0.0625,head=compact"
    files = [str(blobs.root / "0.png"), str(blobs.root / "1.png")]
    asked = ["invariance", spec, *files, "--labels", str(labels), "--border", "edge"]
    assert run([*asked, "--out", str(out)]) == 0
    found = Invariance.load(out)
    assert found.layers == ("pool1", "avgpool")
    assert found.known.tolist() == [True, False]
    table = (out / "table.md").read_text()
    assert capsys.readouterr().out == f"{table}{out / 'figure.pdf'}\n"
    assert table.splitlines() == lines(invariance_table(found))
    assert "paper" not in table
    assert "paper's axes" in lines(invariance_table(found, beside=True))[0]
    assert table.endswith("then the outermost pixels repeated.\n")
    assert {"figure.svg", "figure-raw.pdf"} <= {path.name for path in out.iterdir()}
    assert run(["invariance", spec, str(blobs.root), str(blobs.root), "--out", "x"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="real pictures and weights are not here")
def test_squeezenet_knows_shifted_pictures_better_than_turned_ones() -> None:
    weights = SHARED / "squeezenet1_0_imagenet.safetensors"
    network = load("torchvision:squeezenet1_0", weights)
    names = ("Shih-Tzu", "African_crocodile", "African_grey", "entertainment_center", "tractor")
    with Pictures(SHARED / "imagenet-samples") as folder:
        five = folder.subset(lambda name: name.partition("_")[2].removesuffix(".jpg") in names)
        labels = json.loads((SHARED / "imagenet-samples" / "class_index.json").read_text())
        found = invariance(network, five, labels=labels)
    assert found.known.all()
    kept = [found.kept(change).mean() for change in range(4)]
    assert min(kept[:2]) > kept[3]
    shares = found.probability.astype(np.float64)
    assert found.area(shares, 0).mean() > 2 * found.area(shares, 3).mean()
