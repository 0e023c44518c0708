"""Which pictures are there with no network, and what does a name for pictures mean?

`builtin:photos` are patches of real photographs, a class a photograph, cut on this machine from
what scikit-image's wheel brings along; `builtin:scenes` are the same photographs whole and in parts
of a half and a quarter of their side, for networks that know more. `?shortcut=CLASS` plants a small
coloured tag on most training patches of one class: a network that learns the tag instead of the
class is what a tool like ours must catch, and here the truth is known.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Unpack, cast

from convscope.errors import DataError, EnvironmentFault, OutputError, UsageError, nearest
from convscope.images.cache import cache_folder, publish_many
from convscope.images.decode import Ways
from convscope.images.flowers import flowers_folder
from convscope.images.folder import Folder, some_pictures
from convscope.images.listing import require_name
from convscope.images.memory import held, is_file, is_picture
from convscope.images.patches import (
    FLAT,
    SCENE,
    WHOLE,
    Variant,
    recipe,
    write_patches,
    write_scenes,
)
from convscope.images.photos import CAMERA, PHOTOS, Photo, photo_file
from convscope.images.shards import Shards, is_shards
from convscope.texts import parsed

SETS = {"photos": "train", "photos-val": "val"}
SCENES = "scenes"
OPTIONS = ("shortcut", "seed")
Progress = Callable[[int, int], None]


def open_pictures(
    spec: Path | str,
    *,
    cache: Path | str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
    **ways: Unpack[Ways],
) -> Folder:
    """The pictures that a name means: a folder's path, `builtin:scenes`, `builtin:photos`,
    `builtin:photos-val`, the latter two with `?shortcut=CLASS&seed=N`, `flowers` once downloaded,
    or WebDataset shards such as `val-{000000..000049}.tar`.

    cache: where built-in pictures and flowers are kept (the user's cache). range, exif,
    background: how values become RGB, see `Decoding`. Raises UsageError U210 or U211 on an unknown
    name or option, U480, DataError D100 if there are no pictures, and as `Shards`.
    """
    if not isinstance(spec, str | Path):
        what = f"a {type(spec).__name__} is no name of pictures"
        raise UsageError("U377", "", what, next_step="give a folder's name, or builtin:photos")
    spec = str(require_name(spec))
    if spec.startswith("builtin:"):
        name = spec.removeprefix("builtin:")
        return builtin(name, cache, workers=workers, progress=progress, **ways)
    if spec == "flowers" and not Path(spec).exists():
        return Folder(flowers_folder(cache), workers=workers, **ways)
    if is_shards(spec):
        return Shards(spec, workers=workers, **ways)
    try:
        return Folder(spec, workers=workers, **ways)
    except DataError as fault:
        if fault.what == "does not exist":
            fault.next_step = "name a folder, builtin:photos or flowers"
        raise


def as_folder(given: Any) -> Folder:
    """The folder, what the name means, a file alone, or pictures in memory and lists of these.

    Raises as `open_pictures` and `held`, and UsageError U377.
    """
    if isinstance(given, str | Path):
        name = str(require_name(given))
        alone = is_file(name) and not is_shards(name)
        return some_pictures([name]) if alone else open_pictures(name)
    if is_picture(given) or isinstance(given, list | tuple):
        return held(given if isinstance(given, list | tuple) else [given])
    if hasattr(given, "read") and hasattr(given, "check_bad"):  # whatever acts as a folder
        return cast("Folder", given)
    what = f"a {type(given).__name__} is no folder of pictures"
    raise UsageError("U377", "", what, next_step="give open_pictures(…), or a folder's name")


@contextmanager
def opened(given: Any) -> Iterator[Folder]:
    """`as_folder`; what is opened here is closed at the end."""
    folder = as_folder(given)
    try:
        yield folder
    finally:
        if folder is not given:
            folder.close()


def open_all(names: Sequence[str], **ways: Unpack[Ways]) -> list[Folder]:
    """What several names mean, in their order: folders and sets as `open_pictures` has them,
    single files that follow each other as one folder. ways: as of `open_pictures`.

    Raises as `open_pictures`, and DataError D121 if there is no such file.
    """
    found: list[Folder] = []
    for are_sets, group in groupby(names, _is_set):
        together = list(group)
        if are_sets:
            found += [open_pictures(name, **ways) for name in together]
        else:
            found.append(some_pictures(together, **ways))
    return found


def _is_set(name: str) -> bool:
    if name.startswith("builtin:") or name == "flowers" or is_shards(name):
        return True
    return bool(name and Path(require_name(name)).is_dir())


def builtin(
    name: str,
    cache: Path | str | None = None,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    **ways: Unpack[Ways],
) -> Folder:
    """The set of that name (`photos-val?shortcut=coins&seed=1`), made when first asked for."""
    name, _, options = name.partition("?")
    if name not in (*SETS, SCENES):
        known = nearest(name, (*SETS, SCENES))
        raise UsageError("U210", f"builtin:{name}", f"no such pictures; {known}")
    told = urllib.parse.parse_qsl(options, keep_blank_values=True)
    if name == SCENES:
        if told:
            raise UsageError("U211", told[0][0], f"no such option; builtin:{SCENES} has none")
        place = cache_folder(cache) / f"{SCENES}-{_hash(repr((SCENE, FLAT)), (*PHOTOS, CAMERA))}"
        _made(place, write_scenes)
        return Folder(place / SCENES, workers=workers, **ways)
    variant = _variant(told)
    kind = "-".join(["photos", *filter(None, [variant.shortcut])])
    place = cache_folder(cache) / f"{kind}-{_hash(recipe(variant), PHOTOS)}"
    _made(place, lambda folder: write_patches(folder, variant, progress))
    return Folder(place / SETS[name], workers=workers, **ways)


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
        return bool(told) and all(Folder(place / name).sha256 == told[name] for name in told)
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
