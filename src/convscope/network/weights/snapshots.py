"""Checkpoints of several epochs of one training, in a folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from convscope.core.errors import CheckpointError, DataError, printable
from convscope.network.network import Card
from convscope.network.weights.checkpoint import open_checkpoint

KINDS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
KEPT = "epochs"
"""In a run's folder: the epochs that `train(keep=…)` kept."""
MANY = 20
"""Epochs that a message names one by one."""
LIGHTNING = re.compile(r"epoch=(\d+)")
"""Lightning counts from 0: `epoch=0` was kept after the first epoch."""
NAMED = re.compile(r"(?:^|[^a-z])(?:epoch|ep)[-_. ]?(\d+)", re.IGNORECASE)
NUMBER = re.compile(r"(?:(?:checkpoint|ckpt|model|net|weights|e)[-_.]?)?(\d+)", re.IGNORECASE)


def snapshots(folder: Path | str) -> dict[int, Path]:
    """Epoch → file, ascending: of a run's folder what `keep` kept, of any other its checkpoints.

    The epoch is taken from the name (`epoch-010.safetensors`, `epoch_10.pt`, `10.pth`,
    Lightning's `epoch=9-step=420.ckpt`), or else from what convscope wrote into the file. Files
    of no known epoch, such as `best.pt`, are left out.

    Raises DataError D190 no checkpoints there, D191 of none the epoch is known, D192 two of one
    epoch; CheckpointError C440 no folder.
    """
    place = Path(folder)
    if not place.is_dir():
        what = "is no folder, so it holds no checkpoints of several epochs"
        raise CheckpointError("C440", str(folder), what, next_step="name the folder they are in")
    is_run = (place / "run.json").is_file()
    inside = place / KEPT if is_run or (place / KEPT).is_dir() else place
    files = sorted(path for path in _listed(inside) if path.suffix in KINDS and path.is_file())
    if not files:
        what = "this run kept no epochs" if is_run else "holds no checkpoints"
        step = "train with --keep 1,2,5,10" if is_run else f"they end in {', '.join(KINDS)}"
        raise DataError("D190", str(folder), what, next_step=step)
    return _by_epoch(files, str(folder))


def chosen(
    there: Mapping[int, Path], epochs: Sequence[int] | None, usual: Collection[int], folder: str
) -> list[int]:
    """Of the epochs there those asked for; if none are (None), the usual ones and the last.

    Raises DataError D193 if one asked for is not there, D194 if they are fewer than two.
    """
    if epochs is None:
        result = sorted({epoch for epoch in there if epoch in usual} | {max(there)})
        result = result if len(result) > 2 else sorted(there)
    else:
        result = sorted(set(epochs))
        missing = [str(epoch) for epoch in result if epoch not in there]
        if missing:
            names = [str(epoch) for epoch in sorted(there)]
            known = names if len(names) <= MANY else [*names[:3], "…", names[-1]]
            what = f"has no checkpoint of epoch {', '.join(missing)}; it has {', '.join(known)}"
            raise DataError("D193", folder, what, next_step="name epochs from these")
    if len(result) < 2:
        what = f"epoch {result[0]} alone cannot be compared" if result else "no epoch is named"
        raise DataError("D194", folder, what, next_step="give two epochs or more")
    return result


def epoch_named(name: str) -> int | None:
    """The epoch that a file's name tells."""
    if counted := LIGHTNING.search(name):
        return int(counted[1]) + 1
    if named := NAMED.search(name):
        return int(named[1])
    alone = NUMBER.fullmatch(Path(name).stem)
    return int(alone[1]) if alone else None


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _by_epoch(files: Sequence[Path], folder: str) -> dict[int, Path]:
    result: dict[int, Path] = {}
    for path in files:
        epoch = epoch_named(path.name)
        epoch = _epoch_inside(path) if epoch is None else epoch
        if epoch is None:
            continue
        if epoch in result:
            what = f"both {result[epoch].name} and {path.name} are of epoch {epoch}"
            raise DataError("D192", folder, printable(what), next_step="move one away")
        result[epoch] = path
    if not result:
        names = printable(", ".join(path.name for path in files[:4]))
        what = f"no file's name tells its epoch: {names}"
        raise DataError("D191", folder, what, next_step="name them as epoch-010.safetensors")
    return dict(sorted(result.items()))


def _epoch_inside(path: Path) -> int | None:
    """What convscope wrote into a file, if it did."""
    if path.suffix != ".safetensors":
        return None
    card = Card.of(open_checkpoint(path))
    epoch = None if card is None else card.more.get("epoch")
    return epoch if isinstance(epoch, int) else None
