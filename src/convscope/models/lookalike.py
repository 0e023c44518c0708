"""Which well-known network has weights of these names and shapes?"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from convscope.models.alexnet import alexnet
from convscope.models.tower import Options, Tower
from convscope.models.zfnet import zfnet

Shapes = dict[str, tuple[int, ...]]

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
    found = _shapes(weights)
    if "fc8.weight" in found and len(found.get("conv1.weight", ())) == 4:
        spec, model = _tower(found)
        if _same(found, _shapes(model.state_dict())):
            return spec
    for part, families in FAMILIES.items():
        if any(part in key for key in found):
            for name in _torchvision_names():
                if name.startswith(families) and _same(found, _torchvision(name)):
                    return f"torchvision:{name}"
    heads = list(dict.fromkeys(key.partition(".")[0] for key in found))
    return "no network we know, with " + ", ".join(heads[:4]) + (", …" if len(heads) > 4 else "")


def _shapes(weights: Mapping[str, Tensor]) -> Shapes:
    """Shapes by name, but for what training alone uses."""
    unused = ("aux1.", "aux2.", "AuxLogits.")
    return {
        key: tuple(value.shape)
        for key, value in weights.items()
        if not key.endswith("num_batches_tracked") and not key.startswith(unused)
    }


def _same(found: Shapes, known: Shapes) -> bool:
    """Equal but for the number of outputs of the known network's last layer."""
    last = [key for key, shape in known.items() if len(shape) >= 2][-1].rpartition(".")[0] + "."
    return found.keys() == known.keys() and all(
        found[key][1:] == shape[1:] if key.startswith(last) else found[key] == shape
        for key, shape in known.items()
    )


def _tower(found: Shapes) -> tuple[str, nn.Module]:
    """The tower of ours that comes nearest."""
    name, maker = ("zfnet", zfnet) if found["conv1.weight"][-1] == 7 else ("alexnet", alexnet)
    width = max(1, min(16 * 96, found["conv1.weight"][0])) / Tower.maps[0]
    given: Options = {"width": width} if width != 1 else {}
    if "fc6.weight" not in found:
        given["head"] = "compact"
    if "bn1.weight" in found:
        given["norm"] = "batch"
    words = ",".join(f"{key}={value}" for key, value in given.items())
    return f"{name}:{words}" if words else name, maker(init=None, **given)


def _torchvision_names() -> list[str]:
    import torchvision  # takes seconds to import, and is wanted for one message only

    models = torchvision.models
    return list(models.list_models(module=models))  # type: ignore[attr-defined]


@functools.cache
def _torchvision(name: str) -> Shapes:
    import torchvision

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    try:
        with torch.device("meta"):
            build = torchvision.models.get_model  # type: ignore[attr-defined]
            model = build(name, weights=None, **options)
    except NotImplementedError:  # a network that computes with its weights while it is built
        return {"": (0, 0)}
    return _shapes(model.state_dict())
