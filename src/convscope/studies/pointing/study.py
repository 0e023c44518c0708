"""Which method points at the thing most often, where boxes say where the thing is?

Source: Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop", §4.1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convscope.attribution.base import Method
from convscope.attribution.registry import chosen, described
from convscope.core.errors import ConvscopeError, DataError
from convscope.core.run import PLAIN, Run
from convscope.core.units import Box
from convscope.metrics.faithfulness import blob
from convscope.metrics.localisation import MARGIN, energy_inside, pointing, share_inside
from convscope.network.arguments import taking
from convscope.network.network import Network, prepared
from convscope.network.outputs import Target, understood
from convscope.network.provenance import recorded
from convscope.pictures.annotations import BOXES_FILE, read_boxes
from convscope.pictures.pictures import Picture, Pictures
from convscope.scale.rows import RowJob, digest
from convscope.studies.base import Ask, arguments
from convscope.studies.explain.study import probabilities, target_index
from convscope.studies.pointing import Options
from convscope.studies.pointing.record import PointingGame


@taking()
@recorded
def pointing_game(
    network: Network,
    folder: Pictures,
    boxes: Mapping[str, Sequence[Box]],
    methods: Mapping[str, Method] | None = None,
    *,
    target: Target | None = None,
    margin: int = MARGIN,
    run: Run = PLAIN,
) -> PointingGame:
    """Make every method's map of every picture that has boxes, and see where it peaks.

    boxes: by picture name, in the pictures' own pixels; those that the network's framing cuts
    off entirely leave a picture out. target: one class for all pictures, the likeliest of each
    without. margin: in pixels of the network's input. A method that fails on a picture as it is
    not defined for the network is left out of all.

    Raises DataError D196 (no picture has boxes), UsageError U352, U353 (target).
    """
    network, methods = understood(network), dict(methods or chosen(["all"]))
    numbers = [n for n, name in enumerate(folder.names) if boxes.get(name)]
    job = PointingJob(
        network, methods, {folder.names[n]: boxes[folder.names[n]] for n in numbers}, target, margin
    )
    rows = [row for row in job.rows(folder, run, numbers) if row is not None]
    if not rows:
        step = "name pictures in the file of boxes as they are named in the folder"
        raise DataError("D196", folder.place, "no usable picture has boxes", next_step=step)
    refused: dict[str, str] = {}
    for row in rows:
        refused = {**row.refused, **refused}
    return _gathered(folder, rows, [m for m in methods if m not in refused], refused, margin)


@dataclass(frozen=True)
class _Row:
    """What one picture says."""

    name: str
    of: dict[str, list[float]]
    """Of each method: the marks of its map, and seconds."""
    chance: list[float]
    middle: list[float]
    refused: dict[str, str]


class PointingJob(RowJob[_Row | None]):
    """Every method's map of each picture; None for one whose boxes are cut off."""

    name, kind, may_be_empty = "pointing", _Row | None, True

    def __init__(
        self,
        network: Network,
        methods: Mapping[str, Method],
        boxes: Mapping[str, Sequence[Box]],
        target: Target | None,
        margin: int,
    ) -> None:
        facts = {
            **network.facts,
            "methods": {name: described(one) for name, one in methods.items()},
            "boxes": digest(sorted(boxes.items())),
            "target": target if target is None else str(target),
            "margin": margin,
        }
        super().__init__(facts)
        self.network, self.methods, self.boxes = network, methods, boxes
        self.target, self.margin = target, margin

    def row(self, picture: Picture) -> _Row | None:
        network, framing, margin = self.network, self.network.preprocess.framing, self.margin
        pixels = picture.within(framing).pixels
        size, whole = pixels.shape[:2], picture.pixels.shape[:2]
        boxes = [framing.box(box, whole).clipped(*size) for box in self.boxes[picture.name]]
        boxes = [box for box in boxes if box.height > 0 and box.width > 0]
        if not boxes:
            return None
        grown = [
            Box(b.top - margin, b.left - margin, b.bottom + margin, b.right + margin) for b in boxes
        ]
        image = prepared(network.model, network.preprocess.tensor(pixels))
        index = target_index(network, probabilities(network, image[0]), self.target)
        of: dict[str, list[float]] = {}
        refused: dict[str, str] = {}
        for name, method in self.methods.items():
            start = time.perf_counter()
            try:
                (result,) = method(network.model, image, target=index)
            except ConvscopeError as fault:
                refused[name] = f"{fault.subject}: {fault.what}"
                continue
            of[name] = [*self._marks(result.values, boxes), time.perf_counter() - start]
        chance = [share_inside(size, boxes), share_inside(size, grown)]
        return _Row(picture.name, of, chance, self._marks(blob(size), boxes), refused)

    def _marks(self, values: np.ndarray, boxes: Sequence[Box]) -> list[float]:
        return [
            pointing(values, boxes, margin=0),
            pointing(values, boxes, margin=self.margin),
            energy_inside(values, boxes),
        ]


def _gathered(
    folder: Pictures,
    rows: list[_Row],
    methods: list[str],
    refused: Mapping[str, str],
    margin: int,
) -> PointingGame:
    table = np.array([[row.of[name] for name in methods] for row in rows], np.float32)
    table = table.reshape(len(rows), len(methods), 4)
    chance = np.array([row.chance for row in rows], np.float32)
    middle = np.array([row.middle for row in rows], np.float32)
    return PointingGame(
        methods=tuple(methods),
        pictures=tuple(row.name for row in rows),
        exact=table[..., 0],
        near=table[..., 1],
        energy=table[..., 2],
        seconds=table[..., 3],
        boxed=chance[:, 0],
        boxed_near=chance[:, 1],
        middle=middle[:, 0],
        middle_near=middle[:, 1],
        middle_energy=middle[:, 2],
        margin=margin,
        refused=dict(refused),
        origin={
            "method": "pointing game",
            "pictures": folder.place,
        },
    )


def from_command(ask: Ask, options: Options) -> PointingGame:
    names = [name.strip() for name in options.method.split(",") if name.strip()]
    methods = chosen(names or ["all"], options.layer)
    with ask.pictures() as folder:
        boxes = read_boxes(options.boxes or folder.beside(BOXES_FILE))
        run = ask.run("pointing")
        return pointing_game(ask.network(), folder, boxes, methods, **arguments(options, run))
