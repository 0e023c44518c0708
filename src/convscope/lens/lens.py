"""What do the layers of a network put out for this input, and what if one put out something else?

    with Lens(model, ["conv1", "conv5"]) as lens:
        scores = lens(pictures)
        maps = lens["conv5"]

The model is looked at through a twin (`twin.py`): any number of threads may look at one model at
once, each through its own Lens, and the model itself is never touched.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.errors import ModelError, UsageError, nearest
from convscope.lens.twin import Twin, is_scripted, refuse_scripted

Edit = Callable[[Tensor], Tensor]
HOOK = -1
"""Our hook's key in a twin's own table; torch's keys count from 0, and counting is not safe
under threads."""


class Lens:
    """Taps layers, edits layers, leaves no trace.

    `layers` are module names as in `model.named_modules()`. What a tap shows is the layer's
    output as it was seen, a copy that no later in-place operation can overwrite, on the way of
    gradients from the scores as well as to the pixels. `edit` replaces a layer's output by what
    its function makes of it; a tap of the same layer shows the edited output. The network runs
    in eval mode, whatever mode the model is in.

    A module that runs several times in one pass has several outputs: `"relu#2"` is the second.
    An edit of plain `"relu"` edits them all; a tap of it is refused (M503) as ambiguous.

    Raises ModelError: M501 unknown layer, M526 weights not there before a first forward pass,
    M530 not a Python module, or a layer inside a scripted one.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        edit: Mapping[str, Edit] = MappingProxyType({}),
    ) -> None:
        self._twin = Twin(model)
        self._watched: dict[nn.Module, _Watch] = {}
        for name in layers:
            self._watch(name).taps.append(_call(name)[1])
        for name, change in edit.items():
            self._watch(name).edits.append((_call(name)[1], change))
        self._layers = tuple(layers)
        self._runs = threading.local()
        self._open = False

    def __enter__(self) -> Self:
        for module, watch in self._watched.items():
            module._forward_hooks[HOOK] = _hook(watch, self._runs)
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network; its output, whatever that is."""
        self._start(stop_after=None)
        return self._twin.model(*args, **kwargs)

    def reach(self, *args: Any, **kwargs: Any) -> None:
        """Run the network only until all tapped layers have been seen."""
        self._start(stop_after=len(self._layers))
        with contextlib.suppress(_Reached):
            self._twin.model(*args, **kwargs)

    def _start(self, stop_after: int | None) -> None:
        if not self._open:
            raise UsageError("U510", "", "a Lens looks only inside its `with` block")
        self._runs.now = _Run(stop_after)

    def __getitem__(self, layer: str) -> Tensor:
        """The layer's output in the last run of this thread.

        Raises UsageError U511 (not tapped, or nothing run yet in this thread) and ModelError M502
        (the layer did not run), M503 (it ran several times) or M520 (no single tensor).
        """
        if layer not in self._layers:
            raise UsageError("U511", layer, f"is not tapped; {nearest(layer, self._layers)}")
        run: _Run | None = getattr(self._runs, "now", None)
        if run is None:
            raise UsageError("U511", layer, "has no output yet", next_step="run lens(pictures)")
        name, number = _call(layer)
        module = self._twin.modules[name]
        return _only(layer, run.of(module, number, layer))

    def _watch(self, layer: str) -> _Watch:
        name = _call(layer)[0]
        if name not in self._twin.modules:
            known = nearest(name, self._twin.names)
            raise ModelError("M501", layer, f"no such layer in the model; {known}")
        module = self._twin.modules[name]
        refuse_scripted(layer, module)
        return self._watched.setdefault(module, _Watch())


def layers_in_order(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """The leaf modules (those without children) in the order in which this input meets them.

    A module met several times is named once for each time: `relu#1`, `relu#2`, …
    """
    return [name for name, _ in _met(model, args, kwargs)]


def conv_layers(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    """The two-dimensional convolutions: with an input in the order in which it meets them,
    without one in the order of registration."""
    if args or kwargs:
        met = _met(model, args, kwargs)
        return [name for name, module in met if isinstance(module, nn.Conv2d)]
    twin = Twin(model)
    return [name for name in twin.names if isinstance(twin.modules[name], nn.Conv2d)]


def logits(output: Any) -> Float[Tensor, "b classes"]:
    """The scores in what a network puts out: a tensor, `.logits`, `["logits"]`, or else the first
    two-dimensional tensor. Raises ModelError M520 if there is none."""
    named = output.get("logits") if isinstance(output, Mapping) else None
    candidates = [getattr(output, "logits", named), *_tensors(output)]
    for value in candidates:
        if isinstance(value, Tensor) and value.dim() == 2:
            return value
    shapes = ", ".join(str(tuple(value.shape)) for value in _tensors(output)) or "no tensor"
    what = f"puts out {type(output).__name__} ({shapes}), in which there are no scores (b, classes)"
    raise ModelError("M520", "the network", what, next_step="wrap it so that it returns its scores")


@dataclass
class _Watch:
    """What is wanted of one module: call numbers (None: its only call), and edits."""

    taps: list[int | None] = field(default_factory=list)
    edits: list[tuple[int | None, Edit]] = field(default_factory=list)

    def wants(self, number: int) -> bool:
        return number in self.taps or (number == 1 and None in self.taps)


class _Run:
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
                raise _Reached


class _Reached(BaseException):
    """All tapped layers have been seen; no `except Exception` of a network may swallow it."""


def _hook(watch: _Watch, runs: threading.local) -> Callable[[nn.Module, Any, Any], Any]:
    def look(module: nn.Module, _: Any, output: Any) -> Any:
        run: _Run = runs.now
        run.calls[module] += 1
        number = run.calls[module]
        for wanted, change in watch.edits:
            if wanted in (None, number):
                output = _changed(output, change)
        if watch.wants(number):
            run.seen[module, number], output = _kept(output)
            run.tick(sum(tap in (None, number) for tap in watch.taps))
        return output

    return look


def _kept(output: Any) -> tuple[Any, Any]:
    """A copy to show, and what the network goes on with.

    Where a graph is being recorded the network goes on with a copy of the shown copy, so that
    the shown one lies on the way of the gradient from the scores.
    """
    shown = _mapped(output, Tensor.clone)
    if any(value.requires_grad for value in _tensors(output)):
        return shown, _mapped(shown, Tensor.clone)
    return shown, output


def _changed(output: Any, change: Edit) -> Any:
    """The output with its one tensor of numbers replaced."""
    old = _only("an edited layer", output)
    new = change(old)
    return _mapped(output, lambda value: new if value is old else value)


def _only(layer: str, output: Any) -> Tensor:
    """The one tensor of real numbers in a layer's output (a pool may put out indices too)."""
    found = [value for value in _tensors(output) if value.is_floating_point()]
    if len(found) != 1:
        what = (
            f"puts out {type(output).__name__} with {len(found)} tensors, so it has no one output"
        )
        raise ModelError("M520", layer, what, next_step="name a layer inside it")
    return found[0]


def _tensors(output: Any) -> Iterator[Tensor]:
    leaves: list[Any] = torch.utils._pytree.tree_leaves(output)
    return (value for value in leaves if isinstance(value, Tensor))


def _mapped(output: Any, change: Edit) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, change, output)


def _call(layer: str) -> tuple[str, int | None]:
    """Module name and number of the call: "relu#2" is ("relu", 2), "relu" is ("relu", None)."""
    name, mark, number = layer.rpartition("#")
    return (name, int(number)) if mark and number.isdigit() else (layer, None)


def _met(model: nn.Module, args: Any, kwargs: Any) -> list[tuple[str, nn.Module]]:
    twin = Twin(model)
    leaves = {
        module: name
        for name, module in reversed(list(twin.model.named_modules()))
        if name and not is_scripted(module) and not any(True for _ in module.children())
    }
    met: list[nn.Module] = []
    for module in leaves:
        module._forward_hooks[HOOK] = lambda leaf, *_: met.append(leaf)
    with torch.no_grad():
        twin.model(*args, **kwargs)
    calls, so_far = Counter(met), Counter[nn.Module]()
    order = []
    for module in met:
        so_far[module] += 1
        call = f"#{so_far[module]}" if calls[module] > 1 else ""
        order.append((leaves[module] + call, module))
    return order
