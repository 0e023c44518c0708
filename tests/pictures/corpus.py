"""Every kind of awkward file that a picture folder may hold, made by code, with what is expected.

`write` fills a folder; `EXPECTED` says for each name what becomes of it: a fault's code and a
part of its text, or the notes it is used with.
"""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

Size = tuple[int, int]


def photo(width: int = 90, height: int = 60, mode: str = "RGB") -> Image.Image:
    """Smooth colours with some noise, so that formats behave as on photographs."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(7).integers(0, 40, (height, width))
    planes = [rows * 200 // height + noise, columns * 200 // width + noise, 60 + noise]
    return Image.fromarray(np.stack(planes, 2).astype(np.uint8)).convert(mode)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def jpeg(**options: Any) -> bytes:
    return saved(photo(), "JPEG", quality=90, **options)


def png(mode: str = "RGB", **options: Any) -> bytes:
    return saved(photo(mode=mode), "PNG", **options)


def chunk(name: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def drawn_png(
    size: Size, rows: bytes, depth: int = 8, colour: int = 0, extra: bytes = b""
) -> bytes:
    """A PNG from its unpacked rows, each with its filter byte."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def flat_png(width: int, height: int, rows: int | None = None) -> bytes:
    """One bit a pixel, `rows` of them there."""
    return drawn_png((width, height), bytes(1 + (width + 7) // 8) * (rows or height), depth=1)


def grey16(values: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return drawn_png((values.shape[1], values.shape[0]), rows, depth=16)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def flipped(data: bytes, place: float) -> bytes:
    index = int(len(data) * place)
    return data[:index] + bytes([data[index] ^ 0x5A]) + data[index + 1 :]


def text_bomb() -> bytes:
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000), 9))
    return drawn_png((20, 20), bytes(21 * 20), extra=bomb)


def clear_red() -> bytes:
    """Left half red but invisible, right half opaque green."""
    pixels = np.zeros((20, 40, 4), np.uint8)
    pixels[:, :20] = (255, 0, 0, 0)
    pixels[:, 20:] = (0, 200, 0, 255)
    return saved(Image.fromarray(pixels), "PNG")


def palette_with_hole() -> bytes:
    """Palette entry 0 (white) is transparent, entry 1 is blue."""
    picture = Image.new("P", (30, 20), 0)
    picture.putpalette([255, 255, 255, 0, 0, 255])
    picture.paste(1, (15, 0, 30, 20))
    return saved(picture, "PNG", transparency=bytes([0, 255]))


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def pages() -> bytes:
    return saved(photo(), "TIFF", save_all=True, append_images=[photo(50, 40)])


def pair() -> bytes:
    """A JPEG with a second one behind it, as telephones keep what they need to brighten it."""
    return saved(photo(), "MPO", save_all=True, append_images=[photo(50, 40)])


def turned(kind: str = "JPEG", orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"quality": 90} if kind == "JPEG" else {}
    return saved(photo(), kind, exif=exif, **more)


def wholly_clear(mode: str = "RGBA", kind: str = "PNG") -> bytes:
    picture = photo(mode=mode)
    picture.putalpha(0)
    return saved(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))


def clear_palette() -> bytes:
    return saved(photo(mode="P"), "PNG", transparency=bytes(256))


def colours16(greatest: int) -> np.ndarray:
    return np.linspace(0, greatest, 20 * 30 * 3).round().astype(np.uint16).reshape(20, 30, 3)


def colour16(greatest: int) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours16(greatest))
    return drawn_png((30, 20), rows, depth=16, colour=2)


def colour16_tiff(greatest: int) -> bytes:
    return tiff(colours16(greatest).astype("<u2").tobytes(), 30, 20, bits=16, samples=3)


def twelve_bits() -> bytes:
    """Values of 12 bits, packed: two in three bytes, 0 to 4095."""
    values = np.linspace(0, 4095, 600).astype(np.uint16).reshape(20, 30)
    bits = np.unpackbits(values.astype(">u2")[..., None].view(np.uint8), axis=-1)
    packed = np.packbits(bits.reshape(20, 30, 16)[..., 4:].reshape(20, -1), axis=1)
    return tiff(packed.tobytes(), 30, 20, bits=12)


def tiff(strip: bytes, width: int, height: int, *, bits: int, samples: int = 1) -> bytes:
    """A TIFF of one strip, as its specification has it: little-endian, not compressed."""
    depths = 8 + 2 + 12 * 9 + 4
    start = depths + 2 * samples
    entries = (
        *((256, 4, 1, width), (257, 4, 1, height)),
        (258, 3, samples, depths if samples > 2 else bits),
        *((259, 3, 1, 1), (262, 3, 1, 2 if samples == 3 else 1), (273, 4, 1, start)),
        *((277, 3, 1, samples), (278, 4, 1, height), (279, 4, 1, len(strip))),
    )
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)
    return head + struct.pack(f"<{samples}H", *[bits] * samples) + strip


def profile(name: bytes) -> bytes:
    return bytes(128) + b"desc\0\0\0\0" + name + bytes(20)


def black_below() -> bytes:
    return b"".join(b"\0" + bytes(range(20)) for _ in range(14)) + bytes(21 * 6)


def corrupt_exif() -> bytes:
    return jpeg(exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x13" * 40)


def comment_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 100)
    return png(pnginfo=info)


def float_tiff() -> bytes:
    return saved(Image.fromarray(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)), "TIFF")


def int_tiff() -> bytes:
    return saved(Image.fromarray(np.arange(600, dtype=np.int32).reshape(20, 30) * 1000), "TIFF")


GREY16 = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
PROGRESSIVE = jpeg(progressive=True)
HTML = b"<!DOCTYPE html><html><body>404</body></html>"

FAULTY: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "cut10.jpg": (lambda: cut(jpeg(), 0.1), "D104", "truncated JPEG (ends in its header)"),
    "cut50.jpg": (lambda: cut(jpeg(), 0.5), "D104", "% of the scan)"),
    "cut90.jpg": (lambda: cut(jpeg(), 0.9), "D104", "% of the scan)"),
    "cut-progressive.jpg": (lambda: cut(PROGRESSIVE, 0.6), "D104", "truncated JPEG (ends in scan"),
    "cut-then-ended.jpg": (lambda: cut(jpeg(), 0.6) + b"\xff\xd9", "D104", "% of the scan)"),
    "cut10.png": (lambda: cut(png(), 0.1), "D104", "truncated PNG (ends after"),
    "cut50.png": (lambda: cut(png(), 0.5), "D104", "truncated PNG"),
    "cut90.png": (lambda: cut(png(), 0.9), "D104", "truncated PNG"),
    "half-the-rows.png": (lambda: flat_png(50, 40, 20), "D104", "ends at 50 % of the rows)"),
    "cut50.webp": (lambda: cut(saved(photo(), "WEBP"), 0.5), "D104", "truncated WEBP"),
    "cut50.bmp": (lambda: cut(saved(photo(), "BMP"), 0.5), "D104", "truncated BMP"),
    "cut50.gif": (lambda: cut(saved(photo(), "GIF"), 0.5), "D104", "truncated GIF"),
    "cut50.tif": (lambda: cut(saved(photo(), "TIFF"), 0.5), "D104", "truncated TIFF"),
    "cut50-lzw.tif": (
        lambda: cut(saved(photo(), "TIFF", compression="tiff_lzw"), 0.5), "D104", "truncated TIFF"
    ),
    "flipped.png": (lambda: flipped(png(), 0.5), "D105", "checksum of IDAT at byte 33"),
    "nonsense.jpg": (lambda: b"\xff\xd8\xff" + b"\x07" * 300, "D104", "truncated JPEG"),
    "nonsense.bmp": (lambda: _bmp_of_no_known_kind(), "D105", "broken BMP"),
    "empty.jpg": (lambda: b"", "D101", "empty file"),
    "one-byte.jpg": (lambda: b"\xff", "D101", 'not an image (starts with "\\xff")'),
    "page.jpg": (lambda: HTML, "D101", 'not an image (starts with "<!DOCTYPE html><")'),
    "drawing.png": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "D101", '"<svg'),
    "words.png": (lambda: b"just words\n", "D101", 'not an image (starts with "just words\\n")'),
    "postscript.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "D102", "format EPS is not enabled"),
    "document.jpg": (lambda: b"%PDF-1.7\n", "D102", "format PDF is not enabled (JPEG, PNG, WEBP,"),
    "stars.jpg": (lambda: b"SIMPLE  =                    T", "D102", "format FITS"),
    "layers.jpg": (lambda: b"8BPS\0\x01", "D102", "format Photoshop"),
    "modern.avif": (lambda: b"\0\0\0\x1cftypavif\0\0\0\0", "D102", "format AVIF"),
    "100Mpx.png": (lambda: flat_png(10000, 10000), "D103", "10000x10000 = 100 Mpx exceeds 64 Mpx"),
    "endless.png": (lambda: flat_png(2**31 - 1, 2**31 - 1, 1)[:65], "D103", "exceeds 64 Mpx"),
    "wide.webp": (
        lambda: b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2,
        "D103", "16384x16384 = 268.4 Mpx",
    ),
    "text-bomb.png": (text_bomb, "D106", "text that unpacks to more than it should"),
    "1x1.png": (lambda: flat_png(1, 1), "D107", "1x1: a side is under 8 px"),
    "wide.png": (lambda: flat_png(10000, 10), "D107", "aspect ratio 1000:1"),
    "tall.png": (lambda: flat_png(10, 10000), "D107", "aspect ratio 1000:1"),
    "float.tif": (float_tiff, "D111", "float values"),
    "int.tif": (int_tiff, "D111", "float values"),
}  # fmt: skip

USABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "plain.jpg": (jpeg, ""),
    "plain.png": (png, ""),
    "plain.webp": (lambda: saved(photo(), "WEBP"), ""),
    "plain.bmp": (lambda: saved(photo(), "BMP"), ""),
    "plain.gif": (lambda: saved(photo(), "GIF"), ""),
    "plain.tif": (lambda: saved(photo(), "TIFF"), ""),
    "lzw.tif": (lambda: saved(photo(), "TIFF", compression="tiff_lzw"), ""),
    "progressive.jpg": (lambda: PROGRESSIVE, ""),
    "no-end.jpg": (lambda: jpeg()[:-2], "N104"),
    "half-an-end.jpg": (lambda: jpeg()[:-1], "N104"),
    "no-end-progressive.jpg": (lambda: PROGRESSIVE[:-2], "N104"),
    "no-end.png": (lambda: png()[:-12], "N104"),
    "cut99.png": (lambda: png()[:-3], "N104"),
    "png-as.jpg": (png, "N102"),
    "jpeg-as.png": (jpeg, "N102"),
    "no-ending": (jpeg, ""),
    "odd-ending.picture": (jpeg, "N102"),
    "UPPER.JpEg": (jpeg, ""),
    "some.jfif": (jpeg, ""),
    "lab.tif": (lambda: saved(photo(mode="LAB"), "TIFF"), "N106"),
    "cmyk.jpg": (lambda: saved(photo(mode="CMYK"), "JPEG"), "N105"),
    "grey.jpg": (lambda: saved(photo(mode="L"), "JPEG"), "N107"),
    "one-bit.png": (lambda: png("1"), "N107"),
    "palette.png": (lambda: png("P"), ""),
    "grey16.png": (lambda: grey16(GREY16), "N110"),
    "grey16.tif": (lambda: saved(Image.fromarray(GREY16), "TIFF"), "N110"),
    "clear-red.png": (clear_red, "N112"),
    "palette-hole.png": (palette_with_hole, "N112"),
    "opaque.png": (lambda: png("RGBA"), ""),
    "grey-alpha.png": (lambda: png("LA"), "N107"),
    "animated.gif": (lambda: animated("GIF"), "N113 N119"),
    "animated.png": (lambda: animated("PNG"), "N113 N119"),
    "animated.webp": (lambda: animated("WEBP"), "N113"),
    "pages.tif": (pages, "N113"),
    "pair.jpg": (pair, "N113"),
    "turned.jpg": (turned, "N111"),
    "turned.png": (lambda: turned("PNG"), "N111"),
    "turned.webp": (lambda: turned("WEBP"), "N111"),
    "turned.tif": (lambda: turned("TIFF"), "N116"),
    "upright.jpg": (lambda: turned(orientation=1), ""),
    "orientation9.jpg": (lambda: turned(orientation=9), ""),
    "wholly-clear.png": (wholly_clear, "N114"),
    "clear-grey.png": (lambda: wholly_clear("LA"), "N107 N114"),
    "clear.webp": (lambda: wholly_clear(kind="WEBP"), "N114"),
    "clear-palette.png": (clear_palette, "N114"),
    "hole.gif": (lambda: saved(Image.open(io.BytesIO(palette_with_hole())), "GIF"), "N112"),
    "keyed.png": (lambda: saved(photo(), "PNG", transparency=photo().getpixel((3, 3))), "N112"),
    "dark16.png": (lambda: grey16(GREY16 // 16), "N110 N117"),
    "dark16.tif": (lambda: saved(Image.fromarray(GREY16 // 16), "TIFF"), "N110 N117"),
    "white-is-0.tif": (
        lambda: saved(Image.fromarray(GREY16), "TIFF", tiffinfo={262: 0}),
        "N108 N110",
    ),
    "colour16.png": (lambda: colour16(40_000), "N110"),
    "dark-colour16.png": (lambda: colour16(4_000), "N110 N117"),
    "colour16.tif": (lambda: colour16_tiff(40_000), "N110"),
    "dark-colour16.tif": (lambda: colour16_tiff(4_000), "N110 N117"),
    "twelve-bits.tif": (twelve_bits, "N110"),
    "dark.jpg": (lambda: saved(photo().point(lambda v: v // 8), "JPEG"), ""),
    "white.jpg": (lambda: saved(Image.new("RGB", (60, 40), "white"), "JPEG"), "N119"),
    "display-p3.jpg": (lambda: jpeg(icc_profile=profile(b"Display P3")), "N106"),
    "srgb.jpg": (lambda: jpeg(icc_profile=profile(b"sRGB IEC61966-2.1")), ""),
    "srgb.png": (lambda: png(icc_profile=profile("sRGB".encode("utf-16-be"))), ""),
    "corrupt-exif.jpg": (corrupt_exif, ""),
    "text.png": (comment_bomb, ""),
    "interlaced.png": (lambda: _interlaced(), "N107 N119"),
    "black-below.png": (lambda: drawn_png((20, 20), black_below()), "N107 N115"),
    "black.png": (lambda: drawn_png((20, 20), bytes(21 * 20)), "N107 N119"),
    "space and 'quotes\".jpg": (jpeg, ""),
    "emoji-🦘.jpg": (jpeg, ""),
    "line\nbreak.jpg": (jpeg, ""),
    "-rf.jpg": (jpeg, ""),
    "%2e%2e.jpg": (jpeg, ""),
    "<img onerror=x>.jpg": (jpeg, ""),
}

UNDECODABLE = b"bad\xff\xfe.jpg"


def _bmp_of_no_known_kind() -> bytes:
    data = saved(photo(), "BMP")
    return data[:30] + b"\x63" + data[31:]


def _interlaced() -> bytes:
    """An interlaced PNG of 9 × 9 greys: passes of 2×2, 1×2, 3×1, 2×3, 5×2, 4×5, 9×4 pixels."""
    rows = b"".join(
        b"\0" + bytes([50]) * across
        for across, down in ((2, 2), (1, 2), (3, 1), (2, 3), (5, 2), (4, 5), (9, 4))
        for _ in range(down)
    )
    whole = drawn_png((9, 9), rows)
    header = struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 1)
    return whole[:8] + chunk(b"IHDR", header) + whole[8 + 25 :]


def write(root: Path) -> None:
    """All of the above, and what is no regular file."""
    for name, (make, *_) in {**FAULTY, **USABLE}.items():
        (root / name).write_bytes(make())
    (root / os.fsdecode(UNDECODABLE)).write_bytes(jpeg())
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(root)  # a socket's path must be short
        listener.bind("socket.png")
        os.chdir(here)
    (root / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "circle.jpg").symlink_to("circle.jpg")
    (root / "device.jpg").symlink_to("/dev/zero")
    (root / "link.jpg").symlink_to("plain.jpg")


SPECIAL = {
    "pipe.jpg": ("D109", "a FIFO"),
    "socket.png": ("D109", "a socket"),
    "device.jpg": ("D109", "a device"),
    "dangling.jpg": ("D121", "leads nowhere"),
    "circle.jpg": ("D121", "leads nowhere"),
}
