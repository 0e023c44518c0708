"""Which pictures lie nearest to which, and which are the same picture twice?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from convscope.core.record import Record

DRAWN = 10
"""Queries in a figure."""
LISTED = 20
"""Pairs in words and in the figure."""


@dataclass(frozen=True, eq=False)
class Neighbours(Record):
    """The nearest pictures of each query by the features of one layer."""

    layer: str
    metric: str
    """euclidean, or cosine (1 − cos)."""
    queries: tuple[str, ...]
    names: tuple[str, ...]
    """Of the pictures that were searched."""
    query_number: Int64[np.ndarray, "q"]
    """In the queries' folder."""
    number: Int64[np.ndarray, "n"]
    """In the folder searched."""
    query_class: tuple[str, ...]
    """Class names; empty where a picture has none."""
    name_class: tuple[str, ...]
    nearest: Int64[np.ndarray, "q k"]
    """Row of `names`, the nearest first; -1 where there are fewer."""
    distance: Float32[np.ndarray, "q k"]
    same_folder: bool
    """Whether the queries were looked for among themselves; none is its own neighbour then."""

    def rows(self) -> list[int]:
        """Of the queries that are drawn, evenly over all."""
        many = len(self.queries)
        rows: list[int] = np.unique(
            np.linspace(0, many - 1, min(DRAWN, many)).round().astype(int)
        ).tolist()
        return rows

    @property
    def classed(self) -> bool:
        """Whether both sides have classes."""
        return any(self.query_class) and any(self.name_class)

    @property
    def same_class(self) -> Float32[np.ndarray, "k"]:
        """Part of the queries whose first, second, … neighbour is of their class."""
        truth, theirs = np.array(self.query_class), np.array([*self.name_class, "\0"])
        hits = (theirs[self.nearest] == truth[:, None]) & (truth != "")[:, None]
        share: Float32[np.ndarray, "k"] = hits.sum(0) / max(1, int((truth != "").sum()))
        return share.astype(np.float32)

    @property
    def chance(self) -> float:
        """The same for neighbours drawn at random."""
        theirs = np.array(self.name_class)
        own = 1 if self.same_folder else 0
        names, counts = np.unique(theirs, return_counts=True)
        many = dict(zip(names.tolist(), counts.tolist(), strict=True))
        shares = [
            max(0, many.get(name, 0) - own) / max(1, len(theirs) - own)
            for name in self.query_class
            if name
        ]
        return float(np.mean(shares)) if shares else 0.0


@dataclass(frozen=True, eq=False)
class Duplicates(Record):
    """Pairs of pictures that are the same one, or nearly: one a row, the surest first."""

    first: tuple[str, ...]
    """Name in the folder asked about, as the test set."""
    second: tuple[str, ...]
    """Name in the other folder, as the training set."""
    first_number: Int64[np.ndarray, "n"]
    second_number: Int64[np.ndarray, "n"]
    kind: tuple[str, ...]
    """`bytes` (the files are equal), `pixels` or `features` (nearer than the threshold)."""
    correlation: Float32[np.ndarray, "n"]
    """Normalised correlation of the small grey pictures."""
    cosine: Float32[np.ndarray, "n"]
    """Cosine of the layer's features."""
    layer: str
    pixels_from: float
    """Threshold of the correlation."""
    features_from: float
    """Threshold of the cosine."""
    seen: tuple[int, int]
    """Pictures compared, of both folders."""
    nearest: Float32[np.ndarray, "m"]
    """Cosine of each picture asked about with its nearest: what thresholds can be judged by."""
    classes: tuple[tuple[str, str], ...] = ()
    """Of each pair, where both folders have classes."""

    @property
    def pictures(self) -> int:
        """Of the folder asked about that occur in the other."""
        return len(set(self.first_number.tolist()))

    def rows(self) -> list[int]:
        """Of the pairs that are drawn."""
        return list(range(min(LISTED, len(self.first))))

    def summary(self) -> str:
        """One line."""
        counts = {kind: self.kind.count(kind) for kind in ("bytes", "pixels", "features")}
        return (
            f"{self.pictures:,} of {self.seen[0]:,} pictures occur twice or nearly: "
            f"{counts['bytes']:,} pairs of equal files, {counts['pixels']:,} with a correlation of "
            f"pixels from {self.pixels_from:g}, {counts['features']:,} more with a cosine of "
            f"{self.layer} from {self.features_from:g}"
        )
