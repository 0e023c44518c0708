"""Do targets, precisions, sizes and odd networks give the map that was asked for, or a clear no?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convscope
from convscope.attribution.gradients import METHODS, TITLES
from convscope.core.errors import ConvscopeError, ModelError, UsageError
from convscope.core.run import Run
from convscope.records.maps import Attribution
from tests.attribution.cam_nets import SIZE, net_of, pictures
from tests.attribution.test_cam_options import ANSWERS, Careless
from tests.attribution.test_gradients_defects import maps_of
from tests.nets import Fire, Telling
from tests.nets import pictures as noise

HEAD = "linear layers, as VGG"
CLASSES = ("ant", "bee", "cat", "dog")


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ConvscopeError) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize("name", METHODS)
def test_every_picture_of_a_batch_has_its_own_target_and_its_own_map(name: str) -> None:
    net, images = net_of(HEAD), pictures(3)
    mixed = [2, "cat", lambda s: s[:, 1]]
    together = maps_of(name, net, images, target=mixed, classes=CLASSES)
    for number, target in enumerate((2, 2, 1)):
        (alone,) = maps_of(name, net, images[number], target=target)
        assert alone.peak > 0
        assert np.allclose(together[number].pixels, alone.pixels, rtol=1e-9, atol=1e-9)
        assert together[number].score == pytest.approx(alone.score, rel=1e-9)
    assert [one.target for one in together] == [2, 2, -1]
    assert [one.space for one in together] == ["logit", "logit", "function"]
    assert together[1].origin["target"] == "cat"
    assert together[1].origin["target chosen"] == "by the user"


@pytest.mark.parametrize("name", METHODS)
def test_without_a_target_it_is_the_likeliest_class_of_each_picture(name: str) -> None:
    net, images = net_of(HEAD), pictures(3)
    with torch.no_grad():
        net.head[4].bias += torch.tensor([3.0, 0, -0.8, 1])
        scores = net.eval()(images)
    found = maps_of(name, net, images, classes=CLASSES)
    assert [one.target for one in found] == scores.argmax(1).tolist()
    assert found[0].score == pytest.approx(float(scores.amax(1)[0]))
    assert found[0].origin["target chosen"] == "the likeliest class"


def test_what_cannot_be_meant_is_refused_in_words() -> None:
    net, images = net_of(HEAD), pictures(2)
    for name in METHODS:

        def explain(name: str = name, **how: Any) -> Callable[[], object]:
            return lambda: METHODS[name](net, images, **how)

        assert code_of(explain(target=[0, 1, 2])) == "U351"
        assert code_of(explain(target="cst", classes=CLASSES)) == "U352"
        assert code_of(explain(target=4)) == "U353"
        assert code_of(explain(target=lambda scores: scores.sum())) == "U354"
        assert code_of(explain(variant="captum")) == "U350"
        assert code_of(lambda name=name: METHODS[name](net, torch.zeros(3, 8))) == "U355"
        assert code_of(lambda name=name: METHODS[name](net, torch.zeros(1, 3, 9, 9))) == "M522"
    with pytest.raises(UsageError, match="no such variant of SmoothGrad; did you mean squared"):
        METHODS["smoothgrad"](net, images, variant="square")


@pytest.mark.parametrize("how", [{"samples": 0}, {"samples": 2.5}, {"noise": -1}, {"noise": None}])
def test_impossible_noise_is_refused(how: dict[str, Any]) -> None:
    assert code_of(lambda: METHODS["smoothgrad"](Fire(), noise(1), **how)) in ("U361", "U380")


def test_impossible_steps_and_quadratures_are_refused() -> None:
    integrate, net = METHODS["integrated-gradients"], Fire()
    assert code_of(lambda: integrate(net, noise(1), steps=0)) == "U361"
    assert code_of(lambda: integrate(net, noise(1), steps=1, quadrature="trapezoid")) == "U361"
    with pytest.raises(UsageError, match="did you mean trapezoid") as caught:
        integrate(net, noise(1), quadrature="trapez")
    assert caught.value.code == "U362"


BASELINES: dict[str, Any] = {
    "another number of pictures": torch.zeros(2, 3, 21, 16),
    "another size": torch.zeros(3, 20, 16),
    "more dimensions": torch.zeros(1, 3, 3, 21, 16),
    "a number": 0.5,
    "an array": np.zeros((3, 21, 16)),
    "nothing": [],
    "not finite": torch.full((3, 1, 1), float("nan")),
    "one of two": [torch.zeros(3, 21, 16), "black"],
}


@pytest.mark.parametrize("kind", BASELINES)
def test_a_baseline_that_does_not_fit_is_refused(kind: str) -> None:
    net, images = net_of(HEAD), pictures(3)
    with pytest.raises(UsageError, match="baseline") as caught:
        METHODS["integrated-gradients"](net, images, baseline=BASELINES[kind])
    assert caught.value.code == "U360"


def test_a_wrong_choice_of_what_to_do_elsewhere_is_refused_before_anything_runs() -> None:
    for name in ("guided-backprop", "deconvnet", "guided-gradcam"):
        assert code_of(lambda name=name: METHODS[name](Fire(), noise(1), other="skip")) == "U512"


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", METHODS)
def test_scores_are_found_in_whatever_a_network_returns(name: str, answer: str) -> None:
    plain = maps_of(name, Telling(lambda s: s), noise(2))
    packed = maps_of(name, Telling(ANSWERS[answer]), noise(2))
    assert plain[0].peak > 0
    assert np.array_equal(packed[0].pixels, plain[0].pixels)


@pytest.mark.parametrize("name", METHODS)
def test_a_network_without_scores_is_refused(name: str) -> None:
    net = Telling(lambda s: {"mask": s[:, :, None].repeat(1, 1, 3)})
    assert code_of(lambda: maps_of(name, net, noise(1))) == "M520"


def test_a_function_may_choose_from_any_shape_as_for_segmentation() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1))

    def corner(output: Tensor) -> Tensor:
        return output[:, 2, :5, :5].sum((1, 2))

    for name in METHODS:
        layer = {"layer": "1"} if name == "guided-gradcam" else {}
        (found,) = maps_of(name, net, noise(1), target=corner, **layer)
        assert found.origin["target"] == "corner"
        assert found.space == "function"
        assert np.abs(found.values[:7, :7]).max() > 0
        assert np.abs(found.values[7:]).max() == np.abs(found.values[:, 7:]).max() == 0


def relative(found: Attribution, exact: Attribution) -> float:
    return float(np.linalg.norm(found.pixels - exact.pixels) / np.linalg.norm(exact.pixels))


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "autocast"])
@pytest.mark.parametrize("name", METHODS)
def test_networks_of_low_precision_give_maps_in_float32(name: str, precision: str) -> None:
    """Of the bits, bfloat16 keeps 8; a rectifier or switch that turns over moves a signal."""
    images = pictures(2).float()
    exact = maps_of(name, net_of("smooth").float(), images, **_ruled(name))
    targets = [one.target for one in exact]
    if precision == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            net = net_of("smooth").float()
            found = maps_of(name, net, images, target=targets, **_ruled(name))
    else:
        low = net_of("smooth").to(getattr(torch, precision))
        found = maps_of(name, low, images, target=targets, **_ruled(name))
    for one, other in zip(found, exact, strict=True):
        assert one.values.dtype == one.pixels.dtype == np.float32
        assert one.origin["precision"] == "float32"
        assert other.peak > 0
        assert relative(one, other) < (0.02 if precision == "float16" else 0.2)


def _ruled(name: str) -> dict[str, str]:
    return (
        {"other": "gradient"} if name in ("guided-backprop", "deconvnet", "guided-gradcam") else {}
    )


@pytest.mark.parametrize("size", [(21, 16), (40, 23), (64, 64)])
def test_any_size_gives_a_map_of_that_size(size: tuple[int, int]) -> None:
    for name in METHODS:
        found = maps_of(name, Fire(), noise(2, *size), target=0)
        assert [one.values.shape for one in found] == [size, size]
        assert [one.pixels.shape for one in found] == [(3, *size)] * 2
        assert all(one.values.dtype == np.float32 for one in found)


def test_grey_networks_take_grey_pictures() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(True), nn.Conv2d(6, 6, 3), nn.ReLU(True))
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)])
    for name in METHODS:
        (found,) = maps_of(name, net, noise(1)[:, :1], target=1)
        assert found.pixels.shape == (1, 33, 29)
        assert found.values.shape == (33, 29)
        assert np.abs(found.values).max() > 0


def test_a_network_that_writes_over_its_input_is_no_obstacle() -> None:
    class Overwrites(Fire):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.1).div_(0.5))

    images = noise(1)
    for name in METHODS:
        before = images.clone()
        (found,) = maps_of(name, Overwrites(), images, target=1)
        assert found.peak > 0
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", METHODS)
def test_a_network_that_computes_without_gradients_is_named(name: str) -> None:
    layer = {"layer": "conv"} if name == "guided-gradcam" else {}
    with pytest.raises(ModelError, match="no gradient") as caught:
        maps_of(name, Careless(), noise(1, 33, 33), target=1, **layer)
    assert caught.value.code == "M540"


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_modes_do_not_matter(caller: Callable[[], Any]) -> None:
    with caller():
        net, images = net_of(HEAD), pictures(1)
    for name in METHODS:
        (plain,) = maps_of(name, net_of(HEAD), pictures(1), target=2)
        with caller():
            (inside,) = maps_of(name, net, images, target=2)
        assert plain.peak > 0
        assert np.array_equal(inside.pixels, plain.pixels)


def test_what_load_returns_may_be_given_as_it_is() -> None:
    network = convscope.load("zfnet:width=0.1,head=compact", classes=5)
    images = noise(1, 64, 64)
    for name in METHODS:
        one, other = (maps_of(name, net, images)[0] for net in (network, network.model))
        assert np.abs(one.values).max() > 0
        assert np.array_equal(one.values, other.values)


def test_numbers_that_are_none_are_not_drawn() -> None:
    net = net_of(HEAD)
    with torch.no_grad():
        net.trunk[0].weight[0] = float("nan")
    for name in METHODS:
        assert code_of(lambda name=name: maps_of(name, net, pictures(1), target=1)) == "M543"


def test_progress_counts_the_runs_to_the_end() -> None:
    for name, runs in {"smoothgrad": 15, "integrated-gradients": 30}.items():
        told: list[tuple[int, int]] = []
        two = {"baseline": [torch.zeros(3, 1, 1)] * 2} if name == "integrated-gradients" else {}
        maps_of(
            name, Fire(), noise(3), run=Run(progress=lambda *s, told=told: told.append(s)), **two
        )
        assert told[-1] == (runs, runs)
        assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize("name", METHODS)
def test_the_result_says_what_made_it_and_comes_back_from_disk(name: str, tmp_path: Path) -> None:
    (found,) = maps_of(name, net_of(HEAD), pictures(1), target="cat", classes=CLASSES)
    assert found.method == found.origin["method"] == TITLES[name]
    assert (found.variant, found.target, found.raw) == ("authors", 2, None)
    assert found.layer == ("trunk" if name == "guided-gradcam" else "pixels")
    assert found.origin["layer"] == found.layer
    assert found.origin["peaks"] == {found.layer: found.peak}
    assert found.origin["epsilon"] == 0
    assert found.values.shape == SIZE
    assert ("no sign" in found.origin["colours"]) == (found.values.min() >= 0)
    said = found.origin
    if name == "smoothgrad":
        assert (said["samples"], said["noise"], said["seed"]) == (5, 0.15, 0)
    if name == "integrated-gradients":
        assert (said["steps"], said["quadrature"]) == (5, "gauss-legendre")
        assert said["baseline"].startswith("0")
    json.dumps(dict(said))
    back = Attribution.load(found.save(tmp_path / "map"))
    assert np.array_equal(back.values, found.values)
    assert np.array_equal(back.pixels, found.pixels)
    assert (back.score, back.raw, back.origin) == (found.score, None, found.origin)
