"""Records the calls that a network makes, as it runs: function modes that follow a tensor.

A thread's own function mode sees every call, in whatever spelling, and touches nobody else's.
(torch.fx replaces `nn.Module.__call__` for all threads while it traces.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from convscope.core.errors import ModelError
from convscope.lens.lens import Lens, only_scores, tensors_in
from convscope.lens.torch_private import tree_leaves, tree_map_only, version
from convscope.lens.twin import MODULES_OWN, ShadowModel
from convscope.trace.operations import Operation, in_place, operation_of

Mark = TypeVar("Mark")
PICTURE = 0
"""The slot of what a trace begins with."""


@dataclass(frozen=True)
class Slot:
    """Stands in a call's arguments for a tensor that depends on what is followed."""

    number: int


@dataclass(frozen=True)
class Call:
    """One call: slots in the place of what depends on what is followed, and where results go."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    gives: tuple[int | None, ...] = ()
    """Slots of the results; None for a result that is no tensor."""

    @property
    def name(self) -> str:
        return str(getattr(self.function, "__name__", self.function))

    @property
    def operation(self) -> Operation:
        return operation_of(self.function)

    @property
    def leaves(self) -> list[Any]:
        """All arguments, at any depth."""
        return tree_leaves((self.args, dict(self.kwargs)))

    @property
    def takes(self) -> list[int]:
        """Slots among the arguments, at any depth."""
        return [leaf.number for leaf in self.leaves if isinstance(leaf, Slot)]

    def option(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name."""
        return self.args[place] if place < len(self.args) else self.kwargs.get(name, default)

    def run(self, held: Mapping[int, Any]) -> list[Any]:
        """Make the call with these tensors in the slots; its results one after the other."""
        args, kwargs = tree_map_only(
            Slot, lambda slot: held[slot.number], (self.args, dict(self.kwargs))
        )
        if self.operation.vmap == "dense":
            args = (args[0].contiguous(), *args[1:])
        return tree_leaves(self.function(*args, **kwargs))

    @property
    def is_at_work(self) -> bool:
        """Is it an operation for training (dropout, say) that is not switched off?"""
        place = self.operation.training
        return place is not None and bool(self.option(place, "training", True))

    @property
    def is_affine(self) -> bool:
        """Is its result an affine function of what depends on what is followed?"""
        if self.is_at_work:
            return False
        match self.operation.linear:
            case "sum":
                return True
            case "factors":
                return len(self.takes) == 1
            case "first" | "weights":
                return self._takes_first
        return False

    @property
    def treats_maps_alike(self) -> bool:
        """Does it treat each map of (b, maps, h, w) alone, and all alike?"""
        plain = len(self.gives) == 1 and not any(isinstance(leaf, Tensor) for leaf in self.leaves)
        known = self.operation.maps == "alike" and not self.is_at_work
        return known and plain and self._takes_first

    @property
    def keeps_maps_apart(self) -> bool:
        """The same, but each perhaps in its own manner."""
        own = self.operation.maps == "own" and not self.is_at_work and self._takes_first
        return own or self.treats_maps_alike

    @property
    def is_one_by_one(self) -> bool:
        """Would torch.vmap do it one by one too, complaining?"""
        how = self.operation.vmap
        inside = how == "inplace" and in_place(self.function, self.kwargs)
        return inside or how == "complains"

    @property
    def _takes_first(self) -> bool:
        return bool(self.args) and isinstance(self.args[0], Slot) and len(self.takes) == 1


class Recorder(TorchFunctionMode, Generic[Mark]):
    """Follows tensors: whatever is made of a marked one is given a mark, by `follow`."""

    def __init__(self, constants: Iterable[Tensor] = ()) -> None:
        """constants: what the network has of its own. No tensor is kept alive by its mark."""
        super().__init__()
        self.is_open = True
        self.reset(constants)

    def reset(self, constants: Iterable[Tensor] = ()) -> None:
        """Begin anew."""
        self._marks: Any = WeakIdKeyDictionary()
        for constant in constants:
            self._marks[constant] = None

    def mark_of(self, tensor: Tensor) -> Mark | None:
        """None: it depends on nothing that is followed."""
        if tensor not in self._marks:
            self._marks[tensor] = self.unknown(tensor)
        mark: Mark | None = self._marks[tensor]
        return mark

    def mark(self, tensor: Tensor, mark: Mark | None) -> None:
        self._marks[tensor] = mark

    def unknown(self, tensor: Tensor) -> Mark | None:
        """The mark of a tensor that no call was seen to make."""
        raise NotImplementedError

    def follow(self, call: Call, marks: Sequence[Mark | None], result: Any) -> None:
        """Give the results of a call that was just made their marks. marks: of its tensors."""
        raise NotImplementedError

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.is_open:
            return func(*args, **kwargs)
        marks = [self.mark_of(tensor) for tensor in tensors_in((args, kwargs))]
        result = func(*args, **kwargs)
        self.follow(Call(func, tuple(args), kwargs), marks, result)
        return result


class Trace(Recorder[int]):
    """The calls that depend on one tensor, each result in a slot of its own.

    An in-place call gives its tensor another slot, so each value has one maker. As long as there
    is no `obstacle` the calls give the same when they are made again, in their order.
    """

    def reset(self, constants: Iterable[Tensor] = ()) -> None:
        super().reset(constants)
        self.calls: list[Call] = []
        self.obstacle = ""
        """Why the calls cannot be made again, if they cannot."""
        self.outputs: dict[int, Tensor] = {}
        """Slot → what it holds, or held until it was overwritten."""
        self.shapes: dict[int, tuple[int, ...]] = {}
        self._used: dict[int, tuple[Tensor, int]] = {}

    def refuse(self, why: str) -> None:
        self.obstacle = self.obstacle or why

    def unknown(self, tensor: Tensor) -> int | None:
        """Taken for a constant, unless its gradient says that it is none."""
        if tensor.grad_fn is not None:
            self.refuse(HIDDEN)
        return None

    def mark_of(self, tensor: Tensor) -> int | None:
        slot = super().mark_of(tensor)
        if slot is None:
            self._used.setdefault(id(tensor), (tensor, version(tensor)))
        return slot

    def follow(self, call: Call, marks: Sequence[int | None], result: Any) -> None:
        made = list(tensors_in(result))
        if self.is_constant(call, marks):
            for tensor in made:
                self.mark(tensor, None)
            return
        slots = iter(marks)

        def named(tensor: Tensor) -> Any:
            slot = next(slots)
            return tensor if slot is None else Slot(slot)

        args, kwargs = tree_map_only(Tensor, named, (call.args, dict(call.kwargs)))
        self.note(Call(call.function, args, kwargs), made, result)

    def is_constant(self, call: Call, marks: Sequence[int | None]) -> bool:  # noqa: ARG002
        return all(slot is None for slot in marks)

    def note(self, call: Call, made: Sequence[Tensor], result: Any) -> None:
        """made: the tensors of the result."""
        if made or result is None:
            gives = tuple(self._give(leaf) for leaf in tree_leaves(result))
            self.calls.append(Call(call.function, call.args, call.kwargs, gives))
        elif call.operation.reads != "python":
            self.refuse(f"{call.name} reads the values of a tensor")

    def _give(self, leaf: Any) -> int | None:
        return self.place(leaf) if isinstance(leaf, Tensor) else None

    def place(self, tensor: Tensor) -> int:
        """Give the tensor a slot."""
        slot = len(self.shapes)
        self.outputs[slot], self.shapes[slot] = tensor, tuple(tensor.shape)
        self.mark(tensor, slot)
        return slot

    def end(self) -> None:
        """Nothing more is recorded."""
        self.is_open = False
        if any(version(tensor) != before for tensor, before in self._used.values()):
            self.refuse("a tensor from before is overwritten on the way")
        self._used = {}


HIDDEN = "a call on the way is hidden from torch's function mode"


class Recording(Trace):
    """The calls that a network makes of one picture, which can be taken apart: each can be made
    again alone, for other pictures, and for several."""

    def __init__(self, picture: Tensor, constants: Iterable[Tensor]) -> None:
        self.output = PICTURE
        self.layers: dict[str, int] = {}
        """Slots of what the watched layers put out."""
        self.mixes = False
        """Whether pictures of one batch would influence each other."""
        self._stale: set[int] = set()
        self._sharing: dict[int, set[int]] = {}
        self._versions: dict[int, int] = {}
        super().__init__(constants)
        self.place(picture)

    def place(self, tensor: Tensor) -> int:
        slot = super().place(tensor)
        self._sharing.setdefault(_storage(tensor), set()).add(slot)
        self._versions[slot] = version(tensor)
        return slot

    def unknown(self, tensor: Tensor) -> int | None:  # noqa: ARG002
        self.refuse(HIDDEN)
        return None

    def mark_of(self, tensor: Tensor) -> int | None:
        slot = Recorder.mark_of(self, tensor)
        if slot in self._stale:
            self.refuse("a tensor is overwritten under another name")
        return slot

    def is_constant(self, call: Call, marks: Sequence[int | None]) -> bool:
        operation = call.operation
        blank = operation.reads == "blank" and not operation.places
        like = operation.reads == "like" and marks[:1] == [None]
        return blank or like or super().is_constant(call, marks)

    def note(self, call: Call, made: Sequence[Tensor], result: Any) -> None:
        name, operation = call.name, call.operation
        if not made:
            if operation.reads != "python":
                self._mix(f"{name} reads or writes single values of a tensor")
            return
        if "out" in call.kwargs:
            self.refuse(f"{name} writes into a tensor that it is given")
        if operation.maps == "own":
            if call.option(operation.training or 0, "training", False):
                self._mix("normalisation by the statistics of the batch")
        elif call.is_at_work:
            self.refuse(f"{name} is at work, by chance")
        if self._counts(call):
            self._mix(f"{name} gives as many numbers as the picture has it")
        first = call.args[0] if call.args else None
        for tensor in made:
            if isinstance(first, Slot) and tensor is self.outputs[first.number]:
                self._stale |= self._sharing.get(_storage(tensor), set()) - {first.number}
        super().note(call, made, result)

    def _mix(self, why: str) -> None:
        self.mixes = True
        self.refuse(why)

    def _counts(self, call: Call) -> bool:
        """Does the size of the result depend on numbers that depend on the picture?"""
        operation = call.operation
        chosen = [leaf.number for leaf in tree_leaves(call.args[1:]) if isinstance(leaf, Slot)]
        if operation.name == "getitem":
            masks = (torch.bool, torch.uint8)
            return any(self.outputs[slot].dtype in masks for slot in chosen)
        repeats = operation.name == "repeat_interleave" and bool(chosen)
        places = operation.name == "where" and len(call.args) == 1
        return repeats or places or operation.counts

    def values(self, slots: Iterable[int]) -> dict[int, Tensor] | None:
        """What these slots held; None if one of them may have been overwritten since."""
        held = {slot: self.outputs[slot] for slot in slots}
        if any(
            self._versions[slot] < 0 or version(tensor) != self._versions[slot]
            for slot, tensor in held.items()
        ):
            return None
        return held

    def slot(self, tensor: Tensor) -> int:
        """Of what the network or one of its layers puts out."""
        slot = self._marks.get(tensor)
        if slot is None:
            self.refuse("what the network puts out is hidden from torch's function mode")
        return PICTURE if slot is None else int(slot)


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):  # sparse and the like have none
        return id(tensor)


def tensors_of(model: nn.Module) -> list[Tensor]:
    """All that a network has of its own: weights, buffers, and tensors that modules hold."""
    own = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        held = {key: value for key, value in vars(module).items() if key not in MODULES_OWN}
        own += tensors_in(held)
    return own


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
        mode = Recording(image, tensors_of(ShadowModel(model).model))

        def watch(output: Tensor, layer: str) -> Tensor:
            calls[layer] += 1
            mode.layers[layer] = mode.slot(output)
            return output

        edits = {layer: partial(watch, layer=layer) for layer in layers}
        with Lens(model, (), edits) as lens, mode:
            scores = only_scores(lens(image))
            mode.output = mode.slot(scores)
    for layer in layers:
        once(layer, calls[layer])
    if torch.is_autocast_enabled(image.device.type):
        mode.refuse("autocast changes the precision on the way")
    return mode, scores


def once(layer: str, calls: int) -> None:
    """Raises ModelError M502 where an edited layer did not run, M503 where it ran several times
    and its name does not say which of them is meant."""
    if not calls:
        raise ModelError("M502", layer, "did not run in this pass")
    if calls > 1 and "#" not in layer:
        choice = f"name one of its outputs: {layer}#1 … {layer}#{calls}"
        raise ModelError("M503", layer, f"ran {calls} times in this pass", next_step=choice)
