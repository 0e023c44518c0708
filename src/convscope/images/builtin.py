"""Which pictures are there with no network, and what does a name for pictures mean?

`builtin:photos` are patches of real photographs, a class a photograph, cut on this machine from
what scikit-image's wheel brings along. `?shortcut=CLASS` plants a small coloured tag on most
training patches of one class: a network that learns the tag instead of the class is what a tool
like ours must catch, and here the truth is known.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from convscope.errors import DataError, EnvironmentFault, OutputError, UsageError, nearest
from convscope.images import boxes
from convscope.images.cache import cache_folder, publish_many
from convscope.images.flowers import flowers_folder
from convscope.images.folder import Folder
from convscope.images.photos import PHOTOS, Photo, photo_file, regions
from convscope.units import Box

SETS = {"photos": "train", "photos-val": "val"}
OPTIONS = ("shortcut", "seed")
Progress = Callable[[int, int], None]

RECIPE = 1
"""Counts up when the patches change by more than the numbers below: old caches are not used."""
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


def open_pictures(
    spec: str,
    *,
    cache: Path | str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Folder:
    """The pictures that a name means: a folder's path, `builtin:photos`, `builtin:photos-val`,
    these with `?shortcut=CLASS&seed=N`, or `flowers` once downloaded.

    cache: where built-in pictures and flowers are kept (the user's cache). Raises UsageError
    U210 or U211 on an unknown name or option, DataError D100 if there are no pictures.
    """
    if spec.startswith("builtin:"):
        return builtin(spec.removeprefix("builtin:"), cache, workers=workers, progress=progress)
    if spec == "flowers" and not Path(spec).exists():
        return Folder(flowers_folder(cache), workers=workers)
    try:
        return Folder(spec, workers=workers)
    except DataError as fault:
        if fault.what == "does not exist":
            fault.next_step = "name a folder, builtin:photos or flowers"
        raise


def builtin(
    name: str,
    cache: Path | str | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> Folder:
    """The set of that name (`photos-val?shortcut=coins&seed=1`), made when first asked for."""
    name, _, options = name.partition("?")
    if name not in SETS:
        raise UsageError("U210", f"builtin:{name}", f"no such pictures; {nearest(name, SETS)}")
    variant = _variant(urllib.parse.parse_qsl(options, keep_blank_values=True))
    place = cache_folder(cache) / _key(variant)
    if not _whole(place):
        _make(place, variant, progress)
    return Folder(place / SETS[name], workers=workers)


def _variant(options: list[tuple[str, str]]) -> Variant:
    told = dict(options)
    for key in told:
        if key not in OPTIONS:
            raise UsageError(
                "U211", key, f"no such option of builtin:photos; {nearest(key, OPTIONS)}"
            )
    shortcut, seed = told.get("shortcut"), told.get("seed", "0")
    classes = [photo.name for photo in PHOTOS]
    if shortcut is not None and shortcut not in classes:
        raise UsageError(
            "U211", f"shortcut={shortcut}", f"no such class; {nearest(shortcut, classes)}"
        )
    if not seed.isdecimal():
        raise UsageError("U211", f"seed={seed}", "is not a whole number from 0")
    return Variant(int(seed), shortcut)


def _key(variant: Variant) -> str:
    """The cache's name for a variant: another one if anything that decides it is another."""
    recipe = (RECIPE, variant, PHOTOS, SIDE, COUNTS, STEPS, FLAT, TAG_SIDE, TAG, FRAME, TAGGED)
    digest = hashlib.sha256(repr(recipe).encode())
    for photo in PHOTOS:
        digest.update(photo_file(photo).read_bytes())
    return "-".join(["photos", *filter(None, [variant.shortcut]), digest.hexdigest()[:12]])


def _whole(place: Path) -> bool:
    """Whether the cache holds all that was put there, by names and sizes."""
    try:
        told = json.loads((place / "photos.json").read_text(encoding="utf-8"))
        return all(Folder(place / split).sha256 == told[split] for split in COUNTS)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return False


def _make(place: Path, variant: Variant, progress: Progress | None) -> None:
    """Write the patches; another process may be doing the same, and may be first."""
    if (place / "photos.json").exists():  # ours, and damaged
        shutil.rmtree(place, ignore_errors=True)
    try:
        publish_many(place, lambda folder: _write(folder, variant, progress), sync=False)
    except (OutputError, EnvironmentFault):
        if not _whole(place):
            raise


def _write(folder: Path, variant: Variant, progress: Progress | None) -> None:
    total = len(PHOTOS) * sum(COUNTS.values())
    done = 0
    marked: dict[str, dict[str, list[list[int]]]] = {split: {} for split in COUNTS}
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
                patch.save(folder / split / name, compress_level=1)
                done += 1
                if progress is not None:
                    progress(done, total)
    _describe(folder, variant, marked)


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
    counts = patch.convert("L").histogram()
    total = sum(counts)
    mean = sum(value * count for value, count in enumerate(counts)) / total
    return float((sum(c * (v - mean) ** 2 for v, c in enumerate(counts)) / total) ** 0.5)


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


def _describe(
    folder: Path, variant: Variant, marked: dict[str, dict[str, list[list[int]]]]
) -> None:
    """Beside the patches: whose photographs they are, where tags are, and what is complete."""
    if variant.shortcut is not None:
        for split, found in marked.items():
            (folder / split / boxes.FILE).write_text(json.dumps(found), encoding="utf-8")
    lines = [f"{p.name}: {p.file} of scikit-image; {p.source}; {p.licence}\n" for p in PHOTOS]
    (folder / "SOURCES.txt").write_text("".join(lines), encoding="utf-8")
    told = {split: Folder(folder / split).sha256 for split in COUNTS}
    (folder / "photos.json").write_text(json.dumps(told), encoding="utf-8")
