"""What exactly is wrong with a file that Pillow refuses, and what must be refused before it?"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, ImageChops

from convscope.images.limits import Fault, Limits

END_OF_IMAGE = b"\xff\xd9"
TAILS = (b"\x55\x0f\x3a" * 99, b"\xb4\x61\xe2\x17" * 99)
"""What a decoder is given to read past the end of a truncated scan; no byte is 0xFF."""
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"IEND")


def check_before(data: bytes, kind: str, limits: Limits) -> None:
    """Refuse what decoders accept too easily: wrong checksums, and sizes that swell at once."""
    if kind == "PNG":
        for name, start, good in png_chunks(data):
            if not good and name in PIXEL_CHUNKS:
                shown = name.decode("ascii")
                raise Fault(
                    "D105", f"broken PNG (the checksum of {shown} at byte {start} is wrong)"
                )
    if kind == "WEBP":
        width, height = webp_canvas(data)
        if width * height > limits.max_pixels:
            raise Fault("D103", f"{width}x{height} = {width * height / 1e6:.4g} Mpx is too large")


def named(data: bytes, kind: str, fault: Exception) -> Fault:
    """The code and clause for what Pillow raised."""
    text = str(fault).split("\n")[0][:100] or type(fault).__name__
    if isinstance(fault, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return Fault("D103", "too many pixels")
    if "Decompressed data too large" in text or "text chunks" in text:
        return Fault("D106", f"{kind} text that unpacks to more than it should")
    if _cut_off(data, kind) or isinstance(fault, EOFError) or "truncated" in text.lower():
        return Fault("D104", f"truncated {kind} (ends after {len(data):,} bytes)")
    return Fault("D105", f"broken {kind} ({text})")


def _cut_off(data: bytes, kind: str) -> bool:
    """Whether the format's own lengths reach past the end of the file."""
    if kind == "PNG":
        return not ended_png(data)
    if kind == "WEBP":
        return len(data) < 12 or struct.unpack_from("<I", data, 4)[0] + 8 > len(data)
    if kind == "JPEG":
        return b"\xff\xda" not in data
    return False


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, bool]]:
    """(type, offset, whether the checksum is right) of every whole chunk."""
    place, view = 8, memoryview(data)
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            return
        yield (
            name,
            place,
            zlib.crc32(view[place + 4 : end]) == struct.unpack_from(">I", data, end)[0],
        )
        place = end + 4


def ended_png(data: bytes) -> bool:
    """Whether the chunks lead to an end mark."""
    return any(name == b"IEND" for name, _, _ in png_chunks(data))


def webp_canvas(data: bytes) -> tuple[int, int]:
    """(width, height) by the header; (0, 0) if it is too short to tell."""
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


def complete_jpeg(data: bytes) -> Image.Image:
    """A JPEG that stops early: decoded if all of its scans are there, Fault D104 if not.

    Decoders fill what is missing with grey. If the pixels do not depend on what is put behind
    the last byte, nothing of them was missing.
    """
    kept = data.removesuffix(b"\xff")
    if b"\xff\xda" not in kept:
        raise Fault("D104", "truncated JPEG (ends in its header)")
    plain = _with_end(kept)
    others = [_with_end(kept + tail) for tail in TAILS]
    changed = [ImageChops.difference(plain, other).convert("RGB").getbbox() for other in others]
    rows = [box[1] for box in changed if box is not None]
    if rows and _single_scan(kept):
        raise Fault(
            "D104", f"truncated JPEG (ends at {100 * min(rows) / plain.height:.0f} % of the scan)"
        )
    if rows or not scans_complete(kept):
        raise Fault("D104", f"truncated JPEG (ends in scan {len(list(jpeg_scans(kept)))})")
    return plain


def _with_end(data: bytes) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data + END_OF_IMAGE), formats=("JPEG",))
        picture.load()
    except OSError as fault:
        raise Fault("D104", f"truncated JPEG (ends after {len(data):,} bytes)") from fault
    return picture


def _single_scan(data: bytes) -> bool:
    return len(list(jpeg_scans(data))) == 1


def jpeg_scans(data: bytes) -> Iterator[tuple[list[int], int, int, int]]:
    """(components, first coefficient, last coefficient, bits still missing) of every scan."""
    place = 2
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 3:
        marker = data[place + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:
            place += 1 if marker == 0xFF else 2
            continue
        length = struct.unpack_from(">H", data, place + 2)[0]
        header = data[place + 4 : place + 2 + length]
        if marker == 0xDA and len(header) == length - 2 >= 6:
            count = header[0]
            components = [header[1 + 2 * i] for i in range(count)]
            first, last, bits = header[1 + 2 * count : 4 + 2 * count]
            yield components, first, last, bits & 15
        place += 2 + length


def scans_complete(data: bytes) -> bool:
    """Whether the scans bring every coefficient of every component to its last bit.

    A progressive JPEG cut between two scans decodes without complaint, only coarser.
    """
    missing: dict[tuple[int, int], int] = {}
    components: set[int] = set()
    for scanned, first, last, bits in jpeg_scans(data):
        components.update(scanned)
        missing |= {(c, k): bits for c in scanned for k in range(first, last + 1)}
    return all(missing.get((c, k), 1) == 0 for c in components for k in range(64))
