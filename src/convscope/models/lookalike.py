"""Which well-known network has weights of these names and shapes?"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor
from torchvision.models import get_model, list_models  # type: ignore[attr-defined]

from convscope.models.alexnet import alexnet
from convscope.models.zfnet import zfnet

Shapes = frozenset[tuple[str, tuple[int, ...]]]

# Part of a name that only these families have -> beginnings of torchvision's names for them.
FAMILIES = {
    "layer1.0.": ("resnet", "resnext", "wide_resnet"),
    "features.denseblock1.": ("densenet",),
    "features.3.squeeze.": ("squeezenet1_0", "squeezenet1_1"),
    "inception3a.": ("googlenet",),
    "Mixed_5b.": ("inception_v3",),
    "stage2.0.": ("shufflenet",),
    "layers.8.0.": ("mnasnet",),
    "features.1.conv.": ("mobilenet_v2",),
    "features.1.block.": ("mobilenet_v3",),
    "features.1.0.block.": ("efficientnet", "convnext"),
    "features.0.weight": ("alexnet", "vgg"),
}


def looks_like(weights: Mapping[str, Tensor]) -> str:
    """The name of the network with the same tensors, whatever its classes; else what they say."""
    shapes = _shapes(weights)
    for name, maker in (("zfnet", zfnet), ("alexnet", alexnet)):
        if "fc8.weight" in weights and shapes == _shapes(maker(init=None).state_dict()):
            return name
    for part, families in FAMILIES.items():
        if any(part in key for key in weights):
            for name in list_models(module=torchvision.models):
                if name.startswith(families) and shapes == _torchvision(name):
                    return f"torchvision:{name}"
    heads = list(dict.fromkeys(key.partition(".")[0] for key in weights))
    return "no network we know, with " + ", ".join(heads[:4]) + (", …" if len(heads) > 4 else "")


def _shapes(weights: Mapping[str, Tensor]) -> Shapes:
    """Names and shapes but for the output layer and the helpers that training alone uses."""
    kept = [
        (key, tuple(value.shape))
        for key, value in weights.items()
        if not key.endswith("num_batches_tracked") and not key.startswith(("aux", "AuxLogits"))
    ]
    matrices = [key for key, shape in kept if len(shape) >= 2]
    last = matrices[-1].rpartition(".")[0] + "." if matrices else ""
    return frozenset((key, shape) for key, shape in kept if not last or not key.startswith(last))


@functools.cache
def _torchvision(name: str) -> Shapes:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    try:
        with torch.device("meta"):
            model = get_model(name, weights=None, **options)
    except NotImplementedError:  # a network that computes with its weights while it is built
        return frozenset()
    return _shapes(model.state_dict())
