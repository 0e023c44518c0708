"""Which networks does timm bring, and with which pictures in mind?"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch

from convscope.errors import ConvscopeError, EnvironmentFault, ModelError, UsageError, nearest
from convscope.images.framing import Framing
from convscope.models.network import Draft, Request
from convscope.models.preprocess import Preprocess
from convscope.models.spec import WEIGHTS_OPTIONS, options

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def from_timm(request: Request) -> Draft:
    """`timm:NAME`, with timm's own weights unless there is a checkpoint.

    Raises EnvironmentFault R622 without timm, R620 if the weights cannot be had; ModelError M560
    for an unknown name; UsageError U210 or U211 for an option.
    """
    timm = _timm()
    name, _, text = request.rest.partition(":")
    if not timm.is_model(name):
        known = timm.list_models()
        raise ModelError("M560", name, f"no such network in timm; {nearest(name, known)}")
    wanted = str(options(text, WEIGHTS_OPTIONS).get("weights", "default")).lower()
    if wanted not in ("default", "none"):
        raise UsageError("U211", f"weights={wanted}", "weights is default or none with timm")
    pretrained = request.checkpoint is None and wanted == "default"
    model = _create(timm, name, pretrained, request)
    preprocess, notes = preprocess_of(timm.data.resolve_model_data_config(model))
    weights = f"timm {name}" if pretrained else ""
    if request.checkpoint is not None:
        weights = request.checkpoint.name
        notes += ("preprocessing and class names taken from timm's table",)
    return Draft(model, preprocess, _names(timm, model), weights, request.checkpoint, notes)


def preprocess_of(config: dict[str, Any]) -> tuple[Preprocess, tuple[str, ...]]:
    """timm's data config as ours, and what of it we cannot do."""
    notes: tuple[str, ...] = ()
    height, width = config["input_size"][1:]
    way = config["interpolation"]
    if way not in INTERPOLATIONS:
        notes += (f"timm would resize by {way!r}; we resize by 'bicubic'",)
        way = "bicubic"
    mode = config.get("crop_mode", "center")
    if mode not in ("center", "squash"):
        notes += (f"timm would frame by {mode!r}; we cut the centre",)
    resize: int | None = math.floor(min(height, width) / config["crop_pct"])
    if mode == "squash" and config["crop_pct"] == 1:
        resize = None
    framing = Framing(resize, (height, width), way)
    return Preprocess(framing, tuple(config["mean"]), tuple(config["std"])), notes


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as fault:
        raise EnvironmentFault(
            "R622",
            "timm",
            "is not installed",
            next_step="run: pip install 'convscope[timm]'",
        ) from fault


def _create(timm: Any, name: str, pretrained: bool, request: Request) -> Any:
    more = {} if request.classes is None else {"num_classes": request.classes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        try:
            return timm.create_model(name, pretrained=pretrained, **more)
        except ConvscopeError:
            raise
        except Exception as fault:
            if not pretrained:
                raise ModelError("M561", f"timm:{name}", f"cannot be built ({fault})") from fault
            reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
            raise EnvironmentFault(
                "R620",
                f"timm:{name}",
                f"its weights cannot be downloaded ({reason})",
                next_step=f"pass a checkpoint, or write timm:{name}:weights=none for random "
                "weights",
            ) from fault


def _names(timm: Any, model: Any) -> tuple[str, ...]:
    """The class names, where timm knows them for as many outputs."""
    config = getattr(model, "pretrained_cfg", {})
    tag = str(config.get("tag", ""))
    if getattr(model, "num_classes", 0) != 1000 or "in1k" not in tag:
        return ()
    info = timm.data.ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(1000))
