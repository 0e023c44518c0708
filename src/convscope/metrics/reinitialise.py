"""Reinitialise a copy of a network's weights, layer by layer from the top."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convscope.errors import ModelError
from convscope.foreign import TheirCode
from convscope.lens.twin import ShadowModel
from convscope.network.forward import surveyed

DRAWS = {
    *("bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm"),
    *("bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_"),
    *("random_", "uniform_", "trunc_normal_", "orthogonal_", "sparse_"),
    *("kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"),
}
"""What of torch draws random numbers, and can be told from where."""
ITSELF = "(the network)"
"""The name for weights that belong to no layer."""


class Seeded(TorchFunctionMode):
    """Within it random numbers come from a generator of its own, so that neither the user's nor
    another thread's are touched."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in DRAWS and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)


class Copied(TorchFunctionMode):
    """Within it also tensors with a history are copied, without it: what a network's last run left
    behind, as weight_norm's or activations that it keeps. copy.deepcopy refuses them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
        return memo[id(tensor)]


def randomised(
    model: nn.Module, images: Float[Tensor, "b c h w"], steps: int, seed: int
) -> Iterator[tuple[str, nn.Module]]:
    """The same copy of the network again and again, each time with more random weights; with the
    name of the layer down to which they are.

    Raises ModelError M526 (no weights), M527 (no copy can be made).
    """
    names = layers_down(model, images)
    if not names:
        raise ModelError("M526", "the network", "has no weights that could be made random")
    network = copied(model)
    modules, seeded = dict(network.named_modules()), Seeded(seed)
    count = min(steps, len(names))
    stops = [round(stop) for stop in np.linspace(len(names), 1, count)[::-1]]
    for start, stop in zip([0, *stops], stops, strict=False):
        for name in names[start:stop]:
            reinitialise(modules[name], seeded)
        yield names[stop - 1] or ITSELF, network


def layers_down(model: nn.Module, images: Float[Tensor, "b c h w"]) -> list[str]:
    """Modules with weights of their own, from the network's top to its bottom as it runs.

    One that is not seen to put out a tensor, as attention and what it holds, stands below the
    module that is registered next; "" is the network itself.
    """
    seen, _ = surveyed(model, images, lambda *_: None)
    ran = dict.fromkeys(name.partition("#")[0] for name, _ in reversed(seen))
    own = [name for name, module in ShadowModel(model).model.named_modules() if _own(module)]
    down = [name for name in ran if name in set(own)]
    place = 0
    for name in reversed(own):
        if name not in ran:
            down.insert(place, name)
        place = down.index(name) + 1
    return down


def _own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def copied(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model, in eval mode and without wrappers."""
    with torch.inference_mode(False), torch.enable_grad():
        twin = ShadowModel(model).model
        try:
            with TheirCode("M527", "the network"), Copied():
                return copy.deepcopy(twin)
        except ModelError as fault:
            what = f"cannot be copied, so its weights cannot be made random: {fault.what}"
            step = "leave out what cannot be copied, or this test"
            raise ModelError("M527", "the network", what, next_step=step) from fault.__cause__


def reinitialise(module: nn.Module, seeded: Seeded) -> None:
    """Draw a module's own weights anew: by its `reset_parameters`; what that does not change from
    a normal distribution of the same mean and spread."""
    own = list(module.parameters(recurse=False))
    before = [weight.detach().clone() for weight in own]
    reset = getattr(module, "reset_parameters", None)
    with torch.inference_mode(False), torch.no_grad(), seeded:
        if callable(reset) and not any(True for _ in module.children()):
            device = own[0].device
            module.to("cpu")  # where the same seed draws the same, whatever the device
            with TheirCode("M574", "the network"):
                reset()
            module.to(device)
        for weight, old in zip(own, before, strict=True):
            if torch.equal(weight, old):
                mean = float(old.float().mean())
                spread = float(old.float().std()) if old.numel() > 1 else abs(mean)
                weight.copy_(torch.randn(weight.shape) * spread + mean)
