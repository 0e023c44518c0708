"""How large, thin, slow or hungry may a picture be, and how does it fail?"""

from __future__ import annotations

from dataclasses import dataclass


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


def too_many(width: int, height: int, limits: Limits) -> str:
    """What to say of a picture with more than `max_pixels`."""
    there, most = width * height / 1e6, limits.max_pixels / 1e6
    return f"{width}x{height} = {there:,.4g} Mpx exceeds {most:,.4g} Mpx"


class Fault(Exception):
    """Why a picture cannot be used: a code of docs/errors.md and one clause."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text
