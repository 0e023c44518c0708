"""Is hiding the same part the same to a network that knows only that part, and what is refused?"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.cli.app import run
from convscope.core.errors import ConvscopeError
from convscope.core.run import Run
from convscope.core.text import lines
from convscope.network.load import load
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.studies.correspondence.figure import PAPER, correspondence_table, masked
from convscope.studies.correspondence.record import Correspondence
from convscope.studies.correspondence.study import correspondence
from tests import nets

HEIGHT, WIDTH = 40, 56
RED, GREEN = (255, 0, 0), (0, 255, 0)
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


class Colours(nn.Module):
    """Puts out how much red and how much green there is, and nothing else of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Conv2d(3, 2, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.seen.weight.zero_()
            self.seen.weight[0, :, 0, 0] = torch.tensor([1.0, -1.0, -1.0])
            self.seen.weight[1, :, 0, 0] = torch.tensor([-1.0, 1.0, -1.0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.seen(x))
        return self.fc(x.sum((2, 3)))


@pytest.fixture
def network() -> Network:
    preprocess = Preprocess(Framing(None, (HEIGHT, WIDTH)), (0.0,) * 3, (1.0,) * 3)
    return load(Colours().train(), preprocess=preprocess)


@pytest.fixture
def marked(tmp_path: Path) -> tuple[Path, Path]:
    """Grey pictures with a red and a green square of 6 pixels, each time somewhere else."""
    draw = np.random.default_rng(3)
    folder, told = tmp_path / "pictures", {}
    folder.mkdir()
    for number in range(4):
        pixels = np.full((HEIGHT, WIDTH, 3), 90 + number, np.uint8)
        (x1, x2), (y1, y2) = draw.choice(5, 2, False) * 10 + 6, draw.choice(3, 2, False) * 10 + 8
        for x, y, colour in ((x1, y1, RED), (x2, y2, GREEN)):
            pixels[y - 3 : y + 3, x - 3 : x + 3] = colour
        Image.fromarray(pixels).save(folder / f"{number}.png")
        told[f"{number}.png"] = {"red": [int(x1), int(y1)], "green": [int(x2), int(y2)]}
    path = tmp_path / "parts.json"
    path.write_text(json.dumps({"images": told}))
    return folder, path


def ask(network: Network, marked: tuple[Path, Path], **how: object) -> Correspondence:
    options: dict[str, object] = {"patch": 8, "permutations": 400, "around": math.inf, **how}
    return correspondence(network, *marked, **options)  # type: ignore[arg-type]


class Sums(nn.Module):
    """The same network, whose layer `total` puts out the two sums."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = Colours()
        self.total = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.total(self.colours.relu(self.colours.seen(x)).sum((2, 3)))
        return self.colours.fc(x)


def test_the_same_part_is_the_same_change_everywhere(
    network: Network, marked: tuple[Path, Path]
) -> None:
    summed = load(Sums(), preprocess=network.preprocess)
    found = ask(summed, marked, layers="total")
    assert found.parts == ("red", "green")
    assert found.pairs.tolist() == [[[0.0] * 6, [0.0] * 6]]  # red falls, green stays: always
    assert found.changed[0, :2].tolist() == [0.5, 0.5]
    assert found.mean[0, 2] > 0.1  # random squares meet red, green, both or nothing
    assert found.relative[0, :2].tolist() == [0.0, 0.0]
    assert found.p[0, -1] < 0.05


def test_places_do_differ_where_a_layer_keeps_them(
    network: Network, marked: tuple[Path, Path]
) -> None:
    found = ask(network, marked, layers="relu")
    squares = 36 / (2 * HEIGHT * WIDTH)  # units that change, of all
    assert found.changed[0, :2] == pytest.approx([squares, squares])
    shared = [place == 0 for place in (found.pairs[0, 0] - 2 * squares).round(9)]
    assert any(shared)  # squares at different places share no unit that changes


def test_masks_cover_their_parts_and_stay_inside(
    network: Network, marked: tuple[Path, Path]
) -> None:
    found = ask(network, marked, draws=30)
    assert found.corners.shape == (4, 32, 2)
    assert (found.corners >= 0).all()
    assert (found.corners <= (HEIGHT - 8, WIDTH - 8)).all()
    for picture in range(4):
        assert not (masked(found, picture, 0) == RED).all(2).any()
        assert (masked(found, picture, 0) == GREEN).all(2).sum() == 36
        assert (masked(found, picture, -1) == RED).all(2).sum() == 36
    near = ask(network, marked, draws=30, around=0.0).corners
    parts, random = near[:, :2], near[:, 2:]
    assert (random >= parts.min(1, keepdims=True)).all()
    assert (random <= parts.max(1, keepdims=True)).all()


def test_the_network_is_left_alone_and_the_seed_decides(
    network: Network, marked: tuple[Path, Path]
) -> None:
    before = nets.state_of(network.model)
    first, second, other = (ask(network, marked, run=Run(seed=seed)) for seed in (0, 0, 1))
    assert nets.state_of(network.model) == before
    assert (first.random_pairs == second.random_pairs).all()
    assert (first.corners[:, :2] == other.corners[:, :2]).all()
    assert (first.corners[:, 2:] != other.corners[:, 2:]).any()


@pytest.mark.parametrize(
    ("change", "how", "code"),
    [
        (lambda told: told["0.png"].pop("red"), {}, "D174"),
        (lambda told: told["0.png"].update(red=[900, 3]), {}, "D174"),
        (lambda told: told.update({"9.png": told["0.png"]}), {}, "D174"),
        (lambda told: [told.pop(f"{n}.png") for n in range(3)], {}, "D174"),
        (None, {"patch": 41}, "U410"),
        (None, {"draws": 0}, "U410"),
        (None, {"around": math.nan}, "U410"),
        (None, {"fill": "median"}, "U531"),
        (None, {"layers": "conv9"}, "M500"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    change: object, how: dict[str, object], code: str, network: Network, marked: tuple[Path, Path]
) -> None:
    told = json.loads(marked[1].read_text())
    if change is not None:
        change(told["images"])  # type: ignore[operator]
        marked[1].write_text(json.dumps(told))
    with pytest.raises(ConvscopeError) as fault:
        ask(network, marked, **how)
    assert fault.value.code == code


def test_the_command_keeps_record_table_and_figures(
    tmp_path: Path, marked: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    told = {f"{n}.png": {"nose": [20 + n, 9], "ear": [30, 20 + n]} for n in range(4)}
    marked[1].write_text(json.dumps(told))
    out = tmp_path / "out"
    spec = "zfnet:width=0.0625,head=compact"
    arguments = [*map(str, marked[:1]), "--parts", str(marked[1]), "--draws", "3"]
    assert run(["correspondence", spec, *arguments, "--out", str(out)]) == 0
    found = Correspondence.load(out)
    assert found.layers == ("pool5", "avgpool")
    assert (found.patch, found.random_pairs.shape[1:]) == (32, (3, 6))
    said = capsys.readouterr().out
    table = (out / "table.md").read_text()
    assert said == f"{table}{out / 'figure.pdf'}\n"
    assert table.splitlines() == lines(correspondence_table(found))
    assert "paper" not in table
    beside = "\n".join(lines(correspondence_table(found, beside=True)))
    assert "| paper, layer 5 | nose      | 0.079 ± 0.017 |" in beside
    assert {path.name for path in out.iterdir()} >= {"figure.pdf", "figure.svg", "figure.png"}
    assert run(["correspondence", spec, *arguments, "--out", str(out)]) == 5


def test_the_papers_numbers_are_the_papers() -> None:
    assert PAPER["random"] == ((0.107, 0.017), (0.073, 0.014))
    assert PAPER["right_eye"][1] == (0.069, 0.015)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="real pictures and weights are not here")
def test_squeezenet_relates_the_eyes_of_eight_dogs() -> None:
    weights = SHARED / "squeezenet1_0_imagenet.safetensors"
    network = load("torchvision:squeezenet1_0", weights)
    samples = SHARED / "imagenet-samples"
    found = correspondence(network, samples, samples / "dog_parts.json")
    assert found.layers == ("features.12",)
    assert found.parts == ("left_eye", "right_eye", "nose")
    assert (found.mean[0, :2] < found.mean[0, 3]).all()
    assert (found.relative[0, :3] < found.relative[0, 3]).all()
    assert found.p_relative[0, -1] < 0.001
