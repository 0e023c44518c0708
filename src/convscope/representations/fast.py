"""Certificate of fast mode: when is a search in bfloat16 sure to have found float32's strongest?

Candidates found in bfloat16 are computed again in float32. A map is certified if its k-th value is
then above all that was no candidate: above the weakest candidate's value in bfloat16 and four times
the largest difference seen between the two. That difference was seen in some pictures and is not
proved for all: a statistical bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from convscope.lens.machine import multiplies_faster_in_bfloat16
from convscope.pictures.pictures import Pictures
from convscope.scale.segments import Arrays

KEPT = 64
"""Candidates of a map, or twice as many as are wanted in the end if that is more."""
CALIBRATING = 4096
"""Pictures computed in both precisions, at most about."""
SAFETY = 4.0
"""So many times the largest difference seen is taken for the largest there is."""


def kept(k: int) -> int:
    """Candidates of each map."""
    return max(KEPT, 2 * k)


def hindrance(device: torch.device, dtype: torch.dtype, candidates: int, pictures: int) -> str:
    """Why float32 is the faster way; "" if it is not. candidates: of all maps, times the pictures
    of a batch, as whole batches are computed again."""
    if dtype != torch.float32:
        return f"the network's weights are {str(dtype).removeprefix('torch.')}, not float32"
    if not multiplies_faster_in_bfloat16(device):
        return f"this {device.type} does not multiply bfloat16 faster than float32"
    if candidates > pictures:
        return (
            "the maps' candidates would have most pictures computed again, with fewer than "
            f"{candidates:,}; here are {pictures:,}"
        )
    return ""


def batches_again(
    candidates: Int64[np.ndarray, "maps kept"], folder: Pictures, batch: int
) -> list[int]:
    """The numbers of all pictures whose batch has a candidate or a copy of one."""
    lowest = folder.duplicates()
    wanted = set(np.unique(candidates[candidates >= 0]).tolist())
    wanted |= {lowest.get(number, number) for number in wanted}
    wanted |= {number for number, first in lowest.items() if first in wanted}
    touched = {number // batch for number in wanted}
    return [number for number in range(len(folder)) if number // batch in touched]


def calibrating(numbers: Sequence[int], batch: int) -> frozenset[int]:
    """Batches in which both precisions are compared, evenly among those of these pictures."""
    touched = sorted({number // batch for number in numbers})
    most = max(1, CALIBRATING // batch)
    return frozenset(touched[:: -(-len(touched) // most)] if touched else ())


@dataclass(frozen=True)
class Certificate:
    """Of every map, whether its strongest pictures are those of float32."""

    certified: Bool[np.ndarray, "maps"]
    bound: Float32[np.ndarray, "layers"]
    """By layer, `SAFETY` times the largest difference seen."""
    rescored: int
    """Pictures computed again."""
    compared: int
    """Of these, the pictures computed in both precisions."""

    @classmethod
    def of(cls, fast: Arrays, exact: Arrays, starts: Int64[np.ndarray, "layers+1"]) -> Certificate:
        """fast: the candidates. exact: the same, the copies of them and the rest of their batches
        in float32. starts: of the layers among the maps."""
        difference = exact["difference"].astype(np.float64)
        bound = SAFETY * np.maximum.reduceat(difference, starts[:-1])
        weakest = fast["value"][:, -1] + np.repeat(bound, np.diff(starts))
        is_above = exact["value"][:, -1] > weakest  # false for a NaN
        has_all = fast["image"][:, -1] < 0
        has_numbers = (fast["invalid"] == 0) & (exact["invalid"] == 0)
        is_all = exact["seen"] == fast["seen"]
        return cls(
            ((is_above | has_all) & has_numbers) | is_all,
            bound.astype(np.float32),
            int(exact["seen"]),
            int(exact["compared"]),
        )

    def open_layers(self, starts: Int64[np.ndarray, "layers+1"]) -> list[int]:
        """Those with a map that is not certified."""
        return np.flatnonzero(~np.logical_and.reduceat(self.certified, starts[:-1])).tolist()

    def origin(self, layers: Sequence[str], candidates: int) -> dict[str, Any]:
        """What the record says of it."""
        certified = int(self.certified.sum())
        return {
            "mined_in": "bfloat16",
            "candidates": candidates,
            "rescored_pictures": self.rescored,
            "compared_pictures": self.compared,
            "bound": dict(zip(layers, self.bound.tolist(), strict=True)),
            "bound_is": f"{SAFETY:g} times the largest difference seen: statistical, not a proof",
            "certified": certified,
            "mined_again": len(self.certified) - certified,
            "counts": "active and invalid are of bfloat16 in certified maps, but for dead maps",
        }


def tables(fast: Arrays, exact: Arrays) -> dict[str, np.ndarray]:
    """Those of a TopK, right for certified maps. In how many pictures these rise above 0 is as
    bfloat16 saw it; but a map whose largest value in float32 is not above 0 is dead, and another
    one is not."""
    result = {name: array.copy() for name, array in exact.items()} | {"seen": fast["seen"]}
    if exact["seen"] < fast["seen"]:
        above = (exact["value"] > 0).sum(1)
        result["active"] = np.where(above > 0, np.maximum(fast["active"], above), 0)
        result["invalid"] = fast["invalid"].copy()
    return result


def told(origin: Mapping[str, Any]) -> str:
    """A line for people, on what came of asking for speed; "" where nobody did."""
    search = origin.get("search")
    if not isinstance(search, Mapping):
        return ""
    if search["mined_in"] == "float32":
        return f"searched in float32, which is the faster way here: {search['why']}"
    certified, again = search["certified"], search["mined_again"]
    return (
        f"fast: {certified:,} of {certified + again:,} maps certified (a statistical bound), "
        f"{again:,} mined again in float32"
    )
