"""How many pictures to compute together: sizes of a network's outputs, and of its weights."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.lens.hooks import tensors_in
from convscope.lens.lens import HOOK
from convscope.lens.twin import ShadowModel

LARGEST, LARGEST_ELSEWHERE = 24_000_000, 1 << 30
"""Bytes of the largest output of a batch, on a CPU and on an accelerator. Above some 30 MB the
allocator maps, faults and clears new pages at every call: SqueezeNet then takes 2.6 times as long.
An accelerator keeps its memory, and wants much work at a time."""
MOST, MOST_ELSEWHERE = 64, 256


@dataclass(frozen=True)
class Sizes:
    """Bytes, for one picture where they grow with the number of pictures."""

    largest: int
    """Of the largest output of any module, or of the input if that is larger."""
    live: int
    """Most that inputs and outputs take up at one time."""
    weights: int


def sizes(model: nn.Module, picture: Float[Tensor, "1 c h w"]) -> Sizes:
    """By one forward pass. Raises as `ShadowModel`, and ModelError M522 for such a picture."""
    shadow = ShadowModel(model)
    seen = _Seen(picture)
    for module in shadow.model.modules():
        if not any(True for _ in module.children()):
            module._forward_hooks[HOOK] = seen
    with torch.inference_mode():
        shadow.run(picture)
    weights = [*model.parameters(), *model.buffers()]
    return Sizes(seen.largest, seen.live, sum(w.nbytes for w in weights))


class _Seen:
    """A hook that counts what is alive whenever a module has run."""

    def __init__(self, picture: Tensor) -> None:
        self.largest = self.live = picture.nbytes
        self._alive = [(weakref.ref(picture), picture.data_ptr(), picture.nbytes)]

    def __call__(self, _: nn.Module, inputs: Any, output: Any) -> None:
        for value in (*tensors_in(inputs), *tensors_in(output)):
            self._alive.append((weakref.ref(value), value.data_ptr(), value.nbytes))
            self.largest = max(self.largest, value.nbytes)
        self._alive = [entry for entry in self._alive if entry[0]() is not None]
        places = {place: size for _, place, size in self._alive}
        self.live = max(self.live, sum(places.values()))


def usual_batch(model: nn.Module, picture: Float[Tensor, "1 c h w"]) -> int:
    """How many pictures to compute together where nothing was measured: the same on every machine.

    The largest power of two, at most 64, with which no output of a module exceeds 24 MB; on an
    accelerator 256 and 1 GB.
    """
    return fitting(sizes(model, picture).largest, picture.device)


def fitting(largest: int, device: torch.device) -> int:
    """`usual_batch` for a largest output of so many bytes a picture."""
    here = device.type == "cpu"
    most, room = (MOST, LARGEST) if here else (MOST_ELSEWHERE, LARGEST_ELSEWHERE)
    return 1 << max(0, min(most, room // max(largest, 1)).bit_length() - 1)
