"""Audit of a network: mode, wrappers, scripted parts, hooks; trials that might take minutes."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.overrides import TorchFunctionMode

from convscope.core.foreign import TheirCode
from convscope.core.text import plural
from convscope.lens.lens import HOOK
from convscope.lens.twin import ShadowModel, is_scripted
from convscope.network.network import Delivered, Network
from convscope.studies.audit.record import Finding, Verdict
from convscope.trace.backward_rule import Masks, recognise
from convscope.trace.operations import OPERATIONS, name_of

ROUNDING = 1e-4
"""Relative to the largest score: what may differ through the order of sums alone."""


@dataclass
class Case:
    """One network under audit. Everything is tried on `model`, a twin in eval mode with buffers
    of its own, so that not even a network that changes itself when it runs is changed."""

    given: nn.Module
    model: nn.Module
    name: str
    network: Network | None
    """What `load` made; None for a bare module."""
    delivered: Delivered
    seconds: float
    """How long each method may be tried."""
    seed: int
    scored: nn.Module | None = None
    """`model` as methods about a class take it, once it is known where its scores are."""
    image: Float[Tensor, "c h w"] = field(default_factory=lambda: torch.zeros(0))
    pictured: str = ""
    """What the picture is, in words."""
    one_pass: float = 0.0
    """Seconds that the network takes for the picture."""
    layer: str | None = None
    """That class activation maps take if nobody names one, once it is known."""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def explained(self) -> nn.Module:
        return self.scored or self.model

    @property
    def batch(self) -> Float[Tensor, "1 c h w"]:
        return self.image[None]

    def scores(self, images: Float[Tensor, "b c h w"]) -> Any:
        """What the network puts out, without gradients. Its faults are ModelError M522, M574."""
        with torch.no_grad(), TheirCode("M574", "the network", [images]):
            return self.model(images)


def private(model: nn.Module) -> nn.Module:
    """A twin in eval mode that shares weights and nothing else. Raises as ShadowModel does."""
    twin = ShadowModel(model).model
    for module in twin.modules():
        if not is_scripted(module):
            state = module.__dict__
            state["_buffers"] = {
                name: value if value is None else value.clone()
                for name, value in state["_buffers"].items()
            }
    return twin


Check = Callable[[Case], Iterator[Finding]]


@dataclass(frozen=True)
class Heading:
    """Findings under one heading."""

    topic: str

    def _find(
        self, verdict: Verdict, question: str, finding: str, advice: str = "", code: str = ""
    ) -> Finding:
        return Finding(self.topic, question, finding, verdict, advice, code)

    def ok(self, question: str, finding: str, advice: str = "") -> Finding:
        return self._find("ok", question, finding, advice)

    def warn(self, question: str, finding: str, advice: str) -> Finding:
        return self._find("warn", question, finding, advice)

    def bad(self, code: str, question: str, finding: str, advice: str) -> Finding:
        return self._find("bad", question, finding, advice, code)


def said(fault: BaseException, most: int = 160) -> str:
    """The first line of a fault's message, cut where it goes on for long."""
    line = (str(fault).splitlines() or [""])[0].strip() or type(fault).__name__
    return line if len(line) <= most else line[: most - 1] + "…"


def some(names: list[str], most: int = 3) -> str:
    """A few of the names, and how many more there are."""
    shown = ", ".join(name or "the network" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


LEAST, PASSES = 3.0, 8
"""Seconds, and passes of the network, that every method may take: it chooses a layer, and goes up
and down at least once."""


class OutOfTime(Exception):
    """The method has been tried for as long as it may be: it runs, and takes longer."""


class Clock(TorchFunctionMode):
    """Ends what is computed inside its block when the time is over.

    Given to a method as its `progress`, it ends the work politely and knows how long all of it
    would take; else at the next call of torch after as many seconds more as some passes take.
    """

    def __init__(self, seconds: float, one_pass: float) -> None:
        super().__init__()
        self.seconds, self.most = seconds, seconds + max(LEAST, PASSES * one_pass)
        self.share = 0.0
        """Of the whole work that is done."""
        self.started = time.perf_counter()
        self._has_rung = False

    def __enter__(self) -> Self:
        self.started = time.perf_counter()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __call__(self, done: int, total: int) -> None:
        self.share = done / total
        if self.passed > self.seconds and done < total:
            raise OutOfTime

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Once only, and not where a block is left: what it undoes is a call of torch, too.
        name = str(getattr(func, "__name__", ""))
        if self.passed > self.most and not self._has_rung and "grad_enabled" not in name:
            self._has_rung = True
            raise OutOfTime
        return func(*args, **(kwargs or {}))

    @property
    def passed(self) -> float:
        return time.perf_counter() - self.started

    @property
    def needs(self) -> str:
        """How long all of it takes, in words."""
        if not self.share:
            return f"more than {self.passed:.0f} s a picture"
        return f"about {self.passed / self.share:.0f} s a picture"


WEIGHTS = Heading("weights")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check_weights(case: Case) -> Iterator[Finding]:
    yield _finite(case)
    yield _dead(case)
    yield from _untouched(case)
    yield _kinds(case.model)
    yield from _devices(case.model)
    yield _shared(case.model)


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _finite(case: Case) -> Finding:
    broken: list[str] = []
    total = 0
    for name, value in _named(case.model):
        if value.is_floating_point() and not value.is_quantized:
            lost = int((~torch.isfinite(value)).sum())
            total += lost
            broken += [f"{name} ({lost:,} of {value.numel():,})"] if lost else []
    case.facts["weights not finite"] = broken
    if not broken:
        count = sum(weight.numel() for weight in case.model.parameters())
        return WEIGHTS.ok("finite weights", f"all {count:,} are finite numbers")
    what = f"{plural(total, 'number')} NaN or infinite, in {some(broken)}"
    advice = (
        "one NaN reaches every score, and each map of it is empty; take weights from before the "
        "training broke down"
    )
    return WEIGHTS.bad("M588", "finite weights", what, advice)


def _dead(case: Case) -> Finding:
    """Filters of zeros: pruned, or never learned."""
    dead: dict[str, str] = {}
    filters = 0
    for name, module in case.model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            weight = module.weight.detach()
            filters += len(weight)
            silent = int((weight.flatten(1) == 0).all(1).sum())
            if silent:
                dead[name] = f"{name} ({silent} of {len(weight)})"
    case.facts["dead filters"] = list(dead)
    if not dead:
        return WEIGHTS.ok("dead filters", f"none of {plural(filters, 'filter')} is all zeros")
    advice = (
        "their maps say nothing about any picture: pruned on purpose, or dead. Lists of the "
        "strongest pictures leave them empty"
    )
    return WEIGHTS.warn("dead filters", f"all zeros in {some(list(dead.values()))}", advice)


def _untouched(case: Case) -> Iterator[Finding]:
    """Batch norms that have never seen a picture."""
    norms = [
        (module.running_mean, module.running_var)
        for module in case.model.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    kept = [(mean, var) for mean, var in norms if mean is not None and var is not None]
    if kept and all(bool((mean == 0).all() and (var == 1).all()) for mean, var in kept):
        advice = "training moves them at once: are these the weights that were meant?"
        what = f"all {len(kept)} still have mean 0 and variance 1, as before any training"
        yield WEIGHTS.warn("batch norms", what, advice)


def _kinds(model: nn.Module) -> Finding:
    kinds = Counter(
        str(value.dtype).removeprefix("torch.")
        for _, value in _named(model)
        if value.is_floating_point()
    )
    told = ", ".join(f"{plural(count, 'tensor')} {kind}" for kind, count in kinds.items())
    if len(kinds) > 1:
        advice = "a picture has one precision, and layers of another may refuse it: use one"
        return WEIGHTS.warn("precision", told, advice)
    (kind,) = kinds or ("none",)
    if kind in ("float16", "bfloat16"):
        advice = "close scores and close places may change their order; use float() to compare"
        return WEIGHTS.warn("precision", f"{kind} throughout", advice)
    return WEIGHTS.ok("precision", f"{kind} throughout")


def _devices(model: nn.Module) -> Iterator[Finding]:
    devices = sorted({str(value.device) for _, value in _named(model)})
    if len(devices) > 1:
        advice = "a picture lies on one device: move all of the network to one, as model.to(…)"
        yield WEIGHTS.warn("devices", ", ".join(devices), advice)


def _shared(model: nn.Module) -> Finding:
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    shared = [" = ".join(several[:3]) for several in names.values() if len(several) > 1]
    if not shared:
        return WEIGHTS.ok("shared", "no: each tensor belongs to one layer")
    what = f"{plural(len(shared), 'tensor')} under several names: {some(shared, 2)}"
    advice = "changing or randomising one changes the other; it counts once"
    return WEIGHTS.ok("shared", what, advice)


RECTIFIERS = Heading("rectifiers")
OTHERS = {
    name: operation.title
    for name, operation in OPERATIONS.items()
    if operation.title and name not in ("abs", "threshold", "softmax", "log_softmax")
}
"""Activations that are no rectifiers, and what they are called."""
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
        name = name_of(func)
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


def _spelled(func: Any, name: str) -> str:
    own = str(getattr(func, "__name__", name)).split(".")[0].removeprefix("_")
    arguments = ARGUMENTS.get(name, "")
    if name == "mul":
        return "x * (x > 0)"
    if name == "where":
        return "torch.where(x > 0, x, 0)"
    if inspect.ismethoddescriptor(func):
        return f"x.{own}({arguments})"
    home = "F" if str(getattr(func, "__module__", "")) == "torch.nn.functional" else "torch"
    return f"{home}.{own}({arguments})" if arguments else f"{home}.{own}"


def calls_of(model: nn.Module, images: torch.Tensor) -> Calls:
    """Run the network once on pictures and count. The model is not touched."""
    twin, calls = ShadowModel(model), Calls()

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
        what = f"{plural(calls.in_modules, 'call')} of {plural(len(calls.modules), 'module')}"
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


DELIVERED = Heading("as delivered")
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
CHECKPOINTING = ("memory_efficient", "grad_checkpointing", "gradient_checkpointing")
"""Attributes by which networks turn checkpointing on."""


def check_delivered(case: Case) -> Iterator[Finding]:
    yield _mode(case)
    if case.network is not None:
        told = case.network.preprocess.assumption()  # the input's findings say more of that
        yield from (_note(note) for note in case.network.notes if note != told)
    yield _wrappers(case)
    yield _scripted(case.model)
    yield _hooks(case.given)
    quantised = _quantised(case.model)
    if quantised:
        what = f"{plural(len(quantised), 'quantised layer')}: {some(quantised)}"
        advice = (
            "whole numbers have no gradients: maps that need them will be refused; use the "
            "float network that it was made from"
        )
        yield DELIVERED.warn("quantised", what, advice)
    yield from _checkpointed(case.model)


def _mode(case: Case) -> Finding:
    """Train mode as such is torch's default for new networks; left on by mistake it decides."""
    result = case.delivered
    case.facts["delivered in train mode"] = list(result.training)
    acting = " and ".join(f"{count} {kind}" for kind, count in result.acting.items())
    if not result.training:
        return DELIVERED.ok("mode", "eval mode, every module")
    still = any(module.training for module in case.given.modules())
    extent = (
        "train mode"
        if len(result.training) == result.modules
        else f"{len(result.training)} of {plural(result.modules, 'module')} in train mode "
        f"({some(list(result.training))})"
    )
    what = f"{extent}, which matters to {acting or 'no layer'}"
    if not acting:
        return DELIVERED.ok("mode", what)
    if case.network is not None and not still:
        turned = (
            "new networks are in train mode. convscope set eval mode; in your own scripts call "
            "model.eval() first"
        )
        return DELIVERED.ok("mode", what, turned)
    advice = (
        "call model.eval() (if that changes nothing, a train() of its own overrides it): otherwise "
        "answers depend on chance or on the batch. convscope itself looks at a twin in eval mode, "
        "and the rest of this table is about that"
    )
    return DELIVERED.warn("mode", what, advice)


def _note(note: str) -> Finding:
    doubtful = ("random", "untrained", "not known", "assumed", "left out")
    if any(sign in note for sign in doubtful):
        advice = "what is shown of this network is only as good as this"
        return DELIVERED.warn("note of loading", note, advice)
    return DELIVERED.ok("note of loading", note)


def _wrappers(case: Case) -> Finding:
    wrappers = case.delivered.wrappers
    inside = [
        name
        for name, module in case.given.named_modules()
        if name and getattr(module, "_compiled_call_impl", None) is not None
    ]
    if inside:
        wrappers = (*wrappers, f"torch.compile around {some(inside)}")
    case.facts["wrappers"] = list(wrappers)
    if not wrappers:
        return DELIVERED.ok("wrapped", "not compiled, not parallel")
    advice = "taken off for looking: compiled and parallel networks do not call hooks reliably"
    return DELIVERED.ok("wrapped", f"in {', '.join(wrappers)}", advice)


def _scripted(model: nn.Module) -> Finding:
    scripted: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in scripted)
        if is_scripted(module) and not inside:
            scripted.append(name)
    if not scripted:
        return DELIVERED.ok("scripted", "no: every layer is a Python module")
    what = f"{plural(len(scripted), 'scripted or traced module')}: {some(scripted)}"
    advice = (
        "their calls cannot be seen, so rectifiers inside follow no rule and layers inside "
        "cannot be named; use the Python modules they were made from"
    )
    return DELIVERED.warn("scripted", what, advice)


def _hooks(given: nn.Module) -> Finding:
    result: Counter[str] = Counter()
    for _, module in given.named_modules():
        for kind in HOOKS:
            result.update(map(_called, _values(getattr(module, kind, None))))
    everywhere: Counter[str] = Counter()
    for kind in HOOKS:
        everywhere.update(map(_called, _values(getattr(global_hooks, f"_global{kind}", None))))
    hooks = [f"{count} × {name}" if count > 1 else name for name, count in result.items()]
    hooks += [f"{name} (on all modules)" for name in everywhere]
    if not hooks:
        return DELIVERED.ok("hooks", "none")
    what = f"{plural(result.total() + everywhere.total(), 'hook')} of others: {some(hooks)}"
    advice = (
        "they run in every look at the network too, and may change what it computes; remove "
        "those that were left by mistake"
    )
    return DELIVERED.warn("hooks", what, advice)


def _values(hooks: Mapping[int, object] | None) -> list[object]:
    return [] if hooks is None else list(hooks.values())


def _called(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__name__))


def _quantised(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if "quantized" in type(module).__module__.split(".")
    ]


def _checkpointed(model: nn.Module) -> Iterator[Finding]:
    result = [
        name
        for name, module in model.named_modules()
        if any(getattr(module, sign, None) is True for sign in CHECKPOINTING)
    ]
    if result:
        what = f"activations are computed anew on the way down in {some(result)}"
        advice = (
            "that happens out of sight of the deconvnet and guided rules, which refuse it; turn "
            "memory_efficient or gradient checkpointing off"
        )
        yield DELIVERED.warn("checkpointed", what, advice)
