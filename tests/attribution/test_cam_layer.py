"""Does a CAM find the layer that a person would name, and say which it took?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as peers
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from convscope.attribution.base import as_maps
from convscope.attribution.cam import default_layer
from convscope.attribution.formulas import METHODS
from convscope.core.errors import ConvscopeError, ModelError
from convscope.network.zfnet import zfnet
from tests.nets import Fire, Residual, sequential
from tests.nets import pictures as noise

NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "resnet18": (lambda: peers.resnet18(), "layer4"),
    "squeezenet: not the classes' own maps": (lambda: peers.squeezenet1_1(), "features"),
    "densenet: no rectifier module at the end": (
        lambda: DenseNet(8, (2, 2), 16, num_classes=7),
        "features",
    ),
    "zfnet: before the last pool": (
        lambda: zfnet(classes=5, width=0.125, head="compact"),
        "relu5",
    ),
    "vit: before the last attention": (
        lambda: VisionTransformer(64, 16, 3, 2, 24, 32, num_classes=5),
        "encoder.layers.encoder_layer_2.ln_1",
    ),
    "swin: after its permutation": (
        lambda: SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=5),
        "permute",
    ),
    "residual: the third run of one module": (Residual, "relu#3"),
    "functions only": (Fire, "expand3"),
}


def loud(net: nn.Module) -> nn.Module:
    """No weight is left at zero, as fresh heads and biases are."""
    torch.manual_seed(3)
    for weight in net.parameters():
        if not bool(weight.any()):
            nn.init.normal_(weight, std=0.1)
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layer_is_the_last_with_spatial_extent_before_pooling(name: str) -> None:
    make, layer = NETWORKS[name]
    torch.manual_seed(0)
    net, image = loud(make()), noise(1, 64, 64)
    assert default_layer(net, image) == layer
    found = METHODS["layercam"](net, image)[0]
    assert found.layer == layer
    assert "last" in found.origin["layer chosen"]
    assert found.raw is not None
    assert min(found.raw.shape) > 1
    named = METHODS["layercam"](net, image, layer=layer)[0]
    assert named.origin["layer chosen"] == "by name"
    assert np.array_equal(named.values, found.values)


def test_timm_transformers_are_read_too() -> None:
    timm = pytest.importorskip("timm")
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=(64, 48), patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=5,
        reg_tokens=4,
    )  # fmt: skip
    found = METHODS["gradcam"](loud(vit), noise(2, 64, 48))
    assert found[0].layer == "blocks.1.norm1"
    assert [one.raw.shape for one in found] == [(4, 3), (4, 3)]


def test_a_token_shows_up_where_its_patch_is() -> None:
    """The class sums up one number of each patch, so the map is that number over the patches."""

    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 6, 8, stride=8)
            self.norm = nn.LayerNorm(6)
            self.fc = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([torch.zeros_like(tokens[:, :1]), tokens], 1)
            return self.fc(self.norm(tokens)[:, 1:].mean(1))

    torch.manual_seed(0)
    net, image = Patches(), noise(1, 32, 24)
    found = METHODS["gradcam"](net, image, target=1)[0]
    assert found.layer == "norm"
    tokens = net.norm(net.embed(image).flatten(2).transpose(1, 2))
    expected = F.relu(tokens @ net.fc.weight[1]).reshape(4, 3) / 12
    assert found.peak > 0
    assert np.allclose(found.raw, expected.detach().numpy(), atol=1e-6)


def test_a_typo_is_answered_with_near_names() -> None:
    with pytest.raises(ModelError, match=r"did you mean .*conv2"):
        METHODS["gradcam"](sequential(), noise(), layer="conv_2")


def test_a_module_that_runs_several_times_has_to_be_named_with_its_run() -> None:
    net, images = Residual(), noise()
    for name in ("gradcam", "ablationcam"):
        with pytest.raises(ModelError, match=r"relu#1 … relu#3"):
            METHODS[name](net, images, layer="relu")
        first = METHODS[name](net, images, layer="relu#1", target=0)[0]
        last = METHODS[name](net, images, layer="relu#3", target=0)[0]
        assert not np.allclose(first.values, last.values)


@pytest.mark.parametrize("name", ["gradcam", "ablationcam", "scorecam", "eigencam"])
def test_a_layer_without_maps_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="no maps") as caught:
        METHODS[name](sequential(), noise(), layer="fc")
    assert caught.value.code == "M542"


def test_a_layer_without_influence_is_refused() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            return self.used(x).mean((2, 3))

    with pytest.raises(ModelError, match="no influence") as caught:
        METHODS["gradcam"](Aside(), noise(), layer="idle")
    assert caught.value.code == "M541"
    assert METHODS["ablationcam"](Aside(), noise(), layer="idle")[0].peak == 0


def test_a_network_without_maps_asks_for_a_layer() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 33 * 29, 4))
    with pytest.raises(ConvscopeError, match="no layer with maps"):
        METHODS["gradcam"](net, noise())


def test_fullgrad_takes_no_layer() -> None:
    with pytest.raises(ConvscopeError, match="takes no layer"):
        METHODS["fullgrad"](sequential(), noise(), layer="conv1")


@pytest.mark.parametrize(
    ("shape", "size", "maps"),
    [
        ((2, 5, 8, 6), (64, 48), (2, 5, 8, 6)),
        ((2, 8, 8, 5), (33, 29), (2, 8, 8, 5)),  # as many maps as rows: still maps first
        ((2, 7, 7, 96), (224, 224), (2, 96, 7, 7)),
        ((2, 7, 14, 96), (112, 224), (2, 96, 7, 14)),
        ((2, 197, 192), (224, 224), (2, 192, 14, 14)),
        ((2, 198, 192), (224, 224), (2, 192, 14, 14)),
        ((2, 29, 10), (64, 112), (2, 10, 4, 7)),
    ],
)
def test_maps_are_told_by_the_pictures_aspect(
    shape: tuple[int, ...], size: tuple[int, int], maps: tuple[int, ...]
) -> None:
    assert tuple(as_maps(shape, size)(torch.zeros(shape)).shape) == maps


def test_a_reshape_of_ones_own_says_what_the_maps_are() -> None:
    net, images = sequential(), noise()
    plain = METHODS["gradcam"](net, images, layer="conv3")
    turned = METHODS["gradcam"](net, images, layer="conv3", reshape=lambda a: a.transpose(2, 3))
    assert plain[0].peak > 0
    assert np.allclose(turned[0].raw, plain[0].raw.T)
    ablated = METHODS["ablationcam"](net, images, layer="conv3")
    turned = METHODS["ablationcam"](net, images, layer="conv3", reshape=lambda a: a.transpose(2, 3))
    assert np.allclose(turned[0].raw, ablated[0].raw.T, atol=1e-5)
    with pytest.raises(ConvscopeError, match="may only move numbers"):
        METHODS["ablationcam"](net, images, layer="conv3", reshape=lambda a: 2 * a)
