"""Picture formats (JPEG, PNG, WebP, …): signatures, endings, damage, and limits on their cost.

A format that is read is one entry of FORMATS, and nothing elsewhere. By hand, because Pillow fills
in what a truncated file lacks, and accepts wrong checksums: a picture would be half grey unseen.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

from PIL import Image, ImageChops, UnidentifiedImageError


@dataclass(frozen=True)
class Limits:
    """What one picture may cost. Above it, it is left out under the code named here."""

    max_pixels: int = 64_000_000
    """Width × height by the header, before anything is decoded: D103."""
    min_side: int = 8
    """Shortest side in pixels: D107."""
    max_aspect: float = 100.0
    """Longer side / shorter side: D107."""
    max_bytes: int = 512 << 20
    """Size of the file: D110. (64 Mpx of 16-bit RGBA, uncompressed.)"""
    seconds: float = 20.0
    """Processor time from opening the file to the finished pixels: D108."""
    memory: int = 2 << 30
    """Address space of a decoding process, in bytes: D130. (64 Mpx cost up to 1.2 GB.)"""
    patience: float = 120.0
    """Seconds on end without an answer in which the process neither runs nor waits for a
    processor, after which a disk is taken to hang: R605. (The picture is not to blame, so it is
    not left out; a machine that is busy is no reason either.)"""


class Fault(Exception):
    """Why a picture cannot be used: a code of docs/errors.md and one clause."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


TRANSIENT = frozenset(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN")
)
"""These pass: a picture is never left out because of them, or a bad minute of a network
disk would change the result."""
KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
PAUSES = (0.1, 0.4, 1.6)
"""Seconds before the second, third and last attempt."""


Part = tuple[int, int]
"""First byte and number of bytes: a file inside an archive."""


def read_file(
    path: bytes, limits: Limits, wait: Callable[[float], object], part: Part | None = None
) -> bytes:
    """The content, or a part of it. Transient errors are tried again three times, then raised as
    OSError.

    Raises Fault D104 (the part ends too early), D109 (not a regular file), D110 (too large), D121
    (leads nowhere), D122 (may not be read).
    """
    for pause in (*PAUSES, None):
        try:
            return _read(path, limits, part)
        except OSError as fault:
            if fault.errno not in TRANSIENT:
                raise _fault(fault) from None
            if pause is None:
                raise
            wait(pause)
    raise AssertionError


def _read(path: bytes, limits: Limits, part: Part | None) -> bytes:
    # Asked before it is opened: opening a FIFO waits for ever, opening a device may do anything.
    _check(os.stat(path), limits, part)  # noqa: PTH116 - a path is bytes here
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        _check(os.fstat(descriptor), limits, part)
        return file.readall() if part is None else _part(file, *part)


def _part(file: io.FileIO, start: int, size: int) -> bytes:
    file.seek(start)
    content = bytearray()
    while piece := file.read(size - len(content)):
        content += piece
    require_whole(content, size)
    return bytes(content)


def _check(status: os.stat_result, limits: Limits, part: Part | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Fault("D109", f"not a regular file but a {kind(status.st_mode)}")
    require_bytes(status.st_size if part is None else part[1], limits)


def require_bytes(size: int, limits: Limits) -> None:
    """Raises Fault D110 if a file of so many bytes is too large."""
    if size > limits.max_bytes:
        there, most = size / 2**20, limits.max_bytes / 2**20
        raise Fault("D110", f"a file of {there:,.0f} MiB exceeds {most:,.0f} MiB")


def require_whole(content: bytes | bytearray, size: int) -> None:
    """Raises Fault D104 if a part of an archive is shorter than it should be."""
    if len(content) < size:
        raise Fault("D104", f"the archive ends after {len(content):,} of its {size:,} bytes")


def kind(mode: int) -> str:
    """What a file is when it is not a regular one."""
    return KINDS.get(stat.S_IFMT(mode), "special file")


def reason_of(fault: OSError) -> str:
    """What the system says."""
    return (fault.strerror or str(fault)).lower()


def _fault(fault: OSError) -> Fault:
    reason = reason_of(fault)
    if fault.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return Fault("D121", f"leads nowhere: a dangling link, or gone since ({reason})")
    if fault.errno in (errno.ENXIO, errno.ENODEV, errno.EISDIR):
        return Fault("D109", f"not a regular file ({reason})")
    return Fault("D122", f"cannot be read ({reason})")


HEAD = 32
"""Bytes that `claimed` needs."""


@dataclass(frozen=True)
class Format:
    """One format, and what has to be known of its files."""

    name: str
    """As Pillow has it."""
    signatures: tuple[tuple[int, bytes], ...]
    """(place, bytes) of which one is in a file of that format."""
    endings: tuple[bytes, ...] = ()
    """Of names; a format without any is known, and not read."""
    plugin: str = ""
    """Pillow's module, where Pillow itself does not load it first."""
    is_document: bool = False
    """Nobody puts such a file into a picture folder as a picture."""
    may_move: bool = False
    """Whether frames or pages may follow the first, as Pillow's `is_animated` tells."""
    may_be_deep: bool = False
    """Whether values may have more than 8 bits, by the raw mode of Pillow's tiles."""
    has_tags: bool = False
    """Whether Pillow keeps tags as TIFF has them, and turns the picture by its orientation."""
    check: Callable[[bytes], None] | None = None
    """Raises Fault for what decoders accept too easily."""
    canvas: Callable[[bytes], tuple[int, int]] | None = None
    """(width, height) by the header, where Pillow makes room before it tells the size."""
    check_pixels: Callable[[bytes, Image.Image], None] | None = None
    """Raises Fault where a missing part of the decoded picture was silently filled in."""
    ends: Callable[[bytes], bool] | None = None
    """Whether the end mark is there; pictures without are used, with a note."""
    cut_off: Callable[[bytes], str] | None = None
    """Where the file stops, if its own lengths reach past its end."""
    mended: Callable[[bytes], Image.Image] | None = None
    """The picture where Pillow says "truncated", if nothing but the end mark is missing."""


def claimed(head: bytes) -> Format | None:
    """The format by the first `HEAD` bytes, enabled or not; None if it is none we know."""
    for known in FORMATS:
        if any(head.startswith(signature, place) for place, signature in known.signatures):
            return known
    return None


def load_plugins() -> None:
    """Pillow knows a format by name only when its module is there."""
    for known in FORMATS:
        if known.plugin:
            import_module(f"PIL.{known.plugin}")


def ending(path: bytes) -> bytes:
    """The name's ending in lower case, with its dot."""
    name = path.rsplit(b"/", 1)[-1]
    dot = name.rfind(b".")
    return name[dot:].lower() if dot > 0 else b""


def fault_of(data: bytes, kind: Format, raised: Exception) -> Fault:
    """The code and clause for what Pillow raised."""
    text = str(raised).split("\n")[0][:100] or type(raised).__name__
    if isinstance(raised, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return Fault("D103", "too many pixels")
    if "Decompressed data too large" in text or "text chunks" in text:
        return Fault("D106", f"{kind.name} text that unpacks to more than it should")
    where = kind.cut_off(data) if kind.cut_off else ""
    if where or isinstance(raised, EOFError) or "truncated" in text.lower():
        return Fault("D104", f"truncated {kind.name} ({where or _after(data)})")
    if isinstance(raised, UnidentifiedImageError):
        text = "its header makes no sense"
    return Fault("D105", f"broken {kind.name} ({text})")


def _after(data: bytes) -> str:
    return f"ends after {len(data):,} bytes"


# PNG: chunks, checksums, rows

PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"IEND")
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a colour type in the header."""
ADAM7 = (
    (0, 8, 0, 8),
    (0, 8, 4, 8),
    (4, 8, 0, 4),
    (0, 4, 2, 4),
    (2, 4, 0, 2),
    (0, 2, 1, 2),
    (1, 2, 0, 1),
)
"""First row, step of rows, first column, step of columns of the interlacing passes."""
PIECE = 1 << 20


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, bool]]:
    """(type, offset, whether the checksum is right) of every whole chunk."""
    place, view = 8, memoryview(data)
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            return
        told = struct.unpack_from(">I", data, end)[0]
        yield name, place, zlib.crc32(view[place + 4 : end]) == told
        place = end + 4


def _png_check(data: bytes) -> None:
    for name, start, good in _chunks(data):
        if not good and name in PIXEL_CHUNKS:
            what = f"the checksum of {name.decode('ascii')} at byte {start:,} is wrong"
            raise Fault("D105", f"broken PNG ({what})")


def _png_ends(data: bytes) -> bool:
    return any(name == b"IEND" for name, _, _ in _chunks(data))


def _png_check_pixels(data: bytes, picture: Image.Image) -> None:
    """Decoders fill rows that are not there with zeros."""
    width, height = picture.size
    last = picture.crop((0, height - 1, width, height))
    if picture.info.get("interlace") or last.getbbox(alpha_only=False) is None:
        there, needed = _unpacked(data), _bytes_of_rows(data)
        if there < needed:
            share = 100 * there / needed
            raise Fault("D104", f"truncated PNG (its data ends at {share:.0f} % of the rows)")


def _unpacked(data: bytes) -> int:
    """Bytes that the pixel data unpacks to, counted piece by piece."""
    unpacker, count = zlib.decompressobj(), 0
    for name, start, _ in _chunks(data):
        if name != b"IDAT":
            continue
        length = struct.unpack_from(">I", data, start)[0]
        piece = data[start + 8 : start + 8 + length]
        while piece and not unpacker.eof:
            count += len(unpacker.decompress(piece, PIECE))
            piece = unpacker.unconsumed_tail
    return count + len(unpacker.flush())


def _bytes_of_rows(data: bytes) -> int:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    bits = depth * CHANNELS.get(colour, 1)
    total = 0
    for first_row, rows, first_column, columns in ADAM7 if data[28] else ((0, 1, 0, 1),):
        across = (width - first_column + columns - 1) // columns
        down = (height - first_row + rows - 1) // rows
        if across > 0 and down > 0:
            total += down * (1 + (across * bits + 7) // 8)
    return total


# JPEG: does it stop early, and where?

END = b"\xff\xd9"
TAILS = (b"\x55\x0f\x3a" * 99, b"\xb4\x61\xe2\x17" * 99)
"""What a decoder is given to read past the last byte that is there; no byte is 0xFF."""
MISSING_GREY = (128, 128, 128)
"""What a JPEG decoder fills in for blocks that are not there."""
IN_ITS_HEADER = "ends in its header"


class _Scan(NamedTuple):
    """One scan's header."""

    components: tuple[int, ...]
    first: int
    last: int
    """Coefficients, 0 to 63."""
    missing: int
    """Low bits of them that later scans bring."""


def _jpeg_check_pixels(data: bytes, picture: Image.Image) -> None:
    corner = picture.getpixel((picture.width - 1, picture.height - 1))
    if corner in (MISSING_GREY, MISSING_GREY[0]):
        _jpeg_mended(data[: data.rfind(END)])


def _jpeg_cut_off(data: bytes) -> str:
    return "" if any(_scans(data)) else IN_ITS_HEADER


def _jpeg_mended(data: bytes) -> Image.Image:
    """The picture in data that lacks its end mark. Fault D104 if more than that is missing.

    Decoders fill in grey for what is missing. If the pixels do not depend on what is put behind
    the last byte, nothing of them was missing.
    """
    kept = data.removesuffix(b"\xff")
    there = list(_scans(kept))
    if not there:
        raise Fault("D104", f"truncated JPEG ({IN_ITS_HEADER})")
    plain = _with_end(kept)
    if plain is None:
        raise Fault("D104", f"truncated JPEG (ends in scan {len(there)})")
    others = (_first_difference(plain, _with_end(kept + tail)) for tail in TAILS)
    rows = [row for row in others if row is not None]
    if rows and len(there) == 1:
        share = 100 * min(rows) / plain.height
        raise Fault("D104", f"truncated JPEG (ends at {share:.0f} % of the scan)")
    if rows or not _are_all(there):
        raise Fault("D104", f"truncated JPEG (ends in scan {len(there)})")
    return plain


def _with_end(data: bytes) -> Image.Image | None:
    """The picture with an end mark behind `data`; None if that makes no sense either."""
    try:
        picture = Image.open(io.BytesIO(data + END), formats=("JPEG",))
        picture.load()
    except OSError:
        return None
    return picture


def _first_difference(one: Image.Image, other: Image.Image | None) -> int | None:
    """First row in which the pictures differ, or None."""
    if other is None:
        return 0
    box = ImageChops.difference(one, other).getbbox()
    return None if box is None else box[1]


def _scans(data: bytes) -> Iterator[_Scan]:
    """The headers of the scans that have begun."""
    place = 2
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 3:
        marker = data[place + 1]
        if marker == 0xD9:
            return
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            place += 1 if marker == 0xFF else 2
            continue
        length = struct.unpack_from(">H", data, place + 2)[0]
        header = data[place + 4 : place + 2 + length]
        if marker == 0xDA and header and len(header) == length - 2 >= 4 + 2 * header[0]:
            count = header[0]
            first, last, bits = header[1 + 2 * count : 4 + 2 * count]
            yield _Scan(tuple(header[1 : 1 + 2 * count : 2]), first, last, bits & 15)
        place += 2 + length


def _are_all(there: list[_Scan]) -> bool:
    """Whether the scans bring every coefficient of every component to its last bit.

    A progressive JPEG cut between two scans decodes without complaint, only coarser.
    """
    missing: dict[tuple[int, int], int] = {}
    for scan in there:
        span = range(scan.first, scan.last + 1)
        missing |= {(c, k): scan.missing for c in scan.components for k in span}
    components = {c for c, _ in missing}
    return all(missing.get((c, k), 1) == 0 for c in components for k in range(64))


# WebP and TIFF: lengths in the header


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """(0, 0) if the header is too short to tell."""
    name = data[12:16]
    if name == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
        return width, height
    if name == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if name == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _webp_cut_off(data: bytes) -> str:
    short = len(data) < 12 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
    return _after(data) if short else ""


def _tiff_cut_off(data: bytes) -> str:
    order = "<" if data[:2] == b"II" else ">"
    short = len(data) < 8 or struct.unpack_from(f"{order}I", data, 4)[0] + 6 > len(data)
    return _after(data) if short else ""


FORMATS = (
    Format(
        "JPEG",
        ((0, b"\xff\xd8\xff"),),
        (b".jpg", b".jpeg", b".jpe", b".jfif"),
        check_pixels=_jpeg_check_pixels,
        cut_off=_jpeg_cut_off,
        mended=_jpeg_mended,
    ),
    Format(
        "PNG",
        ((0, b"\x89PNG\r\n\x1a\n"),),
        (b".png", b".apng"),
        "PngImagePlugin",
        may_move=True,
        may_be_deep=True,
        check=_png_check,
        check_pixels=_png_check_pixels,
        ends=_png_ends,
        cut_off=lambda data: "" if _png_ends(data) else _after(data),
    ),
    Format(
        "WEBP",
        ((8, b"WEBP"),),
        (b".webp",),
        "WebPImagePlugin",
        may_move=True,
        canvas=_webp_canvas,
        cut_off=_webp_cut_off,
    ),
    Format("BMP", ((0, b"BM"),), (b".bmp", b".dib")),
    Format("GIF", ((0, b"GIF87a"), (0, b"GIF89a")), (b".gif",), may_move=True),
    Format(
        "TIFF",
        ((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
        (b".tif", b".tiff"),
        "TiffImagePlugin",
        may_move=True,
        may_be_deep=True,
        has_tags=True,
        cut_off=_tiff_cut_off,
    ),
    Format("AVIF", ((4, b"ftypavif"),)),
    Format("HEIC", ((4, b"ftypheic"), (4, b"ftypmif1"))),
    Format("JPEG 2000", ((0, b"\0\0\0\x0cjP  "), (0, b"\xff\x4f\xff\x51"))),
    Format("JPEG XL", ((0, b"\0\0\0\x0cJXL "),)),
    Format("Photoshop", ((0, b"8BPS"),)),
    Format("FITS", ((0, b"SIMPLE  ="),)),
    Format("icon", ((0, b"\0\0\x01\0"),)),
    Format("PDF", ((0, b"%PDF"),), is_document=True),
    Format("EPS", ((0, b"%!PS"), (0, b"\xc5\xd0\xd3\xc6")), is_document=True),
    Format("PBM", ((0, b"P4\n"),)),
    Format("PGM", ((0, b"P5\n"),)),
    Format("PPM", ((0, b"P6\n"),)),
)
"""Those that are read have endings. To read another one, give it its endings (and its plugin)."""
ENABLED = tuple(known.name for known in FORMATS if known.endings)
ENDINGS = frozenset(end for known in FORMATS for end in known.endings)
"""A file with such a name is taken for a picture whatever it holds."""
