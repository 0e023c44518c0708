"""How does a rectifier send a signal back to the pixels?

    with BackwardRule("deconvnet") as rule:
        scores = model(pictures)
        (signal,) = torch.autograd.grad(scores[0, 3], pictures)
    print(rule.rewritten, "of", rule.rectifiers)

The rules differ only in what a ReLU sends back; s is the signal from above, x the ReLU's input:

    gradient    s · [x > 0]            Simonyan, Vedaldi and Zisserman 2013
    deconvnet   max(s, 0)              Zeiler and Fergus 2014, §2.1
    guided      max(s, 0) · [x > 0]    Springenberg et al. 2015
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convscope.errors import ModelError, UsageError, nearest
from convscope.lens.coverage import Coverage, coverage
from convscope.lens.pools import POOLS, pool_last_wins
from convscope.lens.rectifiers import Masks, recognise
from convscope.lens.rectify import RULES, Call, PassedBy, rectify

Rule = Literal["gradient", "deconvnet", "guided"]
Overlap = Literal["add", "overwrite"]
Other = Literal["refuse", "gradient"]
CHOICES = {"rule": RULES, "overlap": ("add", "overwrite"), "other": ("refuse", "gradient")}
_inner = threading.local()
"""Which rule is at work on a call of this thread: those around it let the call pass."""


class BackwardRule(TorchFunctionMode):
    """A context in which every rectifier sends signals back by one rule.

    It holds for what this thread computes inside the `with` block, in every spelling: modules,
    in place, reused, functions, methods, `clamp(min=0)`, `x * (x > 0)`. The model is not touched,
    and values on the way up are those of the plain network, bit for bit. Of two nested rules the
    inner one holds.

    overlap: where two pooling windows share their maximum, "add" sends both signals to it (the
    adjoint), "overwrite" only that of the last window in row-major order, as `nn.MaxUnpool2d`
    does when it runs on one thread. Contrast normalisation (`local_response_norm`) is passed by
    on the way down under "deconvnet" and only there. Batch normalisation in eval mode, residual
    sums and average pools are linear and send back their adjoint; biases never enter.
    Source: Zeiler and Fergus 2014, §2.1, and the ECCV text for the normalisation.

    other: activations that the rule does not define (GELU, SiLU, LeakyReLU, …) are refused when a
    signal meets them, "gradient" lets the plain gradient through there.

    When the signal is sent (`backward`, `torch.autograd.grad`) inside the block, the way down is
    looked at: `rewritten` of `rectifiers` followed the rule, `plain` names what else is not
    linear and passed the plain gradient. Raises UsageError U512 (no such rule or option),
    ModelError M531 (an activation without a rule), M532 (rectifiers out of sight).
    """

    def __init__(self, rule: Rule, *, overlap: Overlap = "add", other: Other = "refuse") -> None:
        super().__init__()
        for option, value in (("rule", rule), ("overlap", overlap), ("other", other)):
            if value not in CHOICES[option]:
                known = nearest(str(value), CHOICES[option])
                raise UsageError("U512", str(value), f"is no {option}; {known}")
        if rule == "gradient" and overlap == "overwrite":
            raise UsageError("U512", "overlap overwrite", "is no gradient, which adds")
        self.rule, self.overlap, self.other = rule, overlap, other
        self.rewritten = self.rectifiers = self.skipped = 0
        self.plain: tuple[str, ...] = ()
        self._masks = Masks()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(_inner, "rule", None) is not None:
            return func(*args, **kwargs)
        _inner.rule = self
        try:
            return self._called(func, args, kwargs)
        finally:
            _inner.rule = None

    def _called(self, func: Any, args: Any, kwargs: Any) -> Any:
        name, inplace = _name(func)
        if name in SENDING and func in SENDING[name]:
            self.look(*SENDING[name][func](*args, **kwargs))
        elif torch.is_grad_enabled() and self.rule != "gradient":
            return self._forward(name, inplace, func, args, kwargs)
        return self._plain(name, func, args, kwargs)

    def _forward(self, name: str, inplace: bool, func: Any, args: Any, kwargs: Any) -> Any:
        run = Call(func, args, kwargs, inplace or bool(kwargs.get("inplace")))
        if name == "local_response_norm" and self.rule == "deconvnet":
            return PassedBy.apply(args[0] if args else kwargs["input"], run)
        if name in POOLS and self.overlap == "overwrite":
            return pool_last_wins(name, args, kwargs)
        found = recognise(name, args, kwargs, self._masks)
        if found is not None and found.x.requires_grad:
            return rectify(found.x, found.ceiling, run, self)
        return self._plain(name, func, args, kwargs)

    def _plain(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        self._masks.note(name, args, result)
        return result

    @contextmanager
    def going_down(self, rule: Rule) -> Iterator[None]:
        """Signals of a pass up that was made under "guided" go down by the deconvnet's rule here,
        which asks for less."""
        own, self.rule = self.rule, rule
        try:
            yield
        finally:
            self.rule = own

    def look(self, outputs: Iterable[Tensor], inputs: Iterable[Tensor]) -> None:
        """Look at the way down without sending anything: counts, and refusals."""
        met = coverage(outputs, inputs)
        self.rectifiers, self.plain, self.skipped = met.rectifiers, met.plain, met.skipped
        self.rewritten = met.rectifiers if self.rule == "gradient" else met.rewritten
        if self.rule != "gradient" and self.other == "refuse":
            _refuse(self.rule, met)


def _refuse(rule: str, met: Coverage) -> None:
    choice = '--other gradient (other="gradient") lets the plain gradient through there'
    if met.hidden:
        what = f"out of sight of the {rule} rule ({met.rewritten} of {met.rectifiers} follow it)"
        raise ModelError("M532", ", ".join(met.hidden), what, next_step=choice)
    if met.unruled:
        what = f"the {rule} rule is defined for rectifiers only"
        raise ModelError("M531", ", ".join(met.unruled), what, next_step=choice)


def _name(func: Any) -> tuple[str, bool]:
    """A function's bare name and whether it works in place: `clamp_min_.default` in either
    spelling is ("clamp_min", True)."""
    name = str(getattr(func, "__name__", "")).split(".")[0].removeprefix("_")
    return name.rstrip("_"), name.endswith("_")


def _tuple(tensors: Any) -> tuple[Tensor, ...]:
    return () if tensors is None else (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)


def _sent(outputs: Any, *_: Any, inputs: Any = None, **__: Any) -> Any:
    return _tuple(outputs), _tuple(inputs)


def _asked(outputs: Any, inputs: Any, *_: Any, **__: Any) -> Any:
    return _tuple(outputs), _tuple(inputs)


SENDING: Mapping[str, Mapping[Any, Callable[..., Any]]] = {
    "backward": {Tensor.backward: _sent, torch.autograd.backward: _sent},
    "grad": {torch.autograd.grad: _asked},
}
"""The calls that send a signal down, and between which tensors they do."""
