"""In which state was a network handed over, before anything was made ready?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

ACTS_OTHERWISE = ("BatchNorm", "InstanceNorm", "Dropout", "DropPath", "StochasticDepth")
"""Kinds of modules that compute something else in train mode, by parts of their names."""
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True)
class Delivered:
    """Modes and wrappers of a network as it was found."""

    modules: int = 0
    training: tuple[str, ...] = ()
    """Names of the modules in train mode; "" is the network itself."""
    acting: Mapping[str, int] = field(default_factory=dict)
    """Class → how many of the modules in train mode compute something else because of it."""
    wrappers: tuple[str, ...] = ()
    """What was put around the network, the outermost first, e.g. DataParallel."""

    @classmethod
    def of(cls, model: nn.Module) -> Delivered:
        """Look at a network. It is not touched."""
        inner, wrappers = unwrapped(model)
        named = list(inner.named_modules())
        training = [(name, module) for name, module in named if module.training]
        kinds = (type(module).__name__ for _, module in training)
        acting = Counter(kind for kind in kinds if any(part in kind for part in ACTS_OTHERWISE))
        names = tuple(name for name, _ in training)
        return cls(len(named), names, dict(acting), wrappers)


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The network inside of what DataParallel, DDP and torch.compile put around it, and these."""
    wrappers: list[str] = []
    while True:
        compiled = model._modules.get("_orig_mod")
        if isinstance(model, PARALLEL):
            wrappers.append(type(model).__name__)
            model = model.module
        elif compiled is not None:
            wrappers.append("torch.compile")
            model = compiled
        else:
            if getattr(model, "_compiled_call_impl", None) is not None:
                wrappers.append("torch.compile")
            return model, tuple(wrappers)
