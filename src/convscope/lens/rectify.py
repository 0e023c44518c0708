"""What does one rectifier send up, and what down?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

SendBack = Callable[..., Tensor]

RULES: Mapping[str, SendBack | None] = {
    "gradient": None,
    "deconvnet": lambda signal, *_: signal.relu(),
    "guided": lambda signal, closed: signal.relu().masked_fill(closed, 0),
}
"""What is sent back of a signal; `closed` marks where the rectifier let nothing through.
None: what autograd sends."""


class Call:
    """A call that can be made, once, as it stands or on another tensor in x's place."""

    def __init__(self, func: Any, args: Any, kwargs: Any, inplace: bool) -> None:
        self.func, self.args, self.kwargs, self.inplace = func, args, kwargs, inplace

    def __call__(self) -> Any:
        return self.func(*self.args, **self.kwargs)

    def on(self, x: Tensor, copy: Tensor) -> Call:
        """The same call on a copy of x, about which nobody need be told that it is changed."""
        args = tuple(copy if arg is x else arg for arg in self.args)
        kwargs = {key: copy if arg is x else arg for key, arg in self.kwargs.items()}
        return Call(self.func, args, kwargs, inplace=False)


class Ruled(Protocol):
    """Says by which of RULES a signal goes down; when it does, long after the call."""

    rule: Any


def rectify(x: Tensor, ceiling: float, run: Call, ruled: Ruled) -> Any:
    if run.inplace and x._is_view():
        # Autograd wraps what is done in place to a view into a node that hides it from
        # `coverage`; a copy into the view is recorded in the open.
        return x.copy_(Rectify.apply(x, run.on(x, x.detach().clone()), ceiling, ruled))
    return Rectify.apply(x, run, ceiling, ruled)


class Rectify(torch.autograd.Function):
    """Up: the network's own call. Down: the rule."""

    convscope_kind = "rewritten"

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Call, ceiling: float, ruled: Ruled) -> Any:
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
    def forward(ctx: Any, x: Tensor, run: Call) -> Any:  # noqa: ARG004
        return run()

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> Any:  # noqa: ARG004
        return signals[0], None
