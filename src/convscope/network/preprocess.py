"""Preprocessing: from pixels to the tensor that a network takes, and back."""

from __future__ import annotations

import base64
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from convscope.core.errors import CheckpointError, UsageError, nearest
from convscope.pictures.framing import FILTERS, Framing, Interpolation
from convscope.pictures.pictures import Picture

MAX_SIDE = 8192
"""Pixels; 64 million of them are the most that a picture may have."""
GREY, BITS = (19595, 38470, 7471), 16
"""Weights of red, green and blue, in 65536ths, as Pillow has them."""
ROUND = 1 << (BITS - 1)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Numbers = Sequence[float] | np.ndarray
PARTS = ("size", "resize", "interpolation", "mean", "std")
"""What a network that does not say how its pictures are made ready leaves to be assumed."""
PIXELS_FROM = 2.0
"""Means above this are meant for pixels of 0 to 255: none of 0 to 1 is so large."""


@dataclass(frozen=True, eq=False)
class Preprocess:
    """(pixel × scale − mean) / std, after the framing; it travels with the weights.

    mean is one number a colour, or one a pixel and colour (3, h, w), as the paper subtracts it.
    With one colour in mean and std, pictures become grey, as Pillow's "L" weighs the colours
    (ITU-R BT.601), and tensors have one channel; with `greyed` they become grey and keep three.
    assumed: those of PARTS that nobody told; the others are known or were given.

    Raises UsageError U232 for numbers that cannot be meant.
    """

    framing: Framing
    mean: Numbers
    std: Numbers
    scale: float = 1 / 255
    greyed: bool = False
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _numbers("mean", self.mean, self.size))
        object.__setattr__(self, "std", _numbers("std", self.std, self.size))
        if len(self.mean) != len(self.std):
            raise UsageError("U232", "std", "mean and std must have the same number of colours")
        if not self.scale > 0 or not (np.asarray(self.std) > 0).all():
            raise UsageError("U232", "std", "std and scale must be above 0")

    @classmethod
    def imagenet(
        cls,
        resize: int | None = 256,
        crop: int | tuple[int, int] = 224,
        interpolation: Interpolation = "bilinear",
    ) -> Self:
        """As most networks trained on ImageNet want it. resize, crop: in pixels."""
        size = (crop, crop) if isinstance(crop, int) else crop
        return cls(Framing(resize, size, interpolation), IMAGENET_MEAN, IMAGENET_STD)

    def guessed(self) -> Self:
        """The same, told to be assumed in every part."""
        return replace(self, assumed=PARTS)

    def grey(self) -> Self:
        """The same for a network of one channel, with the grey of the mean and the mean std."""
        weights = np.asarray(GREY, np.float32) / sum(GREY)
        mean = tuple(np.tensordot(weights, np.asarray(self.mean, np.float32), 1)[None].tolist())
        std = (float(np.mean(self.std)),)
        return replace(self, mean=mean, std=std)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of what the network takes."""
        return self.framing.crop

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of what the network takes."""
        return (len(self.mean), *self.size)

    def tensor(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "c h w"]:
        """What the network takes for these pixels, which are framed already."""
        return self.batch([pixels])[0]

    def batch(
        self, pixels: Sequence[UInt8[np.ndarray, "h w 3"]], *, channels_last: bool = False
    ) -> Float[Tensor, "b c h w"]:
        """`tensor` of each, stacked. channels_last: in that memory format, which is faster."""
        stack = np.stack([self.seen(one) for one in pixels])[..., : len(self.mean)]
        if channels_last:
            return self._by_rows(stack)
        stack = np.ascontiguousarray(stack.transpose(0, 3, 1, 2))
        values = torch.from_numpy(stack).to(torch.float32)
        return values.mul_(self.scale).sub_(_column(self.mean)).div_(_column(self.std))

    def aligned(self, pictures: Sequence[Picture], size: int) -> Float[Tensor, "b c h w"]:
        """A batch in which each picture has the place number % size, and the other places are
        zero: networks round differently in batches of another size."""
        tensors = self.batch([picture.pixels for picture in pictures], channels_last=True)
        if len(pictures) == size:
            return tensors
        batch = torch.zeros(size, *tensors.shape[1:]).contiguous(memory_format=torch.channels_last)
        batch[[picture.number % size for picture in pictures]] = tensors
        return batch

    def _by_rows(self, stack: UInt8[np.ndarray, "b h w c"]) -> Float[Tensor, "b c h w"]:
        """A pixel's few colours lie side by side: whole rows at a time are several times as fast
        as one pixel at a time."""
        count, height, width, colours = stack.shape
        rows = torch.from_numpy(stack).to(torch.float32).reshape(count, height, width * colours)
        rows.mul_(self.scale).sub_(_row(self.mean, width)).div_(_row(self.std, width))
        return rows.view(stack.shape).permute(0, 3, 1, 2)

    def seen(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """What is left of framed pixels for the network: with one channel, their grey."""
        if len(self.mean) > 1 and not self.greyed:
            return pixels
        grey = (pixels.astype(np.uint32) @ np.array(GREY, np.uint32) + ROUND) >> BITS
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)

    def pixels(self, tensor: Float[Tensor, "c h w"]) -> UInt8[np.ndarray, "h w 3"]:
        """What was `seen` in the picture that `tensor` came from; other values to the nearest."""
        values = tensor.detach().to("cpu", torch.float64)
        values = values * _column(self.std).double() + _column(self.mean).double()
        bytes_ = (values / self.scale).round().clamp(0, 255).to(torch.uint8)
        return bytes_.permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy()

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads, of plain JSON types."""
        return {
            "framing": asdict(self.framing),
            "mean": _pack(self.mean),
            "std": _pack(self.std),
            "scale": self.scale,
            **({"greyed": True} if self.greyed else {}),
            **({"assumed": list(self.assumed)} if self.assumed else {}),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises CheckpointError C414 on anything else."""
        try:
            framing = _framing(**plain["framing"])
            mean, std = _unpack(plain["mean"]), _unpack(plain["std"])
            assumed = tuple(part for part in PARTS if part in plain.get("assumed", ()))
            greyed = plain.get("greyed", False) is True
            return cls(framing, mean, std, float(plain["scale"]), greyed, assumed)
        except (LookupError, TypeError, ValueError, zlib.error, UsageError) as fault:
            raise CheckpointError(
                "C414", "preprocess", f"the preprocessing is not understood ({fault})"
            ) from fault

    def describe(self) -> str:
        """One line for a report; what was assumed is told as that."""
        height, width = self.size
        way, resize = self.framing.interpolation, self.framing.resize
        if resize is None:
            framed = f"stretched to {height} × {width} ({way})"
        else:
            side = f"shorter side to {resize}"
            if not isinstance(resize, int):
                side = f"stretched to {resize[0]} × {resize[1]}"
            framed = f"{side} ({way}), centre {height} × {width}"
        unit = "0 to 1" if self.scale == 1 / 255 else f"pixels × {self.scale:.6g}"
        framed += "; grey" if len(self.mean) == 1 or self.greyed else ""
        told = f"{framed}; {unit}, minus {_said(self.mean)}, divided by {_said(self.std)}"
        if set(self.assumed) >= set(PARTS):
            return f"assumed: {told}"
        return f"{told}; assumed: {', '.join(self.assumed)}" if self.assumed else told

    def assumption(self) -> str:
        """What to say of it beforehand where something was assumed; empty where nothing was."""
        if set(self.assumed) >= set(PARTS):
            grey = ", in grey," if len(self.mean) == 1 else ""
            return (
                f"preprocessing is not known for this network; ImageNet's{grey} was assumed: "
                "give its own, by --size, --resize, --mean, --std or load(…, preprocess=…)"
            )
        values = {
            "size": " × ".join(map(str, self.size)),
            "resize": self.framing.resize,
            "interpolation": self.framing.interpolation,
            "mean": _said(self.mean),
            "std": _said(self.std),
        }
        told = ", ".join(f"{part} {values[part]}" for part in self.assumed)
        return told and f"of the preprocessing was not told, and assumed: {told}"

    def changed(self, told: Mapping[str, Any]) -> Self:
        """The same but for what is told of size, resize, interpolation, mean and std, each in the
        form of the command line (`"96x128"`, `"none"`, `"imagenet"`) or as plain numbers.

        size: rows and columns, or one for both. resize: the shorter side, rows and columns, or
        "none": the picture is stretched to the size. Where it is not told, it keeps its ratio to
        the size, and is assumed. mean, std: one number, or one a colour; "none": 0 and 1. Means
        above 2 are of pixels from 0 to 255.

        Raises UsageError U233 for what cannot be read, U320 for a size, U232 for impossible
        numbers.
        """
        told = {key: value for key, value in told.items() if value is not None}
        for key in told:
            if key not in PARTS:
                raise UsageError("U233", str(key), f"is no part of it; {nearest(str(key), PARTS)}")
        framing, colours = _reframed(self.framing, told), len(self.mean)
        mean, std, scale = self.mean, self.std, self.scale
        if "size" in told and "mean" not in told and isinstance(mean, np.ndarray):
            what = "the mean of this network is one number a pixel, of its own size"
            raise UsageError("U233", "size", what, next_step="give mean and std too")
        if "mean" in told:
            mean = colours_of("mean", told["mean"], colours)
            scale = 1.0 if max(mean) > PIXELS_FROM else 1 / 255
            if scale == 1.0 and "std" not in told:
                what = "is of pixels from 0 to 255, so the std is needed too"
                raise UsageError("U233", f"mean {told['mean']}", what)
        if "std" in told:
            std = colours_of("std", told["std"], colours)
        guessed = {"resize"} if "size" in told and self.framing.resize is not None else set()
        assumed = tuple(p for p in PARTS if p not in told and p in {*self.assumed, *guessed})
        return replace(self, framing=framing, mean=mean, std=std, scale=scale, assumed=assumed)

    def __eq__(self, other: object) -> bool:
        """The same numbers, whether told or assumed."""
        return isinstance(other, Preprocess) and _facts(self) == _facts(other)

    def __hash__(self) -> int:
        return hash((self.framing, self.scale))


def _facts(preprocess: Preprocess) -> dict[str, Any]:
    return replace(preprocess, assumed=()).to_json()


def _framing(resize: Any, crop: Sequence[int], interpolation: Interpolation) -> Framing:
    """A framing from a file, with sizes that memory can hold."""
    height, width = crop
    whole = [resize] if isinstance(resize, int) else [] if resize is None else list(resize)
    sides = (height, width, *whole)
    if len(whole) > 2 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
        raise ValueError(f"sizes {sides}")
    if interpolation not in FILTERS:
        raise ValueError(f"interpolation {interpolation!r}")
    return Framing(resize, (height, width), interpolation)


def _reframed(framing: Framing, told: Mapping[str, Any]) -> Framing:
    """The framing with what is told; a resize that is not told keeps its ratio to the size."""
    way = told.get("interpolation", framing.interpolation)
    if way not in FILTERS:
        what = f"is no interpolation; {nearest(str(way), FILTERS)}"
        raise UsageError("U233", f"interpolation {way}", what)
    crop, resize = framing.crop, framing.resize
    if "size" in told:
        crop = sides("size", told["size"])
        ratio = min(crop) / min(framing.crop)
        if isinstance(resize, int):
            resize = round(resize * ratio)
        elif resize is not None:
            resize = (round(resize[0] * ratio), round(resize[1] * ratio))
    if "resize" in told:
        resize = _resize(told["resize"])
    return Framing(resize, crop, cast("Interpolation", way))


def _resize(given: Any) -> int | tuple[int, int] | None:
    if given == "none":
        return None
    both = sides("resize", given)
    one = isinstance(given, int) or (isinstance(given, str) and given.isdecimal())
    return both[0] if one else both


def sides(name: str, given: Any) -> tuple[int, int]:
    """Rows and columns out of 64, "64", "96x128" or [96, 128]. Raises UsageError U320."""
    text = "x".join(map(str, given)) if isinstance(given, list | tuple) else str(given)
    result = re.fullmatch(r"([1-9]\d{0,4})(?:[x×]([1-9]\d{0,4}))?", text)
    if result is None or isinstance(given, bool):
        step = "write 224 or HEIGHTxWIDTH" + (", or none" if name == "resize" else "")
        raise UsageError("U320", f"{name} {text}", "is no size in pixels", next_step=step)
    height, width = int(result[1]), int(result[2] or result[1])
    if max(height, width) > MAX_SIDE:
        raise UsageError("U320", f"{name} {text}", f"is over {MAX_SIDE} pixels, the most")
    return height, width


def colours_of(name: str, given: Any, colours: int) -> tuple[float, ...]:
    """A mean or std out of 0.5, "0.5", "0.5,0.4,0.3", a list of them, "imagenet" or "none".

    Raises UsageError U233 for anything else, or another number of colours.
    """
    known = {"mean": (0.0, IMAGENET_MEAN), "std": (1.0, IMAGENET_STD)}[name]
    if isinstance(given, str) and given.strip().lower() == "none":
        return (known[0],) * colours
    if isinstance(given, str) and given.strip().lower() == "imagenet":
        grey = Preprocess.imagenet().grey()
        one = grey.mean if name == "mean" else grey.std
        return known[1] if colours > 1 else tuple(map(float, one))
    listed = given.split(",") if isinstance(given, str) else given
    try:
        values = [float(one) for one in (listed if isinstance(listed, Sequence) else [listed])]
    except (TypeError, ValueError):
        values = []
    if len(values) not in (1, colours) or not np.isfinite(values).all():
        many = "one number" if colours == 1 else f"1 or {colours} numbers"
        what = f"the {name} of this network is {many} with commas, imagenet or none"
        raise UsageError("U233", f"{name} {given}", what)
    return tuple(values) if len(values) == colours else (values[0],) * colours


def _numbers(name: str, given: Numbers, size: tuple[int, int]) -> Numbers:
    """One plain number a colour, or a read-only array of one a pixel; 3 colours or 1."""
    values = np.array(given, dtype=np.float32)
    known = [shape for colours in (3, 1) for shape in ((colours,), (colours, *size))]
    if values.shape not in known or not np.isfinite(values).all():
        raise UsageError(
            "U232",
            name,
            f"{name} is 3 finite numbers or an array of 3 × {size[0]} × {size[1]}; for grey, 1",
        )
    if values.ndim == 1:
        return tuple(float(number) for number in given)
    values.flags.writeable = False
    return values


def _column(numbers: Numbers) -> Float[Tensor, "c _ _"]:
    values = torch.tensor(np.asarray(numbers, dtype=np.float32))
    return values.reshape(-1, 1, 1) if values.ndim == 1 else values


def _row(numbers: Numbers, width: int) -> Float[Tensor, "*h wc"]:
    """The numbers as they lie in a row of pixels: all colours of a pixel, then the next."""
    values = torch.tensor(np.asarray(numbers, dtype=np.float32))
    return values.repeat(width) if values.ndim == 1 else values.permute(1, 2, 0).flatten(1)


def _pack(numbers: Numbers) -> Any:
    if not isinstance(numbers, np.ndarray):
        return list(numbers)
    raw = zlib.compress(numbers.astype("<f4").tobytes(), 9)
    return {"shape": list(numbers.shape), "float32": base64.b64encode(raw).decode("ascii")}


def _unpack(plain: Any) -> Numbers:
    if not isinstance(plain, Mapping):
        return [float(number) for number in plain]
    shape = tuple(int(side) for side in plain["shape"])
    expected = max(1, 4 * math.prod(shape))  # 0 would mean without limit
    raw = zlib.decompressobj().decompress(base64.b64decode(plain["float32"]), expected)
    return np.frombuffer(raw, "<f4").reshape(shape)


def _said(numbers: Numbers) -> str:
    if isinstance(numbers, np.ndarray):
        return "one number a pixel"
    return "(" + ", ".join(f"{number:.4g}" for number in numbers) + ")"
