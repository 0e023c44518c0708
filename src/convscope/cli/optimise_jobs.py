"""Which pictures does a command line of `convscope optimise` ask for?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convscope.cli.progress import progress
from convscope.errors import UsageError

if TYPE_CHECKING:
    from convscope.cli.options import Reading
    from convscope.network.network import Network
    from convscope.pictures.pictures import Folder
    from convscope.records.optimise import OptimisedPicture


@dataclass(frozen=True)
class Job:
    """One picture to make."""

    name: str
    make: Callable[..., OptimisedPicture]
    strength: Callable[[Any], Sequence[float]] | None = None
    """From preprocessed pictures to what is made large, where photographs can be measured."""

    @property
    def file_name(self) -> str:
        return re.sub(r"[^\w.]+", "-", self.name).strip("-.") or "picture"


@dataclass(frozen=True)
class Wish:
    """What was asked for."""

    units: Sequence[str]
    classes: Sequence[str]
    invert: Path | None
    dream: Path | None
    layers: Sequence[str]

    def check(self) -> None:
        """Raises UsageError U368 unless there is something to do, and layers where they count."""
        if not (self.units or self.classes or self.invert or self.dream):
            step = "give --unit, --class, --invert or --dream"
            raise UsageError("U368", "", "there is nothing to make a picture of", next_step=step)
        if bool(self.invert or self.dream) != bool(self.layers):
            what = "is for --invert and --dream, which need it"
            raise UsageError("U368", "--layer", what, next_step="`convscope layers` lists names")

    def jobs(self, network: Network, over: str, reading: Reading) -> list[Job]:
        """Units, then classes, then inversions, then dreams."""
        return [
            *(_unit(network, one, over) for one in self.units),
            *(_class(network, one) for one in self.classes),
            *self._of_photographs(network, reading),
        ]

    def _of_photographs(self, network: Network, reading: Reading) -> list[Job]:
        from convscope.methods.optimise_dream import deep_dream
        from convscope.methods.optimise_invert import invert

        jobs: list[Job] = []
        kinds = (("inverted", invert, self.invert), ("dream", deep_dream, self.dream))
        for word, function, path in kinds:
            if path is not None:
                made = partial(function, network, _photograph(network, path, reading))
                jobs += [Job(f"{word} {one}", partial(made, one)) for one in self.layers]
        return jobs


def best_natural(network: Network, jobs: Sequence[Job], pictures: Folder | None) -> list[float]:
    """The largest strength among photographs for each job; NaN where none is measured."""
    best = [math.nan] * len(jobs)
    if pictures is None:
        return best
    with pictures as folder, progress("photographs") as tick:
        for (picture,) in folder.batches(1, network.preprocess.framing, progress=tick):
            images = network.preprocess.tensor(picture.pixels)[None]
            for place, job in enumerate(jobs):
                if job.strength is not None:
                    best[place] = max(job.strength(images)[0], best[place])  # NaN stays last
    return best


def _unit(network: Network, unit: str, over: str) -> Job:
    from convscope.methods.optimise import activation_maximisation, unit_values

    make = partial(activation_maximisation, network, unit, over=over)
    return Job(unit, make, partial(unit_values, network, unit, over=over))


def _class(network: Network, name: str) -> Job:
    from convscope.methods.optimise import class_image, class_values

    target = int(name) if name.isdecimal() and name not in network.classes else name
    make = partial(class_image, network, target)
    if isinstance(target, int) and target < len(network.classes):
        name = network.classes[target]
    return Job(name, make, partial(class_values, network, target))


def _photograph(network: Network, path: Path, reading: Reading) -> Any:
    ready = network.preprocess
    return ready.tensor(reading.one(path, ready.framing).pixels)
