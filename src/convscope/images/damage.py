"""What exactly is wrong with a file, when Pillow refuses it and when it should have?"""

from __future__ import annotations

import struct

from PIL import Image, UnidentifiedImageError

from convscope.images import jpeg, png
from convscope.images.limits import Fault, Limits, too_many

MISSING_GREY = (128, 128, 128)
"""What a JPEG decoder fills in for blocks that are not there."""


def check_before(data: bytes, kind: str, limits: Limits) -> None:
    """Refuse what decoders accept too easily: wrong checksums, and sizes that swell at once."""
    if kind == "PNG":
        for name, start, good in png.chunks(data):
            if not good and name in png.PIXEL_CHUNKS:
                what = f"the checksum of {name.decode('ascii')} at byte {start:,} is wrong"
                raise Fault("D105", f"broken PNG ({what})")
    if kind == "WEBP":
        width, height = webp_canvas(data)
        if width * height > limits.max_pixels:
            raise Fault("D103", too_many(width, height, limits))


def check_after(data: bytes, kind: str, picture: Image.Image) -> None:
    """Refuse a decoded picture whose missing part was silently filled in."""
    if kind == "PNG" and _bottom_is_empty(picture):
        png.check_rows(data)
    if kind == "JPEG" and _corner_is_missing(picture):
        jpeg.complete(data[: data.rfind(jpeg.END)])


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
    if kind == "JPEG" and not any(jpeg.scans(data)):
        return Fault("D104", "truncated JPEG (ends in its header)")
    if _cut_off(data, kind) or isinstance(fault, EOFError) or "truncated" in text.lower():
        return Fault("D104", f"truncated {kind} (ends after {len(data):,} bytes)")
    if isinstance(fault, UnidentifiedImageError):
        text = "its header makes no sense"
    return Fault("D105", f"broken {kind} ({text})")


def _cut_off(data: bytes, kind: str) -> bool:
    """Whether the format's own lengths reach past the end of the file."""
    if kind == "PNG":
        return not png.ended(data)
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
