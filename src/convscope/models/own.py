"""How does a module that was made in Python become a network, and what pictures does it take?"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from convscope.errors import ModelError, UsageError
from convscope.models.network import UNKNOWN, Draft, Request
from convscope.models.preprocess import Preprocess


def from_own(request: Request) -> Draft:
    """The module itself, as it is. Raises ModelError M526 if its weights are not there yet."""
    model = request.module
    assert model is not None
    if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        raise ModelError(
            "M526",
            request.spec,
            "has weights that only its first pass makes",
            next_step="run it once on a picture",
        )
    preprocess, note = assumed(model)
    weights = "as the module had them" if request.checkpoint is None else request.checkpoint.name
    return Draft(model, preprocess, (), weights, request.checkpoint, (note,))


def assumed(model: object) -> tuple[Preprocess, str]:
    """What to take for the preprocessing of a network that does not say, and how to tell that.

    ImageNet's; in grey where the first convolution, as registered, takes one channel.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    takes = next((m.in_channels for m in modules if isinstance(m, nn.Conv2d)), 3)
    preprocess = Preprocess.imagenet()
    preprocess, kind = (preprocess.grey(), ", in grey,") if takes == 1 else (preprocess, "")
    return preprocess, f"{UNKNOWN} for this network; ImageNet's{kind} was assumed"


def classes_asked(classes: int | Sequence[str] | None) -> tuple[int | None, tuple[str, ...]]:
    """Number and names of the classes, from what was given as `classes`. Raises UsageError U231."""
    if classes is None:
        return None, ()
    if isinstance(classes, int) and not isinstance(classes, bool) and classes > 0:
        return classes, ()
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        raise UsageError(
            "U231", f"classes={classes!r}", "is neither a whole number from 1 nor a list of names"
        )
    return len(classes) or None, tuple(map(str, classes))
