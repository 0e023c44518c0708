"""What do single pictures' answers without each map add up to?"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from convscope.methods.paired import sign_test


@dataclass(frozen=True)
class Answers:
    """One picture, one layer: ln p of all classes, with all maps and without each."""

    base: Float64[np.ndarray, "classes"]
    maps: Int64[np.ndarray, "n"]
    """Those without which anything changes."""
    without: Float64[np.ndarray, "n classes"]
    count: int
    """Maps of the layer."""


@dataclass
class Tally:
    """Sums over pictures, map by map."""

    pictures: int = 0
    right: int = 0
    loss: float = 0.0
    probability: float = 0.0
    sums: dict[str, Float64[np.ndarray, "maps"]] = field(default_factory=dict)
    by_class: dict[int, Float64[np.ndarray, "maps"]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, label: int, found: Answers) -> None:
        """label: the picture's true class."""
        if not self.sums:
            names = ("rise", "squares", "probability", "lost", "gained", "changed")
            self.sums = {name: np.zeros(found.count) for name in names}
        self.pictures += 1
        self.counts[label] = self.counts.get(label, 0) + 1
        base, without = float(found.base[label]), found.without[:, label]
        right = int(found.base.argmax()) == label
        self.right += right
        self.loss -= base
        self.probability += np.exp(base)
        still = found.without.argmax(1) == label
        parts = {
            "rise": base - without,
            "squares": (base - without) ** 2,
            "probability": np.exp(without) - np.exp(base),
            "lost": ~still & right,
            "gained": still & (not right),
            "changed": np.ones(len(without)),
        }
        for name, values in parts.items():
            self.sums[name][found.maps] += values
        own = self.by_class.setdefault(label, np.zeros(found.count))
        own[found.maps] += parts["rise"]

    def numbers(self) -> dict[str, np.ndarray]:
        """The record's arrays over these maps. The standard error is that of a mean of paired
        differences."""
        many, sums = self.pictures, self.sums
        rise = sums["rise"] / many
        variance = np.maximum(sums["squares"] / many - rise**2, 0) * many / max(1, many - 1)
        lost, gained = (np.asarray(sums[name], np.int64) for name in ("lost", "gained"))
        pairs = zip(lost.tolist(), gained.tolist(), strict=True)
        return {
            "map": np.arange(len(rise)),
            "accuracy": (self.right + gained - lost) / many,
            "lost": lost,
            "gained": gained,
            "p": np.array([sign_test(*pair) for pair in pairs]),
            "rise": rise,
            "noise": np.sqrt(variance / many),
            "probability": (self.probability + sums["probability"]) / many,
            "by_class": np.stack(
                [self.by_class[k] / self.counts[k] for k in sorted(self.counts)], 1
            ),
            "changed": np.asarray(sums["changed"], np.int64),
        }
