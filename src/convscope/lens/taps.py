"""The hook itself: what is wanted of a layer, and what was seen of it in one forward pass."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from convscope.errors import ModelError
from convscope.torch_private import tree_leaves, tree_map_only

Edit = Callable[[Tensor], Tensor]


@dataclass
class Watch:
    """What is wanted of one module: call numbers (None: its only call), and edits."""

    taps: list[int | None] = field(default_factory=list)
    edits: list[tuple[int | None, Edit]] = field(default_factory=list)

    def wants(self, number: int) -> bool:
        return number in self.taps or (number == 1 and None in self.taps)


class Run:
    """What one thread has seen in one forward pass."""

    def __init__(self, stop_after: int | None) -> None:
        self.calls: Counter[nn.Module] = Counter()
        self.seen: dict[tuple[nn.Module, int], Any] = {}
        self.missing = stop_after

    def of(self, module: nn.Module, number: int | None, layer: str) -> Any:
        calls = self.calls[module]
        if number is None and calls > 1:
            choice = f"name one of its outputs: {layer}#1 … {layer}#{calls}"
            raise ModelError("M503", layer, f"ran {calls} times in this pass", next_step=choice)
        if calls < (number or 1):
            what = f"ran {calls} times in this pass" if calls else "did not run in this pass"
            raise ModelError("M502", layer, what)
        return self.seen[module, number or 1]

    def tick(self, taps: int) -> None:
        if self.missing is not None and taps:
            self.missing -= taps
            if self.missing <= 0:
                raise Reached


class Reached(BaseException):
    """All tapped layers have been seen; no `except Exception` of a network may swallow it."""


def hook(watch: Watch, runs: threading.local) -> Callable[[nn.Module, Any, Any], Any]:
    def tap(module: nn.Module, _: Any, output: Any) -> Any:
        run: Run = runs.now
        run.calls[module] += 1
        number = run.calls[module]
        for wanted, change in watch.edits:
            if wanted in (None, number):
                output = _changed(output, change)
        if watch.wants(number):
            run.seen[module, number], output = _kept(output)
            run.tick(sum(tap in (None, number) for tap in watch.taps))
        return output

    return tap


def _kept(output: Any) -> tuple[Any, Any]:
    """A copy to show, and what the network goes on with.

    Where a graph is being recorded the network goes on with a copy of the shown copy, so that
    the shown one lies on the way of the gradient from the scores.
    """
    shown = _mapped(output, Tensor.clone)
    if any(value.requires_grad for value in tensors_in(output)):
        return shown, _mapped(shown, Tensor.clone)
    return shown, output


def _changed(output: Any, change: Edit) -> Any:
    """The output with its one tensor of numbers replaced."""
    if isinstance(output, Tensor) and output.is_floating_point():
        return change(output)  # to walk through a tree takes longer than a small layer
    old = only_tensor("an edited layer", output)
    new = change(old)
    return _mapped(output, lambda value: new if value is old else value)


def only_tensor(layer: str, output: Any) -> Tensor:
    """The one tensor of real numbers in a layer's output (a pool may put out indices too)."""
    tensors = [value for value in tensors_in(output) if value.is_floating_point()]
    if len(tensors) != 1:
        what = (
            f"puts out {type(output).__name__} with {len(tensors)} tensors, so it has no one output"
        )
        raise ModelError("M520", layer, what, next_step="name a layer inside it")
    return tensors[0]


def tensors_in(output: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(output) if isinstance(value, Tensor))


def _mapped(output: Any, change: Edit) -> Any:
    return tree_map_only(Tensor, change, output)


def call_of(layer: str) -> tuple[str, int | None]:
    """Module name and number of the call: "relu#2" is ("relu", 2), "relu" is ("relu", None)."""
    name, mark, number = layer.rpartition("#")
    return (name, int(number)) if mark and number.isdigit() else (layer, None)
