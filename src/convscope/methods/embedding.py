"""What does a layer make of each picture of a folder, as one vector a picture?

One pass for all layers asked for, in the memory of one batch; rows go to disk as they come.
Batches are canonical (batch number = picture number // BATCH, unusable places blank), as forward
passes of other batch sizes round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from convscope.errors import ModelError
from convscope.lens.lens import Lens
from convscope.lens.twin import bare
from convscope.methods.embedding_store import Rows, keeping, kept, key_of
from convscope.methods.vectors import THUMB, Way, require_way, small_grey, told, vectors
from convscope.network.arguments import FolderLike, Layers, pictures_of, taking
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Picture, Pictures, contents
from convscope.records.embedding import Embedding
from convscope.run import PLAIN, Run
from convscope.trace.layers import stages

BATCH = 16
"""Pictures computed together: the largest output of a VGG for them is 205 MB."""
PIXELS = "pixels"
"""The layer below the first: the picture itself, small and grey."""


@taking(folder=pictures_of)
@recorded
def embedding(
    network: Network,
    folder: FolderLike,
    layers: Layers = None,
    *,
    vector: Way = "auto",
    cache: Path | str | None = None,
    run: Run = PLAIN,
) -> dict[str, Embedding]:
    """The features of layers for all usable pictures of a folder, by layer.

    layers: module names, or `pixels`; by default all `stages`. vector: how an output becomes a
    vector, see `vectors`. cache: a folder in which features are kept; those of the same weights,
    layer, pictures (names, sizes, times of change) and vector are read from there, not computed
    again. Without it all is in memory.

    Raises UsageError U376 (a bare module), U377 (no folder), U425 (vector), DataError D118 (too
    many unusable), D161 (none usable), ModelError M500, M502, M503, M520, M522 (as `Lens`), M600
    (features not finite), M601 (no features of single pictures), EnvironmentFault R602, R603.
    """
    require_way(vector)
    network = whole(network)
    with opened(folder) as pictures:
        names = chosen(network, layers)
        shapes = _shapes(network, names)
        plans = [
            _Plan(name, key_of(network, pictures, name, vector, BATCH), shapes[name], vector)
            for name in names
        ]
        place = None if cache is None else Path(cache)
        found = _kept(place, plans)
        missing = [plan for plan in plans if plan.layer not in found]
        if missing:
            found |= _computed(network, pictures, missing, place, run)
    return {name: found[name] for name in names}


def chosen(network: Network, layers: Sequence[str] | str | None) -> list[str]:
    """The layers named, each once; by default all `stages`."""
    if layers is None:
        return stages(network.model, _blank(network))
    return list(dict.fromkeys([layers] if isinstance(layers, str) else layers))


def default_layer(network: Network) -> str:
    """The last step before the one that gives the scores: the paper's layer 7."""
    names = chosen(whole(network), None)
    return names[-2] if len(names) > 1 else names[-1]


@dataclass(frozen=True)
class _Plan:
    """One layer that is to be computed."""

    layer: str
    key: str
    shape: tuple[int, ...]
    way: Way

    def of(self, output: Tensor) -> Float[Tensor, "b d"]:
        return small_grey(output) if self.layer == PIXELS else vectors(output, self.way)

    @property
    def vector(self) -> str:
        if self.layer == PIXELS:
            return f"grey, {THUMB} × {THUMB}, less its mean"
        return told(self.shape, self.way)


def _blank(network: Network, batch: int = 1) -> Float[Tensor, "b c h w"]:
    like = next(bare(network.model).parameters(), torch.empty(0))
    return like.new_zeros(batch, *network.preprocess.shape)


def _shapes(network: Network, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Of each layer's output for one picture; here unknown layers are refused."""
    blank = _blank(network, 2)
    taps = [name for name in names if name != PIXELS]
    found = {PIXELS: tuple(blank.shape[1:])}
    with Lens(network.model, taps) as lens, torch.inference_mode():
        if taps:
            lens(blank)
        for name in taps:
            shape = tuple(lens[name].shape)
            if len(shape) < 2 or shape[0] != 2:
                what = f"puts out {shape} for 2 pictures, which are no features of single pictures"
                raise ModelError("M601", name, what)
            found[name] = shape[1:]
    return found


def _kept(place: Path | None, plans: list[_Plan]) -> dict[str, Embedding]:
    return {} if place is None else kept(place, {plan.layer: plan.key for plan in plans})


def _computed(
    network: Network,
    folder: Pictures,
    plans: list[_Plan],
    place: Path | None,
    run: Run,
) -> dict[str, Embedding]:
    made: dict[str, Embedding] = {}

    def fill(places: Sequence[Path | None]) -> None:
        with ExitStack() as stack:
            rows = [stack.enter_context(Rows(where)) for where in places]
            used = _run(network, folder, plans, rows, run)
            for plan, sink, where in zip(plans, rows, places, strict=True):
                made[plan.layer] = _record(folder, plan, used, sink.array())
                if where is not None:
                    made[plan.layer].write(where)

    if place is None:
        fill([None] * len(plans))
        return made
    keeping([place / plan.key for plan in plans], fill)
    return made | _kept(place, plans)


def _run(
    network: Network,
    folder: Pictures,
    plans: list[_Plan],
    rows: list[Rows],
    run: Run,
) -> list[int]:
    """Fill the rows; the numbers of the pictures used."""
    seen: dict[str, Tensor] = {}
    edits = {plan.layer: _look(plan, seen) for plan in plans if plan.layer != PIXELS}
    used: list[int] = []
    like, preprocess = _blank(network), network.preprocess
    batches = folder.batches(BATCH, preprocess.framing, aligned=True, run=run)
    with Lens(network.model, (), edits) as lens, torch.inference_mode():
        for pictures in batches:
            images = preprocess.aligned(pictures, BATCH).to(like)
            if edits:
                lens(images)
            here = [picture.number % BATCH for picture in pictures]
            for plan, sink in zip(plans, rows, strict=True):
                values = plan.of(images) if plan.layer == PIXELS else seen[plan.layer]
                sink.add(_finite(values[here].cpu().numpy(), plan.layer, pictures))
            used += [picture.number for picture in pictures]
    folder.check_bad()
    return used


def _look(plan: _Plan, seen: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Take the vectors while the output is in hand; a later layer may work in place on it."""

    def look(output: Tensor) -> Tensor:
        made = plan.of(output)
        seen[plan.layer] = made.clone() if made.data_ptr() == output.data_ptr() else made
        return output

    return look


def _finite(
    values: Float32[np.ndarray, "b d"], layer: str, pictures: list[Picture]
) -> Float32[np.ndarray, "b d"]:
    wrong = ~np.isfinite(values).all(1)
    if wrong.any():
        name = pictures[int(wrong.argmax())].name
        raise ModelError("M600", layer, f"its features of {name} are not finite")
    return values


def _record(
    folder: Pictures,
    plan: _Plan,
    used: list[int],
    values: Float32[np.ndarray, "n d"],
) -> Embedding:
    labels = [folder.labels[number] for number in used]
    digests = [np.frombuffer(folder.digest(number), np.uint8) for number in used]
    return Embedding(
        layer=plan.layer,
        values=values,
        shape=plan.shape,
        vector=plan.vector,
        number=np.array(used, np.int64),
        name=tuple(folder.names[number] for number in used),
        label=np.array([-1 if label is None else label for label in labels], np.int64),
        classes=folder.classes,
        digest=np.stack(digests),
        origin={
            "method": "embedding",
            "pictures": str(folder.root),
            "contents_sha256": contents({number: folder.digest(number) for number in used}),
            "batch": BATCH,
        },
    )
