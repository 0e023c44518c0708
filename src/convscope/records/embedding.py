"""Embedding: one feature vector of a layer for each picture of a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from convscope.core.record import Record


@dataclass(frozen=True, eq=False)
class Embedding(Record):
    """The features of one layer, a row a usable picture, in the folder's order.

    Loaded from disk, `values` stays there and is read as it is used.
    """

    mapped: ClassVar[frozenset[str]] = frozenset({"values"})

    layer: str
    """A module's name, or `pixels`."""
    values: Float32[np.ndarray, "n d"]
    shape: tuple[int, ...]
    """Of the layer's output for one picture, before it became a vector."""
    vector: str
    """How it became one, in words: flattened, or averaged over a grid."""
    number: Int64[np.ndarray, "n"]
    """Of the picture in its folder."""
    name: tuple[str, ...]
    label: Int64[np.ndarray, "n"]
    """Class index, -1 where the picture has no class."""
    classes: tuple[str, ...]
    digest: UInt8[np.ndarray, "n 32"]
    """SHA-256 of the picture's file."""
