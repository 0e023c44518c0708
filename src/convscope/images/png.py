"""Is a PNG whole: all chunks, right checksums, every row of pixels?"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from convscope.images.limits import Fault

PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"IEND")
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a colour type in the header."""
PASSES = (
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


def chunks(data: bytes) -> Iterator[tuple[bytes, int, bool]]:
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


def ended(data: bytes) -> bool:
    """Whether the chunks lead to an end mark."""
    return any(name == b"IEND" for name, _, _ in chunks(data))


def check_rows(data: bytes) -> None:
    """Raise Fault D104 if the compressed data ends before the last row: decoders fill that in."""
    there, needed = _unpacked(data), _bytes_of_rows(data)
    if there < needed:
        share = 100 * there / needed
        raise Fault("D104", f"truncated PNG (its data ends at {share:.0f} % of the rows)")


def _unpacked(data: bytes) -> int:
    """Bytes that the pixel data unpacks to, counted piece by piece."""
    unpacker, count = zlib.decompressobj(), 0
    for name, start, _ in chunks(data):
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
    for first_row, rows, first_column, columns in PASSES:
        across = (width - first_column + columns - 1) // columns
        down = (height - first_row + rows - 1) // rows
        if across > 0 and down > 0:
            total += down * (1 + (across * bits + 7) // 8)
    return total
