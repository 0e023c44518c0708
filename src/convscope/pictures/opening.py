"""Open pictures: folders, built-in sets, shards and files by name, and pictures in memory.

Pictures in memory go through the decoder as a lossless file of them would, so that the same rules
hold for transparency, 16 bits and grey, and the same notes are taken.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
from PIL import Image

from convscope.core.errors import DataError, UsageError, a_kind
from convscope.core.run import Progress
from convscope.pictures.builtin import builtin, flowers_folder
from convscope.pictures.decode.decode import NOTES, decode
from convscope.pictures.decode.formats import ENDINGS, Fault, Limits, ending
from convscope.pictures.huggingface import HuggingFace, is_dataset
from convscope.pictures.listing import require_name
from convscope.pictures.pictures import (
    Frame,
    Options,
    Picture,
    Pictures,
    one_picture,
    some_pictures,
)
from convscope.pictures.remote import Store, is_url, last_of, local
from convscope.pictures.shards import Shards, is_shards


def open_pictures(
    spec: Any,
    *,
    cache: Path | str | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Pictures:
    """The pictures that a name means: a folder's path or URL (`s3://`, `gs://`, `hf://`, `https://`
    and whatever else fsspec reads), `builtin:scenes`, `builtin:photos`,
    `builtin:photos-val`, the latter two with `?shortcut=CLASS&seed=N`, `flowers` once downloaded,
    WebDataset shards such as `val-{000000..000049}.tar`, or a Hugging Face dataset: the folder that
    `save_to_disk` wrote, as `DIR` or `DIR?split=train`, or a `datasets.Dataset` itself.

    cache: where built-in pictures and flowers are kept (the user's cache). Raises UsageError U210
    or U211 on an unknown name or option, U480, DataError D100 if there are no pictures, and as
    `Shards` and `HuggingFace`.
    """
    if is_dataset(spec):
        return HuggingFace(spec, **options)
    if not isinstance(spec, str | Path):
        what = f"{a_kind(spec)} is no name of pictures"
        raise UsageError("U377", "", what, next_step="give a folder's name, or builtin:photos")
    spec = local(str(spec))
    if not is_url(spec):
        require_name(spec)
    if spec.startswith("builtin:"):
        return builtin(spec.removeprefix("builtin:"), cache, progress, **options)
    if spec == "flowers" and not Path(spec).exists():
        return Pictures(flowers_folder(cache), **options)
    if is_shards(spec):
        return Shards(spec, **options)
    try:
        return Pictures(spec, **options)
    except DataError as fault:
        if fault.what == "does not exist":
            fault.next_step = "name a folder, builtin:photos or flowers"
        raise


def as_pictures(given: Any) -> Pictures:
    """The folder, what the name means, a file alone, or pictures in memory and lists of these.

    Raises as `open_pictures` and `held`, and UsageError U377.
    """
    if isinstance(given, str | Path):
        name = str(given if is_url(given) else require_name(given))
        alone = is_file(name) and not is_shards(name)
        return some_pictures([name]) if alone else open_pictures(name)
    if is_dataset(given):
        return open_pictures(given)
    if is_picture(given) or isinstance(given, list | tuple):
        return held(given if isinstance(given, list | tuple) else [given])
    if hasattr(given, "read") and hasattr(given, "check_bad"):  # whatever acts as a folder
        return cast("Pictures", given)
    what = f"{a_kind(given)} is no folder of pictures"
    raise UsageError(
        "U377", "", what, next_step="give a folder's name, or what convscope.open makes"
    )


@contextmanager
def opened(given: Any) -> Iterator[Pictures]:
    """`as_pictures`; what is opened here is closed at the end."""
    folder = as_pictures(given)
    try:
        yield folder
    finally:
        if folder is not given:
            folder.close()


def open_all(names: Sequence[str], **options: Unpack[Options]) -> list[Pictures]:
    """What several names mean, in their order: folders and sets as `open_pictures` has them,
    single files that follow each other as one folder. options: as of `open_pictures`.

    Raises as `open_pictures`, and DataError D121 if there is no such file.
    """
    folders: list[Pictures] = []
    for are_sets, group in groupby(names, _is_set):
        together = list(group)
        if are_sets:
            folders += [open_pictures(name, **options) for name in together]
        else:
            folders.append(some_pictures(together, **options))
    return folders


def _is_set(name: str) -> bool:
    if name.startswith("builtin:") or name == "flowers" or is_shards(name):
        return True
    if is_url(name := local(name)):
        return not is_file(name)
    return bool(name and (Path(require_name(name)).is_dir() or is_dataset(name)))


def inside(name: str, part: str) -> str:
    """A folder in the folder of this name, if it has that one; else the name. Raises as `Store`,
    EnvironmentFault R605 or R608."""
    if is_url(name := local(name)):
        return Store(name).inside(part) or name
    place = Path(name) / part
    return str(place) if place.is_dir() else name


PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "F")
"""Modes that a PNG holds, and those that the decoder refuses by itself."""
KINDS = "a file's name, a Pillow image, an array (rows, columns, colours) of uint8, a Picture"
Open = Picture | Path | str | Image.Image | np.ndarray


def is_picture(given: object) -> bool:
    """Whether this is one picture in memory, as far as its type says."""
    return isinstance(given, Picture | Image.Image | np.ndarray)


def is_file(given: object) -> bool:
    """Whether this is the name of a file; of a URL whether it ends as a picture's does."""
    if isinstance(given, str) and is_url(given):
        return ending(os.fsencode(last_of(given))) in ENDINGS
    try:
        return isinstance(given, str | Path) and Path(given).is_file()
    except OSError:  # a name that is too long
        return False


def picture_of(given: Any, name: str = "picture") -> Picture:
    """One picture out of a file's name, a Pillow image or an array; a Picture as it is.

    Arrays are (rows, columns) or (rows, columns, 1, 3 or 4) of uint8, or of uint16 in grey; of
    floating point where all numbers lie between 0 and 1, which are taken for 0 to 255. name: of
    what has none. Raises UsageError U377 for anything else, DataError as `decode` does.
    """
    if isinstance(given, Picture):
        return given
    if isinstance(given, str | Path):
        return one_picture(given)
    if isinstance(given, np.ndarray):
        return _decoded(Image.fromarray(_plain(given)), name)
    if isinstance(given, Image.Image):
        return _decoded(given, Path(str(getattr(given, "filename", "") or name)).name)
    raise stranger(given)


def stranger(given: object) -> UsageError:
    what = f"{a_kind(given)} is no picture"
    return UsageError("U377", "", what, next_step=f"give {KINDS}, or a list of these")


def _plain(given: np.ndarray) -> np.ndarray:
    """The array as Pillow takes it. Raises UsageError U377."""
    values = given[..., 0] if given.ndim == 3 and given.shape[2] == 1 else given
    colours = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    kind = values.dtype
    if colours and values.size and kind.kind == "f" and _is_share(values):
        return np.ascontiguousarray((values * 255).round().astype(np.uint8))
    if values.size and ((colours and kind == np.uint8) or (values.ndim == 2 and kind == np.uint16)):
        return np.ascontiguousarray(values)
    shape = " × ".join(map(str, given.shape))
    what = f"an array of {shape} in {given.dtype} is no picture"
    step = "give rows × columns × colours in uint8, or in floating point from 0 to 1"
    raise UsageError("U377", "", what, next_step=step)


def _is_share(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1)


def _decoded(image: Image.Image, name: str) -> Picture:
    """With the notes that were taken."""
    try:
        kept = image if image.mode in PNG else image.convert("RGB")
        file = io.BytesIO()
        kept.save(file, "PNG", compress_level=0)
    except (OSError, ValueError, SyntaxError) as fault:
        raise DataError("D104", name, f"the picture cannot be loaded ({fault})") from fault
    told: list[str] = []

    def note(code: str, text: str = "") -> None:
        told.append(f"{text or NOTES[code]} ({code})")

    try:
        rgb = decode(file.getvalue(), Limits(), note)
    except Fault as fault:
        raise DataError(fault.code, name, fault.text) from None
    return Picture(0, name, None, np.asarray(rgb), tuple(told))


class Held(Pictures):
    """Pictures in memory, that are read as those of a folder are."""

    _held: dict[bytes, tuple[Picture, bytes]]
    """By the name in the folder: the picture, and the hash of its pixels."""

    def read(
        self,
        framing: Frame | None = None,
        numbers: Sequence[int] | None = None,
        *,
        workers: int | None = None,  # noqa: ARG002 - a folder's; nothing is decoded here
    ) -> Iterator[Picture]:
        self.readings += 1
        for number in range(len(self)) if numbers is None else numbers:
            picture, digest = self._held[self.files[number][0]]
            picture = picture.within(framing)
            self._use(number, digest, picture.notes)
            yield replace(picture, number=number, name=self.names[number], sha256=digest)


def held(several: Sequence[Any]) -> Pictures:
    """These pictures as one folder, without classes, in their order; files alone are read as they
    are asked for. Raises as `picture_of` and `some_pictures`, DataError D100 for none."""
    if not several:
        raise DataError("D100", "", "an empty list holds no pictures")
    if all(isinstance(one, str | Path) for one in several):
        return some_pictures(several)
    folder = object.__new__(Held)
    folder._begin(Path())
    folder.loose, folder.place = True, ""
    folder._held = {}
    for number, one in enumerate(several):
        picture = picture_of(one, f"picture {number}")
        name = os.fsencode(picture.name)
        name = name if name not in folder._held else b"%d/%s" % (number, name)
        shape = repr(picture.pixels.shape).encode()
        digest = hashlib.sha256(shape + picture.pixels.tobytes()).digest()
        folder._held[name] = picture, digest
    folder._contain([(name, 0) for name in folder._held], [None] * len(several))
    content = b"".join(digest for _, digest in folder._held.values())
    folder.sha256 = hashlib.sha256(folder.sha256.encode() + content).hexdigest()
    return folder
