"""Built-in photographs, and the flower photographs of TensorFlow's and PyTorch's tutorials.

Flowers: 3,670 photographs of daisies, dandelions, roses, sunflowers and tulips, CC BY 2.0, each
photographer named in the LICENSE.txt that comes along.
Source: The TensorFlow Team, Flowers, 2019. Size and SHA-256 as TensorFlow Datasets publishes
them (tf_flowers).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import shutil
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack

from PIL import Image, ImageStat

from convscope.core.errors import DataError, EnvironmentFault, OutputError, UsageError, nearest
from convscope.core.publish import cache_folder, publish_many, require_free
from convscope.core.run import Progress
from convscope.core.text import parsed
from convscope.core.units import Box
from convscope.pictures.annotations import BOXES_FILE
from convscope.pictures.download import Source, fetch, unpack
from convscope.pictures.pictures import Options, Pictures

Side = Literal["left", "middle", "right", "bottom"]


@dataclass(frozen=True)
class Photo:
    """A photograph in scikit-image's wheel, which is one class of `builtin:photos`."""

    name: str
    file: str
    size: tuple[int, int]
    """Height and width, in pixels."""
    validation: Side
    """The part that is kept for validation; chosen so that both parts show the same things."""
    source: str
    licence: str
    """As scikit-image's own documentation states it."""


PHOTOS = (
    Photo(
        "astronaut", "astronaut.png", (512, 512), "right",
        "Eileen Collins, NASA Great Images", "public domain",
    ),
    Photo("brick", "brick.png", (512, 512), "bottom", "CC0Textures, Bricks25", "CC0"),
    Photo("cat", "chelsea.png", (300, 451), "left", "Stefan van der Walt", "CC0"),
    Photo(
        "coffee", "coffee.png", (400, 600), "left",
        "Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0",
    ),
    Photo(
        "coins", "coins.png", (303, 384), "right",
        "Greek coins from Pompeii, Brooklyn Museum Collection", "no known copyright restrictions",
    ),
    Photo("grass", "grass.png", (512, 512), "bottom", "linolafett, DeviantArt, Grass-01", "CC0"),
    Photo("gravel", "gravel.png", (512, 512), "bottom", "CC0Textures, Gravel04", "CC0"),
    Photo(
        "hubble", "hubble_deep_field.jpg", (872, 1000), "right",
        "Hubble eXtreme Deep Field, NASA, HubbleSite 2012/37", "public domain (NASA)",
    ),
    Photo("moon", "moon.png", (512, 512), "right", "not stated", "not stated"),
    Photo(
        "motorcycle", "motorcycle_left.png", (500, 741), "right",
        "Middlebury stereo benchmark 2014 (Scharstein et al., GCPR 2014)",
        "not stated; its authors ask to be cited",
    ),
    Photo("print", "page.png", (191, 384), "middle", "not stated", "not stated"),
    Photo(
        "retina", "retina.jpg", (1411, 1411), "right",
        "Mikael Häggström, Wikimedia Commons, DOI 10.15347/wjm/2014.008", "CC0",
    ),
    Photo(
        "rocket", "rocket.jpg", (427, 640), "left",
        "DSCOVR on Falcon 9, SpaceX Photos",
        "released into the public domain by SpaceX in 2015 (Flickr has shown CC BY-NC 2.0 since)",
    ),
    Photo(
        "tissue", "ihc.png", (512, 512), "right",
        "Center for Microscopy and Molecular Imaging (CMMI)", "no known copyright restrictions",
    ),
)  # fmt: skip
"""In the order of their names. Stated by scikit-image 0.26, `skimage.data`."""

CAMERA = Photo(
    "camera", "camera.png", (512, 512), "right", "Lav Varshney, Cameraman replacement", "CC0"
)
"""In black and white, so no class of `builtin:photos`."""

SHARE = 0.3
"""Of a photograph's longer direction that is kept for validation …"""
LEAST = 134
"""… and at least so many pixels, so that patches of 112 have some room."""


def regions(photo: Photo) -> dict[str, tuple[Box, ...]]:
    """The parts of a photograph for training and for validation; no pixel is in both."""
    height, width = photo.size
    if photo.validation == "bottom":
        cut = height - max(LEAST, int(SHARE * height))
        return {"train": (Box(0, 0, cut, width),), "val": (Box(cut, 0, height, width),)}
    strip = max(LEAST, int(SHARE * width))
    start = {"left": 0, "middle": (width - strip) // 2, "right": width - strip}[photo.validation]
    sides = (Box(0, 0, height, start), Box(0, start + strip, height, width))
    kept = Box(0, start, height, start + strip)
    return {"train": tuple(box for box in sides if box.width), "val": (kept,)}


def photo_file(photo: Photo) -> Path:
    """Where it is installed. Raises EnvironmentFault R607 if it is not."""
    result = importlib.util.find_spec("skimage")  # not imported: that takes half a second
    for place in (result and result.submodule_search_locations) or ():
        path = Path(place) / "data" / photo.file
        if path.is_file():
            return path
    raise EnvironmentFault(
        "R607",
        photo.file,
        "is a photograph of scikit-image that is not installed",
        next_step="pip install scikit-image",
    )


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
    told = {"scenes": Pictures(folder / "scenes").sha256}
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
        for split, result in marked.items():
            (folder / split / BOXES_FILE).write_text(json.dumps(result), encoding="utf-8")
    (folder / "SOURCES.txt").write_text(_sources(PHOTOS), encoding="utf-8")
    told = {split: Pictures(folder / split).sha256 for split in COUNTS}
    (folder / WHOLE).write_text(json.dumps(told), encoding="utf-8")


def _sources(photos: Iterable[Photo]) -> str:
    return "".join(f"{p.name}: {p.file} of scikit-image; {p.source}; {p.licence}\n" for p in photos)


def recipe(variant: Variant) -> str:
    """All that decides the patches besides the photographs, in one text."""
    numbers = (SIDE, COUNTS, STEPS, FLAT, TAG_SIDE, TAG, FRAME, TAGGED)
    return repr((RECIPE, variant, PHOTOS, numbers))


SETS = {"photos": "train", "photos-val": "val"}
SCENES = "scenes"
OPTIONS = ("shortcut", "seed")


def builtin(
    name: str,
    cache: Path | str | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Pictures:
    """The set of that name (`photos-val?shortcut=coins&seed=1`), made when first asked for."""
    name, _, asked = name.partition("?")
    if name not in (*SETS, SCENES):
        known = nearest(name, (*SETS, SCENES))
        raise UsageError("U210", f"builtin:{name}", f"no such pictures; {known}")
    told = urllib.parse.parse_qsl(asked, keep_blank_values=True)
    if name == SCENES:
        if told:
            raise UsageError("U211", told[0][0], f"no such option; builtin:{SCENES} has none")
        place = cache_folder(cache) / f"{SCENES}-{_hash(repr((SCENE, FLAT)), (*PHOTOS, CAMERA))}"
        _made(place, write_scenes)
        return Pictures(place / SCENES, **options)
    variant = _variant(told)
    kind = "-".join(["photos", *filter(None, [variant.shortcut])])
    place = cache_folder(cache) / f"{kind}-{_hash(recipe(variant), PHOTOS)}"
    _made(place, lambda folder: write_patches(folder, variant, progress))
    return Pictures(place / SETS[name], **options)


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


def _hash(recipe: str, photos: Sequence[Photo]) -> str:
    """For the cache's name: another one if anything that decides the pictures is another."""
    digest = hashlib.sha256(recipe.encode())
    for photo in photos:
        digest.update(photo_file(photo).read_bytes())
    return digest.hexdigest()[:12]


def _whole(place: Path) -> bool:
    """Whether the cache holds all that was put there, by names and sizes."""
    try:
        told = parsed((place / WHOLE).read_text(encoding="utf-8"))
        return bool(told) and all(Pictures(place / name).sha256 == told[name] for name in told)
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return False


def _made(place: Path, write: Callable[[Path], None]) -> None:
    """Write the pictures, unless they are there; another process may be doing the same, and may
    be first."""
    if _whole(place):
        return
    if (place / WHOLE).exists():  # ours, and damaged
        shutil.rmtree(place, ignore_errors=True)
    try:
        publish_many(place, write, sync=False)
    except (OutputError, EnvironmentFault):
        if not _whole(place):
            raise


ARCHIVE = Source(
    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
    228_813_984,
    "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
)


def download(
    out: Path | str | None = None, *, source: Source = ARCHIVE, progress: Progress | None = None
) -> Path:
    """Put the photographs into the new folder `out`, and return it.

    out: by default where `flowers`, as a name for pictures, looks. The archive arrives beside it
    as OUT.tgz, in as many attempts as it takes, and is deleted once unpacked; one that lies there
    already, however it came, is used. progress: bytes. Raises OutputError O501 if `out` holds
    anything, and what `fetch` and `unpack` raise.
    """
    place = default_folder() if out is None else Path(out)
    require_free(place)
    archive = place.with_name(place.name + ".tgz")
    if not archive.exists():
        fetch(source, archive, progress=progress)
    else:
        source.check(archive)
    unpack(archive, place)
    archive.unlink()
    return place


def default_folder(cache: Path | str | None = None) -> Path:
    return cache_folder(cache) / "flower_photos"


def flowers_folder(cache: Path | str | None = None) -> Path:
    """Where the photographs are. Raises DataError D100 if they have not been downloaded."""
    place = default_folder(cache)
    if not place.exists():
        raise DataError(
            "D100",
            "flowers",
            "have not been downloaded yet (229 MB)",
            next_step=f"convscope flowers --out {place}",
        )
    return place
