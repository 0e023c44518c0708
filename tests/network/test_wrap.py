"""Do maps through a wrapper say what plain PyTorch says of the same network?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import detection, segmentation

import convscope
from convscope import Box, ConvscopeError, wrap
from convscope.core.errors import UsageError

SIDE = 64


def picture(side: int = SIDE, seed: int = 0) -> Tensor:
    rough = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(rough, (side, side), mode="bilinear").clamp(0, 1)


@cache
def built(name: str) -> nn.Module:
    """With random weights, which are made lively enough to tell places apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        plain: dict[str, Any] = {"weights": None, "weights_backbone": None}
        if name.startswith(("fcn", "deeplab")):
            model = getattr(segmentation, name)(**plain, num_classes=5, aux_loss=True)
        else:
            small = {"min_size": SIDE, "max_size": SIDE, "num_classes": 4}
            score = {"fasterrcnn": "box_score_thresh", "retinanet": "score_thresh"}
            kind = next(value for key, value in score.items() if name.startswith(key))
            model = getattr(detection, name)(**plain, **small, **{kind: 0.0})
            for module in model.modules():
                if isinstance(module, nn.Linear) and module.out_features == 4:
                    nn.init.normal_(module.weight, std=0.3)
    return model.eval()


def gradient(score: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray:
    pixels = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(score(pixels).sum(), pixels)
    return found[0].numpy()


def cam(model: nn.Module, layer: str, score: Callable[[Any], Tensor], x: Tensor) -> np.ndarray:
    """Grad-CAM by its definition: maps times the mean gradient, rectified."""
    kept: list[Tensor] = []
    module = dict(model.named_modules())[layer]
    handle = module.register_forward_hook(lambda _, __, out: kept.append(out))
    try:
        value = score(x)
        (g,) = torch.autograd.grad(value.sum(), kept[0])
    finally:
        handle.remove()
    return (g.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()[0].detach().numpy()


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(np.abs(expected).max()))


MASK = torch.zeros(SIDE, SIDE, dtype=torch.bool)
MASK[10:30, 20:50] = True


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_mobilenet_v3_large"])
def test_maps_of_a_region_are_those_of_its_mean_score(name: str) -> None:
    model, x = built(name), picture()
    given = wrap.segmentation(model, MASK)

    def score(images: Tensor) -> Tensor:
        return model(images)["out"][:, 2][:, MASK].mean(1)

    with torch.no_grad():
        want = model(x)["out"][..., MASK].mean(2)
        assert torch.allclose(given(x), want, rtol=1e-4, atol=1e-6)
    (found,) = convscope.saliency(given, x, target=2)
    assert found.score == pytest.approx(float(want[0, 2]), rel=1e-4)
    assert same(found.pixels, gradient(score, x))
    layer = "backbone.layer4" if name.startswith("fcn") else "backbone.16"
    (found,) = convscope.gradcam(given, x, target=2, layer=layer)
    assert same(found.raw, cam(model, layer, score, x))
    (found,) = convscope.gradcam(given, x, target=2)  # the layer by itself: not the side branch
    assert found.layer == {"f": "classifier.2", "d": "classifier.3"}[name[0]]


def test_occlusion_of_a_region_is_that_of_its_mean_score() -> None:
    model, x = built("fcn_resnet50"), picture()
    found = convscope.occlusion(wrap.segmentation(model, MASK), x[0], target=1, patch=32, stride=32)
    for row, top in enumerate((0, 32)):
        for column, left in enumerate((0, 32)):
            hidden = x.clone()
            hidden[..., top : top + 32, left : left + 32] = 0
            with torch.no_grad():
                want = float(model(hidden)["out"][0, 1][MASK].mean())
            assert found.score[row, column] == pytest.approx(want, abs=1e-5)


def test_the_region_of_a_class_is_where_it_is_the_likeliest() -> None:
    model, x = built("fcn_resnet50"), picture()
    with torch.no_grad():
        likeliest = model(x)["out"][0].argmax(0)
    label = int(likeliest.mode().values.mode().values)
    mask = wrap.region(model, x, label)
    assert torch.equal(mask, likeliest == label)
    aux = wrap.region(model, x[0], int(model(x)["aux"][0].argmax(0)[0, 0]), output="aux")
    assert bool(aux[0, 0])
    absent = next(n for n in (*range(5), 99) if not bool((likeliest == n).any()))
    with pytest.raises(UsageError, match="nowhere"):
        wrap.region(model, x, absent)


def chosen(model: nn.Module, x: Tensor) -> tuple[list[float], int, float]:
    """The surest detection: its box, label and score."""
    with torch.no_grad():
        (found,) = model([x[0]])
    best = int(found["scores"].argmax())
    return found["boxes"][best].tolist(), int(found["labels"][best]), float(found["scores"][best])


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_fpn", "retinanet_resnet50_fpn"])
def test_maps_of_a_box_are_those_of_its_score(name: str) -> None:
    model, x = built(name), picture()
    box, label, sure = chosen(model, x)
    given = wrap.detection(model, box, label)

    def score(images: Tensor) -> Tensor:
        (found,) = model([images[0]])
        same_box = torchvision.ops.box_iou(found["boxes"], torch.tensor([box]))[:, 0] >= 0.5
        return found["scores"][same_box & (found["labels"] == label)].max()

    with torch.no_grad():
        assert float(given(x)) == pytest.approx(sure, rel=1e-5)
    (found,) = convscope.saliency(given, x, target=1)
    assert found.score == pytest.approx(sure, rel=1e-5)
    assert found.space == "probability"
    assert same(found.pixels, gradient(score, x))
    assert found.pixels.any()
    layer = "backbone.body.layer4" if name.startswith("retina") else "backbone.body.16"
    (found,) = convscope.gradcam(given, x, target=1, layer=layer)
    assert same(found.raw, cam(model, layer, lambda y: score(y), x))
    (found,) = convscope.gradcam(given, x, target=1)
    assert found.layer.startswith(("backbone", "head"))
    (opposite,) = convscope.saliency(given, x, target=0)
    assert opposite.score == pytest.approx(1 - sure, rel=1e-4)


def test_occlusion_of_a_box_is_that_of_its_score() -> None:
    model, x = built("fasterrcnn_mobilenet_v3_large_fpn"), picture()
    box, label, sure = chosen(model, x)
    given = wrap.detection(model, box, label)
    found = convscope.occlusion(
        given, x[0], target=1, patch=32, stride=32, layer="backbone.body.16"
    )
    assert found.base_probability == pytest.approx(sure, rel=1e-5)
    hidden = x.clone()
    hidden[..., :32, 32:] = 0
    with torch.no_grad():
        (there,) = model([hidden[0]])
    overlap = torchvision.ops.box_iou(there["boxes"], torch.tensor([box]))[:, 0]
    kept = there["scores"][(overlap >= 0.5) & (there["labels"] == label)]
    want = float(kept.max()) if len(kept) else 0.0
    assert found.probability[0, 1] == pytest.approx(want, abs=1e-5)


def test_where_nothing_is_found_the_score_is_nothing() -> None:
    model, x = built("fasterrcnn_mobilenet_v3_large_fpn"), picture()
    given = wrap.detection(model, Box(0, 0, 1, 1), 1, overlap=0.99)
    (found,) = convscope.saliency(given, x, target=1)
    assert found.score == 0
    assert not found.pixels.any()
    assert "0 everywhere" in found.origin["notes"][0]


class Masked(nn.Module):
    """Takes a mask first, the picture second, and a number by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 3)

    def forward(self, mask: Tensor, image: Tensor, *, power: float = 1.0) -> Tensor:
        return self.fc(self.conv(image * mask).relu().mean((2, 3))) * power


def test_other_inputs_are_held_fixed() -> None:
    model, x = Masked().eval(), picture()
    mask = (torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    given = wrap.inputs(model, {"mask": mask, "power": 2.0}, picture="image")
    two = torch.cat((x, picture(seed=1)))
    assert torch.equal(given(two), model(mask.expand(2, 1, SIDE, SIDE), two, power=2.0))
    (found,) = convscope.saliency(given, x, target=1)
    assert same(found.pixels, gradient(lambda y: model(mask, y, power=2.0)[:, 1], x))
    (found,) = convscope.gradcam(given, x, target=1)
    assert found.layer == "conv"
    hidden = convscope.occlusion(given, x[0], target=1, patch=32, stride=32)
    covered = x.clone()
    covered[..., 32:, :32] = 0
    want = float(model(mask, covered, power=2.0)[0, 1].detach())
    assert hidden.score[1, 0] == pytest.approx(want, abs=1e-5)


def test_a_network_whose_first_input_is_the_picture_needs_no_name() -> None:
    class Later(Masked):
        def forward(self, image: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(mask, image)

    model, x = Later().eval(), picture()
    given = wrap.inputs(model, {"mask": torch.ones(1, 1, 1, 1)})
    network = convscope.load(given)
    assert network.model is given
    assert torch.equal(given(x), model(x, torch.ones(1, 1, 1, 1)))
    assert [name for name, _ in given.named_modules()] == [
        name for name, _ in model.named_modules()
    ]


class Listed(nn.Module):
    def forward(self, images: list[Tensor]) -> Tensor:
        return images[0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: wrap.inputs(Masked(), {"image": 1}, picture="image"), "is the picture"),
        (lambda: wrap.segmentation(Masked(), torch.zeros(4, 4)), "no mask"),
        (lambda: wrap.segmentation(Masked(), torch.ones(1, 4, 4)), "no mask"),
        (lambda: wrap.detection(Masked(), (3, 3, 2, 9)), "is no box"),
        (lambda: wrap.detection(Masked(), (3, 3, 2)), "is no box"),
        (lambda: convscope.saliency(wrap.segmentation(nn.Conv2d(3, 2, 3).eval()), picture(),
                                    target=5), "no such class"),
        (lambda: wrap.segmentation(nn.Flatten())(picture()), "where are the maps"),
        (lambda: wrap.detection(Listed(), (0, 0, 4, 4))(picture()), "list of detections"),
    ],
)  # fmt: skip
def test_what_will_not_do_is_refused_in_one_line(call: Callable[[], object], said: str) -> None:
    with pytest.raises((ConvscopeError, TypeError, RuntimeError), match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
