"""From which calls and layers does what a network puts out come?

Written down while the network runs on one picture: for each tensor that depends on the picture
the call that made it, and from what. No tensor is kept alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from convscope.lens.spans import tensors_in
from convscope.lens.survey import survey

ACTIVATIONS = {"softmax", "log_softmax", "sigmoid", "hardsigmoid", "logsigmoid"}
"""Calls that make probabilities of scores."""
SAME = {"expit": "sigmoid", "log_sigmoid": "logsigmoid", "true_divide": "div"}
"""Other names of a call."""
WEIGHED = {
    *("linear", "conv1d", "conv2d", "conv3d", "addmm", "matmul", "rmatmul", "mm", "bmm", "baddbmm"),
    *("einsum", "bilinear", "conv_transpose2d", "tensordot"),
}
"""Calls of layers with weights."""
FIRST = {"to", "type_as", "expand_as", "view_as", "reshape_as"}
"""Calls that take of their other tensors no more than their shape or type …"""
SHAPED = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"),
}
"""… and of all of them."""
HIDDEN = "a call out of sight"


@dataclass(eq=False)
class Origin:
    """The call that made a tensor."""

    name: str
    """Of the function, without underscores around it."""
    takes: tuple[Origin, ...]
    """Where its arguments come from, as far as they depend on the picture."""
    count: int = 0
    """Of the numbers in the tensor."""
    is_floating: bool = True
    """Whether it is made of real numbers, on which a gradient can go."""
    number: int = 0
    """Which of the calls in ACTIVATIONS it is, from 1; 0 for others."""
    layers: list[int] = field(default_factory=list)
    """Whose outputs this tensor is."""

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


def called(func: Any) -> str:
    """A function's bare name: `sigmoid` for `torch.sigmoid_`, `Tensor.sigmoid`, `expit`, …"""
    name = str(getattr(func, "__name__", "")).split(".")[0].strip("_").removeprefix("special_")
    return SAME.get(name, name)


class Origins(TorchFunctionMode):
    """Writes down the calls that depend on a picture."""

    def __init__(self, picture: Tensor, constants: Iterable[Tensor]) -> None:
        """constants: what the network has of its own; a tensor that is none of these, and that no
        call is seen to make, is taken to depend on the picture."""
        super().__init__()
        self._of: Any = WeakIdKeyDictionary()
        self._of[picture] = Origin("picture", ())
        for constant in constants:
            self._of[constant] = None
        self.activations = 0

    def of(self, tensor: Tensor) -> Origin | None:
        """None where nothing is known of it, or it depends on no picture."""
        found: Origin | None = self._of.get(tensor)
        return found

    def met(self, layer: int, output: Tensor) -> None:
        """A layer puts this out."""
        if self.of(output) is None:
            self._of[output] = Origin(HIDDEN, ())
        self._of[output].layers.append(layer)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = called(func)
        read = given[: 0 if name in SHAPED else 1] if name in FIRST | SHAPED else given
        takes = tuple(found for one in read if (found := self._met(one)) is not None)
        self.activations += name in ACTIVATIONS
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        number = self.activations if name in ACTIVATIONS else 0
        for tensor in made or given[: name == "setitem"]:  # x[0] = y writes into x
            made_so = Origin(name, takes, tensor.numel(), tensor.is_floating_point(), number)
            self._of[tensor] = made_so if takes else None
        return result

    def _met(self, tensor: Tensor) -> Origin | None:
        if tensor not in self._of:
            self._of[tensor] = Origin(HIDDEN, ())
        return self.of(tensor)


class WithoutLast(TorchFunctionMode):
    """Within it the last of so many activations hands on what it is given."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last, self.met = last, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if called(func) in ACTIVATIONS:
            self.met += 1
            if self.met == self.last:
                return args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a network on one picture."""

    output: Any
    seen: Sequence[tuple[str, Any]]
    """All calls of modules that put out one tensor, and what was seen of it, as of `survey`."""
    origins: Origins

    def reaching(self, tensor: Tensor) -> frozenset[str]:
        """The layers at which gradients of this tensor arrive; none where that is out of sight."""
        found = self.origins.of(tensor)
        met = [] if found is None else list(found.before(by_gradient=True))
        hidden = any(one.name == HIDDEN for one in met)
        return frozenset() if hidden else self._names(met)

    def scores(self, tensor: Tensor) -> frozenset[str]:
        """The layers whose maps are these scores before their places were joined: no layer with
        weights is between."""
        found, met = self.origins.of(tensor), []
        while found is not None and found.name in ("cat", "neg"):  # against and for a single class
            found = found.takes[-1]
        while found is not None:
            met.append(found)
            alone = len(found.takes) == 1 and found.name not in WEIGHED
            found = found.takes[0] if alone else None
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
        constants = (one for part in model.modules() for one in tensors_in(vars(part)))
        origins = Origins(picture, constants)
        count = iter(range(2**31))

        def look(module: nn.Module, output: Tensor) -> Any:
            origins.met(next(count), output)
            return see(module, output)

        with origins:
            seen, output = survey(model, picture, look)
    return Run(output, seen, origins)
