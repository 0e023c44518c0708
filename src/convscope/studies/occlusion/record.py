"""What happens to the answers over a folder when a square hides a part, and when objects are?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from convscope.core.errors import printable
from convscope.core.record import Record
from convscope.records.maps import Occlusion, lowest

TRUE, ASKED, LIKELIEST = "true", "asked", "likeliest"
"""Why a class is followed: it is the picture's own, somebody named it, or it is the likeliest."""
SHARED = frozenset({"classes", "layer", "tops", "lefts", "sides", "origin"})
"""Fields that all pictures have in common; all others have one entry a picture."""
ROOMS = 4
"""Places for an area as large as the object: above, below, left and right of it."""


@dataclass(frozen=True, eq=False)
class Occlusions(Record):
    """Each picture of a folder with a square at every place: the paper's figure 7, row by row.

    Pixels are those of the network's input. A picture's boxes say where somebody marked the
    object.
    """

    mapped: ClassVar[frozenset[str]] = frozenset({"seen", "projections", "probability", "activity"})

    pictures: tuple[str, ...]
    number: Int64[np.ndarray, "pictures"]
    """In the folder."""
    classes: tuple[str, ...]
    """The network's class names, or their numbers."""
    target: Int32[np.ndarray, "pictures"]
    """The class that is followed."""
    why: tuple[str, ...]
    """TRUE, ASKED or LIKELIEST."""
    layer: str
    channel: Int32[np.ndarray, "pictures"]
    """The feature map of `layer` with the largest sum in the whole picture."""
    tops: Int32[np.ndarray, "rows"]
    lefts: Int32[np.ndarray, "columns"]
    """First pixels of the square."""
    sides: tuple[int, int]
    """Height and width of what hides."""
    base_probability: Float32[np.ndarray, "pictures"]
    """Of the class followed in the whole picture."""
    base_likeliest: Int32[np.ndarray, "pictures"]
    base_activity: Float32[np.ndarray, "pictures"]
    probability: Float32[np.ndarray, "pictures rows columns"]
    likeliest: Int32[np.ndarray, "pictures rows columns"]
    activity: Float32[np.ndarray, "pictures rows columns"]
    """Sum of the map over its places."""
    seen: UInt8[np.ndarray, "pictures h w 3"]
    """As the network saw them."""
    square: UInt8[np.ndarray, "pictures height width 3"]
    """What the square shows where the probability is lowest."""
    projections: UInt8[np.ndarray, "pictures shown s s 3"]
    """Of the map: in this picture, then in the pictures that excite it most. Black and white are
    `scale`; without a projection all is grey."""
    scale: Float32[np.ndarray, "pictures shown 2"]
    """Of each projection, in the units of the network's input; NaN where there is none."""
    others: tuple[tuple[str, ...], ...]
    """Names of these other pictures."""
    boxes: tuple[tuple[tuple[int, int, int, int], ...], ...]
    """Top, left, bottom and right of what was marked in each picture, where that is seen."""
    box_probability: Float32[np.ndarray, "pictures"]
    """With all boxes hidden at once; NaN where there are none."""
    box_likeliest: Int32[np.ndarray, "pictures"]
    """The same; -1 where there are none."""
    other_probability: Float32[np.ndarray, "pictures rooms"]
    """With an equally large area beside the boxes hidden; NaN where there is no room."""
    other_likeliest: Int32[np.ndarray, "pictures rooms"]

    @classmethod
    def one(
        cls,
        result: Occlusion,
        *,
        name: str,
        number: int,
        classes: tuple[str, ...],
        why: str,
        likeliest: int,
        seen: UInt8[np.ndarray, "h w 3"],
        square: UInt8[np.ndarray, "height width 3"],
        **more: Any,
    ) -> Self:
        """The record of one picture. likeliest: of the whole picture. more: its projections and
        what its boxes hide, as fields."""
        return cls(
            pictures=(name,),
            number=np.array([number], np.int64),
            classes=classes,
            target=np.array([result.target], np.int32),
            why=(why,),
            layer=result.layer,
            channel=np.array([result.channel], np.int32),
            tops=result.tops,
            lefts=result.lefts,
            sides=result.sides,
            base_probability=np.array([result.base_probability], np.float32),
            base_likeliest=np.array([likeliest], np.int32),
            base_activity=np.array([result.base_activity], np.float32),
            probability=result.probability[None],
            likeliest=result.likeliest[None],
            activity=result.activity[None],
            seen=seen[None],
            square=square[None],
            **more,
            origin=result.origin,
        )

    @property
    def places(self) -> int:
        """Of the square in one picture."""
        return len(self.tops) * len(self.lefts)

    @property
    def turned(self) -> Int64[np.ndarray, "pictures"]:
        """At how many places the likeliest class is another than in the whole picture."""
        other: Bool[np.ndarray, "pictures rows columns"] = (
            self.likeliest != self.base_likeliest[:, None, None]
        )
        return np.asarray(other.sum((1, 2)), np.int64)

    def class_of(self, index: int) -> str:
        """The class's name as a figure or a table shows it."""
        return printable(self.classes[index]) if 0 <= index < len(self.classes) else f"{index}"

    def picture_names(self) -> list[str]:
        """Printable, without the folder that all have in common."""
        parts = [printable(name).split("/") for name in self.pictures]
        above = list(zip(*(each[:-1] for each in parts), strict=False))
        common = next((n for n, level in enumerate(above) if len(set(level)) > 1), len(above))
        return ["/".join(each[common:]) for each in parts]

    def worst(self, picture: int) -> tuple[int, int]:
        """Row and column of the place where the probability is lowest; the first of equals."""
        return lowest(self.probability[picture])

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One record of all pictures of these, in their order."""
        fields: dict[str, object] = {}
        for entry in dataclasses.fields(cls):
            values = [getattr(part, entry.name) for part in parts]
            if entry.name in SHARED:
                fields[entry.name] = values[0]
            elif isinstance(values[0], np.ndarray):
                fields[entry.name] = np.concatenate(values)
            else:
                fields[entry.name] = tuple(one for value in values for one in value)
        return cls(**fields)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class HiddenObjects(Record):
    """Does the probability fall more when the object is hidden than when the background is?

    Falls are in the natural logarithm: −ln of what is left of the probability, so that 0.69 is
    half of it, and pictures that are sure and pictures that are not count alike.
    """

    pictures: tuple[str, ...]
    """Those with a box."""
    recognised: Bool[np.ndarray, "pictures"]
    """Whether the class followed is the likeliest in the whole picture."""
    on: Float64[np.ndarray, "pictures"]
    """Mean fall over the squares that lie on the object; NaN if none does."""
    off: Float64[np.ndarray, "pictures"]
    """Mean fall over the squares beside it; NaN if none is."""
    on_points: Float64[np.ndarray, "pictures"]
    off_points: Float64[np.ndarray, "pictures"]
    """The same falls of the probability itself."""
    on_squares: Int64[np.ndarray, "pictures"]
    off_squares: Int64[np.ndarray, "pictures"]
    """How many squares these are."""
    elsewhere: Float64[np.ndarray, "pictures"]
    """Mean of on − off if the picture had the boxes of another one, over all others."""
    box: Float64[np.ndarray, "pictures"]
    """Fall with all boxes hidden at once."""
    beside: Float64[np.ndarray, "pictures"]
    """Mean fall with an equally large area beside them hidden; NaN where there is no room."""
    box_turned: Bool[np.ndarray, "pictures"]
    """Whether the likeliest class is another with the boxes hidden."""
    beside_turned: Float64[np.ndarray, "pictures"]
    """Share of the equally large areas that turn it; NaN where there is no room."""
    p_sign: float
    """If the sign of on − off were chance in each picture, how often would its mean be as large?"""
    p_dealt: float
    """If boxes were dealt out among the pictures, how often would it be?"""
    p_box: float
    """As `p_sign`, of box − beside."""
    least_on: float
    most_off: float
    """Share of the square, or of the boxes where they are smaller, that makes it lie on the
    object (at least), or beside it (at most)."""
    permutations: int = 0
    unmarked: tuple[str, ...] = field(default=())
    """Pictures without a box that is seen."""

    @property
    def difference(self) -> Float64[np.ndarray, "pictures"]:
        """On minus off; NaN where one of them is."""
        apart: Float64[np.ndarray, "pictures"] = self.on - self.off
        return apart
