"""What speaks for a class in a picture, by which methods, and how far is each to be believed?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from convscope.core.publish import publish_folder
from convscope.core.record import Record, summary
from convscope.core.units import Box
from convscope.records.maps import Agreement, Attribution, Faithfulness, Randomisation, Sensitivity
from convscope.records.predictions import Prediction


@dataclass(frozen=True, eq=False)
class Explanation:
    """One picture, explained by several methods, each put to the test."""

    __repr__ = summary

    picture: UInt8[np.ndarray, "h w 3"]
    """As the network saw it."""
    prediction: Prediction
    target: int
    """The class that is explained."""
    target_name: str
    score: float
    """Its probability."""
    label: str
    """Name of the true class; empty if unknown."""
    methods: tuple[str, ...]
    """By the names that commands use."""
    maps: tuple[Attribution, ...]
    tests: tuple[Faithfulness, ...]
    coverage: tuple[float, ...]
    """The smallest share of the picture that holds half of each map's positive evidence."""
    randomised: tuple[Randomisation, ...] = ()
    """Empty where this was not asked for."""
    sensitive: tuple[Sensitivity, ...] = ()
    """The same."""
    agreement: Agreement | None = None
    boxes: tuple[Box, ...] = ()
    """In the picture's pixels, where somebody marked something."""
    notes: tuple[str, ...] = ()
    """What was changed in the picture when it was read."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Methods that are not defined for this network, and why."""
    untested: Mapping[str, str] = field(default_factory=dict)
    """Tests that could not be made on this network, and why."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """The network, its weights, and how the maps were tested."""

    def save(self, folder: Path | str) -> Path:
        """Write all records into a new folder, one folder each. Raises OutputError O501."""
        publish_folder(Path(folder), self.write)
        return Path(folder)

    def write(self, folder: Path) -> None:
        """The same into a folder that is being made."""
        self.prediction.save(folder / "prediction")
        origin = json.dumps(
            dict(self.origin) | {"left out": dict(self.untested), "notes": list(self.notes)},
            indent=2,
            ensure_ascii=False,
            default=str,
        )
        (folder / "made.json").write_text(
            origin + "\n", encoding="utf-8", errors="backslashreplace"
        )
        if self.agreement is not None:
            self.agreement.save(folder / "agreement")
        for kind, records in (
            ("maps", self.maps),
            ("tests", self.tests),
            ("randomised", self.randomised),
            ("sensitive", self.sensitive),
        ):
            for name, record in zip(self.methods, records, strict=False):
                record.save(folder / kind / name.replace(":", "."))


METRICS = (
    "deletion",
    "random deletion",
    "blob deletion",
    "insertion",
    "random insertion",
    "blob insertion",
    "drop",
    "increase",
    "road",
    "coverage",
    "pointing",
    "energy inside",
    "peak",
)
"""What is measured of each method in each picture; see `metrics/faithfulness.py`."""


@dataclass(frozen=True, eq=False)
class Explanations(Record):
    """Many pictures explained by the same methods: what the maps point at, and how they fare."""

    methods: tuple[str, ...]
    pictures: tuple[str, ...]
    """Names of those that could be used."""
    classes: tuple[str, ...]
    """The network's class names, or their numbers."""
    target: Int64[np.ndarray, "pictures"]
    """The class that is explained in each."""
    likeliest: Int64[np.ndarray, "pictures"]
    """The class that the network takes each for."""
    label: Int64[np.ndarray, "pictures"]
    """The true class, -1 if unknown."""
    score: Float32[np.ndarray, "pictures"]
    """Probability of the target."""
    metrics: tuple[str, ...]
    values: Float32[np.ndarray, "pictures methods metrics"]
    """NaN where a method has no answer, as the peak of a map with no positive evidence."""
    crops: UInt8[np.ndarray, "pictures methods s s 3"]
    """What stands where each map is highest."""
    elsewhere: UInt8[np.ndarray, "pictures methods s s 3"]
    """What stands at a random place of the same picture, to compare with."""
    boxed: Float32[np.ndarray, "pictures"]
    """Share of the picture that lies in boxes; NaN where none is marked."""
    box_hidden: Float32[np.ndarray, "pictures"]
    """Probability of the target with the boxes grey; NaN where none is marked."""
    other_hidden: Float32[np.ndarray, "pictures"]
    """The same with equal boxes elsewhere grey."""
    box_turned: Int64[np.ndarray, "pictures"]
    """The likeliest class with the boxes grey; -1 where none is marked."""
    pointing_random: float = float("nan")
    pointing_blob: float = float("nan")
    """How often a random place, and the middle, would have hit the boxes."""
    refused: Mapping[str, str] = field(default_factory=dict)

    def of(self, metric: str, method: str) -> Float32[np.ndarray, "pictures"]:
        """One measure of one method, picture by picture."""
        result: Float32[np.ndarray, "pictures"] = self.values[
            :, self.methods.index(method), self.metrics.index(metric)
        ]
        return result

    def shown(self, metric: str, method: str) -> Float32[np.ndarray, "n"]:
        """The same without the pictures that have no answer."""
        result = self.of(metric, method)
        known: Float32[np.ndarray, "n"] = result[~np.isnan(result)]
        return known
