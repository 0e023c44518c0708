"""Which pictures of a folder excite each feature map of a network most, and where?

One pass over the pictures, for all layers and maps at once, in the memory of one batch. The
answer does not depend on order, chunks or processes: pictures are computed in canonical batches
(batch number = picture number // size, unusable places blank, the last one filled up), as forward
passes of other batch sizes round differently; and entries are ordered by whole-number keys that
no two pictures share, as `torch.topk` breaks ties as it likes.
Source: Zeiler and Fergus 2014, figure 2 (the nine strongest activations of a map).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ModelError, UsageError
from convscope.lens.lens import Lens
from convscope.lens.twin import bare
from convscope.methods.ranking import Ranks, Slots, values
from convscope.network.arguments import FolderLike, Layers, Model, pictures_of, taking
from convscope.network.network import whole
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import recorded
from convscope.network.tuning import Tuning, Way, blank, require_tuning
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Picture, Pictures
from convscope.records.topk import LAST, NOBODY, TopK
from convscope.run import PLAIN, Run
from convscope.trace.layers import chosen_layers


@taking(folder=pictures_of)
@recorded
def topk(
    model: Model,
    folder: FolderLike,
    layers: Layers = None,
    *,
    preprocess: Preprocess | None = None,
    k: int = 9,
    batch: int | None = None,
    part: tuple[int, int] = (0, 1),
    tuning: Tuning | None = None,
    also: Callable[[Sequence[Picture]], object] | None = None,
    run: Run = PLAIN,
) -> TopK:
    """The k strongest distinct pictures of every feature map, with value and place.

    folder: opened, or its name. preprocess: by default that of the network, if it is one of
    `load`'s. layers: one or several; by default see `feature_layers`. batch: pictures computed
    together; by default that of `tuning`, or else `usual_batch`, the same on every machine. part:
    (i, n) looks only at every n-th batch from the i-th on; `TopK.merge` of all n parts is the
    whole. tuning: what `tune` chose for this machine; the same for all parts. also: looks at the
    same pictures: told those of each batch, framed (see `predict.Judge`). A picture's activation
    is its largest over all places; a map's NaNs never enter, and are counted; a unit of a fully
    connected layer is a map of one place. Unusable pictures are left out (`folder.skipped`) and
    their number is kept.

    Raises DataError D118 (too many unusable), D161 (none usable), UsageError U221 (k, batch or
    part), U376 (a module without preprocess), U377 (no folder), U401 (no tuning), ModelError
    M500, M501 (no convolution), M502, M506 (a layer without feature maps), M522 (it takes no such
    picture).
    """
    require_tuning(tuning)
    ready = whole(model).preprocess if preprocess is None else preprocess
    with opened(folder) as pictures:
        return _topk(bare(model), pictures, ready, layers, k, batch, part, tuning, also, run)


def _topk(
    model: nn.Module,
    folder: Pictures,
    preprocess: Preprocess,
    layers: Sequence[str] | str | None,
    k: int,
    batch: int | None,
    part: tuple[int, int],
    tuning: Tuning | None,
    also: Callable[[Sequence[Picture]], object] | None,
    run: Run,
) -> TopK:
    picture = blank(model, preprocess.shape)
    names = tuple(chosen_layers(model, layers, picture))
    if not names:
        raise ModelError("M501", "the network", "has no convolution to watch")
    shapes = _shapes(model, names, picture)
    way = Way(model, picture, names, tuning)
    size = way.batch if batch is None else batch
    _require(k >= 1 and size >= 1 and 0 <= part[0] < part[1], f"k {k}, batch {size}, part {part}")
    ranks = Ranks([shape[0] for shape in shapes], k, picture.device)
    edits = {name: ranks.look(layer) for layer, name in enumerate(names)}
    seen, mine = 0, [n for n in range(len(folder)) if n // size % part[1] == part[0]]
    batches = folder.batches(
        size,
        preprocess.framing,
        mine,
        aligned=True,
        may_be_empty=part[1] > 1,
        workers=way.workers,
        run=run,
    )
    with Lens(way.model, (), edits) as lens, torch.inference_mode(), way.running():
        for pictures in batches:
            ranks.begin(Slots.of(pictures, folder, size, picture.device))
            lens.reach(way.laid(preprocess.aligned(pictures, size)))
            if ranks.unseen:
                what = "did not run on every picture"
                raise ModelError("M502", names[ranks.unseen[0]], what)
            seen += len(pictures)
            if also is not None:
                also(pictures)
    ranks.settle()
    folder.check_bad()
    origin = {"method": "topk", "batch": size, "parts": [list(part)], **way.origin}
    return _record(names, shapes, ranks, seen, origin)


def _record(
    names: tuple[str, ...],
    shapes: Sequence[tuple[int, int, int]],
    ranks: Ranks,
    seen: int,
    origin: dict[str, object],
) -> TopK:
    key, place = ranks.key.cpu().numpy(), ranks.place.cpu().numpy()
    columns = np.repeat([shape[2] for shape in shapes], [shape[0] for shape in shapes])[:, None]
    used = key != NOBODY
    return TopK(
        layers=names,
        starts=np.cumsum([0, *(shape[0] for shape in shapes)], dtype=np.int64),
        value=np.where(used, values(ranks.key).cpu().numpy(), np.float32(-np.inf)),
        image=np.where(used, LAST - (key & LAST), -1),
        row=np.where(used, place // columns, 0).astype(np.int32),
        column=np.where(used, place % columns, 0).astype(np.int32),
        content=np.where(used, ranks.content.cpu().numpy(), 0),
        active=ranks.active.cpu().numpy(),
        invalid=ranks.invalid.cpu().numpy(),
        seen=seen,
        origin=origin,
    )


def _shapes(
    model: nn.Module, names: Sequence[str], blank: Float[Tensor, "1 c h w"]
) -> list[tuple[int, int, int]]:
    found = []
    with Lens(model, names) as lens, torch.inference_mode():
        lens.reach(blank)
        for name in names:
            shape = tuple(lens[name].shape[1:])
            if len(shape) not in (1, 3):
                raise ModelError("M506", name, f"puts out {shape}, which are no feature maps")
            found.append((shape[0], *(shape[1:] or (1, 1))))
    return found  # type: ignore[return-value]


def _require(fine: bool, given: str) -> None:
    if not fine:
        raise UsageError(
            "U221", given, "k and batch are at least 1, part (i, n) counts i from 0 below n"
        )
