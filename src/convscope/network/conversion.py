"""Convert the preprocessing of torchvision, timm and Hugging Face to ours, or refuse it.

Converted are torchvision's transforms (v1, v2 and what its weights bring), timm's data configs and
the transforms it makes, and Hugging Face's image processors. What can be run is also tried on
pictures, so that a conversion gives the user's own numbers or is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.core.errors import ConvscopeError, UsageError, nearest
from convscope.core.text import read_json
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import FILTERS, Framing

HUGGING_FACE = ("image_mean", "image_processor_type", "feature_extractor_type", "do_normalize")
"""Keys by which a configuration of theirs is known."""
PROCESSORS: tuple[str, ...] = (
    "ViT",
    "DeiT",
    "ConvNext",
    "CLIP",
    "Beit",
    "Bit",
    "Siglip",
    "EfficientNet",
)
PROCESSORS += ("MobileNetV1", "MobileNetV2")
"""Image processors that do what their configuration says; others may do more than that."""
DOES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
RESAMPLE = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")))
"""Pillow's numbers of filters, in which their configurations are written."""
WHOLE = 384
"""Pixels from which a ConvNeXt's processor stretches pictures and cuts nothing off."""
RANDOM = ("Random", "AutoAugment", "RandAugment", "TrivialAugment", "AugMix", "ColorJitter")
PROBES = ((97, 131), (160, 101), (40, 40))
"""Heights and widths of the pictures on which a transform is tried."""
OFF = 2 / 255 + 1e-6
"""What a value may be off, in the range 0 to 1; where rounding ties abound, one in a thousand
may be off by more."""


Told = Callable[[Preprocess], Preprocess]
"""What was told of a preprocessing, to be applied to the network's own."""


def converted(given: Any, beside: Path | None = None) -> Told:
    """The same preprocessing as ours, or what is to be changed in a network's own.

    given: a Preprocess; some parts, as `Preprocess.changed` takes them; a transform, a data
    config or an image processor; or the name of one: `package.module:transform`, or a .json
    file. beside: the folder of the file that says so, if one does: code has to lie there. Raises
    UsageError U234, naming the step that cannot be done, U233, U232, U320.
    """
    if isinstance(given, str | Path):
        return _named(str(given), beside)
    if isinstance(given, Preprocess):
        return lambda _: given
    if not isinstance(given, Mapping) and callable(getattr(given, "to_dict", None)):
        given = given.to_dict()  # an image processor, or an entry of timm's table
    if not isinstance(given, Mapping):
        result = _Steps().of(given)
        _tried(given, result)
        return lambda _: result
    if any(key in given for key in HUGGING_FACE):
        processor = _hugging_face(given)
        return lambda _: processor
    if isinstance(given.get("pretrained_cfg"), Mapping):
        given = given["pretrained_cfg"]
    if "input_size" in given:
        config = _timm(given)
        return lambda _: config
    Preprocess.imagenet().changed(given)  # told before a network is built, if it cannot be read
    return lambda own: own.changed(given)


def _refuse(step: str, what: str, next_step: str = "") -> NoReturn:
    known = "give load(…, preprocess=Preprocess(…)), or --size, --resize, --mean and --std"
    raise UsageError("U234", step, what, next_step=next_step or known)


def _named(name: str, beside: Path | None) -> Told:
    from convscope.network.user_code import from_module

    if name.endswith(".json"):
        try:
            plain = read_json(name)
        except ValueError as fault:
            _refuse(name, f"cannot be read as JSON ({fault})")
        if not isinstance(plain, Mapping):
            _refuse(name, "holds no configuration of an image processor or of timm")
        return converted(plain)
    if ":" not in name:
        _refuse(name, "names no preprocessing", "write package.module:transform, or FILE.json")
    result = from_module(name, beside)
    return converted(result() if _makes_one(result) else result)


def _makes_one(given: object) -> bool:
    """A function or a class, where it stands for what it gives."""
    return isinstance(given, type) or type(given).__name__ in ("function", "partial")


@dataclass
class _Steps:
    """What the steps read so far do to a picture."""

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    way: str = ""
    tensor: bool = False
    scale: float | None = None
    """What pixels of 0 to 255 were multiplied by; None while they are bytes."""
    grey: int = 0
    """Channels after a step to grey; 0 without one."""
    normal: list[tuple[list[float], list[float]]] = field(default_factory=list)

    def of(self, given: object) -> Preprocess:
        for step in _flat(given):
            self._take(step)
        return self._made(type(given).__name__)

    def _take(self, step: Any) -> None:
        name, home = type(step).__name__, type(step).__module__.partition(".")[0]
        if name.startswith(RANDOM):
            _refuse(name, "is a random step", "give the transform that validation uses")
        if home not in ("torchvision", "timm", "torch"):
            _refuse(name, f"is a step of {home} that cannot be converted")
        match name:
            case "ImageClassification":
                self._preset(step)
            case "Resize":
                self._resized(step, step.size)
            case "CenterCrop" | "CenterCropOrPad":
                self._cropped(step, name)
            case "Grayscale":
                self._greyed(step)
            case "ToTensor" | "MaybeToTensor":
                if self.tensor and name == "ToTensor":
                    _refuse(name, "takes no tensor, and one comes before it")
                self._as_float(1 / 255)
            case "ToImage" | "PILToTensor" | "MaybePILToTensor":
                self.tensor = True
            case "ToDtype" | "ConvertImageDtype":
                self._to_dtype(step, name)
            case "Normalize":
                self._normalised(step)
            case "Identity" | "RGB" | "ToPureTensor":
                pass
            case _:
                _refuse(name, "is a step that cannot be converted")

    def _preset(self, step: Any) -> None:
        self._resized(step, step.resize_size)
        self.crop = _pair(step.crop_size)
        self.tensor, self.scale = True, 1 / 255
        self.normal.append((_floats(step.mean), _floats(step.std)))

    def _resized(self, step: Any, size: Any) -> None:
        name = type(step).__name__
        if self.resize is not None or self.crop is not None:
            _refuse(name, "comes after another step that sets the size")
        if size is None or getattr(step, "max_size", None) is not None:
            _refuse(name, "has a max_size")
        way = getattr(step.interpolation, "value", step.interpolation)
        way = RESAMPLE.get(way, str(way))  # v2 keeps Pillow's number, where that was given
        if self.tensor:
            self._smooth(way, getattr(step, "antialias", True), name)
        self.way = way.removesuffix("-exact")
        if self.way not in FILTERS:
            _refuse(name, f"has the interpolation {way!r}")
        listed = list(size) if isinstance(size, Sequence) else [size]
        self.resize = int(listed[0]) if len(listed) == 1 else _pair(listed)

    def _smooth(self, way: str, antialias: object, name: str) -> None:
        """Of tensors: what torch does as Pillow would."""
        if way == "nearest":
            _refuse(name, "takes other pixels of a tensor than of a picture with 'nearest'")
        if antialias is False and way in ("bilinear", "bicubic"):
            _refuse(name, "of a tensor without antialias gives other pixels than of a picture")
        if self.scale is not None and way == "bicubic":
            _refuse(name, "'bicubic' of floats leaves the range of pixels; resize before ToTensor")

    def _cropped(self, step: Any, name: str) -> None:
        if self.crop is not None or self.resize is None:
            what = "comes without a Resize before it" if self.crop is None else "comes twice"
            _refuse(name, what)
        if self.normal:
            _refuse(name, "comes after Normalize")
        self.crop = _pair(step.size)

    def _greyed(self, step: Any) -> None:
        if self.normal:
            _refuse("Grayscale", "comes after Normalize")
        self.grey = int(step.num_output_channels)

    def _to_dtype(self, step: Any, name: str) -> None:
        if not self.tensor:
            _refuse(name, "does nothing to a picture", "put ToImage() or PILToTensor() before it")
        if step.dtype == torch.uint8 and self.scale is None:
            return
        if step.dtype != torch.float32:
            _refuse(name, f"makes {step.dtype}, not torch.float32")
        self._as_float(1 / 255 if name == "ConvertImageDtype" or step.scale else 1.0)

    def _as_float(self, scale: float) -> None:
        self.tensor, self.scale = True, scale if self.scale is None else self.scale

    def _normalised(self, step: Any) -> None:
        if self.scale is None:
            _refuse("Normalize", "comes before the picture is a tensor of floats")
        self.normal.append((_floats(step.mean), _floats(step.std)))

    def _made(self, whole: str) -> Preprocess:
        if self.scale is None:
            _refuse(whole, "gives no tensor of floats", "end it with ToTensor(), and Normalize(…)")
        if self.resize is None:
            _refuse(whole, "has no Resize, so the size is not known", "add Resize((height, width))")
        if self.crop is None and isinstance(self.resize, int):
            what = "without CenterCrop makes pictures of different sizes"
            step = f"add CenterCrop({self.resize}), or write Resize(({self.resize}, {self.resize}))"
            _refuse(f"Resize({self.resize})", what, step)
        colours = 1 if self.grey == 1 else 3
        mean, std = [0.0] * colours, [1.0] * colours
        for less, by in self.normal:  # ((x − m) / s − n) / t = (x − (m + s n)) / (s t)
            if len(less) not in (1, colours) or len(by) not in (1, colours):
                _refuse("Normalize", f"has {len(less)} numbers, where there are {colours} colours")
            less, by = (n * (colours if len(n) == 1 else 1) for n in (less, by))
            mean = [m + s * n for m, s, n in zip(mean, std, less, strict=True)]
            std = [s * t for s, t in zip(std, by, strict=True)]
        crop = self.crop or self.resize
        assert not isinstance(crop, int)
        framing = Framing(self.resize, crop, self.way)  # type: ignore[arg-type]
        return Preprocess(framing, mean, std, self.scale, greyed=self.grey == 3)


def _flat(given: Any) -> Iterator[object]:
    """Steps in their order, out of any depth of Compose and Sequential."""
    if isinstance(given, nn.Sequential):
        steps: Any = list(given)
    elif type(given).__name__ == "Compose" and type(given).__module__.startswith("torchvision"):
        steps = given.transforms
    else:
        yield given
        return
    for step in steps:
        yield from _flat(step)


def _pair(size: Any) -> tuple[int, int]:
    """(height, width) out of one number, a list of one, or two."""
    listed = list(size) if isinstance(size, Sequence) else [size]
    return int(listed[0]), int(listed[-1])


def _floats(numbers: Any) -> list[float]:
    listed = numbers.tolist() if isinstance(numbers, Tensor | np.ndarray) else numbers
    return [float(one) for one in np.ravel(listed)]


def _tried(given: Any, result: Preprocess) -> None:
    """Refuse, where the transform itself gives other numbers on pictures."""
    name = type(given).__name__
    for place, (height, width) in enumerate(PROBES):
        rough = np.random.default_rng(place).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        picture = Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
        try:
            wanted = given(picture)
        except Exception as fault:
            if isinstance(fault, ConvscopeError):
                raise
            _refuse(name, f"raised {type(fault).__name__} on a picture: {fault}")
        ours = result.tensor(result.framing(picture))
        if not isinstance(wanted, Tensor) or wanted.shape != ours.shape:
            got = tuple(wanted.shape) if isinstance(wanted, Tensor) else type(wanted).__name__
            _refuse(name, f"gives {got}, where its steps make {tuple(ours.shape)}")
        per_pixel = torch.tensor(result.std).reshape(-1, 1, 1) / (255 * result.scale)
        off = ((wanted - ours).abs() * per_pixel).flatten()
        if (off > OFF).float().mean() > 1e-3:
            what = f"gives other numbers than its steps say, by up to {255 * float(off.max()):.0f}"
            _refuse(name, f"{what} of 255")


def _timm(config: Mapping[str, Any]) -> Preprocess:
    """As timm's `transforms_imagenet_eval` frames pictures by its data config."""
    try:
        sides, share = config["input_size"], float(config.get("crop_pct") or 0.875)
        height, width = int(sides[-2]), int(sides[-1])
        mean, std = _floats(config["mean"]), _floats(config["std"])
    except (KeyError, TypeError, ValueError, IndexError) as fault:
        _refuse("timm's config", f"is not understood ({type(fault).__name__}: {fault})")
    way, mode = str(config.get("interpolation", "bicubic")), config.get("crop_mode") or "center"
    if way not in FILTERS:
        _refuse(f"interpolation {way!r}", f"is not known; {nearest(way, FILTERS)}")
    whole = math.floor(height / share), math.floor(width / share)
    if mode == "squash":
        return Preprocess(Framing(whole, (height, width), way), mean, std)  # type: ignore[arg-type]
    if mode != "center" or height != width:
        kind = f"crop_mode {mode!r}" if mode != "center" else f"input_size {height} × {width}"
        _refuse(kind, "cannot be done with timm's way of framing")
    return Preprocess(Framing(whole[0], (height, width), way), mean, std)  # type: ignore[arg-type]


def _hugging_face(config: Mapping[str, Any]) -> Preprocess:
    """As their image processors do with a preprocessor_config.json."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for end in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(end)
    if kind and kind not in PROCESSORS:
        _refuse(kind, f"is an image processor that is not known; {nearest(kind, PROCESSORS)}")
    for key, value in config.items():
        if key.startswith("do_") and value and key not in DOES:
            _refuse(key, "is a step that cannot be converted")
    try:
        framing = _processed(config, kind)
        scale = float(config.get("rescale_factor", 1 / 255)) if _does(config, "rescale") else 1.0
        mean, std = [0.0] * 3, [1.0] * 3
        if _does(config, "normalize"):
            mean, std = _floats(config["image_mean"]), _floats(config["image_std"])
    except (KeyError, TypeError, ValueError, IndexError) as fault:
        _refuse(kind or "image processor", f"is not understood ({type(fault).__name__}: {fault})")
    if config.get("rescale_offset"):
        mean = [number + 1 for number in mean]
    if config.get("include_top"):  # EfficientNet's divides twice
        std = [number**2 for number in std]
    return Preprocess(framing, mean, std, scale)


def _does(config: Mapping[str, Any], what: str) -> bool:
    return bool(config.get(f"do_{what}", True))


def _processed(config: Mapping[str, Any], kind: str) -> Framing:
    """Their resizing and cropping. A size of one number is the whole picture's where nothing is
    cut off afterwards; otherwise it could mean two things."""
    size, cut = config["size"], bool(config.get("do_center_crop", False))
    way = RESAMPLE[int(config["resample"])]
    if not _does(config, "resize"):
        _refuse("do_resize", "is off, so the size is not known")
    if isinstance(size, int) and cut:
        step = 'write "size": {"shortest_edge": …} or {"height": …, "width": …}'
        _refuse(f"size {size}", "can mean the shorter side or both", step)
    sides = {"height": size, "width": size} if isinstance(size, int) else dict(size)
    crop = _sides(config["crop_size"]) if cut else None
    whole: int | tuple[int, int] | None
    if "shortest_edge" in sides:
        whole = int(sides["shortest_edge"])
        if kind == "ConvNext":
            crop = (whole, whole)
            whole = None if whole >= WHOLE else int(whole / float(config["crop_pct"]))
        elif crop is None:
            _refuse("shortest_edge", "without do_center_crop makes pictures of different sizes")
        if sides.get("longest_edge"):
            _refuse("longest_edge", "cannot be converted")
    else:
        whole = _sides(sides)
    assert crop is not None or not isinstance(whole, int)
    return Framing(whole, crop or whole, way)  # type: ignore[arg-type]


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return _pair(size)
