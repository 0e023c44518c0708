"""What does a network do after a layer, and what if only that is done again?

    tail = record(model, lambda network: network(picture), "conv5", score)
    tail.again(changed)    # scores for other outputs of conv5

Every call that depends on the layer's output is written down with its arguments; what does not
depend on it is kept as it was. So the part before the layer never runs again, whatever the rest
looks like (branches, skip paths, functional spellings). Where that cannot be done exactly, the
tail says why and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from convscope.errors import ModelError
from convscope.lens.lens import Lens
from convscope.lens.step import Slot, Step

LOOKS = {
    "__get__", "__len__", "_assert", "data_ptr", "dim", "element_size", "get_device", "is_complex",
    "is_contiguous", "is_floating_point", "ndimension", "nelement", "numel", "size",
    "storage_offset", "stride",
}  # fmt: skip
"""Calls that give plain Python values which depend on no number in the tensor."""

ONE_BY_ONE = {"multi_head_attention_forward", "scaled_dot_product_attention", "clamp_", "clip_"}
"""Calls that torch.vmap (2.15) would do one by one too, complaining."""


class Tail(TorchFunctionMode):
    """The calls after a layer, for one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.obstacle = ""
        """Why the steps cannot be done again, if they cannot."""
        self.activation: Tensor
        """The layer's output (1, …), where the score's gradient begins."""
        self.score: Tensor
        self.outputs: dict[int, Tensor] = {}
        """Slot → what it held last."""
        self._slots: dict[int, int] = {}
        self._known: dict[int, Tensor] = {}
        self._used: list[tuple[Tensor, int]] = []
        self._armed = False

    def begin(self, output: Tensor) -> Tensor:
        """The layer's output has come; it may come again (then the last time counts)."""
        torch.set_grad_enabled(True)  # undone where the run ends; the part before needs no graph
        self._armed = False
        self.steps.clear()
        self.activation = output.detach().requires_grad_()
        first = self.activation.clone()
        self._slots, self.outputs, self._known, self._used = {}, {}, {}, []
        self._slot(first)
        self._autocast = _autocast(first)
        self._armed = True
        return first

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._armed:
            return func(*args, **kwargs)
        step_args, step_kwargs = tree_map_only(Tensor, self._named, (args, kwargs))
        takes = any(isinstance(leaf, Slot) for leaf in tree_leaves((step_args, step_kwargs)))
        result = func(*args, **kwargs)
        if takes:
            self._note(func, step_args, step_kwargs, result)
        else:
            self._known.update((id(t), t) for t in tree_leaves(result) if isinstance(t, Tensor))
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        step = Step(func, args, kwargs, tuple(self._slot(leaf) for leaf in tree_leaves(result)))
        if any(given is not None for given in step.gives) or result is None:
            self.steps.append(step)
        elif step.name not in LOOKS:
            self._refuse(f"{step.name} reads the values of a tensor")
        if _autocast(self.activation) != self._autocast:
            self._refuse("the precision changes on the way")

    def _slot(self, leaf: Any) -> int | None:
        if not isinstance(leaf, Tensor):
            return None
        number = self._slots.setdefault(id(leaf), len(self._slots))
        self.outputs[number] = leaf
        return number

    def _named(self, tensor: Tensor) -> Any:
        """A slot for what depends on the layer, the tensor itself for anything else."""
        if id(tensor) in self._slots:
            return Slot(self._slots[id(tensor)])
        if tensor.grad_fn is not None and id(tensor) not in self._known:
            self._refuse("a call on the way is hidden from torch's function mode")
        self._used.append((tensor, tensor._version))
        return tensor

    def _refuse(self, why: str) -> None:
        self.obstacle = self.obstacle or why

    def end(self, score: Tensor) -> None:
        self._armed = False
        if id(score) not in self._slots:
            self._refuse("the score does not depend on the layer")
        if any(tensor._version != version for tensor, version in self._used):
            self._refuse("a tensor from before the layer is overwritten after it")
        self.score = score
        self._known, self._used = {}, []

    def again(
        self, values: Float[Tensor, "n ..."], first: int = 0, stop: int | None = None
    ) -> Float[Tensor, "n ..."]:
        """Scores (n,) for other outputs of the layer, each without the batch axis.

        values: not to be used afterwards, the steps may overwrite them. first, stop: begin with
        other outputs of step `first - 1`; give the result of the last step before `stop`.
        """
        assert not self.obstacle, self.obstacle
        with torch.no_grad():
            if any(step.name in ONE_BY_ONE for step in self.steps[first:stop]):
                return self._each(values, first, stop)
            many = torch.vmap(lambda one: self._once(one[None], first, stop)[0])
            try:
                scores: Tensor = many(values.clone())
            except (RuntimeError, ValueError, UserWarning):
                # In place on something shared, or a warning of vmap where warnings are errors.
                scores = self._each(values, first, stop)
            return scores

    def before(self, value: Tensor, number: int) -> Tensor:
        """What step `number` would be given if the layer put out `value` (1, …)."""
        return self._once(value, 0, number) if number else value

    def _each(self, values: Tensor, first: int, stop: int | None) -> Tensor:
        return torch.cat([self._once(one[None], first, stop) for one in values])

    def _once(self, value: Tensor, first: int, stop: int | None) -> Tensor:
        last = self.steps[first - 1].gives[0] if first else 0
        held: dict[int, Any] = {last or 0: value}
        for step in self.steps[first:stop]:
            for number, leaf in zip(step.gives, step.run(held), strict=True):
                if number is not None:
                    held[number] = leaf
                    last = number
        assert last is not None
        result: Tensor = held[last if stop is not None else self._slots[id(self.score)]]
        return result


Network = Callable[[Tensor], Any]


def record(
    model: nn.Module, run: Callable[[Network], Any], layer: str, score: Callable[[Any], Tensor]
) -> Tail:
    """Run the network once and write down what follows the layer up to `score(output)` (1,).

    run: calls the network that it is given on one picture; if it has to call again, the last
    call counts. Raises ModelError M503 where the layer runs several times in one pass.
    """
    tail = Tail()
    calls: list[int] = []

    def begin(output: Tensor) -> Tensor:
        calls.append(1)
        return tail.begin(output)

    with torch.enable_grad():  # so that weights made under inference mode are copied
        watching = Lens(model, (), {layer: begin})
    with torch.inference_mode(False), torch.no_grad(), watching as lens:

        def network(picture: Tensor) -> Any:
            calls.clear()
            return lens(picture)

        with tail:
            output = run(network)
            with torch.enable_grad():
                result = score(output)
        if calls:
            tail.end(result)
    once(layer, len(calls))
    return tail


def once(layer: str, calls: int) -> None:
    """Raises ModelError M502 where an edited layer did not run, M503 where it ran several times
    and its name does not say which of them is meant."""
    if not calls:
        raise ModelError("M502", layer, "did not run in this pass")
    if calls > 1 and "#" not in layer:
        choice = f"name one of its outputs: {layer}#1 … {layer}#{calls}"
        raise ModelError("M503", layer, f"ran {calls} times in this pass", next_step=choice)


def _autocast(tensor: Tensor) -> tuple[bool, torch.dtype]:
    kind = tensor.device.type
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
