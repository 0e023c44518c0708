"""Do targets, precisions, sizes and odd networks give the map that was asked for, or a clear no?"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.attribution.formulas import METHODS
from convscope.core.errors import ConvscopeError, ModelError, UsageError
from convscope.network.load import load
from convscope.network.preprocess import Preprocess
from convscope.records.maps import Attribution
from tests.attribution.cam_nets import net_of, pictures
from tests.nets import Fire, Telling
from tests.nets import pictures as noise

HEAD = "linear layers, as VGG"
CLASSES = ("ant", "bee", "cat", "dog")


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ConvscopeError) as caught:
        call()
    return caught.value.code


def test_every_picture_of_a_batch_has_its_own_target_and_its_own_map() -> None:
    net, images = net_of(HEAD), pictures(3)
    for name in METHODS:
        together = METHODS[name](net, images, target=[2, "dog", lambda s: s[:, 0]], classes=CLASSES)
        for number, target in enumerate((2, 3, 0)):
            (alone,) = METHODS[name](net, images[number], target=target)
            if name == "scorecam" and number == 2:
                continue  # of a function no probability is known
            assert np.allclose(together[number].values, alone.values, atol=1e-9), name
            assert together[number].score == pytest.approx(alone.score, rel=1e-9)
        assert [one.target for one in together] == [2, 3, -1]
        assert [one.origin["target"] for one in together[:2]] == ["cat", "dog"]


def test_a_target_that_cannot_be_is_refused_in_words() -> None:
    net, images = net_of(HEAD), pictures(2)

    def explain(target: Any, **how: Any) -> Callable[[], object]:
        return lambda: METHODS["gradcam"](net, images, target=target, layer="trunk", **how)

    with pytest.raises(UsageError, match="3 targets for 2 pictures"):
        explain([0, 1, 2])()
    with pytest.raises(UsageError, match="did you mean cat"):
        explain("cst", classes=CLASSES)()
    with pytest.raises(UsageError, match="numbered 0 to 3"):
        explain(4)()
    with pytest.raises(UsageError, match="one number a picture"):
        explain(lambda scores: scores)()
    assert code_of(explain([0, 1, 2])) == "U351"
    assert code_of(explain("cat")) == code_of(explain("cst", classes=CLASSES)) == "U352"
    assert code_of(explain(-1)) == code_of(explain(4)) == "U353"
    assert code_of(explain(lambda scores: scores.sum())) == "U354"


def test_what_is_no_batch_of_pictures_is_refused() -> None:
    net = net_of(HEAD)
    for wrong in (torch.zeros(3, 8), torch.zeros(1, 3, 21, 16, dtype=torch.uint8), pictures(0)):
        assert code_of(lambda wrong=wrong: METHODS["gradcam"](net, wrong)) == "U355"
    with pytest.raises(ModelError, match=r"3 × 9 × 9") as caught:
        METHODS["gradcam"](net, torch.zeros(1, 3, 9, 9), layer="trunk")
    assert caught.value.code == "M522"
    with pytest.raises(ModelError, match=r"1 × 21 × 16") as caught:
        METHODS["gradcam"](net, torch.zeros(1, 1, 21, 16), layer="trunk")
    assert caught.value.code == "M522"


def test_what_load_returns_is_taken_as_the_network_in_it() -> None:
    net = net_of(HEAD)
    held = load(net, preprocess=Preprocess.imagenet(resize=None, crop=(21, 16)))
    for name in ("gradcam", "scorecam", "fullgrad"):
        (bare,) = METHODS[name](net, pictures(1))
        (ours,) = METHODS[name](held, pictures(1))
        assert (ours.values == bare.values).all()
        assert bare.values.max() > 0


@pytest.mark.parametrize("wrong", [Image.new("RGB", (16, 21)), np.zeros((3, 21, 16)), None])
def test_a_picture_that_is_no_tensor_is_answered_with_how_to_make_one(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"give load\(module, preprocess=") as caught:
        METHODS["gradcam"](net_of(HEAD), wrong)
    assert caught.value.code == "U376"


def test_an_unknown_variant_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="slope") as caught:
        METHODS["ablationcam"](net_of(HEAD), pictures(1), variant="sloped")
    assert caught.value.code == "U350"


ANSWERS: dict[str, Callable[[Tensor], object]] = {
    "tuple": lambda s: (s, s * 0),
    "dict": lambda s: {"aux": s * 0, "logits": s},
    "named": lambda s: collections.namedtuple("Output", "logits aux")(s, s * 0),
    "dataclass": lambda s: dataclasses.make_dataclass("Output", ["loss", "logits"])(None, s),
    "maps of one place": lambda s: s[:, :, None, None],
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", METHODS)
def test_scores_are_found_in_whatever_a_network_returns(name: str, answer: str) -> None:
    images = noise(2)
    layer = {} if name == "fullgrad" else {"layer": "net.classify"}
    plain = METHODS[name](Telling(lambda s: s), images, **layer)
    packed = METHODS[name](Telling(ANSWERS[answer]), images, **layer)
    assert plain[0].peak > 0
    assert np.array_equal(packed[0].values, plain[0].values)


def test_a_network_without_scores_is_refused() -> None:
    net = Telling(lambda s: {"mask": s[:, :, None].repeat(1, 1, 3)})
    assert code_of(lambda: METHODS["gradcam"](net, noise(), layer="net.conv1")) == "M520"


def test_a_function_may_choose_from_any_shape_as_for_segmentation() -> None:
    class Segments(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).relu())

    net, images = Segments(), noise(2)

    def corner(output: Tensor) -> Tensor:
        return output[:, 2, :5, :5].sum((1, 2))

    for name in ("gradcam", "layercam", "ablationcam"):
        found = METHODS[name](net, images, target=corner, layer="body")
        assert found[0].origin["target"] == "corner"
        assert found[0].space == "function"
        assert found[0].peak > 0
    corner_only = METHODS["layercam"](net, images, target=corner, layer="body")[0].raw
    assert corner_only[5:].max() == corner_only[:, 5:].max() == 0 < corner_only[:5, :5].max()


def relative(found: Attribution, exact: Attribution) -> float:
    return float(np.abs(found.values - exact.values).max() / np.abs(exact.values).max())


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "autocast"])
@pytest.mark.parametrize("name", METHODS)
def test_networks_of_low_precision_give_maps_in_float32(name: str, precision: str) -> None:
    """The leading library raises here. Of the bits, bfloat16 keeps 8."""
    images = pictures(2).float()
    exact = METHODS[name](net_of(HEAD).float(), images)
    targets = [one.target for one in exact]
    if precision == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = METHODS[name](net_of(HEAD).float(), images, target=targets)
    else:
        low = net_of(HEAD).to(getattr(torch, precision))
        found = METHODS[name](low, images, target=targets)
    for one, other in zip(found, exact, strict=True):
        assert one.values.dtype == np.float32
        assert one.origin["precision"] == "float32"
        assert other.peak > 0
        assert relative(one, other) < (0.01 if precision == "float16" else 0.12)


@pytest.mark.parametrize("size", [(21, 16), (40, 23), (64, 64)])
def test_any_size_gives_a_map_of_that_size(size: tuple[int, int]) -> None:
    net = Fire()
    for name in METHODS:
        found = METHODS[name](net, noise(2, *size), target=0)
        assert [one.values.shape for one in found] == [size, size]
        assert all(one.values.dtype == np.float32 for one in found)


def test_grey_networks_take_grey_pictures() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.append(nn.Linear(6, 3))
    for name in METHODS:
        assert METHODS[name](net, noise(2)[:, :1], target=1)[0].values.shape == (33, 29)


class Careless(nn.Module):
    """Flattens by `view`, which wants numbers channel by channel, under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3, 8), nn.Linear(4 * 4 * 4, 3)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.fc(x.view(len(x), -1))


def test_code_that_wants_another_memory_layout_or_forbids_gradients_still_works() -> None:
    images = noise(2, 33, 33)
    for name in ("gradcam", "layercam", "ablationcam", "scorecam"):
        assert METHODS[name](Careless(), images, target=1, layer="conv")[0].peak > 0
    assert code_of(lambda: METHODS["fullgrad"](Careless(), images, target=1)) == "M540"


def test_a_trunk_that_is_kept_from_gradients_is_no_obstacle() -> None:
    class Frozen(Careless):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.conv(x).relu()
            return self.fc(x.flatten(1))

    images = noise(2, 33, 33)
    free, frozen = Careless(), Frozen()
    for name in ("gradcam", "ablationcam"):
        one, other = (METHODS[name](net, images, target=1, layer="conv") for net in (free, frozen))
        assert one[0].peak > 0
        assert np.allclose(one[0].values, other[0].values, atol=1e-6)


def test_a_network_without_gradients_is_named_and_other_methods_offered() -> None:
    class Closed(Careless):
        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu()
            with torch.no_grad():
                return self.fc(x.flatten(1))

    images = noise(1, 33, 33)
    with pytest.raises(ModelError, match="without gradients") as caught:
        METHODS["gradcam"](Closed(), images, target=1, layer="conv")
    assert caught.value.code == "M540"
    for name in ("ablationcam", "scorecam", "eigencam"):
        assert METHODS[name](Closed(), images, target=1, layer="conv")[0].peak > 0


def test_calls_from_inference_mode_work() -> None:
    net = net_of(HEAD)
    plain = METHODS["gradcam"](net, pictures(1), target=1)
    with torch.inference_mode():
        inside = METHODS["gradcam"](net, pictures(1), target=1)
        assert METHODS["fullgrad"](net, pictures(1), target=1)[0].positive
        assert METHODS["ablationcam"](net, pictures(1), target=1)[0].positive
    assert np.array_equal(inside[0].values, plain[0].values)


def test_weights_made_under_inference_mode_are_no_obstacle() -> None:
    with torch.inference_mode():
        net = net_of(HEAD)
    for name in METHODS:
        one, other = (METHODS[name](n, pictures(1), target=1)[0] for n in (net, net_of(HEAD)))
        assert np.array_equal(one.values, other.values)


def test_numbers_that_are_none_are_not_drawn() -> None:
    net = net_of(HEAD)
    with torch.no_grad():
        net.trunk[4].bias[0] = float("nan")
    for name in METHODS:
        assert code_of(lambda name=name: METHODS[name](net, pictures(1), target=1)) == "M543"


def test_the_result_says_what_made_it_and_comes_back_from_disk(tmp_path: Path) -> None:
    (found,) = METHODS["gradcam++"](
        net_of(HEAD), pictures(1), target="dog", classes=CLASSES, variant="pytorch-grad-cam"
    )
    assert (found.method, found.variant, found.layer) == ("Grad-CAM++", "pytorch-grad-cam", "trunk")
    assert found.origin["epsilon"] == 1e-6
    assert found.origin["target"] == "dog"
    assert found.origin["target chosen"] == "by the user"
    assert found.peak == found.raw.max()
    assert found.values.max() == pytest.approx(1)
    back = Attribution.load(found.save(tmp_path / "map"))
    assert np.array_equal(back.values, found.values)
    assert np.array_equal(back.raw, found.raw)
    assert (back.score, back.target, back.origin) == (found.score, 3, found.origin)
