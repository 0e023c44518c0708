"""How does a module that was made in Python become a network, and what pictures does it take?"""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from convscope.errors import ModelError
from convscope.models.network import Draft, Request
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
    weights = "as the module had them" if request.checkpoint is None else request.checkpoint.name
    return Draft(model, assumed(model), (), weights, request.checkpoint)


def assumed(model: object) -> Preprocess:
    """What to take for the preprocessing of a network that does not say.

    ImageNet's; in grey where the first convolution, as registered, takes one channel.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    takes = next((m.in_channels for m in modules if isinstance(m, nn.Conv2d)), 3)
    imagenet = Preprocess.imagenet().guessed()
    return imagenet.grey() if takes == 1 else imagenet
