"""Does the square go where it should, and is what the network then says told rightly?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.attribution.occlusion import corners, occlusion, occlusion_map, occlusions
from convscope.core.errors import ModelError, UsageError
from convscope.core.run import Run
from convscope.records.maps import Occlusion
from tests.nets import Fire, Residual
from tests.oracles.occlusion import occluded


class Corner(nn.Module):
    """Looks at nothing but the 4 × 4 pixels at row 10, column 20: class 1 if they are bright."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([[0.0, 0, 0], [1, 1, 1]])[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.conv(x)
        return maps[:, :, 10:14, 20:24].mean((2, 3))


def toy(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 5, 5, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 7, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(7, 6),
    ).double()


def test_the_paper_s_square_has_thirty_by_thirty_positions() -> None:
    starts = corners(224, 50, 6)
    assert (len(starts), starts[0], starts[-1]) == (30, 0, 174)


def test_the_last_square_touches_the_border_where_the_stride_does_not_divide() -> None:
    assert corners(20, 7, 6) == [0, 6, 12, 13]
    assert corners(7, 7, 6) == [0]


def test_only_hiding_what_the_network_looks_at_changes_its_mind() -> None:
    image = torch.ones(3, 24, 40)
    found = occlusion(Corner(), image, target=1, patch=4, stride=2)
    assert found.base_probability == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-6)
    touches = (np.abs(found.tops - 10)[:, None] < 4) & (np.abs(found.lefts - 20)[None] < 4)
    assert touches.sum() == 9
    np.testing.assert_allclose(found.probability[~touches], found.base_probability, atol=1e-6)
    assert np.all(found.probability[touches] < found.base_probability)
    exact = found.probability[found.tops == 10, found.lefts == 20]
    assert exact == pytest.approx(0.5)
    assert set(found.likeliest[~touches]) == {1}


def test_every_panel_equals_one_slow_pass_a_position() -> None:
    model = toy()
    image = torch.randn(3, 31, 26, dtype=torch.float64)
    found = occlusion(model, image, target=4, layer="2", patch=9, stride=5, fill=0.3)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        maps = model[2](torch.relu(model[0](x)))
        return model[3:](maps.clone()), maps

    with torch.no_grad():
        _, whole = forward(image[None])
        probability, sums = occluded(
            forward, image, 9, found.tops.tolist(), found.lefts.tolist(), 0.3
        )
    strongest = int(torch.stack([m[m > 0].sum() for m in whole[0]]).argmax())
    assert found.channel == strongest
    assert found.base_activity > 0
    np.testing.assert_allclose(found.probability, probability[..., 4], atol=1e-7)
    np.testing.assert_allclose(found.activity, sums[..., strongest], rtol=1e-6)
    assert np.array_equal(found.likeliest, probability.argmax(-1))
    assert (found.tops[-1], found.lefts[-1]) == (31 - 9, 26 - 9)


def test_the_likeliest_class_is_followed_when_none_is_named() -> None:
    model = toy(3).float()
    image = torch.randn(3, 26, 26)
    with torch.no_grad():
        expected = int(model(image[None])[0].argmax())
    assert occlusion(model, image, patch=8, stride=9).target == expected


def test_a_network_that_puts_out_probabilities_is_taken_at_its_word() -> None:
    scores, image = toy(4), torch.randn(3, 31, 26, dtype=torch.float64)
    shares = nn.Sequential(*scores, nn.Softmax(1))
    plain, found = (occlusion(net, image, target=1, patch=8, stride=9) for net in (scores, shares))
    np.testing.assert_allclose(found.probability, plain.probability, atol=1e-7)
    assert found.base_probability == pytest.approx(plain.base_probability, abs=1e-9)


def test_noise_is_the_same_for_a_seed_and_mean_is_the_picture_s_own() -> None:
    model, image = toy(1).float(), torch.rand(3, 26, 26)
    once = occlusion(model, image, fill="noise", run=Run(seed=5), patch=8, stride=9)
    again = occlusion(model, image, fill="noise", run=Run(seed=5), patch=8, stride=9)
    other = occlusion(model, image, fill="noise", run=Run(seed=6), patch=8, stride=9)
    assert np.array_equal(once.probability, again.probability)
    assert not np.array_equal(once.probability, other.probability)
    mean = tuple(image.mean((1, 2)).tolist())
    by_name = occlusion(model, image, fill="mean", patch=8, stride=9)
    by_value = occlusion(model, image, fill=mean, patch=8, stride=9)
    np.testing.assert_allclose(by_name.probability, by_value.probability, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"patch": 27}, "lies between 1 and the picture's 26"),
        ({"stride": 0}, "stride above 0"),
        ({"fill": "stripes"}, "is no fill"),
        ({"fill": (0.0, 1.0)}, "is not one number, 3"),
        ({"target": 6}, "has 6 classes"),
        ({"layer": "9"}, "no such layer"),
        ({"layer": "6"}, "no feature maps"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(changes: dict[str, object], fault: str) -> None:
    settings = {"patch": 8, "stride": 9, **changes}
    with pytest.raises((UsageError, ModelError), match=fault):
        occlusion(toy().float(), torch.rand(3, 26, 26), **settings)  # type: ignore[arg-type]


def test_a_network_that_gives_no_numbers_is_not_drawn() -> None:
    model = toy().float()
    model[6].bias.data[0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        occlusion(model, torch.rand(3, 26, 26), patch=8)


def test_a_rectangle_and_two_strides_go_where_they_should() -> None:
    model, image = toy(2), torch.randn(3, 31, 26, dtype=torch.float64)
    found = occlusion(model, image, target=1, patch=(9, 4), stride=(11, 7), every_class=True)
    assert found.sides == (9, 4)
    assert (found.tops.tolist(), found.lefts.tolist()) == ([0, 11, 22], [0, 7, 14, 21, 22])
    hidden = image.clone()
    hidden[:, 11:20, 14:18] = 0
    with torch.no_grad():
        scores = model(hidden[None])[0]
    assert found.score is not None
    assert found.probabilities is not None
    assert found.score[1, 2] == pytest.approx(float(scores[1]), abs=1e-6)
    np.testing.assert_allclose(found.probabilities[1, 2], scores.softmax(0), atol=1e-6)
    assert not np.allclose(found.probabilities[0, 0], found.probabilities[1, 2], atol=1e-5)


def test_blur_shows_the_blurred_picture_and_a_tensor_itself() -> None:
    model, image = toy(4), torch.randn(3, 31, 26, dtype=torch.float64)
    blurred = image.clone()  # by the definition, pixel after pixel
    weights = torch.exp(-0.5 * (torch.arange(-6, 7) / 2.0) ** 2).double()
    weights = torch.outer(weights, weights) / weights.sum() ** 2
    padded = F.pad(image[None], (6, 6, 6, 6), mode="replicate")[0]
    for row in range(31):
        for column in range(26):
            window = padded[:, row : row + 13, column : column + 13]
            blurred[:, row, column] = (window * weights).sum((1, 2))
    by_name = occlusion(model, image, target=0, patch=8, stride=9, fill="blur")
    by_tensor = occlusion(model, image, target=0, patch=8, stride=9, fill=blurred)
    np.testing.assert_allclose(by_name.probability, by_tensor.probability, atol=1e-7)
    assert by_tensor.origin["fill"] == "tensor (3, 31, 26)"
    square = torch.randn(3, 8, 8, dtype=torch.float64)
    moving = occlusion(model, image, target=0, patch=8, stride=9, fill=square)
    hidden = image.clone()
    hidden[:, 9:17, 9:17] = square
    with torch.no_grad():
        expected = model(hidden[None]).softmax(1)[0, 0]
    assert moving.probability[1, 1] == pytest.approx(float(expected), abs=1e-7)


def test_several_pictures_give_what_each_gives_alone() -> None:
    model, images = toy(5), torch.randn(3, 3, 31, 26, dtype=torch.float64)
    told: list[tuple[int, int]] = []
    together = occlusions(
        model, images, target=[1, 2, 3], patch=8, stride=9, fill="mean", layer="0",
        run=Run(progress=lambda *done: told.append(done)),
    )  # fmt: skip
    assert told[-1] == (36, 36)
    for number, (image, found) in enumerate(zip(images, together, strict=True)):
        alone = occlusion(
            model, image, target=number + 1, patch=8, stride=9, fill="mean", layer="0"
        )
        np.testing.assert_allclose(found.probability, alone.probability, atol=1e-7)
        np.testing.assert_allclose(found.activity, alone.activity, rtol=1e-6)
        assert found.channel == alone.channel
    with pytest.raises(UsageError, match="2 targets"):
        occlusions(model, images, target=[1, 2], patch=8)


def test_the_record_says_what_was_computed() -> None:
    model, image = toy(), torch.randn(3, 31, 26, dtype=torch.float64)
    assert occlusion(model, image, patch=8, stride=9).origin["engine"] == "windows"
    normed = nn.Sequential(toy()[0], nn.InstanceNorm2d(5), *toy()[1:]).double()
    found = occlusion(normed, image, patch=8, stride=9)
    assert found.origin["engine"] == "windows, whole maps from instance_norm on"


def test_records_come_back_from_disk_with_and_without_what_is_new(tmp_path: Path) -> None:
    found = occlusion(toy(), torch.randn(3, 31, 26).double(), patch=(8, 5), stride=9)
    again = Occlusion.load(found.save(tmp_path / "new"))
    assert (again.sides, again.base_score) == ((8, 5), found.base_score)
    index = json.loads((tmp_path / "new" / "record.json").read_text())
    for name in ("width", "base_score", "probabilities"):
        del index["plain"][name]
    index = {**index, "schema": 1, "arrays": [name for name in index["arrays"] if name != "score"]}
    (tmp_path / "new" / "record.json").write_text(json.dumps(index))
    old = Occlusion.load(tmp_path / "new")
    assert old.sides == (8, 8)
    assert old.score is None


@pytest.mark.parametrize("make", [Fire, toy, Residual])
def test_a_map_of_pixels_is_captum_s_where_the_stride_divides(
    make: Callable[[], nn.Module],
) -> None:
    captum = pytest.importorskip("captum.attr")
    model, images = make().double().eval(), torch.randn(2, 3, 33, 29, dtype=torch.float64)
    found = occlusion_map(model, images, target=[3, 5], patch=(9, 8), stride=(6, 7), fill=0.25)
    theirs = captum.Occlusion(model).attribute(
        images, (3, 9, 8), (3, 6, 7), baselines=0.25, target=torch.tensor([3, 5])
    )
    for ours, expected in zip(found, theirs[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(ours.values, expected, atol=1e-6 * np.abs(expected).max())
        assert np.abs(ours.values).max() > 0


def test_pixels_that_are_never_hidden_count_nothing_and_the_likeliest_class_is_taken() -> None:
    model, image = toy(6), torch.randn(1, 3, 31, 26, dtype=torch.float64)
    (found,) = occlusion_map(model, image, patch=4, stride=9)
    with torch.no_grad():
        scores = model(image)[0]
    assert found.target == int(scores.argmax())
    assert found.score == pytest.approx(float(scores.max()))
    assert not found.values[4:9].any()
    assert found.values[:4, :4].any()
    with pytest.raises(ModelError, match="has 6 classes"):
        occlusion_map(model, image, target=6, patch=4)


class Overwriting(nn.Module):
    """Works in place on what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.net = toy()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mul_(2).add_(0.1))


def test_a_network_that_works_in_place_does_not_change_the_picture() -> None:
    image = torch.rand(3, 24, 20).double()
    before, how = image.clone(), {"patch": 8, "stride": 6}
    found = occlusion(Overwriting(), image, **how)
    (of_class,) = occlusion_map(Overwriting(), image[None], **how)
    assert torch.equal(image, before)
    named = occlusion(Overwriting(), image, layer=found.layer, target=found.target, **how)
    assert np.array_equal(found.score, named.score)
    assert of_class.target == found.target


def test_wrapped_networks_are_seen_through() -> None:
    image, how = torch.rand(3, 24, 20).double(), {"patch": 8, "stride": 6}
    found = occlusion(nn.DataParallel(toy()), image, **how)
    assert np.allclose(found.score, occlusion(toy(), image, **how).score, atol=1e-6)
    assert isinstance(toy().get_submodule(found.layer.removeprefix("module.")), nn.Conv2d)


def test_the_likeliest_class_is_that_of_the_scores_however_small_they_are() -> None:
    net, image = toy().float(), torch.rand(3, 24, 20)
    with torch.no_grad():
        for weight in list(net.parameters())[-2:]:
            weight *= 1e-9
    found = occlusion(net, image, patch=8, stride=6, every_class=True)
    with torch.no_grad():
        assert found.target == int(net(image[None]).argmax())
    assert found.target != 0, "else nothing would be shown"
    assert set(np.unique(found.likeliest)) == {found.target}
