"""Load a state dict into a network: repair names, or say how the weights differ."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from convscope.errors import CheckpointError, printable
from convscope.network.sources.ours import Options, Tower, alexnet, zfnet
from convscope.network.weights.checkpoint import OWN

COMPILED = "_orig_mod."
COUNTER = "num_batches_tracked"
"""torch itself lets it be absent: batch norm only counts with it."""
WRAPPERS = ("module", "model", "net", "network", "backbone")


def fit(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    name: str = "the weights",
    network: str = "",
    advice: str = "give load(…, classes={0})",
) -> tuple[str, ...]:
    """Put the weights into the model, every one and no other; return what was repaired.

    Names may carry what DataParallel, DDP, torch.compile and Lightning put before them. Then they
    must agree with the model's in every name and shape; only `num_batches_tracked` may be absent.
    name, network: the file and the model in the messages. advice: how the model gets another number
    of classes, {0}.

    Raises CheckpointError C410 another network, C411 several copies of it, C412 another number
    of classes. The model is untouched then.
    """
    called = network or type(model).__name__
    wanted = model.state_dict()
    notes: list[str] = []
    result = _unwrapped(wanted, weights, name, notes)
    _compare(wanted, result, name, called, advice)
    there, here = _kinds(result), _kinds(wanted)
    if there != here:
        notes.append(f"the weights were {' and '.join(there)}, converted to {' and '.join(here)}")
    # Into the model's own state dict, whose hidden versions of the layers some networks ask for.
    wanted.update({key: value for key, value in result.items() if key in wanted})
    model.load_state_dict(wanted, strict=True)
    if _untouched_batch_norm(model):
        notes.append("all batch norm statistics are 0 and 1: this network may be untrained")
    return tuple(map(printable, notes))


def _unwrapped(
    wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], name: str, notes: list[str]
) -> dict[str, Tensor]:
    """The weights under the model's own names, if any prefix makes them so."""
    result = dict(weights)
    if any(COMPILED in key for key in result) and not any(COMPILED in key for key in wanted):
        result = {key.replace(COMPILED, ""): value for key, value in result.items()}
        notes.append(f"stripped '{COMPILED}' (torch.compile) from the names")
    if set(result) == set(wanted):
        return result
    prefixes = _prefixes(wanted, result)
    if len(prefixes) > 1:
        parts = [prefix.rstrip(".") or OWN for prefix in prefixes]
        sign = "." if "#" in Path(name).name else "#"
        raise CheckpointError(
            "C411",
            name,
            f"holds several copies of the network: {', '.join(parts)}",
            next_step=f"choose one, as {' or '.join(f'{name}{sign}{part}' for part in parts)}",
        )
    prefix = prefixes[0] if prefixes else _common_wrapper(result)
    inside = {key.removeprefix(prefix): v for key, v in result.items() if key.startswith(prefix)}
    if prefix:
        notes.append(f"stripped '{prefix}' from the names")
    left = [key for key in result if not key.startswith(prefix)]
    if left:
        notes.append(f"left out what lies outside '{prefix}': {', '.join(left[:4])}")
    return inside


def _prefixes(wanted: Mapping[str, Tensor], result: Mapping[str, Tensor]) -> list[str]:
    """All prefixes under which every name of the model is there; of several, those that fit."""
    needed = [key for key in wanted if not key.endswith(COUNTER)]
    if not needed:
        return []
    ends = [key.removesuffix(needed[0]) for key in result if key.endswith(needed[0])]
    whole = [
        prefix
        for prefix in dict.fromkeys(ends)
        if (not prefix or prefix.endswith(".")) and all(prefix + key in result for key in needed)
    ]
    if len(whole) == 1:
        return whole
    return [
        prefix
        for prefix in whole
        if all(result[prefix + key].shape == wanted[key].shape for key in needed)
    ]


def _common_wrapper(result: Mapping[str, Tensor]) -> str:
    """The wrappers' names that stand before all names, so that a difference can be shown."""
    prefix = ""
    while True:
        heads = {key.removeprefix(prefix).partition(".")[0] for key in result}
        head = heads.pop() if len(heads) == 1 else ""
        if head not in WRAPPERS:
            return prefix
        prefix += head + "."


def _compare(
    wanted: Mapping[str, Tensor],
    result: Mapping[str, Tensor],
    name: str,
    network: str,
    advice: str,
) -> None:
    missing = [key for key in wanted if key not in result and not key.endswith(COUNTER)]
    extra = [key for key in result if key not in wanted and not key.endswith(COUNTER)]
    reshaped = [key for key in wanted if key in result and result[key].shape != wanted[key].shape]
    if not missing and not extra and reshaped:
        _compare_classes(wanted, result, reshaped, name, advice)
    if not (missing or extra or reshaped):
        return
    first = missing[0] if missing else reshaped[0] if reshaped else extra[0]
    for key in wanted:  # in the network's own order, from the input on
        if key in missing or key in reshaped:
            first = key
            break
    difference = f"first difference: {first} is {_state(first, wanted, result)}"
    raise CheckpointError(
        "C410",
        name,
        f"the weights look like {looks_like(result)} ({len(result)} tensors), the model is "
        f"{network} ({len(wanted)}); {difference}",
        next_step="name the network that these weights were trained in",
    )


def _compare_classes(
    wanted: Mapping[str, Tensor],
    result: Mapping[str, Tensor],
    reshaped: list[str],
    name: str,
    advice: str,
) -> None:
    """Raise C412 if only the number of outputs differs."""
    counts = {(result[key].shape[:1], wanted[key].shape[:1]) for key in reshaped}
    tails = all(result[key].shape[1:] == wanted[key].shape[1:] for key in reshaped)
    weights = [key for key in wanted if wanted[key].ndim >= 2]
    if len(counts) == 1 and tails and weights and weights[-1] in reshaped:
        there, here = counts.pop()
        layer = weights[-1].rpartition(".")[0]
        raise CheckpointError(
            "C412",
            name,
            f"{layer} is {there[0]} classes in the file, {here[0]} in the model",
            next_step=advice.format(there[0]),
        )


def _state(key: str, wanted: Mapping[str, Tensor], result: Mapping[str, Tensor]) -> str:
    if key not in result:
        return "not in the file"
    if key not in wanted:
        return "only in the file"
    return f"{_shape(result[key])} in the file, {_shape(wanted[key])} in the model"


def _kinds(weights: Mapping[str, Tensor]) -> list[str]:
    """The kinds of floating point numbers, as float16."""
    kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
    return sorted(str(kind).removeprefix("torch.") for kind in kinds)


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "one number"


def _untouched_batch_norm(model: nn.Module) -> bool:
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    ]
    return bool(norms) and all(
        torch.all(module.running_mean == 0) and torch.all(module.running_var == 1)  # type: ignore[arg-type]
        for module in norms
    )


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
    result = _shapes(weights)
    if "fc8.weight" in result and len(result.get("conv1.weight", ())) == 4:
        spec, model = _tower(result)
        if _same(result, _shapes(model.state_dict())):
            return spec
    for part, families in FAMILIES.items():
        if any(part in key for key in result):
            for name in _torchvision_names():
                if name.startswith(families) and _same(result, _torchvision(name)):
                    return f"torchvision:{name}"
    heads = list(dict.fromkeys(key.partition(".")[0] for key in result))
    return "no network we know, with " + ", ".join(heads[:4]) + (", …" if len(heads) > 4 else "")


def _shapes(weights: Mapping[str, Tensor]) -> Shapes:
    """Shapes by name, but for what training alone uses."""
    unused = ("aux1.", "aux2.", "AuxLogits.")
    return {
        key: tuple(value.shape)
        for key, value in weights.items()
        if not key.endswith("num_batches_tracked") and not key.startswith(unused)
    }


def _same(result: Shapes, known: Shapes) -> bool:
    """Equal but for the number of outputs of the known network's last layer."""
    last = [key for key, shape in known.items() if len(shape) >= 2][-1].rpartition(".")[0] + "."
    return result.keys() == known.keys() and all(
        result[key][1:] == shape[1:] if key.startswith(last) else result[key] == shape
        for key, shape in known.items()
    )


def _tower(result: Shapes) -> tuple[str, nn.Module]:
    """The tower of ours that comes nearest."""
    name, maker = ("zfnet", zfnet) if result["conv1.weight"][-1] == 7 else ("alexnet", alexnet)
    width = max(1, min(16 * 96, result["conv1.weight"][0])) / Tower.maps[0]
    given: Options = {"width": width} if width != 1 else {}
    if "fc6.weight" not in result:
        given["head"] = "compact"
    if "bn1.weight" in result:
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
