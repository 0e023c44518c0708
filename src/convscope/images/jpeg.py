"""Is a JPEG that stops early complete but for its end mark, and where does it stop if not?"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, ImageChops

from convscope.images.limits import Fault

END = b"\xff\xd9"
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


def complete(data: bytes) -> Image.Image:
    """The picture in data that lacks its end mark. Fault D104 if more than that is missing.

    Decoders fill in grey for what is missing. If the pixels do not depend on what is put behind
    the last byte, nothing of them was missing.
    """
    kept = data.removesuffix(b"\xff")
    there = list(scans(kept))
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
        picture = Image.open(io.BytesIO(data + END), formats=("JPEG",))
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


def scans(data: bytes) -> Iterator[Scan]:
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
