"""Is it told whether a map depends on what the network learned, and on the class?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from convscope.attribution.formulas import METHODS as CAMS
from convscope.attribution.gradients import gradient_x_input, saliency
from convscope.core.errors import ConvscopeError, ModelError
from convscope.core.run import Run
from convscope.metrics.randomisation import (
    copied,
    difference,
    layers_down,
    randomisation,
    randomised,
    sensitivity,
)
from convscope.records.maps import Attribution
from tests.metrics.faithful_nets import Linear, Lookalike, a_map, noise
from tests.nets import Fire, Residual, pictures, state_of

IMAGE = pictures(1, 41, 36)[0]


def edges(model: nn.Module, images: Tensor, *, target: Any = None, **_: Any) -> list[Attribution]:
    """Knows nothing of the network."""
    return [a_map(ndimage.gaussian_gradient_magnitude(images[0, 0].numpy(), 1.0))]


def test_a_map_of_the_pictures_edges_stays_the_same() -> None:
    (found,) = randomisation(Lookalike(), IMAGE, {"edges": edges}).values()
    assert (found.spearman == 1).all()
    assert (found.spearman_absolute == 1).all()
    assert found.ssim == pytest.approx(np.ones(4), abs=1e-6)
    assert found.layers == ("fc", "conv2", "bn", "conv1")
    assert found.method == "made"


def test_a_map_of_the_weights_themselves_is_forgotten_with_them() -> None:
    net = Linear(1, 90, 80, classes=2)
    (found,) = randomisation(net, noise_picture(90, 80), {"saliency": gradient_x_input}).values()
    assert found.layers == ("fc",)
    assert abs(found.spearman[0]) < 4 / np.sqrt(90 * 80)
    plain = randomisation(net, noise_picture(90, 80), {"saliency": saliency})["saliency"]
    assert abs(plain.spearman[0]) < 4 / np.sqrt(90 * 80)
    assert (plain.spearman == plain.spearman_absolute).all()  # it has no signs


def noise_picture(height: int, width: int) -> Tensor:
    return torch.from_numpy(noise(1, height, width)).float()


def test_absolute_values_are_compared_besides_signed_ones() -> None:
    base = noise(41, 36)

    def method(model: nn.Module, images: Tensor, *, target: Any) -> list[Attribution]:
        sign = 1 if torch.equal(model.get_parameter("fc.weight"), net.fc.weight) else -1
        return [a_map(sign * base)]

    net = Lookalike()
    (found,) = randomisation(net, IMAGE, {"turned over": method}).values()
    assert (found.spearman == -1).all()
    assert (found.spearman_absolute == 1).all()
    assert (found.ssim < 0).all()


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (Lookalike, ["fc", "conv2", "bn", "conv1"]),
        (Fire, ["classify", "expand3", "expand1", "squeeze", "conv1"]),
        (Residual, ["fc", "bn3", "conv3", "bn2", "conv2", "bn1", "conv1"]),
    ],
)
def test_layers_are_named_from_the_top_down_as_they_run(
    net: Callable[[], nn.Module], names: list[str]
) -> None:
    assert layers_down(net(), IMAGE[None]) == names


class Tokens(nn.Module):
    """Weights in places that no hook sees: of the network itself, of attention, which puts out a
    tuple, of what attention holds, and of a layer whose weights alone are used."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 1, 8))
        self.patch = nn.Conv2d(3, 8, 6, 6)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.scale = nn.Linear(8, 8)
        self.recurrent = nn.GRU(5, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        x = self.norm(x + self.attention(x, x, x)[0])
        x = torch.nn.functional.linear(x, self.scale.weight)
        return self.recurrent(self.head(x))[0].mean(1)


def test_no_weight_is_left_as_it_was_at_the_end() -> None:
    for net in (Tokens(), Residual(), Normed(), Lookalike()):
        trained = dict(net.named_parameters())
        for weight in trained.values():
            torch.nn.init.normal_(weight, 0.3, 0.2)
        *_, (_, network) = randomised(net, IMAGE[None], 3, 0)
        kept = [
            name
            for name, weight in network.named_parameters()
            if torch.equal(weight, trained[name])
        ]
        assert kept == []


class Normed(nn.Module):
    """Weight normalisation in both of torch's manners."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3, stride=2))
        with pytest.warns(FutureWarning, match="weight_norm"):
            self.conv2 = nn.utils.weight_norm(nn.Conv2d(6, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.conv1(x))).mean((2, 3))


def test_what_no_hook_sees_has_its_place_too() -> None:
    assert layers_down(Tokens(), IMAGE[None]) == [
        *("recurrent", "scale", "head", "norm", "attention.out_proj", "attention", "patch", ""),
    ]


def test_each_step_leaves_the_layers_below_as_they_were() -> None:
    net = Residual()
    trained = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    order = layers_down(net, IMAGE[None])
    down_to = []
    for name, network in randomised(net, IMAGE[None], 4, 0):
        down_to.append(name)
        changed = {
            key.rpartition(".")[0]
            for key, weight in network.named_parameters()
            if not torch.equal(weight, trained[key])
        }
        assert changed == set(order[: order.index(name) + 1])
    assert down_to == ["fc", "conv3", "conv2", "conv1"]


@pytest.mark.parametrize(("steps", "names"), [(1, ["conv1"]), (2, ["fc", "conv1"])])
def test_the_last_step_is_the_whole_network(steps: int, names: list[str]) -> None:
    assert [name for name, _ in randomised(Residual(), IMAGE[None], steps, 0)] == names
    assert len(list(randomised(Residual(), IMAGE[None], 99, 0))) == 7


def test_layers_forget_by_their_own_initialisation() -> None:
    net = nn.Sequential(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64), nn.Flatten(), nn.LazyLinear(4))
    net.eval()(IMAGE[None])
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(50).add_(7)
    (_, network) = list(randomised(net, IMAGE[None], 1, 0))[-1]
    bound = 1 / np.sqrt(3 * 25)
    assert bound * 0.95 < network[0].weight.abs().max() <= bound
    assert (network[1].weight == 1).all()
    assert (network[1].bias == 0).all()


def test_weights_without_an_initialisation_keep_mean_and_spread() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(3 + 0.5 * torch.randn(5, 3 * 41 * 36))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight.T

    net = Own()
    ((name, network),) = randomised(net, IMAGE[None], 4, 0)
    assert name == "(the network)"
    assert float(network.weight.detach().mean()) == pytest.approx(3, abs=0.02)
    assert float(network.weight.detach().std()) == pytest.approx(0.5, abs=0.02)


METHODS = {"gradcam": partial(CAMS["gradcam"], layer="conv1"), "saliency": saliency}


def test_model_and_random_numbers_are_untouched() -> None:
    net = Lookalike()
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    kept, chance, numbers = state_of(net), torch.get_rng_state(), np.random.get_state()[1].copy()
    during = []
    randomisation(
        net,
        IMAGE,
        METHODS,
        run=Run(progress=lambda *_: during.append(torch.get_rng_state().numpy().copy())),
    )
    assert state_of(net) == kept
    assert all(
        (state == chance.numpy()).all() for state in [torch.get_rng_state().numpy(), *during]
    )
    assert (np.random.get_state()[1] == numbers).all()


def test_of_one_score_the_second_class_is_its_opposite() -> None:
    found = sensitivity(Lookalike(lambda s: s[:, :1]), IMAGE, saliency)
    assert {found.first, found.second} == {0, 1}
    assert found.spearman == 1  # |g| is |-g|


def test_model_and_random_numbers_are_untouched_after_an_error() -> None:
    def stumbling(model: nn.Module, images: Tensor, *, target: Any) -> list[Attribution]:
        if model is not net:
            raise KeyError("planted")
        return edges(model, images)

    net = Lookalike()
    kept, chance = state_of(net), torch.get_rng_state()
    with pytest.raises(KeyError, match="planted"):
        randomisation(net, IMAGE, {"stumbling": stumbling})
    assert state_of(net) == kept
    assert (torch.get_rng_state() == chance).all()


def test_the_same_seed_forgets_the_same_way_and_the_users_seed_does_not_matter() -> None:
    net, found = Lookalike(), []
    for seed, users in ((0, 1), (0, 2), (3, 1)):
        torch.manual_seed(users)
        found.append(randomisation(net, IMAGE, METHODS, run=Run(seed=seed))["saliency"].spearman)
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).any()


def test_sixteen_threads_get_the_serial_answers() -> None:
    net, images = Lookalike(), pictures(16, 41, 36)
    together = threading.Barrier(16)

    def one(number: int) -> np.ndarray:
        found = randomisation(net, images[number], METHODS, run=Run(seed=number), steps=2)
        return np.concatenate([row.spearman for row in found.values()])

    def at_once(number: int) -> np.ndarray:
        together.wait(30)
        return one(number)

    serial = [one(number) for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        parallel = list(pool.map(at_once, range(16)))
    assert np.array(parallel) == pytest.approx(np.array(serial), abs=1e-6)


def test_the_class_and_the_layer_stay_those_of_the_trained_network() -> None:
    asked = []

    def watching(model: nn.Module, images: Tensor, **how: Any) -> list[Attribution]:
        asked.append(how)
        return CAMS["gradcam"](model, images, **how)

    net = Lookalike()
    randomisation(net, IMAGE, {"watching": watching}, steps=2)
    top = int(net.eval()(IMAGE[None]).argmax())
    assert asked == [{"target": top}, *[{"target": top, "layer": "relu#2"}] * 2]


@pytest.mark.parametrize("layer", ["", "conv1", "pixels"])
def test_methods_that_take_no_layer_are_not_told_one(layer: str) -> None:
    def own(model: nn.Module, images: Tensor, target: int) -> list[Attribution]:
        return [a_map(noise(41, 36), layer=layer)]

    (found,) = randomisation(Lookalike(), IMAGE, {"own": own}).values()
    assert (found.spearman == 1).all()


@pytest.mark.parametrize(("layer", "told"), [("conv1", True), ("", False), ("pixels", False)])
def test_methods_that_take_a_layer_are_told_only_one_of_the_networks(
    layer: str, told: bool
) -> None:
    asked = []

    def own(model: nn.Module, images: Tensor, **how: Any) -> list[Attribution]:
        asked.append("layer" in how)
        return [a_map(noise(41, 36), layer=layer)]

    randomisation(Lookalike(), IMAGE, {"own": own}, steps=1)
    assert asked == [False, told]


def test_a_method_that_fails_on_a_random_network_gets_nan() -> None:
    def failing(model: nn.Module, images: Tensor, *, target: Any) -> list[Attribution]:
        if model is not net:
            raise ModelError("M543", "conv1", "planted")
        return edges(model, images)

    net = Lookalike()
    found = randomisation(net, IMAGE, {"failing": failing, "edges": edges})
    assert np.isnan(found["failing"].spearman).all()
    assert (found["edges"].spearman == 1).all()


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_other_precisions_and_answers_are_taken(kind: torch.dtype) -> None:
    net = Lookalike(lambda scores: {"logits": scores.softmax(1)}).to(kind)
    found = randomisation(net, IMAGE, METHODS, steps=2, target=lambda scores: scores[:, 1])
    assert [np.isfinite(one.spearman).all() for one in found.values()] == [True, True]
    assert sensitivity(net, IMAGE, METHODS["saliency"]).first == int(
        net.eval()(IMAGE[None].to(kind))["logits"].argmax()
    )


def test_wrapped_models_are_taken() -> None:
    net = Lookalike()
    plain = randomisation(net, IMAGE, METHODS)["saliency"]
    wrapped = randomisation(nn.DataParallel(net), IMAGE, METHODS)["saliency"]
    assert wrapped.layers == plain.layers
    assert wrapped.spearman == pytest.approx(plain.spearman)


def test_progress_counts_every_map_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    randomisation(
        Lookalike(), IMAGE, METHODS, steps=3, run=Run(progress=lambda *now: told.append(now))
    )
    assert told == [(done, 6) for done in range(1, 7)]


def test_a_copy_shares_no_weight_and_the_same_answers() -> None:
    net = nn.LSTM(4, 3)
    copy = copied(net)
    with torch.no_grad():
        for weight in copy.parameters():
            weight.add_(1)
    other = nn.LSTM(4, 3)
    other.load_state_dict({name: weight + 1 for name, weight in net.state_dict().items()})
    steps = torch.randn(2, 5, 4)
    assert torch.equal(copy(steps)[0], other(steps)[0])
    assert not torch.equal(copy(steps)[0], net(steps)[0])


def test_eigencam_says_nothing_of_the_class() -> None:
    found = sensitivity(Lookalike(), IMAGE, CAMS["eigencam"])
    assert (found.spearman, found.overlap) == (1, 1)


def test_the_gradients_of_a_linear_network_are_of_their_class_alone() -> None:
    net, image = Linear(1, 90, 80), noise_picture(90, 80)
    found = sensitivity(net, image, saliency)
    likeliest = net(image[None])[0].argsort(descending=True).tolist()
    assert (found.first, found.second) == tuple(likeliest[:2])
    assert abs(found.spearman) < 4 / np.sqrt(90 * 80)
    assert found.overlap == pytest.approx(0.1 / 1.9, abs=0.03)  # of two random tenths
    pair = sensitivity(net, image, saliency, pair=(np.int64(2), np.int64(2)))
    assert (pair.spearman, pair.overlap, type(pair.first)) == (1, 1, int)


def test_maps_that_are_there_already_are_not_made_again() -> None:
    net, asked = Lookalike(), []

    def watching(model: nn.Module, images: Tensor, **how: Any) -> list[Attribution]:
        asked.append(model is net)
        return CAMS["gradcam"](model, images, **how)

    fresh = randomisation(net, IMAGE, {"watching": watching}, target=1, steps=2)["watching"]
    assert asked == [True, False, False]
    (made,) = CAMS["gradcam"](net, IMAGE[None], target=1)
    asked.clear()
    again = randomisation(
        net, IMAGE, {"watching": watching}, target=1, steps=2, before={"watching": made}
    )["watching"]
    assert asked == [False, False]
    assert (again.spearman == fresh.spearman).all()
    assert (again.ssim == fresh.ssim).all()
    (other,) = CAMS["gradcam"](net, IMAGE[None], target=0)
    pair = sensitivity(net, IMAGE, CAMS["gradcam"], pair=(1, 0))
    known = difference(made, other, (1, 0))
    assert (known.first, known.second) == (1, 0)
    assert (known.spearman, known.overlap) == (pair.spearman, pair.overlap)
    assert known.spearman < 1


class Locked(Lookalike):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


WRONG: dict[str, tuple[str, str, Callable[[], Any]]] = {
    "no steps": ("U391", "steps=0", lambda: randomisation(Lookalike(), IMAGE, METHODS, steps=0)),
    "two pictures": (
        "U392",
        "2 pictures",
        lambda: randomisation(Lookalike(), pictures(2, 41, 36), METHODS),
    ),
    "a class too many": (
        "U353",
        "numbered 0 to 4",
        lambda: randomisation(Lookalike(), IMAGE, METHODS, target=5),
    ),
    "no map": (
        "U393",
        "one ndarray in the place of several maps",
        lambda: randomisation(Lookalike(), IMAGE, {"array": lambda *_, **__: noise(41, 36)}),
    ),
    "two maps": (
        "U393",
        "2 maps for one picture",
        lambda: sensitivity(Lookalike(), IMAGE, lambda *_, **__: [a_map(noise(41, 36))] * 2),
    ),
    "small maps": (
        "U390",
        "a map of 7×7 beside a picture of 41×36",
        lambda: sensitivity(Lookalike(), IMAGE, lambda *_, **__: [a_map(noise(7, 7))]),
    ),
    "no weights": (
        "M526",
        "no weights that could be made random",
        lambda: randomisation(nn.Flatten(), IMAGE, {"edges": edges}),
    ),
    "a lock": ("M527", "cannot be copied", lambda: randomisation(Locked(), IMAGE, METHODS)),
    "NaN": (
        "M543",
        "NaN",
        lambda: sensitivity(Lookalike(lambda s: s / 0 * 0), IMAGE, saliency),
    ),
    "colours": ("M522", "does not take", lambda: sensitivity(Lookalike(), IMAGE[:1], saliency)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_clear_line(case: str) -> None:
    code, words, call = WRONG[case]
    with pytest.raises(ConvscopeError) as fault:
        call()
    assert fault.value.code == code
    assert words in str(fault.value)
    assert "\n" not in str(fault.value)
