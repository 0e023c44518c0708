"""Training data: pictures kept in memory, augmented, and put together into batches.

Every random choice is a pure function of (seed, what it is for, epoch, number), so neither the
number of processes, nor threads, nor a resumed run can change it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from numpy.random import Generator
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from convscope.core.errors import DataError
from convscope.network.preprocess import Numbers, Preprocess
from convscope.pictures.framing import resized
from convscope.pictures.pictures import Pictures
from convscope.training.recipe import Recipe

Framer = Callable[[Image.Image], UInt8[np.ndarray, "h w 3"]]
AT_ONCE = 64
"""Pictures in memory where all are gone through."""
AHEAD = 3
"""Batches made in advance: the network never waits, and memory stays small."""
CROP, ORDER, MIX, NOISE = range(4)
"""What random numbers are for; each has a stream of its own."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in grey. Source: ITU-R BT.601."""
TO_GREY = np.tile(LUMA, (3, 1))
EYE = np.eye(3, dtype=np.float32)


class PictureCache:
    """A folder's usable pictures, framed; kept in memory as far as it reaches, else read again."""

    def __init__(
        self,
        folder: Pictures,
        framing: Framer,
        *,
        memory: int,
        workers: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Read every picture once. memory: bytes that may be kept. workers: decoding processes of
        this first reading, and of `batches`.

        Raises DataError D151 if pictures have no class, D152 if none is usable, and what
        `Pictures.check_bad` raises if too many are unusable.
        """
        self.folder = folder
        self.framing = framing
        self.workers = workers
        self._kept: dict[int, UInt8[np.ndarray, "h w 3"]] = {}
        self.numbers: tuple[int, ...] = tuple(self._read_all(memory, progress))
        folder.check_bad()
        if not self.numbers:
            raise DataError("D152", folder.place, "holds no usable picture")
        labels = [folder.labels[number] for number in self.numbers]
        self.labels: tuple[int, ...] = tuple(label for label in labels if label is not None)
        if len(self.labels) < len(labels):
            raise DataError(
                "D151",
                folder.place,
                "holds pictures outside of class folders, so they cannot teach a class",
                next_step="put each class's pictures into a folder with the class's name",
            )

    def __len__(self) -> int:
        return len(self.numbers)

    def take(
        self, places: Sequence[int], workers: int | None = None
    ) -> list[UInt8[np.ndarray, "h w 3"]]:
        """The framed pictures at these places, 0 being the first usable picture."""
        wanted = [self.numbers[place] for place in places]
        absent = [number for number in wanted if number not in self._kept]
        fresh = {
            p.number: p.pixels for p in self.folder.read(self.framing, absent, workers=workers)
        }
        lost = [number for number in absent if number not in fresh]
        if lost:
            name = self.folder.names[lost[0]]
            raise DataError("D153", name, "could be read before training, and cannot be now")
        return [fresh[n] if n in fresh else self._kept[n] for n in wanted]

    def _read_all(self, memory: int, progress: Callable[[int, int], None] | None) -> list[int]:
        good: list[int] = []
        for picture in self.folder.read(self.framing, workers=self.workers):
            good.append(picture.number)
            memory -= picture.pixels.nbytes
            if memory >= 0:
                self._kept[picture.number] = picture.pixels
            if progress is not None:
                progress(picture.number + 1, len(self.folder))
        return good


def pixel_mean(cache: PictureCache, framing: Framer) -> Float32[np.ndarray, "3 h w"]:
    """Mean of all framed pictures at every pixel, 0 to 255; summed in whole numbers, so exact."""
    total = np.zeros((), np.uint64)
    for start in range(0, len(cache), AT_ONCE):
        for pixels in cache.take(range(start, min(start + AT_ONCE, len(cache))), cache.workers):
            total = total + framing(Image.fromarray(pixels)).astype(np.uint64)
    return (total / len(cache)).transpose(2, 0, 1).astype(np.float32)


def stream(seed: int, purpose: int, epoch: int, number: int = 0) -> Generator:
    """The random numbers of one purpose, epoch and picture (or batch, or process)."""
    return Generator(np.random.PCG64(np.random.SeedSequence((seed, purpose, epoch, number))))


def order(seed: int, epoch: int, pictures: int) -> Int64[np.ndarray, "pictures"]:
    """In which order an epoch sees the pictures."""
    return stream(seed, ORDER, epoch).permutation(pictures)


@dataclass(frozen=True)
class Shrunk:
    """A framing that only makes the shorter side at most `side` pixels long."""

    side: int

    def __call__(self, picture: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        ratio = self.side / min(picture.size)
        if ratio < 1:
            width, height = (max(self.side, round(edge * ratio)) for edge in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture)


class View(NamedTuple):
    """One picture as an epoch sees it: pixels, and the change of colour still to be applied."""

    pixels: UInt8[np.ndarray, "size size 3"]
    colour: Float32[np.ndarray, "3 3"]
    """new = colour @ old + offset, on values 0 to 1; not clipped."""
    offset: Float32[np.ndarray, "3"]


def view(pixels: UInt8[np.ndarray, "h w 3"], size: int, recipe: Recipe, random: Generator) -> View:
    """Cut, turn, mirror and recolour a picture as the recipe says."""
    box = _box(pixels.shape[1], pixels.shape[0], size, recipe, random)
    cut = _cut(Image.fromarray(pixels), box, size, recipe.rotate, random)
    if random.random() < recipe.flip:
        cut = cut[:, ::-1]
    if random.random() < recipe.flip_vertical:
        cut = cut[::-1]
    colour, offset = _colour(cut, recipe, random)
    cut = np.ascontiguousarray(cut)
    if random.random() < recipe.erase:
        cut = _erased(cut, random)
    return View(cut, colour, offset)


Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as Pillow has it."""


def _box(w: int, h: int, size: int, recipe: Recipe, random: Generator) -> Box:
    """Source of random windows: Krizhevsky et al. 2012, section 4.1."""
    if recipe.crop == "resized":
        return _resized_box(w, h, recipe, random)
    wide, high = resized((w, h), recipe.test_resize)
    if recipe.crop == "random":
        x, y = (int(place) for place in random.integers(0, recipe.test_resize - size + 1, 2))
        left, top = (round((edge - recipe.test_resize) / 2) for edge in (wide, high))
        left, top = left + x, top + y
    else:  # as images.framing rounds
        left, top = round((wide - size) / 2), round((high - size) / 2)
    across, down = w / wide, h / high
    return left * across, top * down, (left + size) * across, (top + size) * down


def _resized_box(w: int, h: int, recipe: Recipe, random: Generator) -> Box:
    """A box of random area and shape; the largest centred square after ten that do not fit.

    Source: Szegedy et al. 2015, section 6.
    """
    widest = math.log(recipe.ratio_max)
    for _ in range(10):
        area = w * h * random.uniform(recipe.scale_min, 1.0)
        ratio = math.exp(random.uniform(-widest, widest))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= w and height <= h:
            left, top = random.uniform(0, w - width), random.uniform(0, h - height)
            return left, top, left + width, top + height
    side = min(w, h)
    return (w - side) / 2, (h - side) / 2, (w + side) / 2, (h + side) / 2


def _cut(
    picture: Image.Image, box: Box, size: int, rotate: float, random: Generator
) -> UInt8[np.ndarray, "size size 3"]:
    if not rotate:
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
    left, top, right, bottom = box
    angle = math.radians(random.uniform(-rotate, rotate))
    cos, sin, half = math.cos(angle), math.sin(angle), size / 2
    across, down = (right - left) / size, (bottom - top) / size
    a, b, d, e = across * cos, -down * sin, across * sin, down * cos
    x = (left + right) / 2 - a * half - b * half
    y = (top + bottom) / 2 - d * half - e * half
    turned = picture.transform(
        (size, size), Image.Transform.AFFINE, (a, b, x, d, e, y), Image.Resampling.BILINEAR
    )
    return np.asarray(turned)


def _colour(
    pixels: UInt8[np.ndarray, "size size 3"], recipe: Recipe, random: Generator
) -> tuple[Float32[np.ndarray, "3 3"], Float32[np.ndarray, "3"]]:
    """Brightness, contrast (about the mean grey), saturation and hue as one affine map."""
    brightness, contrast, saturation = 1 + random.uniform(-recipe.jitter, recipe.jitter, 3)
    if random.random() < recipe.grey:
        saturation = 0.0
    colour = saturation * EYE + (1 - saturation) * TO_GREY
    if recipe.hue:
        colour = _hue(2 * math.pi * random.uniform(-recipe.hue, recipe.hue)) @ colour
    # The mean of every eighth pixel both ways is near enough, and 64 times as quick.
    grey = float(pixels[::8, ::8].reshape(-1, 3).mean(0) @ LUMA) / 255 * brightness
    offset = np.full(3, (1 - contrast) * grey, np.float32)
    return (brightness * contrast * colour).astype(np.float32), offset


def _hue(angle: float) -> Float32[np.ndarray, "3 3"]:
    """Turn colours about the grey axis (Rodrigues' formula about (1, 1, 1))."""
    cos, side = math.cos(angle), math.sin(angle) * math.sqrt(1 / 3)
    rest = (1 - cos) / 3
    first = [cos + rest, rest - side, rest + side]
    return np.array([first, first[-1:] + first[:-1], first[1:] + first[:1]], np.float32)


def _erased(
    pixels: UInt8[np.ndarray, "size size 3"], random: Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Source: Zhong et al. 2017; one colour a rectangle."""
    size = pixels.shape[0]
    area, shape = random.uniform(0.02, 0.25), math.exp(random.uniform(-1.0, 1.0))
    height = min(size, int(size * math.sqrt(area * shape)))
    width = min(size, int(size * math.sqrt(area / shape)))
    top, left = random.integers(0, size - height + 1), random.integers(0, size - width + 1)
    out = pixels.copy()
    out[top : top + height, left : left + width] = random.integers(0, 256, 3)
    return out


class Mixing(NamedTuple):
    """How a batch is mixed with itself in reverse order."""

    kept: float
    """Weight of a picture's own label."""
    box: tuple[int, int, int, int] | None
    """Top, left, bottom, right of what cutmix pastes; None for mixup."""


class Batch(NamedTuple):
    """One process's share of a step."""

    pixels: UInt8[Tensor, "b size size 3"]
    colour: Float[Tensor, "b 3 3"]
    offset: Float[Tensor, "b 3"]
    labels: Int64[Tensor, "b"]
    mixing: Mixing | None
    weight: float
    """Makes the mean over processes of weight × mean loss the mean loss over all pictures."""

    def to(self, device: torch.device) -> Batch:
        return Batch(*(v.to(device) if isinstance(v, Tensor) else v for v in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Batches:
    """The batches of one epoch, made ahead by threads: Pillow works beside the network.

    The order is that of all processes together; of each step's pictures, process `rank` takes
    every `world`-th. Where an epoch's last batch has fewer pictures than there are processes,
    those without take one that counts nothing, so that steps do not depend on their number; with
    `drop_last` it is left out if it is not full, unless it is the only one.
    """

    cache: PictureCache
    recipe: Recipe
    epoch: int
    """Counted from 0."""
    rank: int = 0
    world: int = 1
    threads: int = 1

    def __len__(self) -> int:
        return steps(len(self.cache), self.recipe)

    def __iter__(self) -> Iterator[Batch]:
        sequence = order(self.recipe.seed, self.epoch, len(self.cache))
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="batches")
        try:
            waiting: deque[Future[Batch]] = deque()
            for number in range(len(self)):
                waiting.append(pool.submit(self._make, sequence, number))
                if len(waiting) > AHEAD + self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, sequence: Int64[np.ndarray, "pictures"], number: int) -> Batch:
        everyone = sequence[number * self.recipe.batch : (number + 1) * self.recipe.batch]
        share = everyone[self.rank :: self.world]
        places = [int(place) for place in (share if len(share) else everyone[:1])]
        seed, epoch, size = self.recipe.seed, self.epoch, self.recipe.size_at(self.epoch)
        views = [
            view(pixels, size, self.recipe, stream(seed, CROP, epoch, place))
            for place, pixels in zip(places, self.cache.take(places), strict=True)
        ]
        pixels, colour, offset = (torch.from_numpy(np.stack(v)) for v in zip(*views, strict=True))
        return Batch(
            pixels,
            colour,
            offset,
            torch.tensor([self.cache.labels[place] for place in places]),
            mixing(self.recipe, epoch, stream(seed, MIX, epoch, number)),
            len(share) * self.world / len(everyone),
        )


def steps(pictures: int, recipe: Recipe) -> int:
    """Number of steps in an epoch; fewer pictures than a batch are one step all the same."""
    full, rest = divmod(pictures, recipe.batch)
    return full if not rest or (recipe.drop_last and full > 0) else full + 1


def mixing(recipe: Recipe, epoch: int, random: Generator) -> Mixing | None:
    """Whether and how a batch is mixed. Source: Zhang et al. 2018 (mixup), Yun et al. 2019."""
    if random.random() >= recipe.mix or epoch >= recipe.epochs * (1 - recipe.mix_off):
        return None
    if random.random() >= recipe.mix_cut:
        return Mixing(float(random.beta(recipe.mixup, recipe.mixup)), None)
    size = recipe.size_at(epoch)
    half = math.sqrt(1 - random.beta(recipe.cutmix, recipe.cutmix)) * size / 2
    x, y = random.uniform(0, size, 2)
    top, left = max(0, int(y - half)), max(0, int(x - half))
    bottom, right = min(size, int(y + half)), min(size, int(x + half))
    return Mixing(1 - (bottom - top) * (right - left) / size**2, (top, left, bottom, right))


def network_input(batch: Batch, preprocess: Preprocess) -> Float[Tensor, "b 3 size size"]:
    """Recoloured, mixed, and with the network's own mean, std and range.

    All that is linear in a pixel's colour is one matrix product, which saves half of the time.
    """
    b, size = batch.pixels.shape[:2]
    mean, std = (
        _column(numbers, batch.pixels.device) for numbers in (preprocess.mean, preprocess.std)
    )
    white, alike = preprocess.scale * 255, mean.numel() == 3
    colour = batch.colour * (white / 255) / std.view(3, 1)
    offset = (batch.offset * white - (mean.view(3) if alike else 0.0)) / std.view(3)
    pixels = batch.pixels.view(b, size * size, 3).to(torch.float32)
    pixels = torch.baddbmm(offset[:, None], pixels, colour.transpose(1, 2))
    images = pixels.view(b, size, size, 3).permute(0, 3, 1, 2)
    return _mixed(images if alike else images - mean / std, batch.mixing)


def _column(numbers: Numbers, device: torch.device) -> Float[Tensor, "3 _ _"]:
    values = torch.tensor(np.asarray(numbers, np.float32), device=device)
    return values.reshape(3, 1, 1) if values.ndim == 1 else values


def targets(batch: Batch, classes: int) -> Float[Tensor, "b classes"]:
    """Each picture's share of every class."""
    own = F.one_hot(batch.labels, classes).float()
    if batch.mixing is None:
        return own
    return own * batch.mixing.kept + own.flip(0) * (1 - batch.mixing.kept)


def _mixed(
    images: Float[Tensor, "b 3 size size"], mixing: Mixing | None
) -> Float[Tensor, "b 3 size size"]:
    if mixing is None:
        return images
    others = images.flip(0)
    if mixing.box is None:
        return images * mixing.kept + others * (1 - mixing.kept)
    top, left, bottom, right = mixing.box
    images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return images
