"""Is every map of the family what its authors define?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convscope.attribution.cam import CamOptions
from convscope.attribution.formulas import CAMS, METHODS, table
from convscope.records.maps import Attribution
from tests.attribution.cam_nets import (
    HEADS,
    SIZE,
    Split,
    by_hand,
    head_by_hand,
    net_of,
    pictures,
    scores_by_hand,
)
from tests.oracles import cam as oracle

TARGETS = [2, 0, 3]
LAYER = "trunk"
FROM_GRADIENTS = {
    "gradcam": oracle.gradcam,
    "gradcam++": oracle.gradcam_plus_plus,
    "xgradcam": oracle.xgradcam,
    "layercam": oracle.layercam,
    "eigengradcam": oracle.eigengradcam,
    "eigencam": lambda A, _: oracle.eigencam(A),
}


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= 1e-9 * max(1.0, float(np.abs(theirs).max())))


def assert_is(found: Attribution, expected: np.ndarray) -> None:
    """The raw map to 1e-9, and the same enlarged."""
    assert np.abs(expected).max() > 1e-3, "an empty map agrees with anything"
    assert found.raw is not None
    assert found.raw.dtype == np.float64
    assert close(found.raw, expected)
    assert close(found.values, oracle.upsampled(expected, *SIZE))


@pytest.mark.parametrize("rectified", [True, False], ids=["rectified", "signed"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", FROM_GRADIENTS)
def test_maps_from_gradients_are_the_authors(name: str, head: str, rectified: bool) -> None:
    net, images = net_of(head, rectified=rectified), pictures()
    found = METHODS[name](net, images, target=TARGETS, layer=LAYER)
    drawn = False
    for number, target in enumerate(TARGETS):
        expected = FROM_GRADIENTS[name](*by_hand(net, images[number], target))
        assert close(found[number].raw, expected)
        drawn |= bool(np.abs(expected).max() > 1e-3)
    assert drawn, "empty maps agree with anything"


@pytest.mark.parametrize("variant", ["authors", "slope"])
@pytest.mark.parametrize("rectified", [True, False], ids=["rectified", "signed"])
@pytest.mark.parametrize("head", HEADS)
def test_ablation_cam_is_the_authors_whatever_follows(
    head: str, rectified: bool, variant: str
) -> None:
    net, images = net_of(head, rectified=rectified), pictures()
    found = METHODS["ablationcam"](net, images, layer=LAYER, variant=variant)
    drawn = False
    for number, one in enumerate(found):
        A, _ = by_hand(net, images[number], one.target)
        assert one.score > 0
        expected = oracle.ablationcam(A, head_by_hand(net, one.target), slope=variant == "slope")
        assert close(one.raw, expected)
        drawn |= bool(np.abs(expected).max() > 1e-3)
    assert drawn


@pytest.mark.parametrize("variant", ["authors", "paper", "softmax"])
@pytest.mark.parametrize("head", ["linear layers, as VGG", "maps of classes, as SqueezeNet"])
def test_score_cam_is_the_authors_code_or_their_paper(head: str, variant: str) -> None:
    net, images = net_of(head), pictures(2)
    found = METHODS["scorecam"](net, images, layer=LAYER, variant=variant)
    for number, target in enumerate(one.target for one in found):
        A, _ = by_hand(net, images[number], target)
        expected = oracle.scorecam(
            A,
            images[number].numpy(),
            lambda image: scores_by_hand(net, image),
            target,
            paper=variant != "authors",
        )
        assert_is(found[number], expected)


def test_several_layers_of_layercam_join_as_in_the_paper() -> None:
    net, images = net_of("average and linear, as ResNet"), pictures(1)
    found = METHODS["layercam"](net, images, target=2, layer=["trunk", "trunk.1"])[0]
    eval_net = net.eval()
    shallow = eval_net.trunk[:2](images).detach().requires_grad_()
    score = eval_net.head(eval_net.trunk[2:](shallow.clone()))[0, 2]
    (g,) = torch.autograd.grad(score, shallow)
    maps = [
        oracle.layercam(shallow.detach()[0].numpy(), g[0].numpy()),
        oracle.layercam(*by_hand(net, images[0], 2)),
    ]
    assert close(found.values, oracle.layercam_fused(maps, *SIZE))
    assert found.raw is None
    assert found.layer == "trunk.1 + trunk"
    assert "tanh" in found.origin["fusion"]


def test_several_layers_of_the_others_join_as_the_mean_of_maps_of_equal_height() -> None:
    net, images = net_of("linear layers, as VGG"), pictures(2)
    both = METHODS["gradcam"](net, images, layer=["trunk.1", "trunk"])
    single = [METHODS["gradcam"](net, images, layer=name) for name in ("trunk.1", "trunk")]
    for number in range(2):
        raws = [maps[number].raw for maps in single]
        assert all(one.max() > 0 for one in raws)
        mean = sum(oracle.upsampled(one / one.max(), *SIZE) for one in raws) / 2
        assert close(both[number].values, mean)


class Long(nn.Module):
    """The same network as `Split(...)` with every bias given as a map of its own, written out."""

    def __init__(self, net: Split) -> None:
        super().__init__()
        self.net = net.eval()

    def biases(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Of conv, batch norm, conv, conv (all with maps) and their sizes."""
        bn = self.net.trunk[1]
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        values = [
            self.net.trunk[0].bias,
            bn.bias - bn.running_mean * scale,
            self.net.trunk[4].bias,
            self.net.head[1].bias,
        ]
        sizes = [(10, 7), (10, 7), (5, 4), (5, 4)]
        return [
            value.detach()[:, None, None].expand(-1, *size).clone().requires_grad_()
            for value, size in zip(values, sizes, strict=True)
        ]

    def forward(self, x: torch.Tensor, biases: list[torch.Tensor]) -> torch.Tensor:
        conv = nn.functional.conv2d
        bn = self.net.trunk[1]
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        x = conv(x, self.net.trunk[0].weight, None, 2, 1) + biases[0]
        x = (x * scale[:, None, None] + biases[1]).relu()
        x = nn.functional.max_pool2d(x, 2, 2, ceil_mode=True)
        x = (conv(x, self.net.trunk[4].weight, None, 1, 1) + biases[2]).relu()
        return (conv(x, self.net.head[1].weight) + biases[3]).relu().mean((2, 3))


def test_fullgrad_is_the_authors_with_every_bias_as_an_input_of_its_own() -> None:
    net, images = net_of("maps of classes, as SqueezeNet"), pictures(2)
    long = Long(net)
    found = METHODS["fullgrad"](net, images, target=[1, 3])
    for number, target in enumerate([1, 3]):
        x = images[number : number + 1].clone().requires_grad_()
        biases = long.biases(x)
        score = long(x, biases)[0, target]
        gradients = torch.autograd.grad(score, [x, *biases])
        parts = [(x * gradients[0])[0].detach().numpy()]
        parts += [(b * g).detach().numpy() for b, g in zip(biases, gradients[1:], strict=True)]
        assert_is(found[number], oracle.fullgrad(parts, *SIZE))
        complete = found[number].origin["completeness"]
        assert complete["sum"] == pytest.approx(sum(part.sum() for part in parts), rel=1e-9)
        assert complete["score"] == pytest.approx(float(score.detach()), rel=1e-9)
        assert complete["relative gap"] < 1e-9


def test_on_average_pool_and_linear_layer_grad_cam_is_cam_and_several_methods_agree() -> None:
    """Class activation mapping: the map is the linear layer's row over the maps (Zhou 2016)."""
    net, images = net_of("average and linear, as ResNet"), pictures(1)
    A, _ = by_hand(net, images[0], 2)
    row = net.head[3].weight[2].detach().numpy()
    cam = np.maximum((row[:, None, None] * A).sum(0), 0) / A[0].size
    assert_is(METHODS["gradcam"](net, images, target=2, layer=LAYER)[0], cam)
    assert_is(METHODS["xgradcam"](net, images, target=2, layer=LAYER)[0], cam)


def test_the_target_is_a_class_a_name_a_function_or_the_likeliest() -> None:
    net, images = net_of("linear layers, as VGG"), pictures(2)
    classes = ("ant", "bee", "cat", "dog")
    top = net.eval()(images).argmax(1).tolist()
    by_index = METHODS["gradcam"](net, images, target=top, layer=LAYER, classes=classes)
    others = [
        METHODS["gradcam"](net, images, layer=LAYER),
        METHODS["gradcam"](
            net, images, target=[classes[t] for t in top], layer=LAYER, classes=classes
        ),
        METHODS["gradcam"](net, images, target=lambda s: s.amax(1), layer=LAYER),
        METHODS["gradcam"](net, images, target=torch.tensor(top), layer=LAYER),
    ]
    for other in others:
        for number in range(2):
            assert np.array_equal(other[number].values, by_index[number].values)
            assert other[number].score == by_index[number].score
    assert by_index[0].origin["target"] == classes[top[0]]
    assert [found.target for found in by_index] == top
    assert others[2][0].target == -1
    assert others[2][0].space == "function"


def test_the_page_names_every_method_and_variant() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cam.md").read_text(encoding="utf-8")
    assert "\n".join(table().markdown()) in page
    for definition in CAMS.values():
        for variant in definition.variants:
            assert f'"{variant}"' in page, variant
    for option in CamOptions.__annotations__:
        assert f"| `{option}` |" in page
