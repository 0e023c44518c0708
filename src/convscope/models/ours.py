"""How are ZFNet and AlexNet built from their names in one line?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from convscope.errors import CheckpointError
from convscope.models import alexnet, zfnet
from convscope.models.network import Card, Draft, Request
from convscope.models.preprocess import Preprocess
from convscope.models.spec import TOWER_OPTIONS, options, split_classes
from convscope.models.tower import Tower, give_memory

OURS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "zfnet": (zfnet.zfnet, zfnet.SIZE),
    "alexnet": (alexnet.alexnet, alexnet.SIZE),
}


def from_ours(request: Request) -> Draft:
    """`zfnet` or `alexnet` with options.

    Raises UsageError U230 or U231 for an option, CheckpointError C410 for a file of another one.
    """
    head = request.spec.partition(":")[0]
    maker, size = OURS[head]
    wanted = options(request.rest, TOWER_OPTIONS)
    _check_card(head, wanted, request)
    init = None if request.checkpoint is not None else wanted.pop("init", "he")
    wanted.pop("init", None)
    model = maker(request.classes or 1000, init=init, seed=request.seed, **wanted)
    preprocess = Preprocess.imagenet(resize=round(size * 256 / 224), crop=size)
    if request.checkpoint is None:
        return Draft(model, preprocess)
    give_memory(model)
    return Draft(
        model,
        preprocess.guessed(),
        weights=request.checkpoint.name,
        checkpoint=request.checkpoint,
    )


def _check_card(head: str, wanted: dict[str, Any], request: Request) -> None:
    """A file of ours knows better than a list of differing layers what it belongs to."""
    card = None if request.checkpoint is None else Card.of(request.checkpoint)
    if card is None or request.checkpoint is None:
        return
    name, _, rest = card.spec.partition(":")
    shape = {key: value for key, value in wanted.items() if key != "init"}
    theirs = options(split_classes(rest)[0], TOWER_OPTIONS) if name in OURS else {}
    theirs.pop("init", None)
    if name != head or Tower(**theirs) != Tower(**shape):
        raise CheckpointError(
            "C410",
            request.checkpoint.name,
            f"belongs to {card.spec}, not to {request.spec}",
            next_step=f"name {card.spec}, or load the file by itself",
        )
