"""Dirty bytes in: is it a clean RGB picture, or which fault does it have?

Called only in decoding processes (child.py): a decoder may crash, hang or swell on a hostile
file, and takes nothing but its own process with it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable

from PIL import Image, ImageStat

from convscope.images import damage, jpeg, png
from convscope.images.formats import ENABLED, claimed
from convscope.images.limits import Fault, Limits, too_many
from convscope.images.turbo import Turbo

NOTES = {
    "N102": "the name's ending is of another format than the content",
    "N104": "complete but for its end mark",
    "N110": "16-bit grey, divided by 257",
    "N112": "transparent: laid on black",
    "N113": "first frame of several",
    "N115": "a black or grey band at the bottom: the original may have been truncated",
}
"""What was adapted in pictures that are used."""
TURBO = Turbo()


def _unheard(code: str) -> None:
    pass


def decode(data: bytes, limits: Limits, note: Callable[[str], None] = _unheard) -> Image.Image:
    """The picture in `data` as RGB, 8 bits each, first frame, as stored (EXIF is not applied).

    Transparent pixels are laid on black, 16-bit grey is divided by 257 and rounded; `note`
    hears a code of NOTES for these. Raises Fault D101 to D107 and D111, and MemoryError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # corrupt EXIF, odd palettes: the pixels are right
        kind = _enabled(data)
        damage.check_before(data, kind, limits)
        picture: Image.Image
        try:
            picture = Image.open(io.BytesIO(data), formats=(kind,))
            _check_size(picture.size, limits)
            if kind == "JPEG":
                picture = TURBO.load(data, picture)
            picture.load()
            damage.check_after(data, kind, picture)
        except Exception as fault:
            picture = _mended(data, kind, fault, note)
        if kind == "PNG" and not png.ended(data):
            note("N104")
        if _animated(data, kind):
            note("N113")
        picture = _rgb(picture, kind, note)
        if _band_below(picture):
            note("N115")
        return picture


def _enabled(data: bytes) -> str:
    """The format of the bytes, if it is one we read."""
    if not data:
        raise Fault("D101", "empty file")
    kind = claimed(data)
    if kind is None:
        start = data[:16].decode("ascii", "backslashreplace")
        raise Fault("D101", f'not an image (starts with "{start}")')
    if kind not in ENABLED:
        listed = ", ".join(ENABLED)
        raise Fault("D102", f"format {kind} is not enabled ({listed} are)")
    return kind


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise Fault("D103", too_many(width, height, limits))
    if min(size) < limits.min_side:
        raise Fault("D107", f"{width}x{height}: a side is under {limits.min_side} px")
    if max(size) > limits.max_aspect * min(size):
        raise Fault("D107", f"aspect ratio {max(size) / min(size):.0f}:1")


def _mended(data: bytes, kind: str, fault: Exception, note: Callable[[str], None]) -> Image.Image:
    """The picture if nothing but its end mark is missing; otherwise its fault is raised."""
    if isinstance(fault, Fault | MemoryError):
        raise fault
    if kind == "JPEG" and "truncated" in str(fault):
        picture = jpeg.complete(data)
        note("N104")
        return picture
    raise damage.named(data, kind, fault) from None


def _animated(data: bytes, kind: str) -> bool:
    """Whether frames follow the first. Asked of a second copy: asking a GIF moves it on."""
    if kind not in ("GIF", "PNG", "WEBP"):
        return False
    with contextlib.suppress(Exception):  # a broken second frame is no fault of the first
        return bool(getattr(Image.open(io.BytesIO(data), formats=(kind,)), "is_animated", False))
    return True


def _band_below(picture: Image.Image) -> bool:
    """Whether the last rows are what a truncated picture has there once it was saved again."""
    width, height = picture.size
    last = picture.crop((0, height - max(4, height // 50), width, height))
    bands = ImageStat.Stat(last).extrema
    least, most = min(low for low, _ in bands), max(high for _, high in bands)
    return most <= 4 or (least >= 126 and most <= 130)


def _rgb(picture: Image.Image, kind: str, note: Callable[[str], None]) -> Image.Image:
    if picture.mode.startswith("I;16"):
        note("N110")
        return _eight_bits(picture).convert("RGB")
    if picture.mode in ("I", "F"):
        raise Fault("D111", "32-bit picture: which values are black and white is not known")
    if picture.has_transparency_data:
        return _on_black(picture.convert("RGBA"), note)
    if picture.mode == "RGB":
        return picture
    try:
        return picture.convert("RGB")
    except ValueError:
        raise Fault("D102", f"{kind} in colour space {picture.mode} is not enabled") from None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits: 65535 is 255 × 257."""
    import numpy as np  # here, because few pictures need it and it costs 0.1 s

    values = np.asarray(picture).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _on_black(picture: Image.Image, note: Callable[[str], None]) -> Image.Image:
    alpha = picture.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return picture.convert("RGB")
    note("N112")
    black = Image.new("RGB", picture.size)
    black.paste(picture, mask=alpha)
    return black
