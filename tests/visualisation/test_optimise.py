"""Do optimised pictures reach what can be worked out by hand, and leave the network alone?"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.core.errors import ConvscopeError, ModelError, UsageError
from convscope.core.run import Run
from convscope.network.load import load
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.records.maps import OptimisedPicture
from convscope.visualisation.optimise import (
    activation_maximisation,
    class_image,
    class_values,
    deep_dream,
    invert,
    unit_values,
)
from tests.nets import Fire, Stumbling, Telling, pictures, sequential, state_of

STILL: dict[str, Any] = {"jitter": 0, "turn": 0.0, "noise": 0.0}
"""The network sees the very picture, which begins grey."""


def linear(shape: tuple[int, int, int], units: int = 2, seed: int = 0) -> nn.Sequential:
    """One convolution as large as the picture, in float64 and without bias."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(shape[0], units, shape[1:], bias=False))
    return net.double()


@pytest.mark.parametrize("basis", ["pixels", "fourier"])
def test_a_linear_unit_under_l2_is_excited_most_by_its_own_filter(basis: str) -> None:
    """max w·x − λ ‖x‖² / places is at x = w · places / 2λ."""
    shape, weight = (3, 5, 4), 7.0
    net = linear(shape)
    found = activation_maximisation(
        net,
        "0:1",
        size=shape,
        basis=basis,
        regularise={"l2": weight},
        steps=900,
        settle=0.9,
        **STILL,
    )
    filters = net[0].weight.detach().numpy()[1]
    best = filters * 20 / (2 * weight)
    assert np.abs(best).max() > 0.1
    assert np.abs(found.pixels - best).max() < 1e-5
    assert found.value == pytest.approx(float((filters * best).sum()), 1e-5)
    assert found.objective[-1] == pytest.approx(found.value / 2, 1e-4)


@pytest.mark.parametrize("basis", ["pixels", "fourier"])
def test_a_layer_that_loses_nothing_is_inverted(basis: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 3, 1)).double()
    nn.init.orthogonal_(net[0].weight)
    image = pictures(1, 6, 5)[0].double()
    found = invert(
        net, image, "0", basis=basis, regularise={}, steps=1500, settle=0.95, learning_rate=0.1
    )
    assert np.abs(found.pixels - image.numpy()).max() < 1e-4
    assert found.value < 1e-8
    assert found.original is not None
    assert np.array_equal(found.original, image.numpy())


def test_the_error_of_an_inversion_is_relative_to_the_photograph_s_features() -> None:
    net = sequential().double()
    image = pictures(1)[0].double()
    found = invert(net, image, "conv2", steps=3)
    net.eval()
    with torch.no_grad():
        features = [net[:5](torch.tensor(x)[None]) for x in (found.pixels, image.numpy())]
    expected = ((features[0] - features[1]) ** 2).sum() / (features[1] ** 2).sum()
    assert found.value == pytest.approx(float(expected), 1e-9)
    assert found.values[0] > found.value


def test_an_objective_is_what_grows_whether_a_value_is_to_grow_or_to_shrink() -> None:
    image = pictures(1)[0]
    away = invert(sequential(), image, "conv1", steps=30, regularise={})
    assert np.array_equal(away.objective, -away.values)
    unit = activation_maximisation(sequential(), "conv1:2", size=(33, 29), steps=30, **STILL)
    assert np.array_equal(unit.objective, unit.values)
    for found in (away, unit):
        assert found.objective[-1] > found.objective[0]


def test_penalties_pull_an_inversion_away_from_the_photograph() -> None:
    image = pictures(1)[0]
    errors = [
        invert(sequential(), image, "conv1", steps=60, regularise={"tv": weight}).value
        for weight in (0.0, 1.0)
    ]
    assert errors[0] < errors[1] / 2


class Corner(nn.Module):
    """Class 1 is the light in the corner of 4 × 3 pixels; the other class looks everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([-x.mean((1, 2, 3)), x[:, :, :4, :3].mean((1, 2, 3))], 1) * self.weight


def test_the_class_image_of_a_network_that_looks_at_one_corner_is_grey_elsewhere() -> None:
    """max mean(½ + ½ u) over its 36 numbers − ‖u‖² / 72 places is at u = ½, a light of ¾."""
    found = class_image(
        Corner(), 1, size=(9, 8), basis="pixels", preprocess=(0.0, 1.0), steps=200, **STILL
    )
    outside = np.ones((3, 9, 8), bool)
    outside[:, :4, :3] = False
    assert (found.pixels[outside] == 0.5).all()
    assert np.abs(found.pixels[~outside] - 0.75).max() < 1e-4
    assert found.kind == "class"
    assert found.subject == "class 1"


def test_a_class_may_be_given_by_name_or_as_a_function_of_the_scores() -> None:
    how: dict[str, Any] = {"size": (9, 8), "steps": 5, "basis": "pixels", **STILL}
    by_name = class_image(Corner(), "corner", classes=("all", "corner"), **how)
    by_index = class_image(Corner(), 1, **how)
    assert by_name.subject == "corner"
    assert np.array_equal(by_name.pixels, by_index.pixels)

    def corner(scores: Tensor) -> Tensor:
        return scores[:, 1]

    assert np.array_equal(class_image(Corner(), corner, **how).pixels, by_index.pixels)


def test_a_dream_raises_what_the_layer_puts_out_with_every_step() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    image = 0.1 * pictures(1, 17, 14)[0]
    found = deep_dream(net, image, "2", octaves=1, steps=20, jitter=0)
    assert (np.diff(found.values) > 0).all()
    assert found.value > 1.5 * found.values[0]
    with torch.no_grad():
        output = net(torch.tensor(found.pixels)[None])
    assert found.value == pytest.approx(float(output.square().mean()), 1e-5)


def test_a_dream_of_a_map_leaves_what_the_map_does_not_see() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0]])[:, :, None, None])
    image = pictures(1, 20, 17)[0]
    found = deep_dream(net, image, "0:0", octaves=3, steps=4)
    assert np.abs(found.pixels[1:] - image.numpy()[1:]).max() < 1e-6
    assert np.abs(found.pixels[0] - image.numpy()[0]).max() > 0.05
    assert len(found.values) == found.asked == 12


def stopping(after: int) -> Callable[[], bool]:
    asked = iter(range(10_000))
    return lambda: next(asked) >= after


@pytest.mark.parametrize("basis", ["pixels", "fourier"])
def test_a_stopped_picture_is_kept_and_can_be_gone_on_from(basis: str) -> None:
    how: dict[str, Any] = {"basis": basis, "jitter": 0, "turn": 0.0, "preprocess": (-2.0, 2.0)}
    net = sequential().double()
    kept = activation_maximisation(net, "conv3:4", size=(33, 29), run=Run(stop=stopping(5)), **how)
    assert kept.stopped
    assert len(kept.values) == len(kept.objective) == 5
    assert kept.value > kept.values[0]
    more = activation_maximisation(net, "conv3:4", start=kept.pixels, steps=8, **how)
    assert more.values[0] == pytest.approx(kept.value, 1e-9)
    assert more.value > kept.value
    assert not more.stopped
    assert more.origin["start"] == "a picture"


def test_a_stopped_dream_keeps_what_its_octaves_have_drawn() -> None:
    image = pictures(1)[0]
    kept = deep_dream(sequential(), image, "conv2", steps=4, run=Run(stop=stopping(7)))
    assert kept.stopped
    assert 4 < len(kept.values) < 16
    assert kept.pixels.shape == image.shape
    assert np.abs(kept.pixels - image.numpy()).max() > 0.01


def test_stopped_at_once_the_start_comes_back() -> None:
    found = class_image(Corner(), 1, size=(4, 5), run=Run(stop=lambda: True), **STILL)
    assert found.stopped
    assert len(found.values) == 0
    assert (found.pixels == 0).all()


def test_the_same_seed_makes_the_same_picture_bit_for_bit() -> None:
    how: dict[str, Any] = {"size": (33, 29), "steps": 4, "blur": 0.7, "blur_every": 2}
    found = [
        activation_maximisation(sequential(), "conv2:3", run=Run(seed=s), **how) for s in (1, 1, 2)
    ]
    assert found[0].pixels.tobytes() == found[1].pixels.tobytes()
    assert np.abs(found[0].pixels - found[2].pixels).max() > 0.01
    dreams = [
        deep_dream(sequential(), pictures(1)[0], "conv2", steps=2, run=Run(seed=3))
        for _ in range(2)
    ]
    assert dreams[0].pixels.tobytes() == dreams[1].pixels.tobytes()


def test_the_network_is_left_as_it_was_whatever_happens() -> None:
    net, image = sequential(), pictures(1)[0]
    before = state_of(net)
    activation_maximisation(net, "relu2:3", size=(33, 29), steps=2)
    class_image(net, 3, size=(33, 29), steps=2)
    invert(net, image, "pool2", steps=2)
    deep_dream(net, image, "conv3:2", steps=1, octaves=1)
    with pytest.raises(ModelError):
        class_image(net, 3, size=(60, 60), steps=2)
    assert state_of(net) == before
    stumbling = Stumbling()
    before = state_of(stumbling)
    with pytest.raises((RuntimeError, ModelError)):
        class_image(stumbling, 0, size=(9, 9), steps=2)
    assert state_of(stumbling) == before


def test_dropout_and_other_habits_of_training_are_off() -> None:
    found = [class_image(sequential(), 3, size=(33, 29), steps=3) for _ in range(2)]
    assert np.array_equal(found[0].pixels, found[1].pixels)


@pytest.mark.parametrize("answer", [lambda y: (y, y * 2), lambda y: {"logits": y}])
def test_scores_may_come_in_tuples_and_dicts(answer: Callable[[Tensor], object]) -> None:
    found = class_image(Telling(answer), 2, size=(31, 35), steps=5)
    assert found.value > found.values[0]


def test_grey_networks_get_grey_pictures() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Conv2d(4, 2, 3))
    plain = activation_maximisation(net, "2:1", size=(1, 14, 11), preprocess=(0.0, 1.0), steps=60)
    assert plain.pixels.shape == (1, 14, 11)
    assert 0 <= plain.pixels.min() < 0.3
    assert 0.7 < plain.pixels.max() <= 1
    assert plain.value > plain.values[0]
    image = torch.rand(1, 14, 11)
    assert invert(net, image, "0", steps=2).pixels.shape == (1, 14, 11)
    assert deep_dream(net, image, "0", steps=1, octaves=2).pixels.shape == (1, 14, 11)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_networks_of_half_precision_get_pictures_of_single_precision(kind: torch.dtype) -> None:
    net = Fire().to(kind)  # the normalisation of `sequential` has no half precision
    found = activation_maximisation(net, "expand3:3", size=(33, 29), steps=30)
    assert found.pixels.dtype == np.float32
    assert found.value > found.values[0] + 0.1
    assert next(net.parameters()).dtype == kind


def test_a_silent_unit_is_woken() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    with torch.no_grad():
        net[0].bias.fill_(-1.5)
    found = activation_maximisation(net, "1:2", size=(12, 11), preprocess=(-2.0, 2.0), steps=60)
    assert found.values[0] == 0
    assert found.value > 0.02


def test_a_unit_that_nothing_excites_is_said_to_be_silent() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    nn.init.zeros_(net[0].weight)
    nn.init.constant_(net[0].bias, -1)
    with pytest.raises(ModelError, match="1:2: is silent") as caught:
        activation_maximisation(net, "1:2", size=(9, 9), steps=4)
    assert caught.value.code == "M548"
    with pytest.raises(ModelError, match="only zeros") as caught:
        invert(net, pictures(1)[0], "1", steps=4)
    assert caught.value.code == "M548"


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.detach()).mean((2, 3))


def test_faults_of_networks_have_their_codes() -> None:
    broken = sequential()
    with torch.no_grad():
        broken.conv2.weight[3] = math.nan
    faults = {
        "M549": lambda: activation_maximisation(broken, "conv2:3", size=(33, 29)),
        "M540": lambda: activation_maximisation(Cut(), "conv:1", size=(9, 9)),
        "M504": lambda: activation_maximisation(sequential(), "conv1:6", size=(33, 29)),
        "M505": lambda: activation_maximisation(sequential(), "conv1:5@99,0", size=(33, 29)),
        "M500": lambda: activation_maximisation(sequential(), "conv9:1", size=(33, 29)),
        "M543": lambda: invert(broken, pictures(1)[0], "conv2"),
    }
    for code, call in faults.items():
        with pytest.raises(ConvscopeError) as caught:
            call()
        assert caught.value.code == code


def test_faults_of_calls_have_their_codes() -> None:
    net, image = sequential(), pictures(1)[0]
    unit = "conv1:1"
    faults: dict[Callable[[], object], str] = {
        lambda: activation_maximisation(net, unit, basis="wavelets"): "U365",
        lambda: activation_maximisation(net, unit, rule="lbfgs"): "U365",
        lambda: activation_maximisation(net, unit, over="median"): "U365",
        lambda: activation_maximisation(net, unit, bounds="hard"): "U365",
        lambda: activation_maximisation(net, unit, regularise={"l1": 1}): "U365",
        lambda: activation_maximisation(net, unit, steps=0): "U366",
        lambda: activation_maximisation(net, unit, learning_rate=math.nan): "U366",
        lambda: activation_maximisation(net, unit, jitter=-1): "U366",
        lambda: activation_maximisation(net, unit, size=(0, 5)): "U366",
        lambda: activation_maximisation(net, unit, preprocess=(1.0, 0.0)): "U366",
        lambda: activation_maximisation(net, unit, start=image[0]): "U367",
        lambda: activation_maximisation(net, unit, start=image * math.nan): "U367",
        lambda: invert(net, image.long(), "conv1"): "U355",
        lambda: deep_dream(net, image, "conv1", octaves=0): "U366",
        lambda: deep_dream(net, image, "conv1:1@2,2"): "U366",
        lambda: deep_dream(net, image, "conv1", start=image): "U366",
        lambda: class_image(net, "fish", size=(33, 29)): "U352",
        lambda: class_image(net, 7, size=(33, 29)): "U353",
    }
    for call, code in faults.items():
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == code


def test_the_yardstick_is_the_same_number_for_natural_pictures() -> None:
    net, images = sequential(), pictures(4)
    net.eval()
    with torch.no_grad():
        maps = net[:5](images.clone())[:, 3]
    found = {over: unit_values(net, "conv2:3", images, over=over) for over in ("mean", "max")}
    assert found["mean"] == pytest.approx(maps.mean((1, 2)).tolist(), 1e-5)
    assert found["max"] == pytest.approx(maps.amax((1, 2)).tolist(), 1e-5)
    assert unit_values(net, "conv2:3@1,2", images) == pytest.approx(maps[:, 1, 2].tolist(), 1e-5)
    assert class_values(Corner(), 1, images) == pytest.approx(
        images[:, :, :4, :3].mean((1, 2, 3)).tolist(), 1e-5
    )
    best = max(found["mean"])
    made = activation_maximisation(net, "conv2:3", size=(33, 29), steps=30, natural=best)
    assert made.natural == best
    assert made.value > best


def test_each_step_can_be_watched() -> None:
    seen: list[tuple[int, float, Tensor]] = []
    told: list[tuple[int, int]] = []
    found = class_image(
        Corner(),
        1,
        size=(9, 8),
        steps=4,
        observe=lambda *state: seen.append(state),
        run=Run(progress=lambda *state: told.append(state)),
    )
    assert [step for step, _, _ in seen] == [1, 2, 3, 4]
    assert [value for _, value, _ in seen] == found.objective.tolist()
    assert np.array_equal(seen[-1][2].numpy(), found.pixels)
    assert not torch.equal(seen[0][2], seen[1][2])
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    told.clear()
    deep_dream(
        sequential(),
        pictures(1)[0],
        "conv1",
        octaves=2,
        steps=2,
        run=Run(progress=lambda *state: told.append(state)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_record_comes_back_from_disk(tmp_path: Path) -> None:
    preprocess = Preprocess(Framing(None, (31, 35)), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    net = Telling(lambda y: y)
    found = invert(net, pictures(1, 31, 35)[0], "net.expand3", preprocess=preprocess, steps=2)
    loaded = OptimisedPicture.load(found.save(tmp_path / "record"))
    for name in ("pixels", "values", "objective", "black", "white", "original"):
        assert np.array_equal(getattr(loaded, name), getattr(found, name))
    assert loaded.origin["regularise"] == {"alpha": 0.001, "tv": 0.02}
    assert (loaded.value, loaded.kind, loaded.subject) == (found.value, "inversion", "net.expand3")


def test_a_unit_s_place_is_the_only_one_that_counts() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    found = activation_maximisation(
        net, "0:1@2,5", size=(12, 11), basis="pixels", steps=10, **STILL
    )
    window = np.zeros((12, 11), bool)
    window[2:5, 5:8] = True
    assert (found.pixels[:, ~window] == 0).all()
    assert (np.abs(found.pixels[:, window]) > 0.01).mean() > 0.9


def test_the_units_of_a_fully_connected_layer_can_be_taken_too() -> None:
    net = sequential()
    found = activation_maximisation(net, "fc:5", size=(33, 29), steps=5, **STILL)
    expected = class_image(net, 5, size=(33, 29), steps=5, regularise={}, **STILL)
    assert np.allclose(found.pixels, expected.pixels, atol=1e-6)
    assert F.mse_loss(torch.tensor(found.pixels), torch.zeros(3, 33, 29)) > 0


DATA = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS = DATA / "squeezenet1_0_imagenet.safetensors"


@pytest.mark.skipif(not WEIGHTS.exists(), reason="real weights (../shared/data) are not here")
def test_a_real_network_takes_the_picture_of_a_class_for_that_class() -> None:
    network = load("torchvision:squeezenet1_0", WEIGHTS)
    found = class_image(network, "ostrich", size=(96, 112), steps=20)
    assert found.subject == "ostrich"
    with torch.no_grad():
        share = network.model(torch.tensor(found.pixels)[None]).softmax(1)[0]
    assert network.classes[int(share.argmax())] == "ostrich"
    silent = activation_maximisation(network, "features.12:472", size=(96, 96), steps=20)
    assert silent.values[0] == 0
    assert silent.value > 50
