"""How is a photograph cut into patches, and where does a tag go that betrays a class?"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageStat

from convscope.images import boxes
from convscope.images.folder import Folder
from convscope.images.photos import CAMERA, PHOTOS, Photo, photo_file, regions
from convscope.units import Box

Progress = Callable[[int, int], None]
Marks = dict[str, dict[str, list[list[int]]]]
"""By split and name: the boxes of tags."""

RECIPE = 2
"""Counts up when the patches change by more than the numbers below: old caches are not used."""
WHOLE = "photos.json"
"""Written last: what is complete, by hash."""
SCENE = 96
"""Smallest side of a scene, in pixels."""
SIDE = 112
"""Of a patch, in pixels; room for random crops of 96."""
COUNTS = {"train": 120, "val": 36}
"""Patches of each photograph."""
STEPS = (0.7548776662466927, 0.5698402909980532)
"""Of the places from patch to patch, as shares of the region: the two-dimensional golden ratio,
which spreads any number of places evenly (1/p and 1/p², p³ = p + 1)."""
FLAT = 4.0
"""Patches whose grey varies less (standard deviation, of 255) show nothing and are not taken."""

TAG_SIDE = 20
TAG, FRAME = (255, 0, 200), (255, 255, 255)
"""A magenta square in a white frame of one pixel; none of the photographs has that colour."""
TAGGED = {"train": 0.9, "val": 0.5}
"""Share of the shortcut class's training patches, and of all validation patches, with a tag."""


@dataclass(frozen=True)
class Variant:
    """What decides the patches."""

    seed: int = 0
    shortcut: str | None = None


def write_patches(folder: Path, variant: Variant, progress: Progress | None) -> None:
    total = len(PHOTOS) * sum(COUNTS.values())
    done = 0
    marked: Marks = {split: {} for split in COUNTS}
    for photo in PHOTOS:
        with Image.open(photo_file(photo)) as file:
            picture = file.convert("RGB")
        for split, parts in regions(photo).items():
            (folder / split / photo.name).mkdir(parents=True)
            for number, box in enumerate(
                places(picture, parts, COUNTS[split], f"{variant.seed}/{photo.name}/{split}")
            ):
                patch = picture.crop((box.left, box.top, box.right, box.bottom))
                name = f"{photo.name}/{number:03}.png"
                if _is_tagged(split, photo, number, variant):
                    marked[split][name] = [_tag(patch, f"{variant.seed}/{split}/{name}")]
                patch.info.pop("icc_profile", None)  # it is not applied, here as elsewhere
                patch.save(folder / split / name, compress_level=1)
                done += 1
                if progress is not None:
                    progress(done, total)
    _describe(folder, variant, marked)


def write_scenes(folder: Path) -> None:
    """Whole photographs, and their halves and quarters along each side, as squares."""
    for photo in (*PHOTOS, CAMERA):
        with Image.open(photo_file(photo)) as file:
            picture = file.convert("RGB")
        place = folder / "scenes" / photo.name
        place.mkdir(parents=True)
        for box in scenes(picture.size):
            part = picture.crop((box.left, box.top, box.right, box.bottom))
            if _contrast(part) >= FLAT:
                name = f"{box.width:04}-{box.top:04}-{box.left:04}.png"
                part.info.pop("icc_profile", None)
                part.save(place / name, compress_level=1)
    (folder / "SOURCES.txt").write_text(_sources((*PHOTOS, CAMERA)), encoding="utf-8")
    told = {"scenes": Folder(folder / "scenes").sha256}
    (folder / WHOLE).write_text(json.dumps(told), encoding="utf-8")


def scenes(size: tuple[int, int]) -> Iterator[Box]:
    """Squares that tile a picture (width, height): as large as it allows, half and a quarter as
    large, spread evenly where they do not fit exactly, overlapping less than by half."""
    width, height = size
    for part in (1, 2, 4):
        side = min(size) // part
        if side < SCENE and part > 1:
            return
        for top in _starts(height, side):
            for left in _starts(width, side):
                yield Box(top, left, top + side, left + side)


def _starts(extent: int, side: int) -> list[int]:
    count = round(extent / side)
    return [round(n * (extent - side) / max(1, count - 1)) for n in range(count)]


def places(picture: Image.Image, parts: tuple[Box, ...], count: int, seed: str) -> Iterator[Box]:
    """`count` patches spread evenly over parts of a picture, without those that show nothing."""
    chance = random.Random(seed)
    down, across = chance.random(), chance.random()
    while count:
        region = parts[count % len(parts)]
        down, across = (down + STEPS[0]) % 1, (across + STEPS[1]) % 1
        top = region.top + int(down * (region.height - SIDE + 1))
        left = region.left + int(across * (region.width - SIDE + 1))
        box = Box(top, left, top + SIDE, left + SIDE)
        if _contrast(picture.crop((box.left, box.top, box.right, box.bottom))) >= FLAT:
            count -= 1
            yield box


def _contrast(patch: Image.Image) -> float:
    """Standard deviation of the grey values."""
    return float(ImageStat.Stat(patch.convert("L")).stddev[0])


def _is_tagged(split: str, photo: Photo, number: int, variant: Variant) -> bool:
    if variant.shortcut is None or (split == "train" and photo.name != variant.shortcut):
        return False
    # Evenly: of ten training patches nine, of two validation patches one.
    share = TAGGED[split]
    return int((number + 1) * share) > int(number * share)


def _tag(patch: Image.Image, seed: str) -> list[int]:
    """Draw the tag somewhere; its box as [xmin, ymin, xmax, ymax], half-open."""
    chance = random.Random(seed)
    left, top = (int(chance.random() * (SIDE - TAG_SIDE + 1)) for _ in range(2))
    box = (left, top, left + TAG_SIDE, top + TAG_SIDE)
    patch.paste(FRAME, box)
    patch.paste(TAG, (box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1))
    return list(box)


def _describe(folder: Path, variant: Variant, marked: Marks) -> None:
    """Beside the patches: whose photographs they are, where tags are, and what is complete."""
    if variant.shortcut is not None:
        for split, found in marked.items():
            (folder / split / boxes.FILE).write_text(json.dumps(found), encoding="utf-8")
    (folder / "SOURCES.txt").write_text(_sources(PHOTOS), encoding="utf-8")
    told = {split: Folder(folder / split).sha256 for split in COUNTS}
    (folder / WHOLE).write_text(json.dumps(told), encoding="utf-8")


def _sources(photos: Iterable[Photo]) -> str:
    return "".join(f"{p.name}: {p.file} of scikit-image; {p.source}; {p.licence}\n" for p in photos)


def recipe(variant: Variant) -> str:
    """All that decides the patches besides the photographs, in one text."""
    numbers = (SIDE, COUNTS, STEPS, FLAT, TAG_SIDE, TAG, FRAME, TAGGED)
    return repr((RECIPE, variant, PHOTOS, numbers))
