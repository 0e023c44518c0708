"""Which modules run, in which order, and what does each put out?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from convscope.lens.lens import HOOK
from convscope.lens.twin import Twin, is_scripted

T = TypeVar("T")
IDLE = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
)
"""Layers that hand on the numbers that they are given."""


def survey(
    model: nn.Module, images: Tensor, see: Callable[[nn.Module, Tensor], T]
) -> tuple[list[tuple[str, T]], Any]:
    """Run the network once without gradients and let `see` look at what each module puts out.

    `see` gets the module (do not change it) and its output, if that is one tensor, just when it
    is put out; what it returns is listed by the layer's name in the order of completion, so that
    a block comes after its parts. A module that runs several times is named `relu#1`, `relu#2`.
    Returns the list and the network's output.
    """
    twin = Twin(model)
    seen: list[tuple[nn.Module, T]] = []

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((module, see(module, output)))

    names = {module: name for name, module in reversed(list(twin.model.named_modules())) if name}
    for module in names:
        if not is_scripted(module):
            module._forward_hooks[HOOK] = look
    with torch.no_grad():
        output = twin.run(images.clone())  # a network may work in place on what it is given
    order = _numbered([names[module] for module, _ in seen])
    return list(zip(order, (value for _, value in seen), strict=True)), output


def _numbered(met: list[Any]) -> list[str]:
    calls, so_far = Counter(met), Counter[Hashable]()
    numbered = []
    for name in met:
        so_far[name] += 1
        numbered.append(f"{name}#{so_far[name]}" if calls[name] > 1 else name)
    return numbered
