"""Download a network's own weights, checked by their hash."""

from __future__ import annotations

from pathlib import Path

from convscope.core.errors import EnvironmentFault
from convscope.pictures.archive.download import Progress, Source, fetch


def fetched_weights(
    spec: str, url: str, target: Path, *, sha256: str = "", progress: Progress | None = None
) -> Path:
    """Download to `target`, unless it is there already and right; a broken download goes on where
    it stopped.

    spec: the network, as `torchvision:resnet18`. sha256: how the file's hash begins, if it is
    known. Raises EnvironmentFault R620 if they cannot be had, R621 if the server sent another file.
    """
    source = Source(url, None, sha256)
    try:
        if target.is_file():
            source.check(target)
            return target
    except EnvironmentFault:
        pass  # a damaged copy
    try:
        fetch(source, target, progress=progress)
    except EnvironmentFault as fault:
        if fault.code == "R613":
            what = f"the server sent another file: it {fault.what}"
            step = "try again later, or download it another way and pass it as checkpoint"
            raise EnvironmentFault("R621", url, what, next_step=step) from fault
        if fault.code in ("R610", "R611", "R612"):
            raise no_weights(spec, f"its weights cannot be had from {url}: {fault.what}") from fault
        raise
    return target


def no_weights(spec: str, what: str) -> EnvironmentFault:
    step = f"pass a checkpoint, or write {spec}:weights=none for random weights"
    return EnvironmentFault("R620", spec, what, next_step=step)
