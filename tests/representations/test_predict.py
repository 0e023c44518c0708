"""Are pictures taken for what the network takes them for, and counted right?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convscope.core.errors import DataError, ModelError, UsageError
from convscope.network.load import Network, load
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures, one_picture
from convscope.representations.predict import evaluate, plan, predict

DATA = Path(__file__).parents[2].parent / "shared" / "data"
CLASSES = ("blue", "red", "green")
"""Not in the folder's order, so that a match by place would be seen."""


class Brightest(nn.Module):
    """Scores red, green and blue by their mean: what it answers can be read off the picture."""

    def __init__(self, order: tuple[int, int, int] = (2, 0, 1)) -> None:
        super().__init__()
        self.order = list(order)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * x.mean((2, 3))[:, self.order]


def network(model: nn.Module, classes: tuple[str, ...] = CLASSES, crop: int = 20) -> Network:
    preprocess = Preprocess(Framing(24, (crop, crop)), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(model.eval(), preprocess, classes, "tests:brightest", "none", "")


def colour(red: int, green: int, blue: int) -> Image.Image:
    return Image.fromarray(np.full((30, 44, 3), (red, green, blue), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Pictures]:
    """Four reds (one of them green), two greens, one blue, and a file that is no picture."""
    for name, colours in {
        "blue": [(10, 20, 200)],
        "green": [(0, 90, 10), (0, 200, 0)],
        "red": [(99, 0, 0), (250, 80, 9), (5, 77, 0), (200, 199, 0)],
    }.items():
        (tmp_path / name).mkdir()
        for number, one in enumerate(colours):
            colour(*one).save(tmp_path / name / f"{number}.png")
    (tmp_path / "red" / "broken.png").write_bytes(b"nothing")
    with Pictures(tmp_path, max_bad=0.2) as opened:
        yield opened


def test_right_and_wrong_are_counted_by_the_networks_own_classes(folder: Pictures) -> None:
    found = evaluate(network(Brightest()), folder)
    assert found.top1 == pytest.approx(6 / 7)
    assert found.top5 == 1.0
    assert found.names == CLASSES
    assert found.confusion.tolist() == [[1, 0, 0], [0, 3, 1], [0, 0, 2]]
    np.testing.assert_allclose(found.per_class, [1.0, 0.75, 1.0])
    assert found.skipped == 1
    wrong = found.labels != found.likeliest[:, 0]
    assert [found.pictures[place] for place in np.nonzero(wrong)[0]] == ["red/2.png"]
    assert [folder.names[number] for number in found.numbers] == list(found.pictures)


def test_a_record_of_it_can_be_saved_and_read(folder: Pictures, tmp_path: Path) -> None:
    found = evaluate(network(Brightest()), folder)
    again = type(found).load(found.save(tmp_path / "out"))
    assert (again.top1, again.names, again.pictures) == (found.top1, found.names, found.pictures)
    assert np.array_equal(again.confusion, found.confusion)


def test_the_probabilities_are_the_softmax_by_hand(folder: Pictures) -> None:
    seen = folder.one(0)
    found = predict(network(Brightest()), seen, top=2)
    scores = np.array([200, 10, 20]) / 255 * 10
    expected = np.exp(scores) / np.exp(scores).sum()
    assert found.names == ("blue", "green")
    np.testing.assert_allclose(found.probability, [expected[0], expected[2]], rtol=1e-5)
    assert found.classes.tolist() == [0, 2]


def test_of_equal_probabilities_the_lower_class_comes_first(tmp_path: Path) -> None:
    colour(70, 70, 70).save(tmp_path / "grey.png")
    found = predict(network(Brightest()), one_picture(tmp_path / "grey.png"))
    assert found.classes.tolist() == [0, 1, 2]


def test_classes_are_matched_by_place_only_if_the_network_has_no_names(folder: Pictures) -> None:
    nameless = network(Brightest((2, 1, 0)), ())
    assert evaluate(nameless, folder).top1 == pytest.approx(6 / 7)
    assert evaluate(nameless, folder).names == ("0", "1", "2")
    other = network(Brightest(), ("blau", "rot", "grün"))
    with pytest.raises(DataError, match="blue: is no class of the network") as caught:
        evaluate(other, folder)
    assert caught.value.code == "D160"


def test_labels_may_name_pictures_files_or_class_folders(folder: Pictures) -> None:
    by_class = {"blue": 0, "red": 1, "green": 2}
    assert evaluate(network(Brightest(), ()), folder, labels=by_class).top1 == pytest.approx(6 / 7)
    mixed = by_class | {"red/2.png": 2}
    assert evaluate(network(Brightest()), folder, labels=mixed).top1 == 1.0
    only = evaluate(network(Brightest()), folder, labels={"0.png": 1})
    assert only.pictures == ("blue/0.png", "green/0.png", "red/0.png")
    assert only.top1 == pytest.approx(1 / 3)
    with pytest.raises(UsageError, match="the network has 0 to 2"):
        evaluate(network(Brightest()), folder, labels={"red": 3})
    with pytest.raises(DataError, match="no known class"):
        evaluate(network(Brightest()), folder, labels={})


def test_ten_views_are_the_corners_and_the_centre_and_their_mirror_images() -> None:
    numbers = np.arange(24 * 24 * 3).reshape(24, 24, 3) % 251
    square = numbers.astype(np.uint8)
    framing, cut = plan(network(Brightest()).preprocess, 10)
    assert framing == Framing(24, (24, 24))
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    slow = [
        np.array([[square[y + i, x + j] for j in range(20)] for i in range(20)]) for y, x in places
    ]
    expected = [*slow, *(one[:, ::-1] for one in slow)]
    seen = cut(square)
    assert len(seen) == 10
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(seen, expected, strict=True))


@pytest.mark.parametrize("size", [(31, 47), (50, 33), (24, 24)])
def test_the_fifth_of_ten_views_is_the_single_view(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8))
    preprocess = Preprocess(Framing(24, (19, 19)), (0.0,) * 3, (1.0,) * 3)
    single, _ = plan(preprocess, 1)
    square, cut = plan(preprocess, 10)
    difference = cut(square(picture))[4].astype(int) - single(picture)
    # Cutting first or resampling first may round a pixel differently; a shift would show as noise.
    assert abs(difference).max() <= 2


def test_ten_views_are_averaged_after_the_softmax(folder: Pictures) -> None:
    class Corner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 5 * x[:, :, 0, 0]

    left = np.zeros((24, 24, 3), np.uint8)
    left[:, :12, 0] = 255
    left[:, 12:, 1] = 255
    from convscope.pictures.pictures import Picture

    half = Picture(0, "half", None, left)
    one = predict(network(Corner(), ("red", "green", "blue")), half)
    ten = predict(network(Corner(), ("red", "green", "blue")), half, views=10)
    high = np.exp(5) / (np.exp(5) + 2)
    low = 1 / (np.exp(5) + 2)
    np.testing.assert_allclose(one.probability, [high, low, low], rtol=1e-5)
    # Every view begins red, every mirror image green.
    mean = (high + low) / 2
    np.testing.assert_allclose(ten.probability, [mean, mean, low], rtol=1e-5)


def test_other_numbers_of_views_and_squares_too_small_are_refused(folder: Pictures) -> None:
    with pytest.raises(UsageError, match="1 \\(centre\\) or 10 views"):
        evaluate(network(Brightest()), folder, views=5)
    with pytest.raises(UsageError, match="smaller than a view"):
        evaluate(network(Brightest(), crop=30), folder, views=10)


def test_scores_that_are_not_finite_are_no_answer(folder: Pictures) -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) / 0 * 0

    with pytest.raises(ModelError, match="not finite") as caught:
        evaluate(network(Broken()), folder)
    assert caught.value.code == "M560"


@pytest.mark.slow
def test_squeezenet_is_right_on_430_of_the_702_imagenet_samples() -> None:
    """The figures that the weights' publisher's pictures gave: 61.3 % top-1, 82.5 % top-5."""
    samples = DATA / "imagenet-samples"
    if not samples.exists():
        pytest.skip("needs ../shared/data/imagenet-samples")
    squeezenet = load("torchvision:squeezenet1_0", DATA / "squeezenet1_0_imagenet.safetensors")
    labels = json.loads((samples / "class_index.json").read_text())
    with Pictures(samples) as folder:
        found = evaluate(squeezenet, folder, labels=labels)
    assert len(found.labels) == 702
    assert round(found.top1 * 702) == 430
    assert round(found.top5 * 702) == 579
