"""Which photographs does scikit-image bring along, whose are they, and how are they divided?"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from convscope.errors import EnvironmentFault
from convscope.units import Box

Side = Literal["left", "middle", "right", "bottom"]


@dataclass(frozen=True)
class Photo:
    """A photograph in scikit-image's wheel, which is one class of `builtin:photos`."""

    name: str
    file: str
    size: tuple[int, int]
    """Height and width, in pixels."""
    validation: Side
    """The part that is kept for validation; chosen so that both parts show the same things."""
    source: str
    licence: str
    """As scikit-image's own documentation states it."""


PHOTOS = (
    Photo(
        "astronaut", "astronaut.png", (512, 512), "right",
        "Eileen Collins, NASA Great Images", "public domain",
    ),
    Photo("brick", "brick.png", (512, 512), "bottom", "CC0Textures, Bricks25", "CC0"),
    Photo("cat", "chelsea.png", (300, 451), "left", "Stefan van der Walt", "CC0"),
    Photo(
        "coffee", "coffee.png", (400, 600), "left",
        "Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0",
    ),
    Photo(
        "coins", "coins.png", (303, 384), "right",
        "Greek coins from Pompeii, Brooklyn Museum Collection", "no known copyright restrictions",
    ),
    Photo("grass", "grass.png", (512, 512), "bottom", "linolafett, DeviantArt, Grass-01", "CC0"),
    Photo("gravel", "gravel.png", (512, 512), "bottom", "CC0Textures, Gravel04", "CC0"),
    Photo(
        "hubble", "hubble_deep_field.jpg", (872, 1000), "right",
        "Hubble eXtreme Deep Field, NASA, HubbleSite 2012/37", "public domain (NASA)",
    ),
    Photo("moon", "moon.png", (512, 512), "right", "not stated", "not stated"),
    Photo(
        "motorcycle", "motorcycle_left.png", (500, 741), "right",
        "Middlebury stereo benchmark 2014 (Scharstein et al., GCPR 2014)",
        "not stated; its authors ask to be cited",
    ),
    Photo("print", "page.png", (191, 384), "middle", "not stated", "not stated"),
    Photo(
        "retina", "retina.jpg", (1411, 1411), "right",
        "Mikael Häggström, Wikimedia Commons, DOI 10.15347/wjm/2014.008", "CC0",
    ),
    Photo(
        "rocket", "rocket.jpg", (427, 640), "left",
        "DSCOVR on Falcon 9, SpaceX Photos",
        "released into the public domain by SpaceX in 2015 (Flickr has shown CC BY-NC 2.0 since)",
    ),
    Photo(
        "tissue", "ihc.png", (512, 512), "right",
        "Center for Microscopy and Molecular Imaging (CMMI)", "no known copyright restrictions",
    ),
)  # fmt: skip
"""In the order of their names. Stated by scikit-image 0.26, `skimage.data`."""

CAMERA = Photo(
    "camera", "camera.png", (512, 512), "right", "Lav Varshney, Cameraman replacement", "CC0"
)
"""In black and white, so no class of `builtin:photos`."""

SHARE = 0.3
"""Of a photograph's longer direction that is kept for validation …"""
LEAST = 134
"""… and at least so many pixels, so that patches of 112 have some room."""


def regions(photo: Photo) -> dict[str, tuple[Box, ...]]:
    """The parts of a photograph for training and for validation; no pixel is in both."""
    height, width = photo.size
    if photo.validation == "bottom":
        cut = height - max(LEAST, int(SHARE * height))
        return {"train": (Box(0, 0, cut, width),), "val": (Box(cut, 0, height, width),)}
    strip = max(LEAST, int(SHARE * width))
    start = {"left": 0, "middle": (width - strip) // 2, "right": width - strip}[photo.validation]
    sides = (Box(0, 0, height, start), Box(0, start + strip, height, width))
    kept = Box(0, start, height, start + strip)
    return {"train": tuple(box for box in sides if box.width), "val": (kept,)}


def photo_file(photo: Photo) -> Path:
    """Where it is installed. Raises EnvironmentFault R607 if it is not."""
    found = importlib.util.find_spec("skimage")  # not imported: that takes half a second
    for place in (found and found.submodule_search_locations) or ():
        path = Path(place) / "data" / photo.file
        if path.is_file():
            return path
    raise EnvironmentFault(
        "R607",
        photo.file,
        "is a photograph of scikit-image that is not installed",
        next_step="pip install scikit-image",
    )
