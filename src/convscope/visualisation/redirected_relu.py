"""Redirected ReLU gradients: a way to a picture that excites a unit while the unit is silent.

A rectifier that lets nothing through sends no gradient back, so a silent unit does not say what
would excite it. Under `RedirectedReLU` closed rectifiers send back the part of a signal that asks
for more, and open ones all of it; so the way leads to where the unit opens, if there is one.
Source: the code published with Olah, Mordvintsev and Schubert 2017. There all closed places of a
map count alike; here the nearer one is to opening the more it counts, as what is good for all
places at once is a flat picture, which excites few units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convscope.trace.backward_rule import Masks, recognise
from convscope.trace.operations import name_of


class RedirectedReLU(TorchFunctionMode):
    """A context in which closed rectifiers send back what would open them.

    Values on the way up stay the same. A rectifier in place whose result the network does not
    take is left as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._masks = Masks()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        found = recognise(name, args, kwargs, self._masks)
        if found is None or not found.x.requires_grad:
            result = func(*args, **kwargs)
            self._masks.note(name, args, result)
            return result
        below = found.x.clone()  # the call may be in place
        above = func(*args, **kwargs)
        closed = below.masked_fill(above > 0, 0)
        near = _nearness(below.detach())
        closed.register_hook(lambda signal: signal.relu() * near)  # type: ignore[no-untyped-call]
        return above + (closed - closed.detach())


def _nearness(below: Tensor) -> Tensor:
    """1 where a map comes nearest to opening, e times less with each standard deviation less."""
    if below.dim() != 4:
        return torch.ones_like(below)
    spread = below.std((2, 3), keepdim=True, correction=0)
    short = below - below.amax((2, 3), keepdim=True)
    return torch.exp(short / spread.clamp_min(torch.finfo(below.dtype).tiny))
