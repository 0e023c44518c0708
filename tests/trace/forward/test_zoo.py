"""Do networks that people use say the same, whatever was spared?"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from convscope.network.zfnet import alexnet, zfnet
from convscope.trace.forward.engine import Incremental
from convscope.trace.forward.plan import Patches
from tests.oracles.incremental import settled

ZOO = torchvision.models.list_models(module=torchvision.models)
LARGEST = 150e6
"""Parameters; larger ones of the same families take more memory than a laptop has."""
SIZED = ("vit", "swin", "maxvit")
"""Families made for 224 pixels."""
WINDOWS = {
    "densenet121": (64, 65),
    "googlenet": (80, 75),
    "mobilenet_v2": (70, 81),
    "resnet18": (97, 83),
    "resnext50_32x4d": (64, 61),
    "shufflenet_v2_x0_5": (75, 90),
    "squeezenet1_1": (97, 131),
}
"""Families all of whose maps are kept as windows, with sizes at which that is quick."""


def made(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision announces other initialisations to come
        return torchvision.models.get_model(name, weights=None)


@torch.no_grad()
def steady(net: nn.Module, size: tuple[int, int]) -> bool:
    """Do its scores keep five digits if sums are taken in another order?"""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    one, two = net(image), net(torch.cat([image, image]))[:1]
    return float((one - two).abs().max() / one.abs().max()) < 2e-6


def corners(extent: int, side: int, step: int) -> list[int]:
    return [*range(0, extent - side, step), extent - side]


def check(net: nn.Module, size: tuple[int, int], step: int, room: float) -> str:
    """Squares at all borders and some places between; how the engine went on."""
    kind = next(net.parameters()).dtype
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, *size, generator=generator, dtype=kind)
    sides = (19, 26)
    ends = [corners(extent, side, step) for extent, side in zip(size, sides, strict=True)]
    patches = Patches(ends[0], ends[1], sides, torch.randn(3, *sides, generator=generator).to(kind))
    engine = Incremental(net, image, patches)
    engine.begin(image, patches)
    found = engine.follow({}).scores
    with torch.no_grad():
        painted = patches.paint(image, range(len(patches)))
        expected = torch.cat([net(one[None]) for one in painted])
        change = expected - net(image[None])
        many = net(painted.contiguous(memory_format=torch.channels_last))
    # Some deep networks with random weights enlarge rounding a billion times.
    own = float((many - expected).abs().max() / expected.abs().max())
    room = max(room, 10 * own)
    assert float(change.abs().max()) > 10 * room * float(expected.abs().max())
    assert float((found - expected).abs().max() / expected.abs().max()) < room
    return engine.how


@pytest.mark.parametrize("name", WINDOWS)
def test_families_that_work_on_windows_say_the_same_to_ten_digits(name: str) -> None:
    assert check(settled(made(name)), WINDOWS[name], 37, 1e-10) == "windows"


@pytest.mark.parametrize("make", [alexnet, zfnet])
def test_towers_with_contrast_normalisation_and_their_heads_say_the_same(
    make: Callable[..., nn.Module],
) -> None:
    net = settled(make(width=0.25, head="compact", classes=5))
    assert check(net, (131, 117), 31, 1e-10) == "windows"


def test_squeeze_and_excitation_is_done_in_full_and_said() -> None:
    how = check(settled(made("efficientnet_b0")), (64, 71), 40, 1e-10)
    assert how == "windows, whole maps from mul on"


def test_attention_over_the_picture_is_done_as_the_network_does_it() -> None:
    net = torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=7)
    nn.init.normal_(net.heads.head.weight)
    assert check(settled(net), (64, 64), 30, 1e-10).startswith("whole pictures: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo_says_the_same(name: str) -> None:
    count = next(iter(torchvision.models.get_model_weights(name))).meta["num_params"]
    if count > LARGEST:
        pytest.skip(f"{count / 1e6:.0f} million parameters")
    size = (224, 224) if name.startswith(SIZED) else (137, 151)
    net = settled(made(name)).float()
    for module in net.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight)  # heads that start at zero say nothing
    check(net if steady(net, size) else net.double(), size, 80, 2e-5)
