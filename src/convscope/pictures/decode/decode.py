"""Decode the bytes of one picture to 8-bit RGB, or name its fault.

Called only in decoding processes (child.py): a decoder may crash, hang or swell on a hostile
file, and takes nothing but its own process with it.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Literal, Self, TypedDict

from PIL import ExifTags, Image, ImageStat

from convscope.core.errors import UsageError
from convscope.core.text import brief
from convscope.pictures.decode.formats import ENABLED, Fault, Format, Limits, claimed, fault_of

NOTES = {
    "N114": "wholly transparent, nothing is left but the background",
    "N119": "all of one value, nothing can be seen",
    "N117": "16-bit values that fill less than a quarter of their range, nearly black: "
    "--range auto or LOW,HIGH stretches them",
    "N112": "transparent, laid on the background: --background none shows the colours beneath",
    "N111": "EXIF orientation not applied: --exif apply turns them",
    "N116": "turned as their EXIF orientation says",
    "N113": "first frame or page of several",
    "N118": "values stretched, as asked with --range",
    "N110": "16-bit values brought to 8 bits",
    "N108": "white is 0 by its tag, and it is not inverted",
    "N105": "CMYK turned to RGB by a plain formula",
    "N106": "colour profile not applied",
    "N107": "grey, in three equal channels",
    "N115": "a black or grey band at the bottom, the original may have been truncated",
    "N104": "complete but for the end mark",
    "N102": "the name's ending is of another format than the content",
}
"""What was changed in pictures that are used, the worst first."""
OUTDONE = {"N119": {"N114"}, "N115": {"N114", "N117", "N119"}}
"""Notes that say nothing more beside one of these."""
NOTHING_SEEN = frozenset({"N114", "N119"})
DARK = 0.25
"""Share of the range of 16-bit values below which a picture is nearly black."""
BACKGROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128)}
UPRIGHT = 1
"""The EXIF orientation that changes nothing."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture of each other orientation upright."""
ORIENTATION = ExifTags.Base.Orientation
PHOTOMETRIC = 262
"""The tag of TIFF that says which colour 0 is."""
ROWS = 256
"""Rows whose values are brought to 8 bits at a time: a large picture's would not fit as floats."""
Range = str | tuple[float, float]
Exif = Literal["ignore", "apply"]
Background = str | tuple[int, int, int]
Note = Callable[[str, str], None]
"""Hears a code of NOTES, and what it means in this picture if that is more than there."""


class Ways(TypedDict, total=False):
    """What a caller may say of the way from a file's values to 8-bit RGB: see `Decoding`."""

    range: Range
    exif: Exif
    background: Background


@dataclass(frozen=True)
class Decoding:
    """How a file's values become 8-bit RGB."""

    range: Range = "full"
    """Of more than 8 bits: "full" takes 0 to 65,535 for black to white, "auto" each picture's own
    least and greatest value, (LOW, HIGH) these two."""
    exif: Exif = "ignore"
    """Whether pictures are turned as a tag says: "apply", or as torchvision reads them."""
    background: Background = "black"
    """What transparent pixels are laid on: black, white, grey, (R, G, B), or "none": the colours
    beneath, as `convert("RGB")` shows them."""

    def __post_init__(self) -> None:
        """LOW,HIGH and R,G,B may be text. Raises UsageError U480."""
        object.__setattr__(self, "range", _range(self.range))
        object.__setattr__(self, "exif", _exif(self.exif))
        object.__setattr__(self, "background", _background(self.background))

    def told(self) -> dict[str, str]:
        """What differs from the usual way, in words."""
        ways = {"range": self.range, "exif": self.exif, "background": self.background}
        usual = Decoding()
        return {
            name: value if isinstance(value, str) else ",".join(f"{n:g}" for n in value)
            for name, value in ways.items()
            if value != getattr(usual, name)
        }


def _range(told: object) -> Range:
    if told in ("full", "auto"):
        return str(told)
    low, high = _numbers("range", told, 2, "auto, full or LOW,HIGH")
    if not low < high:
        raise _no_way("range", told, "auto, full or LOW,HIGH with LOW below HIGH")
    return low, high


def _exif(told: object) -> Exif:
    if told == "apply":
        return "apply"
    if told != "ignore":
        raise _no_way("exif", told, "ignore or apply")
    return "ignore"


def _background(told: object) -> Background:
    if told == "none" or (isinstance(told, str) and told in BACKGROUNDS):
        return str(told)
    form = "black, white, grey, none or R,G,B"
    red, green, blue = _numbers("background", told, 3, form)
    if not all(0 <= value <= 255 and value == int(value) for value in (red, green, blue)):
        raise _no_way("background", told, f"{form}, each from 0 to 255")
    return int(red), int(green), int(blue)


def _numbers(name: str, told: object, count: int, form: str) -> tuple[float, ...]:
    parts = told.split(",") if isinstance(told, str) else told
    try:
        result = tuple(float(part) for part in parts)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError):
        result = ()
    if len(result) != count or not all(map(math.isfinite, result)):
        raise _no_way(name, told, form)
    return result


def _no_way(name: str, told: object, form: str) -> UsageError:
    said = told if isinstance(told, str) else brief(told)
    return UsageError("U480", f"--{name} {said}", "is no way to read pictures", next_step=form)


def _unheard(code: str, text: str) -> None:
    pass


def decode(
    data: bytes, limits: Limits, note: Note = _unheard, decoding: Decoding | None = None
) -> Image.Image:
    """The picture in `data` as RGB, 8 bits each, its first frame.

    `note` hears what was changed on the way. Raises Fault D101 to D107 and D111, and MemoryError.
    """
    heard: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # corrupt EXIF, odd palettes: the pixels are right
        picture = _decoded(data, limits, heard.__setitem__, decoding or Decoding())
    for code, text in heard.items():
        if not OUTDONE.get(code, set()) & heard.keys():
            note(code, text)
    return picture


def _decoded(data: bytes, limits: Limits, note: Note, way: Decoding) -> Image.Image:
    kind = _enabled(data)
    if kind.check is not None:
        kind.check(data)
    if kind.canvas is not None:
        _check_pixels(kind.canvas(data), limits)
    picture: Image.Image
    about = _Told(kind)
    try:
        opened = picture = Image.open(io.BytesIO(data), formats=(kind.name,))
        _check_size(picture.size, limits)
        about = _Told.by(picture, kind)
        if kind.name == "JPEG":
            picture = TURBO.load(data, picture)
        picture.load()
        if kind.check_pixels is not None:
            kind.check_pixels(data, picture)
        about = about.loaded(opened)
    except Exception as fault:
        picture = _mended(data, kind, fault, note)
    if kind.ends is not None and not kind.ends(data):
        note("N104", "")
    if about.frames or _animated(data, kind):
        note("N113", "")
    picture = _rgb(picture, about, way, note)
    if is_flat(picture):
        note("N119", "")
    if _band_below(picture):
        note("N115", "")
    return _upright(picture, about, way, note)


@dataclass(frozen=True)
class _Told:
    """What a file says of its values; loading them forgets some of it."""

    kind: Format
    orientation: int = UPRIGHT
    bits: int = 8
    """Of a value, where they are more than 8."""
    white_is_0: bool = False
    profile: bytes = b""
    """The ICC profile of its colours."""
    frames: bool = False
    """Whether frames are known to follow the first."""

    @classmethod
    def by(cls, picture: Image.Image, kind: Format) -> Self:
        """Of a file that is opened, and not loaded."""
        raw, tags, frames = "", {}, 1
        with contextlib.suppress(Exception):  # what is broken here is no fault of the pixels
            if kind.may_be_deep:
                raw = " ".join(str(tile.args) for tile in picture.tile)  # type: ignore[attr-defined]
            if kind.has_tags:
                tags = {n: picture.tag_v2.get(n) for n in (PHOTOMETRIC, ORIENTATION)}  # type: ignore[attr-defined]
            frames = 1 if kind.may_move else getattr(picture, "n_frames", 1)  # as JPEG's MPO
        profile = picture.info.get("icc_profile")
        return cls(
            kind,
            _orientation(tags.get(ORIENTATION)),
            12 if ";12" in raw else 16 if ";16" in raw else 8,
            tags.get(PHOTOMETRIC) == 0,
            profile if isinstance(profile, bytes) else b"",
            frames > 1,
        )

    def loaded(self, picture: Image.Image) -> Self:
        """With what a file says at its end. Pillow turns TIFF by itself, and forgets the tag."""
        with contextlib.suppress(Exception):  # broken EXIF is no fault of the pixels
            if not self.kind.has_tags:
                return replace(self, orientation=_orientation(picture.getexif().get(ORIENTATION)))
        return self


def _orientation(told: object) -> int:
    return told if isinstance(told, int) and told in TURNS else UPRIGHT


def _enabled(data: bytes) -> Format:
    """The format of the bytes, if it is one we read."""
    if not data:
        raise Fault("D101", "empty file")
    kind = claimed(data)
    if kind is None:
        start = data[:16].decode("ascii", "backslashreplace")
        raise Fault("D101", f'not an image (starts with "{start}")')
    if not kind.endings:
        raise Fault("D102", f"format {kind.name} is not enabled ({', '.join(ENABLED)} are)")
    return kind


def _check_pixels(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        there, most = width * height / 1e6, limits.max_pixels / 1e6
        raise Fault("D103", f"{width}x{height} = {there:,.4g} Mpx exceeds {most:,.4g} Mpx")


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    _check_pixels(size, limits)
    width, height = size
    if min(size) < limits.min_side:
        raise Fault("D107", f"{width}x{height}: a side is under {limits.min_side} px")
    if max(size) > limits.max_aspect * min(size):
        raise Fault("D107", f"aspect ratio {max(size) / min(size):.0f}:1")


def _mended(data: bytes, kind: Format, fault: Exception, note: Note) -> Image.Image:
    """The picture if nothing but its end mark is missing; otherwise its fault is raised."""
    if isinstance(fault, Fault | MemoryError):
        raise fault
    if kind.mended is not None and "truncated" in str(fault):
        picture = kind.mended(data)
        note("N104", "")
        return picture
    raise fault_of(data, kind, fault) from None


def _animated(data: bytes, kind: Format) -> bool:
    """Whether frames follow the first. Asked of a second copy: asking a GIF moves it on."""
    if not kind.may_move:
        return False
    with contextlib.suppress(Exception):  # a broken second frame is no fault of the first
        again = Image.open(io.BytesIO(data), formats=(kind.name,))
        return bool(getattr(again, "is_animated", False))
    return True


def _band_below(picture: Image.Image) -> bool:
    """Whether the last rows are what a truncated picture has there once it was saved again."""
    width, height = picture.size
    last = picture.crop((0, height - max(4, height // 50), width, height))
    bands = ImageStat.Stat(last).extrema
    least, most = min(low for low, _ in bands), max(high for _, high in bands)
    return most <= 4 or (least >= 126 and most <= 130)


def is_flat(picture: Image.Image) -> bool:
    """Whether all pixels are the same; nine places are asked first."""
    right, bottom = picture.width - 1, picture.height - 1
    places = [(x * right // 2, y * bottom // 2) for x in (0, 1, 2) for y in (0, 1, 2)]
    if len({picture.getpixel(place) for place in places}) > 1:
        return False
    return all(low == high for low, high in ImageStat.Stat(picture).extrema)


def _upright(picture: Image.Image, about: _Told, way: Decoding, note: Note) -> Image.Image:
    """The picture turned if that is asked; Pillow turns TIFF by itself, as in any pipeline."""
    if about.orientation == UPRIGHT:
        return picture
    if not about.kind.has_tags and way.exif == "ignore":
        note("N111", f"EXIF orientation {about.orientation} not applied: --exif apply turns it")
        return picture
    note("N116", f"turned as its EXIF orientation {about.orientation} says")
    return picture if about.kind.has_tags else picture.transpose(TURNS[about.orientation])


def _rgb(picture: Image.Image, about: _Told, way: Decoding, note: Note) -> Image.Image:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _grey_of_many_bits(picture, about, way, note).convert("RGB")
    if about.profile and not _is_srgb(about.profile):
        note("N106", "")
    if picture.mode in ("1", "L", "LA"):
        note("N107", "")
    if picture.mode == "CMYK":
        note("N105", "")
    if picture.has_transparency_data:
        picture = _on(way.background, picture.convert("RGBA"), note)
    try:
        picture = picture.convert("RGB")
    except ValueError:
        what = f"{about.kind.name} in colour space {picture.mode} is not enabled"
        raise Fault("D102", what) from None
    return _colour_of_many_bits(picture, way, note) if about.bits > 8 else picture


def _is_srgb(profile: bytes) -> bool:
    """Whether a profile is the one that pixels without any are taken to have, by its name."""
    return b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def _grey_of_many_bits(
    picture: Image.Image, about: _Told, way: Decoding, note: Note
) -> Image.Image:
    import numpy as np  # here, because few pictures need it and it costs 0.1 s

    values = np.asarray(picture)
    known = picture.mode not in ("I", "F")
    if not known and way.range == "full":
        what = "signed, 32-bit or float values: which are black and white is not known"
        raise Fault("D111", f"{what}; --range LOW,HIGH or auto says it")
    if picture.mode == "F" and not np.isfinite(values).all():
        raise Fault("D111", "values that are no finite numbers")
    if about.white_is_0:
        note("N108", "")
    bits = 12 if about.bits == 12 else 16
    top = (1 << bits) - 1
    if known and way.range == "full":
        note("N110", f"{bits}-bit grey, divided by {top / 255:.4g}")
    low, high = _black_and_white(float(values.min()), float(values.max()), top, way, note)
    result = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS):
        part = values[start : start + ROWS].astype(np.float64)
        result[start : start + ROWS] = np.clip((part - low) * (255 / (high - low)), 0, 255) + 0.5
    return Image.fromarray(result)


def _colour_of_many_bits(picture: Image.Image, way: Decoding, note: Note) -> Image.Image:
    """16-bit colour, of which decoders give the upper 8 bits alone."""
    note("N110", "16-bit colour: of each value the upper 8 bits are read")
    bands = ImageStat.Stat(picture).extrema
    least, greatest = min(low for low, _ in bands), max(high for _, high in bands)
    top = 255 * 257
    low, high = _black_and_white(least * 257.0, greatest * 257.0, top, way, note)
    if way.range == "full":
        return picture
    scale = [min(255, max(0, round((v * 257 - low) * 255 / (high - low)))) for v in range(256)]
    return picture.point(scale * 3)


def _black_and_white(
    least: float, greatest: float, top: int, way: Decoding, note: Note
) -> tuple[float, float]:
    """The values that become 0 and 255. top: the greatest that there can be."""
    if way.range == "full":
        if 0 < greatest < DARK * top:
            asked = (1 << int(greatest).bit_length()) - 1
            note(
                "N117",
                f"{top.bit_length()}-bit values reach {greatest:,.0f} of {top:,}, nearly black: "
                f"--range 0,{asked} or auto stretches them",
            )
        return 0.0, float(top)
    low, high = (least, greatest) if isinstance(way.range, str) else way.range
    if not low < high:  # of one value: there is nothing to stretch
        return min(low, 0.0), max(low + 1, float(top))
    note("N118", f"values {low:,.6g} to {high:,.6g} stretched from black to white")
    return low, high


def _on(background: Background, picture: Image.Image, note: Note) -> Image.Image:
    """Transparent pixels laid on a colour, or shown as they are beneath."""
    alpha = picture.getchannel("A")
    least, most = alpha.getextrema()
    if least == 255:
        return picture.convert("RGB")
    if background == "none":
        note("N112", "transparent, the colours beneath are shown")
        return picture.convert("RGB")
    colour = BACKGROUNDS[background] if isinstance(background, str) else background
    where = background if isinstance(background, str) else ",".join(map(str, colour))
    beneath = "--background none shows the colours beneath"
    if most == 0:
        note("N114", f"wholly transparent, nothing is left but {where}: {beneath}")
    else:
        note("N112", f"transparent, laid on {where}: {beneath}")
    below = Image.new("RGB", picture.size, colour)
    below.paste(picture, mask=alpha)
    return below


AFTER = 32
"""JPEGs that a process leaves to Pillow."""
COLOURS = {"RGB": "RGB", "L": "GRAY"}
"""Pillow's modes, and simplejpeg's names for them."""


class Turbo:
    """One process's decoder. after: pictures before it wakes; tests set it."""

    def __init__(self, after: int = AFTER) -> None:
        self.left = after
        self.decode: Callable[..., Any] | None = None
        self.fit: dict[str, bool] = {}
        """Modes that were compared with Pillow once, and whether they agreed."""

    def load(self, data: bytes, picture: Image.Image) -> Image.Image:
        """The JPEG with its pixels. picture: opened by Pillow, not loaded. Raises as Pillow."""
        result = self._found(data, picture) if self._awake() else None
        if result is None:
            picture.load()
            return picture
        if picture.mode not in self.fit:
            picture.load()
            self.fit[picture.mode] = picture.tobytes() == result.tobytes()
            return picture
        return result

    def _awake(self) -> bool:
        self.left -= 1
        if self.left == -1:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's, each with its memory
            try:
                self.decode = import_module("simplejpeg").decode_jpeg
            except ImportError:
                return False
        return self.decode is not None

    def _found(self, data: bytes, picture: Image.Image) -> Image.Image | None:
        if self.decode is None or not self.fit.get(picture.mode, picture.mode in COLOURS):
            return None
        try:
            pixels = self.decode(data, colorspace=COLOURS[picture.mode], strict=True)
        except Exception:  # Pillow says what is wrong, or sees no harm in it
            return None
        if pixels.shape[1::-1] != picture.size:
            return None
        return Image.fromarray(pixels[..., 0] if picture.mode == "L" else pixels)


TURBO = Turbo()
