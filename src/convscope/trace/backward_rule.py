"""Backward rules of rectifiers: gradient, deconvnet and guided backpropagation.

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

import contextlib
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from convscope.core.errors import ModelError, UsageError, nearest
from convscope.lens.torch_private import version
from convscope.trace.operations import OPERATIONS, Coverage, coverage, in_place, name_of

Rule = Literal["gradient", "deconvnet", "guided"]
Overlap = Literal["add", "overwrite"]
Other = Literal["refuse", "gradient"]
CHOICES = {"rule": get_args(Rule), "overlap": get_args(Overlap), "other": get_args(Other)}
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
        name = name_of(func)
        if func in SENDING:
            places = 2 if func is torch.autograd.grad else 1
            self.look(*_ends(*args[:places], **kwargs))
        elif torch.is_grad_enabled() and self.rule != "gradient":
            return self._forward(name, func, args, kwargs)
        return self._plain(name, func, args, kwargs)

    def _forward(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        run = _Run(func, args, kwargs, in_place(func, kwargs))
        if name == "local_response_norm" and self.rule == "deconvnet":
            return PassedBy.apply(args[0] if args else kwargs["input"], run)
        if name in POOLS and self.overlap == "overwrite":
            return pool_last_wins(name, args, kwargs)
        rectifier = recognise(name, args, kwargs, self._masks)
        if rectifier is not None and rectifier.x.requires_grad:
            return rectify(rectifier.x, rectifier.ceiling, run, self)
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


SENDING = (Tensor.backward, torch.autograd.backward, torch.autograd.grad)
"""The calls that send a signal down."""


def _ends(*args: Any, **kwargs: Any) -> Iterator[tuple[Tensor, ...]]:
    """Between which tensors such a call does: from outputs to inputs, if it says to which."""
    given = dict(zip(("outputs", "inputs"), args, strict=False)) | kwargs
    for tensors in (given.get("outputs", given.get("tensors")), given.get("inputs")):
        if isinstance(tensors, Tensor):
            yield (tensors,)
        else:
            yield () if tensors is None else tuple(tensors)


RULES: Mapping[str, Callable[..., Tensor] | None] = {
    "gradient": None,
    "deconvnet": lambda signal, *_: signal.relu(),
    "guided": lambda signal, closed: signal.relu().masked_fill(closed, 0),
}
"""What is sent back of a signal; `closed` marks where the rectifier let nothing through.
None: what autograd sends."""


class _Run:
    """A call that can be made, once, as it stands or on another tensor in x's place."""

    def __init__(self, func: Any, args: Any, kwargs: Any, inplace: bool) -> None:
        self.func, self.args, self.kwargs, self.inplace = func, args, kwargs, inplace

    def __call__(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    def on(self, x: Tensor, copy: Tensor) -> _Run:
        """The same call on a copy of x, about which nobody need be told that it is changed."""
        args = tuple(copy if arg is x else arg for arg in self.args)
        kwargs = {key: copy if arg is x else arg for key, arg in self.kwargs.items()}
        return _Run(self.func, args, kwargs, inplace=False)


def rectify(x: Tensor, ceiling: float, run: _Run, ruled: BackwardRule) -> Any:
    if run.inplace and x._is_view():
        # Autograd wraps what is done in place to a view into a node that hides it from
        # `coverage`; a copy into the view is recorded in the open.
        return x.copy_(Rectify.apply(x, run.on(x, x.detach().clone()), ceiling, ruled))
    return Rectify.apply(x, run, ceiling, ruled)


class Rectify(torch.autograd.Function):
    """Up: the network's own call. Down: the rule."""

    convscope_kind = "rewritten"

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: _Run, ceiling: float, ruled: BackwardRule) -> Any:
        y = run()
        if run.inplace:
            ctx.mark_dirty(x)
        ctx.ruled = ruled
        if ruled.rule != "deconvnet":  # which asks for the signal alone
            ctx.save_for_backward((y <= 0) | (y >= ceiling))
        return y

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> Any:
        send_back = RULES[ctx.ruled.rule]
        assert send_back is not None
        return send_back(signals[0], *ctx.saved_tensors), None, None, None


class PassedBy(torch.autograd.Function):
    """Up: the network's own call. Down: nothing happens."""

    convscope_kind = "skipped"

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: _Run) -> Any:  # noqa: ARG004
        return run()

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> Any:  # noqa: ARG004
        return signals[0], None


POOLS: Mapping[str, Any] = {
    "max_pool2d": F.max_pool2d_with_indices,
    "max_pool2d_with_indices": F.max_pool2d_with_indices,
    "adaptive_max_pool2d": F.adaptive_max_pool2d_with_indices,
    "adaptive_max_pool2d_with_indices": F.adaptive_max_pool2d_with_indices,
}
"""A pool's bare name → the same pool with its switches."""


class LastWins(torch.autograd.Function):
    """A max pool of which only the last of the windows that share a maximum sends back.

    Autograd adds (the adjoint). `nn.MaxUnpool2d` overwrites, and on several threads or a GPU it is
    a matter of luck by what; here the last window in row-major order wins, as on one thread.
    Up: nothing happens. Down: signals of windows that a later window overwrites are dropped.
    """

    convscope_kind = "linear"

    @staticmethod
    def forward(ctx: Any, y: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.mark_dirty(y)  # so that the network may work in place on it
        return y

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> Any:
        return signals[0].masked_fill(~ctx.saved_tensors[0], 0), None


def pool_last_wins(name: str, args: Any, kwargs: Any) -> Any:
    options = {key: value for key, value in kwargs.items() if key != "return_indices"}
    y, indices = POOLS[name](*args, **options)
    y = LastWins.apply(y, last_of_each(indices)) if y.requires_grad else y
    both = name.endswith("_with_indices") or kwargs.get("return_indices")
    return (y, indices) if both else y


def last_of_each(indices: Int64[Tensor, "*b h w"]) -> Bool[Tensor, "*b h w"]:
    """Where is a pooling window the last, in row-major order, of those that share its maximum?"""
    place = indices.flatten(-2)
    number = torch.arange(place.shape[-1], device=place.device).expand_as(place)
    size = int(place.max()) + 1 if place.numel() else 0
    last = place.new_zeros(*place.shape[:-1], size).scatter_reduce(-1, place, number, "amax")
    return (last.gather(-1, place) == number).view_as(indices)


class Rectifier(NamedTuple):
    """A call that computes min(max(x, 0), ceiling)."""

    x: Tensor
    ceiling: float = math.inf


class Masks:
    """Which tensors say where another is positive, as in `x * (x > 0)`?

    Nothing is kept alive; a mask of an x that was changed in place since is none any more.
    """

    def __init__(self) -> None:
        self._of: Any = WeakIdKeyDictionary()

    def note(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        """Remember what `x > 0`, or a cast of such a mask, has given."""
        if not args or not isinstance(result, Tensor) or not isinstance(args[0], Tensor):
            return
        source: Tensor | None = args[0]
        if name in CASTS:
            source = self.of(source)
        elif name not in ("gt", "ge") or len(args) != 2 or not _is_zero(args[1]):
            source = None
        if source is not None:
            self._of[result] = (weakref.ref(source), version(source))

    def of(self, mask: Any) -> Tensor | None:
        """The x whose positive places this is, or None."""
        source, before = self._of.get(mask, (None, 0)) if isinstance(mask, Tensor) else (None, 0)
        x: Tensor | None = None if source is None else source()
        return x if x is not None and version(x) == before else None


def recognise(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Masks
) -> Rectifier | None:
    """What the call rectifies, or None if it is something else. name: of the operation."""
    if name in SPELLINGS:
        plain = {key: value for key, value in kwargs.items() if key not in ("inplace", "out")}
        with contextlib.suppress(TypeError):  # some other overload of that name
            return SPELLINGS[name](*args, **plain)
    if name == "mul" and len(args) == 2:
        return _masked(*args, masks)
    if name == "where" and len(args) == 3:
        mask, x, zero = args
        return _masked(x, mask, masks) if _is_zero(zero) else None
    return None


def _hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Rectifier | None:
    return _clamp(input, min_val, max_val)


def _clamp(input: Tensor, min: Any = None, max: Any = None) -> Rectifier | None:
    if not _is_zero(min) or isinstance(max, Tensor):
        return None
    return Rectifier(input, math.inf if max is None else float(max))


def _threshold(input: Tensor, threshold: float, value: float) -> Rectifier | None:
    return Rectifier(input) if threshold == 0 and value == 0 else None


def _maximum(input: Tensor, *others: Any, other: Any = None, **_: Any) -> Rectifier | None:
    """`max` is also a reduction, with or without a number of a dimension."""
    second = others[0] if others else other
    if not isinstance(second, Tensor):
        return None
    for x, zero in ((input, second), (second, input)):
        if x.numel() >= zero.numel() and _is_zero(zero):
            return Rectifier(x)
    return None


def _masked(a: Any, b: Any, masks: Masks) -> Rectifier | None:
    for x, mask in ((a, b), (b, a)):
        if isinstance(x, Tensor) and masks.of(mask) is x:
            return Rectifier(x)
    return None


def _is_zero(value: Any) -> bool:
    """The number 0, or a constant tensor of nothing else."""
    if isinstance(value, Tensor):
        return not value.requires_grad and not bool(torch.any(value))
    return isinstance(value, int | float) and value == 0


SPELLINGS: Mapping[str, Callable[..., Rectifier | None]] = {
    "relu": lambda input: Rectifier(input),
    "relu6": lambda input: Rectifier(input, 6.0),
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "threshold": _threshold,
    "maximum": _maximum,
    "max": _maximum,
    "fmax": _maximum,
}
"""Operation → what it rectifies, given its own arguments."""
CASTS = {"type"} | {name for name, operation in OPERATIONS.items() if "ToCopy" in operation.nodes}
"""Operations that give the same numbers in another precision."""
