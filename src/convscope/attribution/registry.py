"""Registry of attribution methods by name, a user's own among them; `attribute` calls one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convscope.attribution import formulas, gradients
from convscope.attribution.base import Method, Options
from convscope.attribution.occlusion import occlusion_map
from convscope.core.errors import UsageError, nearest, require_options, shown
from convscope.core.foreign import TheirCode
from convscope.lens.lens import Lens
from convscope.lens.twin import bare
from convscope.network.arguments import Given, Layers, Model, several, taking
from convscope.network.network import Network, prepared
from convscope.network.outputs import Target, plain
from convscope.network.user_code import from_module
from convscope.records.maps import Attribution

NODES = 16
"""Of integrated gradients here; the note on completeness says where they are too few."""

METHODS: Mapping[str, Method] = {
    **formulas.METHODS,
    **gradients.METHODS,
    "integrated-gradients": partial(gradients.integrated_gradients, steps=NODES),
    "occlusion": occlusion_map,
}
"""All methods that explain a score, by the names that commands and pages use."""
DEFAULT = ("gradcam", "layercam", "integrated-gradients", "occlusion")
"""Two maps of a layer, one of pixels, and one that tries it out."""
LAYERED = {
    *(name for name, made in formulas.CAMS.items() if made.takes_layers),
    "guided-gradcam",
}
"""Those that can be told a layer."""


@taking()
def attribute(
    network: Model,
    pictures: Given,
    method: Any = "gradcam",
    *,
    layer: Layers = None,
    target: Target | Iterable[Target] | None = None,
    **how: Any,
) -> list[Attribution]:
    """What in each picture speaks for its target, by one method: a map of the picture's size.

    method: a name of `METHODS`, `package.module:function` or a function of your own (see `own`).
    layer: for the methods that take one. target: class index, class name, function from scores
    (b, classes) to (b,), or one of these for each picture; without it the likeliest class. how:
    the method's own options, as `variant=` or `run=`; see `Options` and the method.

    Raises what the method raises; UsageError U395 (no such method), U399 (it takes no layer).
    """
    if isinstance(method, str) and method == "all":
        step = "convscope.explain takes several, and all"
        raise UsageError("U395", method, "is no single method", next_step=step)
    ((name, chosen_one),) = chosen([method]).items()
    ours = name in METHODS
    if layer is not None:
        if ours and name not in LAYERED:
            raise _takes_none(str(layer), [name])
        how["layer"] = layer
    if target is not None:
        how["target"] = target
    return chosen_one(network, pictures if ours else several(network, pictures), **how)


def chosen(names: Sequence[Any], layer: str | None = None) -> dict[str, Method]:
    """Methods by name; "all" for every one, `package.module:function` for a user's own, or the
    function itself. Names are taken as Python, papers and commands write them.

    layer: for those methods that take one. Raises UsageError U395 (no such method, with near
    names), U398 (a user's that cannot be called), ModelError M570, M571 (a user's module that
    cannot be imported).
    """
    wanted = [name for one in names for name in (METHODS if one == "all" else (one,))]
    told: dict[str, Any] = {}
    for one in wanted:
        name = _name(one)
        given = name if isinstance(one, str) or name in METHODS else one
        while told.get(name, given) != given:  # two functions of one name
            name += "'"
        told[name] = given
    return {name: _one(given, layer, name) for name, given in told.items()}


def methods_of(_: Any, given: Any) -> dict[str, Method]:
    """Methods by name, out of names, functions, a list of these, or such a table.

    Raises UsageError U395 and as `chosen`.
    """
    if isinstance(given, Mapping):
        return {
            str(name): one if callable(one) else _one(_name(one), None, str(name))
            for name, one in given.items()
        }
    return chosen(given if isinstance(given, list | tuple) else [given])


def method_of(network: Any, given: Any) -> Method:
    """One of these. Raises as `methods_of`."""
    return given if callable(given) else next(iter(methods_of(network, [given]).values()))


def _plain(name: str) -> str:
    """As it is compared: integrated_gradients, IntegratedGradients and Integrated-Gradients are
    one, and so are gradcam++ and gradcam_plus_plus."""
    return re.sub(r"[-_ ]", "", name.lower().replace("plus", "+"))


def _name(given: Any) -> str:
    """What a method is called. Raises UsageError U395 for what is none."""
    known = {_plain(name): name for name in METHODS}
    if callable(given):
        name = str(getattr(given, "__name__", type(given).__name__))
        ours = str(getattr(given, "__module__", "")).startswith("convscope.")
        return known.get(_plain(name), name) if ours else name
    if not isinstance(given, str):
        step = "give names, as gradcam, or functions (model, images, target)"
        raise UsageError("U395", "", f"{shown(given)} is no method", next_step=step)
    return given if ":" in given else known.get(_plain(given), given)


def _one(given: Any, layer: str | None, name: str) -> Method:
    if callable(given):
        return own(given, name, layer)
    name = given
    if name in METHODS:
        method = METHODS[name]
        return partial(method, layer=layer) if layer and name in LAYERED else method
    if ":" in name:
        return own(from_module(name), name, layer)
    what = f"no such method; {nearest(name, [*METHODS, 'all'])}"
    raise UsageError("U395", name, what, next_step="or write package.module:function")


def require_layer(model: nn.Module | Network, methods: Mapping[str, Method], layer: str) -> None:
    """Raises ModelError M500 (no such layer, with near names), UsageError U399 where none of the
    methods takes one."""
    Lens(bare(model), [layer])
    if not any(name in LAYERED or ":" in name for name in methods):
        raise _takes_none(layer, methods)


def _takes_none(layer: str, methods: Iterable[str]) -> UsageError:
    what = f"none of these methods takes a layer: {', '.join(methods)}"
    step = f"leave it out, or take one of {', '.join(sorted(LAYERED))}"
    return UsageError("U399", layer, what, next_step=step)


def own(function: Callable[..., Any], name: str, layer: str | None = None) -> Method:
    """A user's function as a method of the family.

    It is called as `function(model, images)`, with `target=` (a class index) and `layer=` (a
    name) where it takes them and they are known, and gives attributions, or maps (b, h, w) or
    (b, c, h, w) as an array or tensor; colours are added up.

    Raises UsageError U398 where it cannot be called so, U396 where it gives something else,
    ModelError M594 where its own code fails.
    """
    takes = _parameters(function, name)
    return _Own(function, name, {} if layer is None else {"layer": layer}, takes)


@dataclass(frozen=True)
class _Own:
    """A user's function, in the family's form."""

    function: Callable[..., Any]
    name: str
    told: Mapping[str, str]
    takes: set[str] | None
    """What may be given by name; None where everything may."""

    def __call__(self, model: nn.Module, images: Tensor, **how: Any) -> list[Attribution]:
        images = prepared(model, images)
        model = plain(bare(model))
        given, takes = {**self.told, **how}, self.takes
        known = {*Options.__annotations__, "layer", *(takes or ())}
        require_options(self.name, given if takes is not None else (), known)
        taken = {key: given[key] for key in given if takes is None or key in takes}
        with TheirCode("M594", self.name):
            answer = self.function(model, images, **taken)
        return _wrapped(answer, images, how.get("target"), self.name)


def described(method: Method) -> str:
    """Which function with which options, in words that are the same in every process."""
    if isinstance(method, partial):
        options = ", ".join(f"{name}={value!r}" for name, value in sorted(method.keywords.items()))
        return f"{described(method.func)}({options})"
    if isinstance(method, _Own):
        return f"{described(method.function)}({method.told.get('layer', '')})"
    name = getattr(method, "__qualname__", type(method).__qualname__)
    return f"{getattr(method, '__module__', '')}.{name}"


def _parameters(function: Any, name: str) -> set[str] | None:
    """What may be given by name; None where everything may."""
    step = "write def explain(model, images, target): …"
    if not callable(function):
        what = f"is a {type(function).__name__}, not a function that makes maps"
        raise UsageError("U398", name, what, next_step=step)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some of what is written in C does not say
        return set()
    known = signature.parameters.values()
    takes = {one.name for one in known if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    try:
        signature.bind(None, None, **dict.fromkeys(takes & {"target", "layer"}))
    except TypeError as fault:
        what = f"cannot be called with a model, pictures and target= ({fault})"
        raise UsageError("U398", name, what, next_step=step) from fault
    return None if any(one.kind is one.VAR_KEYWORD for one in known) else takes


def _wrapped(answer: Any, images: Tensor, target: Any, name: str) -> list[Attribution]:
    if isinstance(answer, (list, tuple)) and all(isinstance(one, Attribution) for one in answer):
        return list(answer)
    values = _array(answer)
    if values.ndim == 4:
        values = values.sum(1)
    size = (len(images), *images.shape[2:])
    if values.shape != size or not np.issubdtype(values.dtype, np.floating):
        got = f"{tuple(values.shape)} in {values.dtype}"
        what = f"gave {got}; it must give one map of the picture's size a picture, {size}"
        raise UsageError("U396", name, what)
    aims = target if isinstance(target, (list, tuple)) else [target] * len(images)
    return [
        Attribution(
            values=np.ascontiguousarray(one, dtype=np.float32),
            target=aim if isinstance(aim, int) else -1,
            method=name,
            variant="own",
            layer="",
            origin={"method": name, "notes": []},
        )
        for one, aim in zip(values, aims, strict=True)
    ]


def _array(answer: Any) -> np.ndarray:
    """Any array or tensor as one of NumPy, which knows no bfloat16."""
    if isinstance(answer, Tensor):
        whole = answer.detach().cpu()
        return np.asarray(whole.float() if whole.dtype == torch.bfloat16 else whole)
    try:
        return np.asarray(answer)
    except (ValueError, TypeError, RuntimeError):  # lists of unequal rows, or of tensors
        return np.empty(0, object)
