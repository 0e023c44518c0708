"""Damaged picture files: truncation and broken checksums that Pillow misses, by format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, ImageChops, UnidentifiedImageError

from convscope.pictures.decode.limits import Fault, Limits, too_many

MISSING_GREY = (128, 128, 128)
"""What a JPEG decoder fills in for blocks that are not there."""


def check_before(data: bytes, kind: str, limits: Limits) -> None:
    """Refuse what decoders accept too easily: wrong checksums, and sizes that swell at once."""
    if kind == "PNG":
        for name, start, good in png_chunks(data):
            if not good and name in PIXEL_CHUNKS:
                what = f"the checksum of {name.decode('ascii')} at byte {start:,} is wrong"
                raise Fault("D105", f"broken PNG ({what})")
    if kind == "WEBP":
        width, height = webp_canvas(data)
        if width * height > limits.max_pixels:
            raise Fault("D103", too_many(width, height, limits))


def check_after(data: bytes, kind: str, picture: Image.Image) -> None:
    """Refuse a decoded picture whose missing part was silently filled in."""
    if kind == "PNG" and _bottom_is_empty(picture):
        check_rows(data)
    if kind == "JPEG" and _corner_is_missing(picture):
        complete_jpeg(data[: data.rfind(JPEG_END)])


def _bottom_is_empty(picture: Image.Image) -> bool:
    """Whether rows may be missing; those that are not there come out as zeros."""
    width, height = picture.size
    last = picture.crop((0, height - 1, width, height))
    return bool(picture.info.get("interlace")) or last.getbbox(alpha_only=False) is None


def _corner_is_missing(picture: Image.Image) -> bool:
    corner = picture.getpixel((picture.width - 1, picture.height - 1))
    return corner in (MISSING_GREY, MISSING_GREY[0])


def named(data: bytes, kind: str, fault: Exception) -> Fault:
    """The code and clause for what Pillow raised."""
    text = str(fault).split("\n")[0][:100] or type(fault).__name__
    if isinstance(fault, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return Fault("D103", "too many pixels")
    if "Decompressed data too large" in text or "text chunks" in text:
        return Fault("D106", f"{kind} text that unpacks to more than it should")
    if kind == "JPEG" and not any(jpeg_scans(data)):
        return Fault("D104", "truncated JPEG (ends in its header)")
    if _cut_off(data, kind) or isinstance(fault, EOFError) or "truncated" in text.lower():
        return Fault("D104", f"truncated {kind} (ends after {len(data):,} bytes)")
    if isinstance(fault, UnidentifiedImageError):
        text = "its header makes no sense"
    return Fault("D105", f"broken {kind} ({text})")


def _cut_off(data: bytes, kind: str) -> bool:
    """Whether the format's own lengths reach past the end of the file."""
    if kind == "PNG":
        return not png_ended(data)
    if kind == "WEBP":
        return len(data) < 12 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
    if kind == "TIFF":
        order = "<" if data[:2] == b"II" else ">"
        return len(data) < 8 or struct.unpack_from(f"{order}I", data, 4)[0] + 6 > len(data)
    return False


def webp_canvas(data: bytes) -> tuple[int, int]:
    """(width, height) by the header; (0, 0) if it is too short to tell.

    Pillow makes room for the whole canvas before it tells the size.
    """
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


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, bool]]:
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


def png_ended(data: bytes) -> bool:
    """Whether the chunks lead to an end mark."""
    return any(name == b"IEND" for name, _, _ in png_chunks(data))


def check_rows(data: bytes) -> None:
    """Raise Fault D104 if the compressed data ends before the last row: decoders fill that in."""
    there, needed = _unpacked(data), _bytes_of_rows(data)
    if there < needed:
        share = 100 * there / needed
        raise Fault("D104", f"truncated PNG (its data ends at {share:.0f} % of the rows)")


def _unpacked(data: bytes) -> int:
    """Bytes that the pixel data unpacks to, counted piece by piece."""
    unpacker, count = zlib.decompressobj(), 0
    for name, start, _ in png_chunks(data):
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
    if not data[28]:
        return int(height * (1 + (width * bits + 7) // 8))
    total = 0
    for first_row, rows, first_column, columns in ADAM7:
        across = (width - first_column + columns - 1) // columns
        down = (height - first_row + rows - 1) // rows
        if across > 0 and down > 0:
            total += down * (1 + (across * bits + 7) // 8)
    return total


JPEG_END = b"\xff\xd9"
TAILS = (b"\x55\x0f\x3a" * 99, b"\xb4\x61\xe2\x17" * 99)
"""What a decoder is given to read past the last byte that is there; no byte is 0xFF."""


class Scan(NamedTuple):
    """One scan's header."""

    components: tuple[int, ...]
    first: int
    last: int
    """Coefficients, 0 to 63."""
    missing: int
    """Low bits of them that later scans bring."""


def complete_jpeg(data: bytes) -> Image.Image:
    """The picture in data that lacks its end mark. Fault D104 if more than that is missing.

    Decoders fill in grey for what is missing. If the pixels do not depend on what is put behind
    the last byte, nothing of them was missing.
    """
    kept = data.removesuffix(b"\xff")
    there = list(jpeg_scans(kept))
    if not there:
        raise Fault("D104", "truncated JPEG (ends in its header)")
    plain = _ended(kept)
    if plain is None:
        raise Fault("D104", f"truncated JPEG (ends in scan {len(there)})")
    rows = [row for tail in TAILS if (row := _differs(plain, _ended(kept + tail))) is not None]
    if rows and len(there) == 1:
        share = 100 * min(rows) / plain.height
        raise Fault("D104", f"truncated JPEG (ends at {share:.0f} % of the scan)")
    if rows or not all_there(there):
        raise Fault("D104", f"truncated JPEG (ends in scan {len(there)})")
    return plain


def _ended(data: bytes) -> Image.Image | None:
    """The picture with an end mark behind `data`; None if that makes no sense either."""
    try:
        picture = Image.open(io.BytesIO(data + JPEG_END), formats=("JPEG",))
        picture.load()
    except OSError:
        return None
    return picture


def _differs(one: Image.Image, other: Image.Image | None) -> int | None:
    """First row in which the pictures differ, or None."""
    if other is None:
        return 0
    box = ImageChops.difference(one, other).getbbox()
    return None if box is None else box[1]


def jpeg_scans(data: bytes) -> Iterator[Scan]:
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
            yield Scan(tuple(header[1 : 1 + 2 * count : 2]), first, last, bits & 15)
        place += 2 + length


def all_there(there: list[Scan]) -> bool:
    """Whether the scans bring every coefficient of every component to its last bit.

    A progressive JPEG cut between two scans decodes without complaint, only coarser.
    """
    missing: dict[tuple[int, int], int] = {}
    for scan in there:
        span = range(scan.first, scan.last + 1)
        missing |= {(c, k): scan.missing for c in scan.components for k in span}
    components = {c for c, _ in missing}
    return all(missing.get((c, k), 1) == 0 for c in components for k in range(64))
