"""How much worse, or better, is a network with layers left out or made larger, trained anew?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from convscope.core.record import Record

PAPER: dict[str, tuple[float, float, float]] = {
    "alexnet": (35.1, 40.5, 18.1),
    "alexnet-without-3-4": (41.8, 45.4, 22.1),
    "alexnet-without-7": (27.4, 40.0, 18.4),
    "alexnet-without-6-7": (27.4, 44.8, 22.4),
    "alexnet-without-3-4-6-7": (71.1, 71.3, 50.1),
    "alexnet-fc-2048": (40.3, 41.7, 18.8),
    "alexnet-fc-8192": (26.8, 40.0, 18.1),
    "zfnet": (33.1, 38.4, 16.5),
    "zfnet-fc-2048": (38.2, 40.2, 17.6),
    "zfnet-fc-8192": (22.0, 38.8, 17.0),
    "zfnet-maps": (18.8, 37.5, 16.0),
    "zfnet-maps-fc-8192": (10.0, 38.3, 16.9),
}
"""Training top-1, validation top-1 and validation top-5 error in % on ImageNet 2012: Zeiler and
Fergus 2014, table 3. (27.4 stands there twice.)"""


@dataclass(frozen=True, eq=False)
class Ablation(Record):
    """Variants of networks, each trained from scratch by one recipe; errors are 0 to 1.

    The last axis of `training` and `validation` is top-1, top-5; the latter is NaN where there
    are no more than five classes. All is NaN where a variant could not be trained.
    """

    variants: tuple[str, ...]
    specs: tuple[str, ...]
    """What `load` builds them from."""
    base: Int64[np.ndarray, "variants"]
    """Number of the variant that each is compared with; its own where with none."""
    seeds: tuple[int, ...]
    parameters: Int64[np.ndarray, "variants"]
    multiply_adds: Int64[np.ndarray, "variants"]
    """For one picture."""
    training: Float64[np.ndarray, "variants seeds 2"]
    """Error on the training pictures, seen as the validation pictures are: no augmentation, no
    dropout."""
    validation: Float64[np.ndarray, "variants seeds 2"]
    lost: Int64[np.ndarray, "variants seeds"]
    """Validation pictures that the base gets right and this variant does not."""
    gained: Int64[np.ndarray, "variants seeds"]
    """The other way round."""
    p: Float64[np.ndarray, "variants seeds"]
    """Of an exact two-sided sign test on these (McNemar's), for pictures drawn at random."""
    failed: tuple[str, ...]
    """Why a variant could not be trained; empty where it was."""
    classes: int
    pictures: tuple[int, int]
    """Training, validation."""
    size: tuple[int, int]
    """Rows and columns of the pictures as the networks see them."""
    views: int
    epochs: int

    def mean(self, part: str, top: int = 0) -> Float64[np.ndarray, "variants"]:
        """Error over the seeds. part: "training" or "validation"; top: 0 for top-1, 1 for top-5."""
        values: Float64[np.ndarray, "variants"] = getattr(self, part)[:, :, top].mean(1)
        return values

    def spread(self, part: str, top: int = 0) -> Float64[np.ndarray, "variants"]:
        """Standard deviation over the seeds; with one seed, what drawing other pictures would
        make: √(e (1 − e) / n)."""
        values = getattr(self, part)[:, :, top]
        if len(self.seeds) > 1:
            return np.asarray(values.std(1, ddof=1), np.float64)
        many = self.pictures[0 if part == "training" else 1]
        error = values[:, 0]
        return np.asarray(np.sqrt(error * (1 - error) / max(1, many)), np.float64)
