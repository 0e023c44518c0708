"""Networks of torchvision, with their weights and preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import (  # type: ignore[attr-defined]
    get_model,
    get_model_weights,
    list_models,
)

from convscope.core.errors import ModelError, UsageError, nearest
from convscope.network.network import Draft, Request
from convscope.network.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from convscope.network.sources.spec import WEIGHTS_OPTIONS, options
from convscope.network.weights.checkpoint import Checkpoint, open_checkpoint
from convscope.network.weights.fetch import fetched_weights
from convscope.pictures.framing import Framing

CLASSES = 1000
HELPERS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""Branches that only training uses; they are built when the file holds them, then dropped."""


def names() -> list[str]:
    """All classification networks of torchvision."""
    return list(list_models(module=torchvision.models))


def from_torchvision(request: Request) -> Draft:
    """`torchvision:NAME`, with torchvision's own weights unless there is a checkpoint.

    Raises ModelError M570 for an unknown name, UsageError U230 or U231 for an option,
    EnvironmentFault R620 or R621 if the weights cannot be had.
    """
    name, _, text = request.rest.partition(":")
    if name not in names():
        known = nearest(name, names())
        raise ModelError("M570", request.spec, f"no such network in torchvision; {known}")
    wanted = options(text, WEIGHTS_OPTIONS).get("weights", "default")
    entry = _entry(name, wanted, request.checkpoint)
    if request.checkpoint is None and wanted.lower() == "none":
        return _random(name, entry, request)
    checkpoint, weights = request.checkpoint, request.checkpoint and request.checkpoint.name
    if checkpoint is None:
        if request.classes not in (None, CLASSES):
            raise UsageError(
                "U231",
                f"classes={request.classes}",
                f"torchvision's weights of {name} have {CLASSES} classes",
                next_step=f"write torchvision:{name}:weights=none,classes={request.classes}, "
                "or add --checkpoint FILE",
            )
        checkpoint, weights = _pretrained(name, entry, request), f"torchvision {entry.name}"
    classes = request.classes or CLASSES
    preprocess, categories = _pictures(entry, classes)
    if request.checkpoint and not request.checkpoint.sha256.startswith(hash_of(entry)):
        preprocess = preprocess.guessed()
    return Draft(
        _build(name, classes, request.seed, checkpoint),
        preprocess,
        categories,
        weights=str(weights),
        checkpoint=checkpoint,
        notes=_assumed(entry, classes, request.checkpoint),
        finish=_drop_helpers if name in HELPERS else None,
    )


def preprocess_of(entry: Any) -> Preprocess:
    """The pictures that an entry of torchvision's weights was evaluated on."""
    made = entry.transforms()
    crop = made.crop_size
    size = (crop[0], crop[-1])
    framing = Framing(made.resize_size[0], size, made.interpolation.value)
    return Preprocess(framing, tuple(made.mean), tuple(made.std))


def _random(name: str, entry: Any, request: Request) -> Draft:
    classes = request.classes or CLASSES
    preprocess, _ = _pictures(entry, classes)
    return Draft(_build(name, classes, request.seed, None), preprocess)


def _entry(name: str, wanted: str, checkpoint: Checkpoint | None) -> Any:
    """The entry of torchvision's table: the one asked for, the file's own, or the first."""
    entries = list(get_model_weights(name))
    if wanted.lower() not in ("default", "none"):
        known = {entry.name.lower(): entry for entry in entries}
        if wanted.lower() not in known:
            choices = ["default", "none", *[entry.name for entry in entries]]
            raise UsageError(
                "U231",
                f"weights={wanted}",
                f"{name} has no such weights; {nearest(wanted, choices)}",
            )
        return known[wanted.lower()]
    if checkpoint is not None or wanted.lower() == "none":
        own = [e for e in entries if checkpoint and checkpoint.sha256.startswith(hash_of(e))]
        return (own or entries)[0]
    return get_model_weights(name)["DEFAULT"]


def hash_of(entry: Any) -> str:
    """torchvision ends a file's name with the beginning of its SHA-256: resnet18-f37072fd.pth."""
    return Path(address(entry)).stem.rpartition("-")[2]


def address(entry: Any) -> str:
    """Where the weights of an entry are to be had."""
    return str(entry.url)


def _pretrained(name: str, entry: Any, request: Request) -> Checkpoint:
    """torchvision's own weights, from its cache or over the network."""
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(address(entry)).name
    url, sha256, progress = address(entry), hash_of(entry), request.progress
    return open_checkpoint(
        fetched_weights(f"torchvision:{name}", url, target, sha256=sha256, progress=progress)
    )


def _build(name: str, classes: int, seed: int, checkpoint: Checkpoint | None) -> nn.Module:
    more: dict[str, Any] = {}
    if name in HELPERS:
        keys = checkpoint.weights if checkpoint else {}
        helped = any(f"{helper}." in key for key in keys for helper in HELPERS[name])
        # Weights of torchvision's were trained by another library, on pixels from -1 to 1;
        # the network itself turns ImageNet's mean and deviation into that.
        more = {"init_weights": False, "aux_logits": helped, "transform_input": bool(keys)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = get_model(name, weights=None, num_classes=classes, **more)
    return model


def _drop_helpers(model: nn.Module) -> None:
    for helper in {helper for helpers in HELPERS.values() for helper in helpers}:
        if hasattr(model, helper):
            setattr(model, helper, None)
    model.aux_logits = False  # type: ignore[assignment]


def _pictures(entry: Any, classes: int) -> tuple[Preprocess, tuple[str, ...]]:
    if classes == CLASSES:
        return preprocess_of(entry), tuple(entry.meta["categories"])
    framing = preprocess_of(entry).framing
    return Preprocess(framing, IMAGENET_MEAN, IMAGENET_STD), ()


def _assumed(entry: Any, classes: int, checkpoint: Checkpoint | None) -> tuple[str, ...]:
    if checkpoint is None or checkpoint.sha256.startswith(hash_of(entry)):
        return ()
    return (f"class names taken from torchvision's {entry.name}",) if classes == CLASSES else ()
