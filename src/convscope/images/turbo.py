"""How is a plain JPEG decoded in two thirds of Pillow's time, to the same pixels?

simplejpeg drives the same library as Pillow without its detours. It needs NumPy, which takes
longer to import than a few pictures take to decode: it comes in after AFTER pictures. Whatever it
does not take without a warning, or has other pixels for the first time it is asked, is Pillow's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from PIL import Image

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
        found = self._found(data, picture) if self._awake() else None
        if found is None:
            picture.load()
            return picture
        if picture.mode not in self.fit:
            picture.load()
            self.fit[picture.mode] = picture.tobytes() == found.tobytes()
            return picture
        return found

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
