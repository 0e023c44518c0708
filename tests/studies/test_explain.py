"""Are pictures explained by methods that are what they say, and is a planted shortcut found?"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.attribution.registry import METHODS, chosen
from convscope.core.errors import ModelError, UsageError
from convscope.core.run import Run
from convscope.core.units import Box
from convscope.network.load import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Picture, Pictures, one_picture
from convscope.studies.explain.figure import findings, summary, verdict
from convscope.studies.explain.study import Checks, explain_folder
from convscope.studies.explain.study import explain_picture as explain

SIZE = (36, 48)
TAG = 8
FAST = Checks(steps=8, random=3)


class Reddish(nn.Module):
    """Class 1 is how much pure red there is, class 0 how much pure green; class 2 is never."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[0, :, 1, 1] = torch.tensor((1.0, -1.0, -1.0))
            self.conv.weight[1, :, 1, 1] = torch.tensor((-1.0, 1.0, -1.0))
            self.conv.weight[2, :, 1, 1] = torch.tensor((0.1, 0.1, 0.1))
            self.conv.bias.copy_(torch.tensor((-0.2, -0.2, 0.0, 0.0)))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.head.weight.copy_(
                torch.tensor(((0.0, 300.0, 1.0, 0.0), (300.0, 0.0, 0.0, 0.0), (-1.0,) * 4))
            )
            self.head.bias.copy_(torch.tensor((0.0, -1.0, -5.0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> Network:
    plain = Preprocess(Framing(None, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Network(Reddish().eval(), plain, ("grass", "tagged", "never"), "made", "by hand", "")


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[Box, ...]]]:
    """Sixteen noisy pictures at their own size; on ten of them a red tag, each elsewhere."""
    root = tmp_path_factory.mktemp("tagged")
    draw = np.random.default_rng(1)
    boxes: dict[str, tuple[Box, ...]] = {}
    for number in range(16):
        pixels = draw.integers(60, 140, (*SIZE, 3)).astype(np.uint8)
        name = f"{number:02}.png"
        if number < 10:
            top, left = (int(draw.integers(side - TAG)) for side in SIZE)
            pixels[top : top + TAG, left : left + TAG] = (255, 0, 0)
            boxes[name] = (Box(top, left, top + TAG, left + TAG),)
        Image.fromarray(pixels).save(root / name)
    return root, boxes


@pytest.mark.parametrize("name", ["gradcam", "layercam", "ablationcam", "occlusion", "saliency"])
def test_what_the_tests_support_is_the_tag(
    network: Network, tagged: tuple[Path, dict[str, tuple[Box, ...]]], name: str
) -> None:
    root, boxes = tagged
    picture = one_picture(root / "00.png")
    found = explain(network, picture, chosen([name]), boxes=boxes["00.png"], checks=FAST)
    assert found.target_name == "tagged"
    assert found.score > 0.9
    (box,) = found.boxes
    assert box == boxes["00.png"][0]
    at = np.unravel_index(found.maps[0].values.argmax(), SIZE)
    assert box.top <= at[0] < box.bottom
    assert box.left <= at[1] < box.right
    assert found.tests[0].deletion_area < min(found.tests[0].random_deletion_areas)
    assert verdict(found, 0).level in ("good", "fair")


def test_a_class_that_nothing_speaks_for_gets_no_evidence_and_not_a_map(
    network: Network, tagged: tuple[Path, dict[str, tuple[Box, ...]]]
) -> None:
    picture = one_picture(tagged[0] / "00.png")
    found = explain(network, picture, chosen(["gradcam"]), target="never", checks=FAST)
    assert found.target == 2
    assert verdict(found, 0).level == "none"
    assert "No positive evidence" in verdict(found, 0).headline


def test_a_map_of_edges_alone_is_not_called_a_reason(
    network: Network, tagged: tuple[Path, dict[str, tuple[Box, ...]]]
) -> None:
    """A user's method that never looks at the network: the same map with random weights."""

    def edges(model: nn.Module, images: Tensor) -> Tensor:
        moved = images.roll(1, 3)
        return (images - moved).abs().sum(1)

    from convscope.attribution.registry import own

    picture = one_picture(tagged[0] / "00.png")
    found = explain(network, picture, {"edges": own(edges, "edges")}, checks=FAST)
    assert found.randomised[0].spearman_absolute[-1] == pytest.approx(1)
    assert found.sensitive[0].spearman == pytest.approx(1)
    said = verdict(found, 0)
    assert said.level in ("fair", "poor")
    assert any("random weights" in reason for reason in said.reasons)
    assert any("tell the two classes apart" in reason for reason in said.reasons)


def test_a_method_that_is_not_defined_is_left_out_with_its_reason(
    network: Network, tagged: tuple[Path, dict[str, tuple[Box, ...]]]
) -> None:
    def refuses(model: nn.Module, images: Tensor) -> Tensor:
        raise ModelError("M531", "gelu", "has no rule")

    from convscope.attribution.registry import own

    picture = one_picture(tagged[0] / "00.png")
    methods = {"mine": own(refuses, "mine"), **chosen(["gradcam"])}
    found = explain(network, picture, methods, checks=FAST)
    assert found.methods == ("gradcam",)
    assert found.refused == {"mine": "gelu: has no rule"}
    with pytest.raises(ModelError, match="has no rule"):
        explain(network, picture, {"mine": own(refuses, "mine")}, checks=FAST)


def test_over_a_folder_the_shortcut_is_said_in_words(
    network: Network, tagged: tuple[Path, dict[str, tuple[Box, ...]]]
) -> None:
    root, boxes = tagged
    seen: list[int] = []
    found = explain_folder(
        network,
        Pictures(root),
        chosen(["gradcam", "eigencam"]),
        boxes=boxes,
        checks=Checks(steps=6, random=2, randomise=False),
        each=lambda number, one: seen.append(number),
    )
    assert seen == list(range(16))
    assert found.target.tolist() == [1] * 10 + [0] * 6
    assert (found.shown("energy inside", "gradcam") > 0.9).all()
    assert (found.shown("pointing", "gradcam") == 1).all()
    assert np.isnan(found.of("pointing", "gradcam")[10:]).all()
    assert np.allclose(found.boxed[:10], TAG * TAG / (SIZE[0] * SIZE[1]))
    assert (found.box_turned[:10] == 0).all()
    warned = [one.text for one in findings(found) if one.level == "warn"]
    assert any("“tagged”" in text and "shortcut" in text for text in warned)
    assert any("“tagged”" in text and "same patch" in text for text in warned)
    assert not any("“grass”" in text and "same patch" in text for text in warned)


def test_the_record_of_a_folder_comes_back_from_disk(
    network: Network, tagged: tuple[Path, dict[str, tuple[Box, ...]]], tmp_path: Path
) -> None:
    found = explain_folder(
        network,
        Pictures(tagged[0]),
        chosen(["gradcam"]),
        numbers=[1, 12],
        checks=Checks(steps=4, random=1, randomise=False),
    )
    found.save(tmp_path / "record")
    again = type(found).load(tmp_path / "record")
    assert again.pictures == ("01.png", "12.png")
    assert np.array_equal(again.values, found.values, equal_nan=True)
    assert np.array_equal(again.crops, found.crops)


def test_boxes_follow_the_framing() -> None:
    """Shorter side 40 of 40×80 to 20: everything by half; of 40 across the middle 20."""
    framing = Framing(20, (20, 20))
    assert framing.box(Box(10, 30, 20, 50), (40, 80)) == Box(5, 5, 10, 15)
    assert Framing(None, (20, 20)).box(Box(10, 30, 20, 50), (40, 80)) == Box(5, 8, 10, 12)


def test_methods_are_found_by_name_and_typos_get_near_ones() -> None:
    assert list(chosen(["all"])) == list(METHODS)
    assert list(chosen(["layercam", "gradcam", "layercam"])) == ["layercam", "gradcam"]
    with pytest.raises(UsageError, match="gradcam") as fault:
        chosen(["gradcan"])
    assert fault.value.code == "U395"


def test_a_method_that_gives_no_map_is_told_so(
    network: Network, tagged: tuple[Path, dict[str, tuple[Box, ...]]]
) -> None:
    from convscope.attribution.registry import own

    picture = one_picture(tagged[0] / "00.png")
    bad = own(lambda model, images: np.zeros((2, 2), np.float32), "bad")
    with pytest.raises(UsageError, match="one map of the picture's size") as fault:
        explain(network, picture, {"bad": bad}, checks=FAST)
    assert fault.value.code == "U396"


def test_the_occlusion_map_is_the_fall_of_the_score_under_the_paper_s_square(
    network: Network,
) -> None:
    image = torch.full((3, *SIZE), 0.3)
    image[:, 10:20, 20:30] = torch.tensor((1.0, 0.0, 0.0))[:, None, None]
    found, other = METHODS["occlusion"](network.model, image.expand(2, -1, -1, -1), target=[1, 0])
    assert found.raw is not None
    assert found.raw.shape == (7, 7)
    high, wide = round(SIZE[0] * 50 / 224), round(SIZE[1] * 50 / 224)
    down, across = -(-(SIZE[0] - high) // 6), -(-(SIZE[1] - wide) // 6)
    for place in ((0, 0), (2, 3), (6, 6)):
        hidden = image.clone()
        top = min(place[0] * down, SIZE[0] - high)
        left = min(place[1] * across, SIZE[1] - wide)
        hidden[:, top : top + high, left : left + wide] = 0
        with torch.no_grad():
            falls = (network.model(image[None]) - network.model(hidden[None]))[0]
        assert found.raw[place] == pytest.approx(float(falls[1]), abs=1e-4)
        assert other.raw is not None
        assert other.raw[place] == pytest.approx(float(falls[0]), abs=1e-4)
    assert found.values.argmax() in np.ravel_multi_index(np.mgrid[8:22, 18:32], SIZE)


class Plain(nn.Module):
    """Three convolutions and a linear layer. `whole`: the mean over all places is subtracted, so
    that a window of the picture changes every place."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = (3, 16, 24, 32)
        self.convs = nn.ModuleList(
            nn.Conv2d(one, two, 3, 2, 1) for one, two in itertools.pairwise(widths)
        )
        self.head, self.whole = nn.Linear(32, 7), whole

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x).relu()
            x = x - x.mean((2, 3), keepdim=True) if self.whole else x
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("whole", [False, True])
def test_an_explanation_costs_at_most_600_passes_and_its_maps_100(whole: bool) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    ready = Preprocess(Framing(None, (96, 64)), (0.5,) * 3, (0.25,) * 3)
    net = Network(Plain(whole=whole).eval(), ready, (), "made", "by hand", "")
    pixels = np.random.default_rng(1).integers(0, 255, (96, 64, 3)).astype(np.uint8)
    counted: list[int] = []
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.model(torch.zeros(1, 3, 96, 64))
    one = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        explain(
            net,
            Picture(0, "x", None, pixels),
            shown=lambda *_: counted.append(counter.get_total_flops()),
        )
    assert counted[0] <= 100 * one
    assert 100 * one < counter.get_total_flops() <= 600 * one


def test_the_maps_are_told_before_they_are_tested(network: Network) -> None:
    order: list[object] = []
    found = explain(
        network,
        Picture(0, "x", None, np.full((*SIZE, 3), 90, np.uint8)),
        chosen(["gradcam", "saliency"]),
        checks=FAST,
        shown=lambda prediction, maps: order.append((prediction.names[0], list(maps))),
        run=Run(progress=lambda done, total: order.append(done / total)),
    )
    assert order.index((found.prediction.names[0], ["gradcam", "saliency"])) == 2


def test_the_summary_names_the_class_and_the_supported_methods(
    network: Network, tagged: tuple[Path, dict[str, tuple[Box, ...]]]
) -> None:
    picture = one_picture(tagged[0] / "00.png")
    found = explain(network, picture, chosen(["gradcam"]), checks=FAST)
    words = summary(found)
    assert words.startswith("“tagged”, ")
    assert ("gradcam" in words) == (verdict(found, 0).level == "good") or "Every map" in words
