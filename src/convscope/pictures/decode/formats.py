"""Picture formats by their signatures and file name endings."""

from __future__ import annotations

ENABLED = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
ENDINGS = frozenset(b".jpg .jpeg .jpe .jfif .png .apng .webp .bmp .dib .gif .tif .tiff".split())
"""A file with such a name is taken for a picture whatever it holds."""
HEAD = 32
"""Bytes that `claimed` needs."""

_SIGNATURES = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"BM", "BMP"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\0\0\x01\0", "icon"),
    (0, b"%PDF", "PDF"),
    (0, b"%!PS", "EPS"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"P4\n", "PBM"),
    (0, b"P5\n", "PGM"),
    (0, b"P6\n", "PPM"),
)
DOCUMENTS = frozenset({"PDF", "EPS"})
"""Formats whose files nobody puts into a picture folder as pictures."""


def claimed(head: bytes) -> str | None:
    """The format by the first `HEAD` bytes, enabled or not; None if it is none we know."""
    for start, signature, name in _SIGNATURES:
        if head.startswith(signature, start):
            return name
    return None


def ending(path: bytes) -> bytes:
    """The name's ending in lower case, with its dot."""
    name = path.rsplit(b"/", 1)[-1]
    dot = name.rfind(b".")
    return name[dot:].lower() if dot > 0 else b""
