"""Which rectifiers does the network call, in which spelling, and which other activations?"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from convscope.lens.lens import HOOK
from convscope.lens.rectifiers import Masks, recognise
from convscope.lens.twin import Twin, is_scripted
from convscope.records.audit import Finding
from convscope.studies.audit_case import Case, Heading, many

RECTIFIERS = Heading("rectifiers")
OTHERS = {
    "celu": "CELU",
    "elu": "ELU",
    "gelu": "GELU",
    "glu": "GLU",
    "hardshrink": "Hardshrink",
    "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish",
    "hardtanh": "Hardtanh",
    "leaky_relu": "LeakyReLU",
    "logsigmoid": "LogSigmoid",
    "mish": "Mish",
    "prelu": "PReLU",
    "rrelu": "RReLU",
    "selu": "SELU",
    "sigmoid": "Sigmoid",
    "silu": "SiLU",
    "softplus": "Softplus",
    "softshrink": "Softshrink",
    "softsign": "Softsign",
    "tanh": "Tanh",
    "tanhshrink": "Tanhshrink",
}
"""Bare names of activations that are no rectifiers, and what they are called."""
ATTENTION = {"softmax", "multi_head_attention_forward", "scaled_dot_product_attention"}
ARGUMENTS = {
    "clamp": "min=0",
    "clip": "min=0",
    "clamp_min": "0",
    "threshold": "0, 0",
    "maximum": "0",
    "max": "0",
    "fmax": "0",
}
"""How a spelling of a rectifier is shown, where its name alone does not say it."""
ACTIVATIONS = "torch.nn.modules.activation"


class Calls(TorchFunctionMode):
    """Counts the calls of activations of one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.spellings: Counter[str] = Counter()
        self.modules: set[nn.Module] = set()
        """Activation modules that ran."""
        self.in_modules = 0
        """Rectifier calls that such modules made."""
        self.bounded = 0
        """Rectifiers with a ceiling, as ReLU6."""
        self.others: Counter[str] = Counter()
        self.attention = 0
        self.inside: list[nn.Module] = []
        """Modules that are running, the innermost last."""
        self._masks = Masks()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _bare(func)
        found = recognise(name, args, kwargs, self._masks)
        if found is not None:
            self._note(func, name, kwargs)
            self.bounded += found.ceiling < 1e6
        elif name in OTHERS:
            self.others[OTHERS[name]] += 1
        self.attention += name in ATTENTION
        result = func(*args, **kwargs)
        self._masks.note(name, args, result)
        return result

    def _note(self, func: Any, name: str, kwargs: Any) -> None:
        module = self.inside[-1] if self.inside else None
        if module is None or type(module).__module__ != ACTIVATIONS:
            in_place = bool(kwargs.get("inplace"))
            self.spellings[_spelled(func, name) + (" in place" if in_place else "")] += 1
            return
        in_place = bool(getattr(module, "inplace", False))
        self.spellings[f"nn.{type(module).__name__}{' in place' if in_place else ''}"] += 1
        self.modules.add(module)
        self.in_modules += 1


def _bare(func: Any) -> str:
    """As in `lens/backward.py`: `clamp_min_.default` is clamp_min."""
    return str(getattr(func, "__name__", "")).split(".")[0].removeprefix("_").rstrip("_")


def _spelled(func: Any, name: str) -> str:
    own = str(getattr(func, "__name__", name)).split(".")[0].removeprefix("_")
    arguments = ARGUMENTS.get(name, "")
    if name in ("mul", "multiply"):
        return "x * (x > 0)"
    if name == "where":
        return "torch.where(x > 0, x, 0)"
    if inspect.ismethoddescriptor(func):
        return f"x.{own}({arguments})"
    home = "F" if str(getattr(func, "__module__", "")) == "torch.nn.functional" else "torch"
    return f"{home}.{own}({arguments})" if arguments else f"{home}.{own}"


def calls_of(model: nn.Module, images: torch.Tensor) -> Calls:
    """Run the network once on pictures and count. The model is not touched."""
    twin, calls = Twin(model), Calls()

    def enter(module: nn.Module, _: Any) -> None:
        calls.inside.append(module)

    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        calls.inside.pop()

    for module in twin.model.modules():
        if not is_scripted(module):
            module._forward_pre_hooks[HOOK] = enter
            module._forward_hooks[HOOK] = leave
    with torch.no_grad(), calls:
        twin.run(images)
    return calls


def check_calls(case: Case) -> Iterator[Finding]:
    calls = calls_of(case.model, case.batch)
    case.facts["rectifiers"] = dict(calls.spellings)
    case.facts["other activations"] = dict(calls.others)
    yield _rectifiers(calls)
    yield from _reused(calls)
    yield _others(calls)


def _rectifiers(calls: Calls) -> Finding:
    total = calls.spellings.total()
    if not total:
        advice = "deconvnet and guided backpropagation are about rectifiers: here they say nothing"
        return RECTIFIERS.ok("seen", "none in one pass", advice)
    told = ", ".join(f"{count} {name}" for name, count in calls.spellings.most_common())
    told += f"; {calls.bounded} of them with a ceiling" if calls.bounded else ""
    hidden = total - calls.in_modules
    if not hidden:
        return RECTIFIERS.ok("seen", f"{total} in one pass: {told}")
    advice = (
        f"all spellings follow the backward rules here; tools that hook modules miss {hidden} of "
        "them and show the plain gradient under another name"
    )
    return RECTIFIERS.ok("seen", f"{total} in one pass: {told}", advice)


def _reused(calls: Calls) -> Iterator[Finding]:
    if calls.in_modules > len(calls.modules):
        what = f"{many(calls.in_modules, 'call')} of {many(len(calls.modules), 'module')}"
        advice = "name one of its outputs, as relu#2, where a layer is asked for"
        yield RECTIFIERS.ok("reused", what, advice)


def _others(calls: Calls) -> Finding:
    told = [f"{count} {name}" for name, count in calls.others.most_common()]
    told += [f"{calls.attention} softmax (attention)"] if calls.attention else []
    if not told:
        return RECTIFIERS.ok("other activations", "none")
    advice = (
        "deconvnet and guided backpropagation are defined for rectifiers only and refuse these, "
        'unless other="gradient" lets the plain gradient through there'
    )
    return RECTIFIERS.warn("other activations", ", ".join(told), advice)
