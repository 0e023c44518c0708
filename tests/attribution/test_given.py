"""May what a user has at hand be given as it is, and is the rest refused in one line?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convscope import (
    Lens,
    Unit,
    deconvnet,
    evaluate,
    features,
    fields,
    load,
    one_picture,
    open_pictures,
    predict,
    topk,
)
from convscope.core.errors import ConvscopeError
from convscope.network.layers import layer_table
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing


def noisy_net(channels: int) -> nn.Sequential:
    """In train mode, where dropout and batch norm would make every answer another."""
    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(channels, 5, 3))
    net.add_module("bn1", nn.BatchNorm2d(5))
    net.add_module("relu1", nn.ReLU(inplace=True))
    net.add_module("drop", nn.Dropout(0.5))
    net.add_module("conv2", nn.Conv2d(5, 4, 3, stride=2))
    net.add_module("flat", nn.Flatten())
    net.add_module("fc", nn.Linear(4 * 8 * 11, 2))
    return net.train()


@pytest.fixture(params=[3, 1], ids=["colour", "grey"])
def network(request: pytest.FixtureRequest) -> Network:
    channels = int(request.param)
    ready = Preprocess(Framing(None, (20, 26)), (0.4,) * channels, (0.3,) * channels)
    return load(noisy_net(channels), preprocess=ready, classes=["a", "b"])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for number in range(5):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        pixels = draw.integers(0, 255, (20, 26, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path


def test_a_network_does_where_a_module_does(network: Network, place: Path) -> None:
    ready, model = network.preprocess, network.model
    tensor = ready.tensor(one_picture(place / "a" / "0.png").pixels)[None]
    with open_pictures(str(place)) as folder:
        long = topk(model, folder, ["conv2"], preprocess=ready, k=2)
        assert np.array_equal(topk(network, folder, layers=["conv2"], k=2).value, long.value)
    short = topk(network, place, layers="conv2", k=2)
    assert np.array_equal(short.image, long.image)
    assert short.layers == ("conv2",)
    ours, theirs = (deconvnet(one, tensor, Unit("conv2", 1))[0] for one in (network, model))
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert ours.pixels.shape == ready.shape
    assert np.abs(ours.pixels).max() > 0
    assert ours.unit == deconvnet(model, tensor, "conv2:1")[0].unit
    assert [*fields(network, ready.shape, "conv2")] == ["conv2"]  # type: ignore[arg-type]
    assert layer_table(network, ready.shape).input == ready.shape  # type: ignore[arg-type]
    with Lens(network, "conv1") as lens:  # type: ignore[arg-type]
        lens(tensor)
        assert lens["conv1"].shape[1] == 5


def test_answers_are_those_of_evaluation_mode_and_the_mode_stays(
    network: Network, place: Path
) -> None:
    picture = place / "b" / "1.png"
    found = predict(network, picture)
    reference = noisy_net(network.preprocess.shape[0]).eval()
    pixels = np.asarray(Image.open(picture))
    with torch.no_grad():
        expected = reference(network.preprocess.batch([pixels])).softmax(1)[0]
    np.testing.assert_allclose(found.probability, expected.sort(descending=True)[0], rtol=1e-5)
    assert evaluate(network, place).top5 == 1
    assert network.model.training
    assert int(network.model.bn1.num_batches_tracked) == 0


def test_a_grey_networks_features_are_shown_in_grey(network: Network, place: Path) -> None:
    _, pictures, layers = features(network, place, "conv2", k=2)
    (layer,) = layers
    grey = network.preprocess.shape[0] == 1
    assert len(np.unique(layer.projections)) > 10
    for shown in (layer.projections, layer.patches, pictures.thumbs):
        assert (np.ptp(shown.astype(int), axis=-1) == 0).all() == grey


class Several(nn.Module):
    """Puts out what its maker says, around the scores."""

    def __init__(self, wrap: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(3, 2, 3), [wrap]

    def forward(self, x: torch.Tensor) -> object:
        return self.wrap[0](self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(
    "wrap",
    [lambda s: (s, s.sum()), lambda s: {"logits": s}, lambda s: s[:, :, None, None]],
    ids=["tuple", "dict", "maps of one place"],
)
def test_scores_are_found_in_what_the_network_puts_out(
    wrap: Callable[[torch.Tensor], object], place: Path
) -> None:
    torch.manual_seed(0)
    plain = Several(lambda scores: scores)
    model = Several(wrap)
    model.load_state_dict(plain.state_dict())
    picture = place / "a" / "0.png"
    expected, found = (predict(load(one), picture).probability for one in (plain, model))
    assert np.array_equal(found, expected)
    assert 0.1 < expected[1] < 0.499


PICTURE = Image.new("RGB", (26, 20))
BARE = noisy_net(3)


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        (lambda: predict(BARE, "x.png"), "U376", "load(module, preprocess=…)"),  # type: ignore[arg-type]
        (lambda: evaluate(BARE, "x"), "U376", "bare Sequential"),  # type: ignore[arg-type]
        (lambda: features(BARE, "x"), "U376", "load(module"),  # type: ignore[arg-type]
        (lambda: topk(BARE, "x"), "U376", "load(module"),
        (lambda: features("zfnet", "x"), "U376", "a str is no network"),  # type: ignore[arg-type]
        (lambda: predict(load(BARE), {}), "U377", "a dict is no folder"),
        (lambda: topk(load(BARE), 3), "U377", "convscope.open"),  # type: ignore[arg-type]
        (lambda: deconvnet(BARE, PICTURE, "conv1:0"), "U376", "preprocessed tensors, no Image"),
        (lambda: deconvnet(BARE, np.zeros((20, 26, 3)), "conv1:0"), "U376", "no ndarray"),
        (lambda: deconvnet(BARE, torch.rand(1, 3, 20, 26), "conv1"), "U201", "LAYER:MAP"),
        (lambda: topk(load(BARE), "builtin:photos-val"), "M522", "3 × 224 × 224"),
    ],
)
def test_what_will_not_do_is_refused_in_one_line(
    call: Callable[[], object], code: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConvscopeError) as caught:
        call()
    assert caught.value.code == code
    assert said in str(caught.value)
