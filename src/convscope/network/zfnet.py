"""ZFNet and AlexNet: five convolutions and three linear layers; options in a network's name.

zfnet:width=0.5,head=compact                  alexnet:without=6,7
torchvision:resnet18:weights=none,classes=5   timm:resnet50   package.module:factory

The two differ only in their first two kernels and in where contrast is normalised.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from convscope.core.errors import CheckpointError, UsageError, nearest
from convscope.network.network import Card, Draft, Request
from convscope.network.preprocess import Preprocess


def _numbers(text: str) -> tuple[int, ...]:
    """96-256-384 or 3,4 or nothing."""
    return tuple(int(piece) for piece in text.replace(",", "-").split("-") if piece)


TOWER_OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "width": float,
    "norm": str,
    "head": str,
    "dropout": float,
    "maps": _numbers,
    "fc": int,
    "without": _numbers,
    "init": str,
}
WEIGHTS_OPTIONS: Mapping[str, Callable[[str], Any]] = {"weights": str}


def options(text: str, table: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """`width=0.5,without=3,4` read by the table: name of an option -> reader of its value.

    Raises UsageError U230 for an unknown option, U231 for a value that cannot be read.
    """
    if re.search(r"=[^,]*:\w+=", text):
        whole = text.replace(":", ",")
        raise UsageError("U230", text, "options are parted by commas", next_step=f"write {whole}")
    result: dict[str, str] = {}
    name = ""
    for piece in text.split(",") if text else []:
        if "=" in piece:
            name, _, value = (side.strip() for side in piece.partition("="))
            result[name] = value
        elif name:  # a list goes on: without=3,4
            result[name] += "," + piece.strip()
        else:
            raise UsageError("U230", piece, "is no option", next_step="write NAME=VALUE")
    return {name: _read(name, value, table) for name, value in result.items()}


def split_classes(text: str) -> tuple[str, int | None]:
    """A spec's options without `classes=N`, which any network of ours, torchvision's and timm's
    may have, and that number. Raises UsageError U231 if it is none."""
    result = re.search(r"(?:^|[,:])classes=([^,:]*)", text)
    if result is None:
        return text, None
    if not re.fullmatch(r"[1-9]\d{0,6}", result[1]):
        raise UsageError("U231", f"classes={result[1]}", "is not a whole number from 1")
    return re.sub(r"(^|[,:])classes=[^,:]*,?", r"\1", text).rstrip(",:"), int(result[1])


def _read(name: str, value: str, table: Mapping[str, Callable[[str], Any]]) -> Any:
    if name not in table:
        raise UsageError("U230", name, f"is no option of this network; {nearest(name, table)}")
    try:
        return table[name](value)
    except ValueError as fault:
        raise UsageError("U231", f"{name}={value}", "is not a number") from fault


Norm = Literal["none", "lrn", "batch"]
Head = Literal["full", "compact"]
Init = Literal["he", "paper"]
Named = Iterator[tuple[str, nn.Module]]

GRID = 6
"""Rows and columns that pool5 hands to fc6 (Zeiler and Fergus 2014, figure 3)."""


class Options(TypedDict, total=False):
    """The options of `zfnet` and `alexnet`, for type checkers; `Tower` gives their meaning."""

    width: float
    norm: Norm
    head: Head
    dropout: float
    maps: tuple[int, ...]
    fc: int
    without: tuple[int, ...]


@dataclass(frozen=True)
class Tower:
    """All that may be varied in a tower. Raises UsageError U231 for a value it cannot have."""

    width: float = 1.0
    """Multiplies the number of maps and of fc units."""
    norm: Norm = "none"
    """"lrn": contrast across maps, where the paper draws it; "batch": before each rectifier."""
    head: Head = "full"
    """"full": fc6, fc7, fc8; "compact": the mean over all places, then fc8."""
    dropout: float = 0.5
    maps: tuple[int, ...] = (96, 256, 384, 384, 256)
    """Feature maps of conv1 … conv5."""
    fc: int = 4096
    """Units of fc6 and fc7."""
    without: tuple[int, ...] = ()
    """Layers left out, of 3, 4, 6 and 7 (Zeiler and Fergus 2014, section 5.1)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", tuple(self.maps))
        object.__setattr__(self, "without", tuple(sorted(set(self.without))))
        removable = (3, 4) if self.head == "compact" else (3, 4, 6, 7)
        _require(0 < self.width <= 16, "width", self.width, "lies above 0 and at most at 16")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "is at least 0 and below 1")
        _require(1 <= self.fc <= 65536, "fc", self.fc, "lies between 1 and 65536")
        _require(
            len(self.maps) == 5 and all(1 <= count <= 65536 for count in self.maps),
            "maps",
            "-".join(map(str, self.maps)),
            "is five numbers of feature maps, as 96-256-384-384-256",
        )
        _require(
            set(self.without) <= set(removable),
            "without",
            "-".join(map(str, self.without)),
            f"names layers of {', '.join(map(str, removable))} with head={self.head}",
        )
        _require(self.norm in NORMS, "norm", self.norm, f"is one of {', '.join(NORMS)}")
        _require(self.head in HEADS, "head", self.head, f"is one of {', '.join(HEADS)}")

    def scaled(self, count: int) -> int:
        return max(1, round(count * self.width))


@dataclass(frozen=True)
class Kernel:
    """Rows (= columns), step and border of a convolution."""

    size: int
    stride: int = 1
    padding: int = 0


def tower(options: Mapping[str, Any]) -> Tower:
    """The Tower with these options; UsageError U230 for an option there is not."""
    known = [entry.name for entry in dataclasses.fields(Tower)]
    for name in options:
        if name not in known:
            raise UsageError("U230", name, f"is no option of this network; {nearest(name, known)}")
    return Tower(**options)


def build(
    shape: Tower,
    kernels: tuple[Kernel, Kernel],
    *,
    classes: int,
    norm_before_pool: bool,
    init: Init | None,
    seed: int,
) -> nn.Sequential:
    """The network with its weights drawn; `init=None` leaves them on the meta device, undrawn."""
    _require(1 <= classes <= 1_000_000, "classes", classes, "lies between 1 and a million")
    with torch.device("meta"):
        model = nn.Sequential(OrderedDict(_layers(shape, kernels, classes, norm_before_pool)))
    if init is not None:
        _require(init in INITS, "init", init, f"is one of {', '.join(INITS)}")
        give_memory(model)
        draw(model, init, seed)
    return model


def give_memory(model: nn.Module) -> None:
    """Memory for weights on the meta device. `nn.Module.to_empty` does the same, and imports what
    torch traces networks with on the way, as long again as torch itself takes."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(_fresh(weight))
        for name, held in module._buffers.items():
            if held is not None:
                module._buffers[name] = _fresh(held)


def _fresh(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def draw(model: nn.Module, init: Init, seed: int) -> None:
    """Draw new weights: "he" (He et al. 2015, eq. 10) or "paper", N(0, 0.01); biases are 0.

    Source: Zeiler and Fergus 2014, §3: "initialized to 10^-2". A constant could not tell the
    filters apart, so we read a standard deviation, as Krizhevsky et al. 2012 have it.
    """
    generator = torch.Generator().manual_seed(seed)
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for module in weighted:
            gain = 1.0 if module is weighted[-1] else 2.0  # no rectifier after the last
            fan_in = math.prod(module.weight.shape[1:])
            deviation = 0.01 if init == "paper" else math.sqrt(gain / fan_in)
            module.weight.normal_(0.0, deviation, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_parameters()


def _layers(
    shape: Tower, kernels: tuple[Kernel, Kernel], classes: int, norm_before_pool: bool
) -> Named:
    maps = 3
    for number, kernel in enumerate((*kernels, *[Kernel(3, padding=1)] * 3), start=1):
        if number not in shape.without:
            out = shape.scaled(shape.maps[number - 1])
            yield from _layer(number, maps, out, kernel, shape.norm, norm_before_pool)
            maps = out
    yield from HEADS[shape.head](shape, maps, classes)


def _layer(
    number: int, maps: int, out: int, kernel: Kernel, norm: Norm, norm_before_pool: bool
) -> Named:
    batch = norm == "batch"
    yield (
        f"conv{number}",
        nn.Conv2d(maps, out, kernel.size, kernel.stride, kernel.padding, bias=not batch),
    )
    if batch:
        yield f"bn{number}", nn.BatchNorm2d(out)
    yield f"relu{number}", nn.ReLU(inplace=True)
    if number in (1, 2) and norm == "lrn" and norm_before_pool:
        yield f"norm{number}", contrast()
    if number in (1, 2, 5):
        yield f"pool{number}", nn.MaxPool2d(3, 2, ceil_mode=True)
    if number in (1, 2) and norm == "lrn" and not norm_before_pool:
        yield f"norm{number}", contrast()


def contrast() -> nn.LocalResponseNorm:
    """Contrast normalisation across feature maps: k = 2, n = 5, alpha = 1e-4, beta = 0.75.

    Source: Krizhevsky et al. 2012, §3.3. torch divides alpha by n, the paper does not.
    """
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def _full(shape: Tower, maps: int, classes: int) -> Named:
    yield "avgpool", nn.AdaptiveAvgPool2d(GRID)
    yield "flatten", nn.Flatten()
    units = maps * GRID * GRID
    for number in (6, 7):
        if number not in shape.without:
            yield f"fc{number}", nn.Linear(units, shape.scaled(shape.fc))
            yield f"relu{number}", nn.ReLU(inplace=True)
            yield f"drop{number}", nn.Dropout(shape.dropout)
            units = shape.scaled(shape.fc)
    yield "fc8", nn.Linear(units, classes)


def _compact(shape: Tower, maps: int, classes: int) -> Named:
    yield "avgpool", nn.AdaptiveAvgPool2d(1)
    yield "flatten", nn.Flatten()
    yield "drop", nn.Dropout(shape.dropout)
    yield "fc8", nn.Linear(maps, classes)


def _require(fine: bool, option: str, given: object, rule: str) -> None:
    if not fine:
        raise UsageError("U231", f"{option}={given}", f"{option} {rule}")


NORMS = ("none", "lrn", "batch")
INITS = ("he", "paper")
HEADS = {"full": _full, "compact": _compact}


ZFNET_SIZE = 224
"""Rows and columns of the input that the paper draws."""
ZFNET_KERNELS = (Kernel(7, stride=2, padding=1), Kernel(5, stride=2))


def zfnet(
    classes: int = 1000, *, init: Init | None = "he", seed: int = 0, **options: Unpack[Options]
) -> nn.Sequential:
    """ZFNet with named layers: conv1 relu1 pool1 [norm1] conv2 … pool5 avgpool flatten fc6 … fc8.

    On 224 × 224 pixels its maps have 110, 55, 26, 13 and 6 rows, as drawn; padding, which the
    paper does not give, follows from these: conv1 1, conv2 0, pools rounding up. `avgpool`
    changes nothing at that size and lets the network take others. Options: see `Tower`;
    `width=0.5` is the half-width network of the tutorials.

    Raises UsageError U230 for an unknown option, U231 for an impossible value.
    Source: Zeiler and Fergus 2014, figure 3.
    """
    return build(
        tower(options), ZFNET_KERNELS, classes=classes, norm_before_pool=False, init=init, seed=seed
    )


ALEXNET_SIZE = 227
"""Rows and columns of the input; the printed 224 does not give 55 rows after conv1."""
ALEXNET_KERNELS = (Kernel(11, stride=4), Kernel(5, padding=2))


def alexnet(
    classes: int = 1000, *, init: Init | None = "he", seed: int = 0, **options: Unpack[Options]
) -> nn.Sequential:
    """AlexNet with named layers: conv1 relu1 [norm1] pool1 conv2 … pool5 avgpool flatten fc6 … fc8.

    On 227 × 227 pixels its maps have 55, 27, 13 and 6 rows. One tower that sees all maps, where
    the original splits conv2, conv4 and conv5 over two graphics cards. Options: see `Tower`.

    Raises UsageError U230 for an unknown option, U231 for an impossible value.
    Source: Krizhevsky, Sutskever and Hinton 2012, §3.5; one tower: Zeiler and Fergus 2014, §3.
    """
    return build(
        tower(options),
        ALEXNET_KERNELS,
        classes=classes,
        norm_before_pool=True,
        init=init,
        seed=seed,
    )


OURS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "zfnet": (zfnet, ZFNET_SIZE),
    "alexnet": (alexnet, ALEXNET_SIZE),
}


def from_ours(request: Request) -> Draft:
    """`zfnet` or `alexnet` with options.

    Raises UsageError U230 or U231 for an option, CheckpointError C410 for a file of another one.
    """
    head = request.spec.partition(":")[0]
    maker, size = OURS[head]
    wanted = options(request.rest, TOWER_OPTIONS)
    _check_card(head, wanted, request)
    init = None if request.checkpoint is not None else wanted.pop("init", "he")
    wanted.pop("init", None)
    model = maker(request.classes or 1000, init=init, seed=request.seed, **wanted)
    preprocess = Preprocess.imagenet(resize=round(size * 256 / 224), crop=size)
    if request.checkpoint is None:
        return Draft(model, preprocess)
    give_memory(model)
    return Draft(
        model,
        preprocess.guessed(),
        weights=request.checkpoint.name,
        checkpoint=request.checkpoint,
    )


def _check_card(head: str, wanted: dict[str, Any], request: Request) -> None:
    """A file of ours knows better than a list of differing layers what it belongs to."""
    card = None if request.checkpoint is None else Card.of(request.checkpoint)
    if card is None or request.checkpoint is None:
        return
    name, _, rest = card.spec.partition(":")
    shape = {key: value for key, value in wanted.items() if key != "init"}
    theirs = options(split_classes(rest)[0], TOWER_OPTIONS) if name in OURS else {}
    theirs.pop("init", None)
    if name != head or Tower(**theirs) != Tower(**shape):
        raise CheckpointError(
            "C410",
            request.checkpoint.name,
            f"belongs to {card.spec}, not to {request.spec}",
            next_step=f"name {card.spec}, or load the file by itself",
        )
