"""Do the maps agree with the known libraries where those are right, on real pictures?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models as peers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from convscope.attribution.formulas import METHODS

DATA = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS = DATA / "squeezenet1_0_imagenet.safetensors"
PICTURES = DATA / "imagenet-samples"
pytestmark = pytest.mark.skipif(
    not WEIGHTS.exists(), reason="real weights and pictures (../shared/data) are not here"
)
PGC = "pytorch-grad-cam"
SIZE = (112, 80)
"""Small, as the library runs the whole network once a map; and not square."""
NAMES = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "eigengradcam": "EigenGradCAM",
    "eigencam": "EigenCAM",
    "ablationcam": "AblationCAM",
    "scorecam": "ScoreCAM",
}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    net = peers.squeezenet1_0()
    net.load_state_dict(load_file(WEIGHTS))
    # Double, as in single precision a pool's near-tie may fall otherwise in another layout.
    return net.eval().double()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Three pictures as the network takes them."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = []
    for path in sorted(PICTURES.glob("*.jpg"))[5:200:70]:
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize(SIZE[::-1])
        pixels.append((torch.from_numpy(np.asarray(small) / np.float32(255)) - mean) / std)
    return torch.stack(pixels).permute(0, 3, 1, 2).contiguous().double()


def of_peer(name: str, net: nn.Module, layers: list[nn.Module], images: Tensor) -> np.ndarray:
    """The library's maps for the likeliest classes; its habits need warnings off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library: Any = pytest.importorskip("pytorch_grad_cam")
        with getattr(library, name)(net, layers) as method:
            return np.asarray(method(images.clone(), targets=None))


@pytest.mark.parametrize("name", NAMES)
def test_the_variant_gives_that_librarys_maps(name: str, net: nn.Module, images: Tensor) -> None:
    few = images[:1] if name in ("ablationcam", "scorecam") else images
    theirs = of_peer(NAMES[name], net, [net.features[4]], few)
    ours = METHODS[name](net, few, layer="features.4", variant=PGC)
    assert theirs.max() > 0.9
    for one, other in zip(ours, theirs, strict=True):
        if name.startswith("eigen") and np.abs(one.values - other).max() > 0.1:
            continue  # the library's sign is chance, see the test of signs
        assert np.abs(one.values - other).max() < 1e-5
        assert one.raw.min() >= 0 or name.startswith("eigen")
        assert one.raw.max() > 0


def test_the_variant_joins_several_layers_as_that_library_does(
    net: nn.Module, images: Tensor
) -> None:
    theirs = of_peer("LayerCAM", net, [net.features[4], net.features[12]], images)
    ours = METHODS["layercam"](net, images, layer=["features.4", "features.12"], variant=PGC)
    authors = METHODS["layercam"](net, images, layer=["features.4", "features.12"])
    assert np.abs(np.stack([one.values for one in ours]) - theirs).max() < 1e-5
    assert np.abs(np.stack([one.values for one in authors]) - theirs).max() > 0.1


def test_the_variant_of_fullgrad_gives_that_librarys_maps(net: nn.Module, images: Tensor) -> None:
    theirs = of_peer("FullGrad", net, [], images)
    ours = METHODS["fullgrad"](net, images, variant=PGC)
    assert np.abs(np.stack([one.values for one in ours]) - theirs).max() < 1e-5
    assert all(one.origin["completeness"]["relative gap"] < 1e-5 for one in ours)


@pytest.mark.parametrize("name", ["eigencam", "eigengradcam"])
def test_where_that_librarys_sign_is_the_other_its_map_is_ours_inverted(
    name: str, net: nn.Module, images: Tensor
) -> None:
    theirs = of_peer(NAMES[name], net, [net.features[7]], images)
    for one, other in zip(
        METHODS[name](net, images, layer="features.7", variant=PGC), theirs, strict=True
    ):
        both = [stretched(one.raw), stretched(-one.raw)]
        assert min(np.abs(map_ - other).max() for map_ in both) < 1e-5


def stretched(raw: np.ndarray) -> np.ndarray:
    """That library's scaling, once more."""
    cv2: Any = pytest.importorskip("cv2")
    raw = np.maximum(raw, 0)
    raw = (raw - raw.min()) / (1e-7 + (raw - raw.min()).max())
    large = np.maximum(cv2.resize(np.float32(raw), SIZE[::-1]), 0)
    return np.asarray((large - large.min()) / (1e-7 + (large - large.min()).max()))


def test_torch_cam_gives_the_same_raw_maps(net: nn.Module, images: Tensor) -> None:
    targets = [one.target for one in METHODS["gradcam"](net, images, layer="features.12")]
    for name, peer in {
        "gradcam": "GradCAM",
        "xgradcam": "XGradCAM",
        "layercam": "LayerCAM",
    }.items():
        theirs = of_torch_cam(peer, net, images, targets)
        ours = METHODS[name](net, images, layer="features.12", target=targets)
        for one, other in zip(ours, theirs, strict=True):
            assert one.peak > 0
            assert np.allclose(one.raw, other, atol=1e-5 * one.peak)


def test_captum_gives_the_same_raw_maps(net: nn.Module, images: Tensor) -> None:
    captum: Any = pytest.importorskip("captum.attr")
    targets = [one.target for one in METHODS["gradcam"](net, images, layer="features.12")]
    method = captum.LayerGradCam(net, net.features[12])
    theirs = method.attribute(images, target=targets, relu_attributions=True).detach().numpy()
    ours = METHODS["gradcam"](net, images, layer="features.12", target=targets)
    for one, other in zip(ours, theirs[:, 0], strict=True):
        assert np.allclose(one.raw, other, atol=1e-5 * one.peak)


def of_torch_cam(name: str, net: nn.Module, images: Tensor, targets: list[int]) -> list[np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library: Any = pytest.importorskip("torchcam.methods")
        with getattr(library, name)(net, "features.12") as method:
            scores = net(images.clone().requires_grad_())
            (maps,) = method(targets, scores, normalized=False)
    return [np.asarray(one) for one in maps.detach().numpy()]
