"""Networks of timm, with their weights and preprocessing."""

from __future__ import annotations

import importlib
import math
import os
from pathlib import Path
from typing import Any

import torch

from convscope.core.errors import CheckpointError, EnvironmentFault, ModelError, UsageError, nearest
from convscope.network.network import Draft, Request
from convscope.network.preprocess import Preprocess
from convscope.network.sources.spec import WEIGHTS_OPTIONS, options
from convscope.network.weights.checkpoint import Checkpoint, open_checkpoint
from convscope.network.weights.fetch import fetched_weights, no_weights
from convscope.pictures.framing import Framing

HUB, HUB_FILE = "https://huggingface.co", "model.safetensors"
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def from_timm(request: Request) -> Draft:
    """`timm:NAME`, with timm's own weights unless there is a checkpoint.

    Raises EnvironmentFault R622 without timm, R620 if the weights cannot be had; ModelError M570
    for an unknown name, M571 if timm cannot build it; UsageError U230 or U231 for an option.
    """
    timm = _timm()
    name, _, text = request.rest.partition(":")
    if not timm.is_model(name):
        known = timm.list_models()
        raise ModelError("M570", request.spec, f"no such network in timm; {nearest(name, known)}")
    wanted = str(options(text, WEIGHTS_OPTIONS).get("weights", "default")).lower()
    if wanted not in ("default", "none"):
        raise UsageError("U231", f"weights={wanted}", "weights is default or none with timm")
    own = None
    if request.checkpoint is None and wanted == "default":
        own = _pretrained(timm, name, request)
    model = _create(timm, name, own, request)
    preprocess, notes = preprocess_of(timm.data.resolve_model_data_config(model))
    if own is not None:
        return Draft(
            model, preprocess, _names(timm, model), f"timm {name}", notes=notes, sha256=own.sha256
        )
    if request.checkpoint is None:
        return Draft(model, preprocess, notes=notes)
    file, names = request.checkpoint, _names(timm, model)
    notes += ("class names taken from timm's table",) if names else ()
    return Draft(model, preprocess.guessed(), names, file.name, file, notes)


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


def _pretrained(timm: Any, name: str, request: Request) -> Checkpoint:
    """timm's own weights, from a cache or over the network, read as any file of strangers."""
    entry = timm.get_pretrained_cfg(name)
    url = address(entry)
    spec = f"timm:{name}"
    if not url:
        raise no_weights(spec, "timm has no weights of this network")
    folder = Path(torch.hub.get_dir()) / "checkpoints" / "timm"
    target = folder / f"{name}{Path(url).suffix}"
    result = _in_hub_cache(entry) or fetched_weights(spec, url, target, progress=request.progress)
    try:
        return open_checkpoint(result)
    except CheckpointError as fault:
        target.unlink(missing_ok=True)  # the hub tells no hash: this is how a wrong file shows
        what = f"the file from {url} cannot be used: {fault.what}"
        raise no_weights(spec, what) from fault


def address(entry: Any) -> str:
    """Where the weights of an entry of timm's table are to be had; empty if nowhere."""
    if entry is None:
        return ""
    if not entry.hf_hub_id:
        return str(entry.url or "")
    hub = os.environ.get("HF_ENDPOINT", HUB)
    return f"{hub}/{entry.hf_hub_id}/resolve/main/{entry.hf_hub_filename or HUB_FILE}"


def _in_hub_cache(entry: Any) -> Path | None:
    """The file, if the hub's own client has fetched it before."""
    if not entry.hf_hub_id:
        return None
    client = importlib.import_module("huggingface_hub")
    result = client.try_to_load_from_cache(entry.hf_hub_id, entry.hf_hub_filename or HUB_FILE)
    return Path(result) if isinstance(result, str) else None


def _create(timm: Any, name: str, own: Checkpoint | None, request: Request) -> Any:
    more: dict[str, Any] = {} if request.classes is None else {"num_classes": request.classes}
    if own is not None:  # timm renames and, for other classes, drops what it must
        more |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": own.weights}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        try:
            model = timm.create_model(name, **more)
        except Exception as fault:
            said = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
            raise ModelError("M571", request.spec, f"timm cannot build it ({said})") from fault
    if own is not None:
        model.pretrained_cfg.pop("state_dict", None)  # or it would be kept twice
    return model


def _names(timm: Any, model: Any) -> tuple[str, ...]:
    """The class names, where timm knows them for as many outputs."""
    config = getattr(model, "pretrained_cfg", {})
    tag = str(config.get("tag", ""))
    if getattr(model, "num_classes", 0) != 1000 or "in1k" not in tag:
        return ()
    info = timm.data.ImageNetInfo("imagenet-1k")
    return tuple(info.index_to_description(index) for index in range(1000))
