"""Do the maps agree with captum where it is right, on real pictures and on small networks?"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as peers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from convscope.attribution.gradients import METHODS, drawing
from tests.attribution.cam_nets import net_of, pictures
from tests.nets import pictures as noise
from tests.nets import sequential

captum: Any = pytest.importorskip("captum.attr")
DATA = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS = DATA / "squeezenet1_0_imagenet.safetensors"
PICTURES = DATA / "imagenet-samples"
real = pytest.mark.skipif(
    not WEIGHTS.exists(), reason="real weights and pictures (../shared/data) are not here"
)
SIZE = (96, 80)
SINGLE = 1e-6
"""Captum keeps the points between baseline and picture in single precision."""
PEERS = {
    "saliency": "Saliency",
    "gradient-x-input": "InputXGradient",
    "guided-backprop": "GuidedBackprop",
    "deconvnet": "Deconvolution",
}
QUADRATURES = {
    "gauss-legendre": "gausslegendre",
    "midpoint": "riemann_middle",
    "right": "riemann_right",
    "left": "riemann_left",
    "trapezoid": "riemann_trapezoid",
}


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
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


def of_captum(name: str, net: nn.Module, images: Tensor, **how: Any) -> np.ndarray:
    how |= {"abs": False} if name == "Saliency" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = getattr(captum, name)(net).attribute(images.clone(), **how)
    return np.asarray(found.detach().numpy())


def assert_same(name: str, net: nn.Module, images: Tensor, targets: list[int]) -> None:
    theirs = of_captum(PEERS[name], net, images, target=targets)
    assert np.abs(theirs).max() > 0
    for one, other in zip(METHODS[name](net, images, target=targets), theirs, strict=True):
        assert np.abs(one.pixels - other).max() <= 1e-9 * np.abs(theirs).max()


@real
@pytest.mark.parametrize("name", PEERS)
def test_captum_gives_the_same_on_squeezenet(
    name: str, squeezenet: nn.Module, images: Tensor
) -> None:
    targets = squeezenet(images).argmax(1).tolist()
    if name == "deconvnet":  # of most small pictures nothing arrives, here as there
        images = F.interpolate(images[:1], (160, 144), mode="bilinear").repeat(3, 1, 1, 1)
        targets = [11, 207, 281]
    assert_same(name, squeezenet, images, targets)


@pytest.mark.parametrize("name", PEERS)
def test_captum_gives_the_same_where_rectifiers_are_modules(name: str) -> None:
    net = net_of("linear layers, as VGG").eval()
    assert_same(name, net, pictures(3), [1, 2, 2])
    if name != "deconvnet":  # which passes contrast normalisation by, as its paper says
        assert_same(name, sequential().double().eval(), noise(2).double(), [3, 5])


@real
def test_captum_gives_the_same_guided_grad_cam_if_told_to_enlarge_as_we_do(
    squeezenet: nn.Module, images: Tensor
) -> None:
    top = squeezenet(images).argmax(1).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = captum.GuidedGradCam(squeezenet, squeezenet.features[9])
        theirs = method.attribute(images.clone(), target=top, interpolate_mode="bilinear")
        blocks = method.attribute(images.clone(), target=top).detach().numpy()
    theirs = theirs.detach().numpy()
    ours = METHODS["guided-gradcam"](squeezenet, images, target=top, layer="features.9")
    for one, other, block in zip(ours, theirs, blocks, strict=True):
        assert one.peak > 0
        assert np.abs(one.pixels - other).max() <= 1e-9 * one.peak
        assert np.abs(one.pixels - block).max() > 1e-2 * one.peak  # its default


@pytest.mark.parametrize("quadrature", QUADRATURES)
def test_captum_gives_the_same_integrated_gradients(quadrature: str) -> None:
    net, images, start = net_of("norm first, as DenseNet").eval(), pictures(2), pictures(2, seed=8)
    ours = METHODS["integrated-gradients"](
        net, images, target=[1, 3], baseline=start, steps=12, quadrature=quadrature
    )
    theirs = of_captum(
        "IntegratedGradients",
        net,
        images,
        target=[1, 3],
        baselines=start,
        n_steps=12,
        method=QUADRATURES[quadrature],
    )
    if quadrature == "trapezoid":  # its weights add up to 1 − 1/steps
        theirs = theirs * 12 / 11
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(other).max() > 1e-3
        assert np.abs(one.pixels - other).max() <= SINGLE * np.abs(other).max()


@real
def test_integrated_gradients_of_a_real_network_are_complete_and_captums(
    squeezenet: nn.Module, images: Tensor
) -> None:
    top = int(squeezenet(images[:1]).argmax())
    (ours,) = METHODS["integrated-gradients"](squeezenet, images[:1], target=top)
    complete = ours.origin["completeness"]
    assert complete["relative gap"] < 0.05
    assert ours.values.sum() == pytest.approx(complete["sum"], rel=1e-9)
    theirs = of_captum("IntegratedGradients", squeezenet, images[:1], target=top)
    assert np.abs(ours.pixels - theirs[0]).max() <= SINGLE * np.abs(theirs).max()


@pytest.mark.parametrize(("variant", "kind"), [("authors", ""), ("squared", "_sq")])
def test_captum_gives_the_same_smoothgrad_from_the_same_noise(
    variant: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, image = net_of("linear layers, as VGG").eval(), pictures(1)
    (ours,) = METHODS["smoothgrad"](net, image, target=2, samples=8, variant=variant)
    source = drawing(image[0], 0)
    drawn = torch.stack([next(source) for _ in range(8)])
    monkeypatch.setattr(torch, "normal", lambda mean, std: mean + drawn * std)
    tunnel = captum.NoiseTunnel(captum.Saliency(net))
    theirs = tunnel.attribute(
        image,
        nt_type=f"smoothgrad{kind}",
        nt_samples=8,
        stdevs=ours.origin["sigma"],
        target=2,
        abs=False,
    )
    assert ours.peak > 1e-3
    assert np.abs(ours.pixels - theirs[0].detach().numpy()).max() <= 1e-6 * ours.peak


def test_functional_rectifiers_are_what_captum_misses_and_we_do_not() -> None:
    class Functional(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.convolutions = nn.ModuleList([net.trunk[0], net.trunk[1], net.trunk[4]])
            self.linear = nn.ModuleList([net.head[2], net.head[4]])

        def forward(self, x: Tensor) -> Tensor:
            first, norm, second = self.convolutions
            x = F.max_pool2d(F.relu(norm(first(x))), 2, 2, ceil_mode=True)
            x = F.max_pool2d(second(x).relu(), 2).flatten(1)
            return self.linear[1](self.linear[0](x).clamp(min=0))

    net, images = net_of("linear layers, as VGG").eval(), pictures(1)
    same = Functional(net)
    gradient = METHODS["saliency"](net, images, target=2)[0].pixels
    for name in ("guided-backprop", "deconvnet"):
        right = of_captum(PEERS[name], net, images, target=2)[0]
        theirs = of_captum(PEERS[name], same, images, target=2)[0]
        (ours,) = METHODS[name](same, images, target=2)
        assert np.allclose(ours.pixels, right, atol=1e-9)
        assert np.allclose(theirs, gradient, atol=1e-9)
        assert not np.allclose(theirs, right, atol=0.01)


def test_a_skip_path_around_a_rectifier_is_what_captum_gets_wrong_and_we_do_not() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            return (self.relu(x) - 3 * x).sum((2, 3))

    image = torch.tensor([[[[2.0, -2.0]]]])
    (ours,) = METHODS["guided-backprop"](Skips(), image, target=1)  # 0 is against the one score
    theirs = of_captum("GuidedBackprop", Skips(), image, target=0)
    assert ours.pixels.ravel().tolist() == [1 - 3, -3]
    assert theirs.ravel().tolist() == [0, 0]
