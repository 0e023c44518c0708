"""From which calls and layers does each output of a network come? Dependencies of tensors.

Recorded while the network runs on one picture: for each tensor that depends on the picture the
call that made it, and from what. No tensor is kept alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convscope.lens.hooks import tensors_in
from convscope.lens.lens import run_with_hooks
from convscope.trace.operations import OPERATIONS, operation_of
from convscope.trace.recorder import Call, Recorder, tensors_of

HIDDEN = "a call out of sight"


@dataclass(eq=False)
class Origin:
    """The call that made a tensor."""

    name: str
    """Of the operation."""
    takes: tuple[Origin, ...]
    """Where its arguments come from, as far as they depend on the picture."""
    count: int = 0
    """Of the numbers in the tensor."""
    is_floating: bool = True
    """Whether it is made of real numbers, on which a gradient can go."""
    number: int = 0
    """Which of the calls that make probabilities it is, from 1; 0 for others."""
    layers: list[int] = field(default_factory=list)
    """Whose outputs this tensor is."""

    @property
    def weighed(self) -> bool:
        """Is it the call of a layer with weights?"""
        return self.name in OPERATIONS and OPERATIONS[self.name].weighed

    def before(self, *, by_gradient: bool = False) -> Iterator[Origin]:
        """This and all that it comes from, each once. by_gradient: no further than gradients go."""
        met, waiting = {id(self)}, [self]
        while waiting:
            one = waiting.pop()
            yield one
            if by_gradient and (one.name == "detach" or not one.is_floating):
                continue
            for source in one.takes:
                if id(source) not in met:
                    met.add(id(source))
                    waiting.append(source)


class Origins(Recorder[Origin]):
    """Records the calls that depend on a picture; no tensor is kept alive."""

    def __init__(self, picture: Tensor, constants: Iterable[Tensor]) -> None:
        """constants: what the network has of its own; a tensor that is none of these, and that no
        call is seen to make, is taken to depend on the picture."""
        super().__init__(constants)
        self.mark(picture, Origin("picture", ()))
        self.activations = 0

    def of(self, tensor: Tensor) -> Origin | None:
        """None where nothing is known of it, or it depends on no picture."""
        origin: Origin | None = self._marks.get(tensor)
        return origin

    def unknown(self, tensor: Tensor) -> Origin:  # noqa: ARG002
        return Origin(HIDDEN, ())

    def met(self, layer: int, output: Tensor) -> None:
        """A layer puts this out."""
        origin = self.mark_of(output)
        if origin is None:
            origin = Origin(HIDDEN, ())
            self.mark(output, origin)
        origin.layers.append(layer)

    def follow(self, call: Call, marks: Sequence[Origin | None], result: Any) -> None:
        operation = call.operation
        self.activations += operation.probabilities
        number = self.activations if operation.probabilities else 0
        read = {"like": marks[:1], "blank": ()}.get(operation.reads, marks)
        takes = tuple(mark for mark in read if mark is not None)
        made = list(tensors_in(result))
        if not made and operation.name == "setitem":  # x[0] = y writes into x
            made = [call.args[0]]
        for tensor in made:
            origin = Origin(
                operation.name, takes, tensor.numel(), tensor.is_floating_point(), number
            )
            self.mark(tensor, origin if takes else None)


class WithoutLast(TorchFunctionMode):
    """Within it the last of so many activations hands on what it is given."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last, self.met = last, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation_of(func).probabilities:
            self.met += 1
            if self.met == self.last:
                return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a network on one picture."""

    output: Any
    seen: Sequence[tuple[str, Any]]
    """All calls of modules that put out one tensor, and what was seen of it."""
    origins: Origins

    def reaching(self, tensor: Tensor) -> frozenset[str]:
        """The layers at which gradients of this tensor arrive; none where that is out of sight."""
        origin = self.origins.of(tensor)
        met = [] if origin is None else list(origin.before(by_gradient=True))
        hidden = any(one.name == HIDDEN for one in met)
        return frozenset() if hidden else self._names(met)

    def scores(self, tensor: Tensor) -> frozenset[str]:
        """The layers whose maps are these scores before their places were joined: no layer with
        weights is between."""
        origin, met = self.origins.of(tensor), []
        while origin is not None and origin.name in (
            "cat",
            "neg",
        ):  # against and for a single class
            origin = origin.takes[-1]
        while origin is not None:
            met.append(origin)
            alone = len(origin.takes) == 1 and not origin.weighed
            origin = origin.takes[0] if alone else None
        return self._names(met)

    def _names(self, met: Iterable[Origin]) -> frozenset[str]:
        return frozenset(self.seen[number][0] for one in met for number in one.layers)


def run_seen(
    model: nn.Module, picture: Tensor, see: Callable[[nn.Module, Tensor], Any] = lambda *_: None
) -> Run:
    """Run the network once, without gradients and without moving the user's random numbers."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
        torch.default_generator.manual_seed(0)
        picture = picture.clone()
        origins = Origins(picture, tensors_of(model))
        count = iter(range(2**31))

        def look(module: nn.Module, output: Tensor) -> Any:
            origins.met(next(count), output)
            return see(module, output)

        with origins:
            seen, output = run_with_hooks(model, picture, look)
    return Run(output, seen, origins)
