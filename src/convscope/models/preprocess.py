"""How does a picture become what a network takes, and how does it come back?"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from convscope.errors import CheckpointError, UsageError
from convscope.images.framing import Framing

MAX_SIDE = 8192
"""Pixels; 64 million of them are the most that a picture may have."""
GREY, BITS = (19595, 38470, 7471), 16
"""Weights of red, green and blue, in 65536ths, as Pillow has them."""
ROUND = 1 << (BITS - 1)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Numbers = Sequence[float] | np.ndarray
Interpolation = Literal["bilinear", "bicubic", "nearest"]


@dataclass(frozen=True, eq=False)
class Preprocess:
    """(pixel × scale − mean) / std, after the framing; it travels with the weights.

    mean is one number a colour, or one a pixel and colour (3, h, w), as the paper subtracts it.
    With one colour in mean and std, pictures become grey, as Pillow's "L" weighs the colours
    (ITU-R BT.601), and tensors have one channel.

    Raises UsageError U232 for numbers that cannot be meant.
    """

    framing: Framing
    mean: Numbers
    std: Numbers
    scale: float = 1 / 255

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

    def _by_rows(self, stack: UInt8[np.ndarray, "b h w c"]) -> Float[Tensor, "b c h w"]:
        """A pixel's few colours lie side by side: whole rows at a time are several times as fast
        as one pixel at a time."""
        count, height, width, colours = stack.shape
        rows = torch.from_numpy(stack).to(torch.float32).reshape(count, height, width * colours)
        rows.mul_(self.scale).sub_(_row(self.mean, width)).div_(_row(self.std, width))
        return rows.view(stack.shape).permute(0, 3, 1, 2)

    def seen(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """What is left of framed pixels for the network: with one channel, their grey."""
        if len(self.mean) > 1:
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
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote. Raises CheckpointError C414 on anything else."""
        try:
            framing = _framing(**plain["framing"])
            mean, std = _unpack(plain["mean"]), _unpack(plain["std"])
            return cls(framing, mean, std, float(plain["scale"]))
        except (LookupError, TypeError, ValueError, zlib.error, UsageError) as fault:
            raise CheckpointError(
                "C414", "preprocess", f"the preprocessing is not understood ({fault})"
            ) from fault

    def describe(self) -> str:
        """One line for a report."""
        height, width = self.size
        way = self.framing.interpolation
        if self.framing.resize is None:
            framed = f"stretched to {height} × {width} ({way})"
        else:
            side = f"shorter side to {self.framing.resize} ({way})"
            framed = f"{side}, centre {height} × {width}"
        unit = "0 to 1" if self.scale == 1 / 255 else f"pixels × {self.scale:.6g}"
        framed += "; grey" if len(self.mean) == 1 else ""
        return f"{framed}; {unit}, minus {_said(self.mean)}, divided by {_said(self.std)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preprocess) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.framing, self.scale))


def _framing(resize: int | None, crop: Sequence[int], interpolation: Interpolation) -> Framing:
    """A framing from a file, with sizes that memory can hold."""
    height, width = crop
    sides = (height, width, height if resize is None else resize)
    if not all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in sides):
        raise ValueError(f"sizes {sides}")
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"interpolation {interpolation!r}")
    return Framing(resize, (height, width), interpolation)


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
