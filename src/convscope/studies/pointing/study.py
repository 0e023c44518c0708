"""Which method points at the thing most often, where boxes say where the thing is?

Source: Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop", §4.1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from convscope.attribution.base import Method
from convscope.attribution.registry import chosen
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
    rows, refused = [], dict[str, str]()
    batches = folder.batches(1, None, numbers, may_be_empty=True, run=run)
    for (picture,) in batches:
        row = _row(
            network, picture, boxes[picture.name], methods, target, margin=margin, refused=refused
        )
        if row is not None:
            rows.append(row)
    if not rows:
        step = "name pictures in the file of boxes as they are named in the folder"
        raise DataError("D196", folder.place, "no usable picture has boxes", next_step=step)
    return _gathered(folder, rows, [m for m in methods if m not in refused], refused, margin)


class _Row:
    """What one picture says."""

    def __init__(self, name: str, size: tuple[int, int], boxes: Sequence[Box], margin: int) -> None:
        self.name, self.size, self.boxes, self.margin = name, size, boxes, margin
        self.of: dict[str, tuple[float, float, float, float]] = {}
        grown = [Box(b.top - margin, b.left - margin, b.bottom + margin, b.right + margin)
                 for b in boxes]  # fmt: skip
        self.chance = share_inside(size, boxes), share_inside(size, grown)
        self.middle = self.marks(blob(size))

    def marks(self, values: np.ndarray) -> tuple[float, float, float]:
        return (
            pointing(values, self.boxes, margin=0),
            pointing(values, self.boxes, margin=self.margin),
            energy_inside(values, self.boxes),
        )


def _row(
    network: Network,
    picture: Picture,
    boxes: Sequence[Box],
    methods: Mapping[str, Method],
    target: Target | None,
    *,
    margin: int,
    refused: dict[str, str],
) -> _Row | None:
    framing = network.preprocess.framing
    pixels = picture.within(framing).pixels
    height, width = pixels.shape[0], pixels.shape[1]
    whole = (picture.pixels.shape[0], picture.pixels.shape[1])
    placed = [framing.box(box, whole).clipped(height, width) for box in boxes]
    placed = [box for box in placed if box.height > 0 and box.width > 0]
    if not placed:
        return None
    row = _Row(picture.name, (height, width), placed, margin)
    image = prepared(network.model, network.preprocess.tensor(pixels))
    share = probabilities(network, image[0])
    index = target_index(network, share, target)
    for name, method in methods.items():
        if name in refused:
            continue
        start = time.perf_counter()
        try:
            (result,) = method(network.model, image, target=index)
        except ConvscopeError as fault:
            refused[name] = f"{fault.subject}: {fault.what}"
            continue
        row.of[name] = (*row.marks(result.values), time.perf_counter() - start)
    return row


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
        tick = ask.progress("pointing")
        return pointing_game(ask.network(), folder, boxes, methods, **arguments(options, tick))
