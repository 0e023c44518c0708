"""Which calls does a network make of one picture, in which order, and with which weights?

Written down as the network runs (a thread's own function mode, as in `tail.py`), not by tracing
its code: torch.fx replaces `nn.Module.__call__` for all threads while it traces. In-place calls
are told apart from others, so that each value has one maker. What cannot be written down exactly
is said in `obstacle`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from convscope.errors import ModelError
from convscope.lens.lens import Lens, only_scores
from convscope.lens.spans import tensors_in
from convscope.lens.step import Slot, Step
from convscope.lens.tail import LOOKS, once
from convscope.lens.twin import Twin

PICTURE = 0
"""The picture's slot."""


class Recording(TorchFunctionMode):
    """The calls that depend on the picture, each result in a slot of its own."""

    def __init__(self, picture: Tensor, constants: Sequence[Tensor]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.shapes: dict[int, tuple[int, ...]] = {PICTURE: tuple(picture.shape)}
        self.output = PICTURE
        self.layers: dict[str, int] = {}
        """Slots of what the watched layers put out."""
        self.obstacle = ""
        """Why the calls cannot be made again for other pictures, if they cannot."""
        self.alone = False
        """Whether pictures of one batch would influence each other."""
        self._slots = {id(picture): PICTURE}
        self._made: dict[int, tuple[Tensor, int]] = {PICTURE: (picture, _version(picture))}
        self._constants = {id(tensor) for tensor in constants}
        self._alive: list[Any] = [picture, *constants]
        self._stale: set[int] = set()
        self._sharing: dict[int, set[int]] = {_storage(picture): {id(picture)}}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = tree_map_only(Tensor, self._named, (args, kwargs))
        takes = any(isinstance(leaf, Slot) for leaf in tree_leaves(named))
        result = func(*args, **kwargs)
        found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._alive += found
        name = str(getattr(func, "__name__", func))
        cast = name in CASTS and isinstance(args[0], Tensor) and id(args[0]) in self._constants
        if not takes or name in EMPTY or cast:
            self._constants.update(id(tensor) for tensor in found)
        elif found:
            self._note(Step(func, named[0], named[1], gives=()), args, found)
        elif name not in LOOKS:
            self.alone = True
            self._refuse(f"{name} reads or writes single values of a tensor")
        return result

    def _note(self, step: Step, args: Sequence[Any], found: Sequence[Tensor]) -> None:
        if "out" in step.kwargs:
            self._refuse(f"{step.name} writes into a tensor that it is given")
        if step.name in NORMS and step.option(5, "training", False):
            self.alone = True
            self._refuse("normalisation by the statistics of the batch")
        if self._counts(step.name, args):
            self.alone = True
            self._refuse(f"{step.name} gives as many numbers as the picture has it")
        if step.name in DROPOUTS and step.option(2, "training", True):
            self._refuse(f"{step.name} is at work, by chance")
        for tensor in found:
            if args and tensor is args[0]:
                self._stale |= self._sharing.get(_storage(tensor), set()) - {id(tensor)}
        self.steps.append(replace(step, gives=tuple(map(self._give, found))))

    def _counts(self, name: str, args: Sequence[Any]) -> bool:
        """Does the size of the result depend on numbers that depend on the picture?"""
        if name in ("__getitem__", "repeat_interleave"):
            chosen = [leaf for leaf in tree_leaves(args[1:]) if id(leaf) in self._slots]
            masks = (torch.bool, torch.uint8)
            return any(name != "__getitem__" or leaf.dtype in masks for leaf in chosen)
        return name in COUNTING or (name == "where" and len(args) == 1)

    def _give(self, tensor: Tensor) -> int:
        number = len(self.shapes)
        self.shapes[number] = tuple(tensor.shape)
        self._slots[id(tensor)] = number
        self._sharing.setdefault(_storage(tensor), set()).add(id(tensor))
        self._made[number] = (tensor, _version(tensor))
        return number

    def values(self, slots: Iterable[int]) -> dict[int, Tensor] | None:
        """What these slots held; None if one of them may have been overwritten since."""
        found = {slot: self._made[slot] for slot in slots}
        if any(version < 0 or _version(tensor) != version for tensor, version in found.values()):
            return None
        return {slot: tensor for slot, (tensor, _) in found.items()}

    def _named(self, tensor: Tensor) -> Any:
        """A slot for what depends on the picture, the tensor itself for anything else."""
        if id(tensor) in self._stale:
            self._refuse("a tensor is overwritten under another name")
        if id(tensor) in self._slots:
            return Slot(self._slots[id(tensor)])
        if id(tensor) not in self._constants:
            self._refuse("a call on the way is hidden from torch's function mode")
        return tensor

    def _refuse(self, why: str) -> None:
        self.obstacle = self.obstacle or why

    def watch(self, layer: str, output: Tensor) -> Tensor:
        self.layers[layer] = self.slot(output)
        return output

    def slot(self, tensor: Tensor) -> int:
        if id(tensor) not in self._slots:
            self._refuse("what the network puts out is hidden from torch's function mode")
        return self._slots.get(id(tensor), PICTURE)


COUNTING = {
    *("argwhere", "bincount", "masked_select", "nonzero", "nonzero_numpy"),
    *("unique", "unique_consecutive", "unique_dim", "_unique2"),
}
"""Calls whose result is as long as the numbers in a tensor have it."""
EMPTY = {"new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"}
"""Calls that take no more of a tensor than its type and place."""
CASTS = {"to", "type_as"}
NORMS = {"batch_norm"}
DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"}


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and the like have none
        return id(tensor)


def _version(tensor: Tensor) -> int:
    """How often it was written to; -1 where torch does not count."""
    return -1 if tensor.is_inference() else tensor._version


def record_calls(
    model: nn.Module, picture: Float[Tensor, "c h w"], layers: Sequence[str] = ()
) -> tuple[Recording, Float[Tensor, "1 classes"]]:
    """Run the network once on the picture and write down what it does; also its scores.

    layers: whose outputs are to be known by name. Raises ModelError M500 (no such layer), M502,
    M503 (it runs several times and no call is named), M520 (no scores).
    """
    try:
        return _recorded(model, picture, layers, torch.channels_last)
    except ModelError as fault:  # code that only works in the usual memory format
        if not isinstance(fault.__cause__, RuntimeError):
            raise
        return _recorded(model, picture, layers, torch.contiguous_format)


def _recorded(
    model: nn.Module,
    picture: Float[Tensor, "c h w"],
    layers: Sequence[str],
    memory: torch.memory_format,
) -> tuple[Recording, Float[Tensor, "1 classes"]]:
    calls: Counter[str] = Counter()
    # Not in inference mode, in which tensors do not say whose memory they share.
    with torch.inference_mode(False), torch.no_grad():
        image = picture.detach()[None].clone(memory_format=memory)
        twin = Twin(model)
        known = [tensor for module in twin.model.modules() for tensor in tensors_in(vars(module))]
        mode = Recording(image, known)

        def watch(output: Tensor, layer: str) -> Tensor:
            calls[layer] += 1
            return mode.watch(layer, output)

        edits: dict[str, Callable[[Tensor], Tensor]] = {
            layer: partial(watch, layer=layer) for layer in layers
        }
        with Lens(model, (), edits) as lens, mode:
            scores = only_scores(lens(image))
            mode.output = mode.slot(scores)
    for layer in layers:
        once(layer, calls[layer])
    if torch.is_autocast_enabled(image.device.type):
        mode._refuse("autocast changes the precision on the way")
    return mode, scores
