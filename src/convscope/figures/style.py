"""Which colours and letters do all figures share, and how long may a name in them be?

Nothing slow is imported here: a figure that Pillow can draw needs no Matplotlib.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

from convscope.errors import printable

TRAINING, VALIDATION = "#0b5cbf", "#b25400"
INK, SOFT = "#1b1d20", "#5b6067"
LONGEST = 26
"""Characters of a name in a plot."""


def shortened(name: str) -> str:
    """A name as plots show it: printable, and not too long."""
    text = printable(name)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Matplotlib's own letters, so that all figures look alike; size: pixels."""
    home = find_spec("matplotlib")
    for place in (home.submodule_search_locations or ()) if home else ():
        file = Path(place) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)
