"""Validation of arguments: a network, its pictures, layers, targets and options, maps.

Public functions are called in the forms that a user has things in; `taking` is the one place that
turns them into what the functions compute with, and refuses the rest in one line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import UsageError, a_kind, nearest, require_options, shown
from convscope.core.run import OLD, Run, with_run
from convscope.core.units import Unit
from convscope.lens.lens import layer_name
from convscope.network.network import Network, prepared, whole
from convscope.network.preprocess import Preprocess
from convscope.pictures.opening import held, is_file, is_picture, opened, picture_of
from convscope.pictures.pictures import Picture
from convscope.pictures.shards import is_shards
from convscope.records.maps import Attribution

P = ParamSpec("P")
R = TypeVar("R")


def alone(model: nn.Module | Network, image: Tensor) -> Float[Tensor, "1 c h w"]:
    """One picture as a batch of one, as the network takes it.

    Raises UsageError U355 (no preprocessed picture), U392 (several).
    """
    images = prepared(model, image)
    if len(images) != 1:
        what = f"{len(images)} pictures, where maps of one are tested"
        raise UsageError("U392", "", what, next_step="give them one by one, as images[0]")
    return images


def attributions(maps: Iterable[Any], size: tuple[int, ...] | None = None) -> list[Attribution]:
    """Maps of one picture; of this size, or of the first one's.

    Raises UsageError U390 (another size), U393 (no attribution), U394 (NaN or infinite).
    """
    one = isinstance(maps, (Attribution, str, np.ndarray, Tensor))
    if one or not isinstance(maps, Iterable):
        raise _stranger(f"one {type(maps).__name__} in the place of several maps")
    found = list(maps)
    for one in found:
        if not isinstance(one, Attribution):
            raise _stranger(f"{type(one).__name__} in the place of a map")
        size = size or one.values.shape
        if one.values.shape != size:
            what = f"a map of {_times(one.values.shape)} beside a picture of {_times(size)}"
            step = "give the picture that it was made of"
            raise UsageError("U390", one.method, what, next_step=step)
        if not np.isfinite(one.values).all():
            raise UsageError("U394", one.method, "the map has NaN or infinite numbers")
    return found


def _stranger(what: str) -> UsageError:
    step = "give a list of Attribution, as methods return it, or Attribution(values, target)"
    return UsageError("U393", "", what, next_step=step)


def _times(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def one_map(answer: Any, size: tuple[int, ...]) -> Attribution:
    """The map in what a method returned for one picture. Raises as `attributions`."""
    found = attributions(answer, size)
    if len(found) != 1:
        raise _stranger(f"{len(found)} maps for one picture")
    return found[0]


def numbers(values: Any) -> Float[np.ndarray, "h w"]:
    """A map's numbers. Raises UsageError U393 on anything but an array of rows and columns."""
    if not isinstance(values, np.ndarray) or values.ndim != 2:
        shape = f" {_times(values.shape)}" if isinstance(values, np.ndarray) else ""
        step = "give an attribution's `values`"
        what = f"{type(values).__name__}{shape} in the place of a map's numbers"
        raise UsageError("U393", "", what, next_step=step)
    return values


def at_least(least: int, **counts: int) -> None:
    """Raises UsageError U391 on a count below the least."""
    for name, count in counts.items():
        if not _fits(count, "int"):
            raise UsageError("U380", name, f"{shown(count)} is not a whole number")
        if count < least:
            raise UsageError("U391", f"{name}={count}", f"must be {least} or more")


Given = Any
"""Pictures as a user has them, one or several: preprocessed tensors (c, h, w) or (b, c, h, w);
for what `load` returns also the name of a file or folder, a Pillow image, an array
(rows, columns, colours), a Picture, Pictures, or a list of these."""
Model = Any
"""What `load` gives, or any torch.nn.Module."""
FolderLike = Any
"""Pictures, their name, `builtin:photos`, or what stands in `Given`."""
Layers = Any
"""A layer's name as in `model.named_modules()`, the module itself, or several of these."""
Layer = Any
"""One of these; a list of one is taken for it."""
PREPROCESS = "give load(module, preprocess=…) in its place, or preprocessed tensors"


def several(network: Network | nn.Module, given: Any) -> Float[Tensor, "b c h w"]:
    """What the network takes of these pictures, framed once.

    Raises UsageError U355 (no such tensor), U376 (pictures for a bare module), U377 (no
    pictures), U379 (framed in another way), U394 (NaN), DataError as `Pictures.read`.
    """
    if isinstance(given, Tensor):
        return prepared(network, _tensor(given))
    if isinstance(given, list | tuple) and given and all(isinstance(x, Tensor) for x in given):
        return prepared(network, _stacked([_tensor(one) for one in given]))
    if not isinstance(network, Network):
        what = f"a bare {type(network).__name__} takes preprocessed tensors, no {_kind(given)}"
        raise UsageError("U376", "", what, next_step=PREPROCESS)
    preprocess = network.preprocess
    if isinstance(given, list | tuple) and any(isinstance(x, Tensor) for x in given):
        return _stacked([several(network, one) for one in given])
    if one := _one(given):
        return prepared(network, preprocess.batch([one.within(preprocess.framing).pixels]))
    with opened(given) as folder:
        pixels = [picture.pixels for picture in folder.read(preprocess.framing)]
        folder.check_bad()
    return prepared(network, preprocess.batch(pixels))


def several_or_read(network: Network | nn.Module, given: Any) -> Any:
    """The same; a function that reads them by their numbers stays one."""
    return given if callable(given) else several(network, given)


def photograph(network: Network | nn.Module, given: Any) -> Any:
    """One picture; floating-point arrays (colours, rows, columns) are preprocessed already."""
    colours_first = isinstance(given, np.ndarray) and given.ndim == 3 and given.shape[0] in (1, 3)
    if colours_first and given.dtype.kind == "f":
        given = torch.from_numpy(np.array(given))
    return single(network, given)


def single(network: Network | nn.Module, given: Any) -> Float[Tensor, "c h w"]:
    """The same of one picture. Raises besides UsageError U392 (several)."""
    images = several(network, given)
    if len(images) != 1:
        what = f"{len(images)} pictures, where one is taken"
        raise UsageError("U392", "", what, next_step="give them one by one")
    return images[0]


def whole_picture(network: Network | nn.Module, given: Any) -> Picture:
    """One picture as it was decoded, or as it was framed for this network.

    Raises UsageError U376, U377, U392 (several), and as `pictures_of`.
    """
    one = None if isinstance(given, Tensor) else _one(given)
    if one is not None:
        return one
    with opened(pictures_of(network, given)) as folder:
        if len(folder) != 1:
            what = f"{len(folder)} pictures, where one is taken"
            raise UsageError("U392", "", what, next_step="give them one by one")
        return folder.one(0)


def pictures_of(network: Network | nn.Module, given: Any) -> Any:
    """A folder, or what `opened` takes for one; of tensors the pixels that they were made of.

    Raises UsageError U376, U377, U355 (tensors that are not what the network's preprocessing
    makes of whole grey levels).
    """
    alone = isinstance(given, Tensor)
    if not alone and not (isinstance(given, list | tuple) and any(map(_is_tensor, given))):
        return given
    preprocess = whole(network).preprocess
    images = [image for one in ([given] if alone else given) for image in _parts(one)]
    return held([_undone(preprocess, image) if _is_tensor(image) else image for image in images])


def is_one(given: Any) -> bool:
    """Whether one picture was given, no list or folder of them."""
    if isinstance(given, Tensor):
        return given.dim() == 3 or len(given) == 1
    return is_picture(given) or is_file(given)


def _parts(given: Any) -> list[Any]:
    return list(_tensor(given)) if isinstance(given, Tensor) else [given]


def _undone(preprocess: Preprocess, image: Float[Tensor, "c h w"]) -> Picture:
    pixels = preprocess.pixels(image) if image.shape == preprocess.shape else None
    again = None if pixels is None else preprocess.tensor(pixels)
    if again is None or not torch.allclose(again, image.detach().cpu().float(), atol=EXACT):
        what = "these tensors are not what the network's preprocessing makes of a picture's pixels"
        raise UsageError("U355", "", what, next_step="give the pictures themselves, or a folder")
    assert pixels is not None
    return Picture(0, "picture", None, pixels, framing=preprocess.framing)


EXACT = 1e-3
"""How far a tensor may be from what whole grey levels give: rounding, and no half a level."""


def _one(given: Any) -> Picture | None:
    """The picture, where it is one and no folder of them."""
    file = is_file(given) and not is_shards(str(given))
    return picture_of(given) if is_picture(given) or file else None


def _is_tensor(given: Any) -> bool:
    return isinstance(given, Tensor)


def _kind(given: Any) -> str:
    return "list of pictures" if isinstance(given, list | tuple) else type(given).__name__


def _tensor(given: Tensor) -> Float[Tensor, "b c h w"]:
    """As a batch. Raises UsageError U355, U394."""
    images = given[None] if given.dim() == 3 else given
    if images.dim() != 4 or not images.is_floating_point() or not images.numel():
        got = f"{tuple(given.shape)} in {str(given.dtype).removeprefix('torch.')}"
        step = "preprocess them to floating point, as (pictures, channels, height, width)"
        raise UsageError("U355", "", f"these are no pictures for a network: {got}", next_step=step)
    if not bool(torch.isfinite(images).all()):
        number = int((~torch.isfinite(images)).flatten(1).any(1).nonzero()[0])
        what = "has NaN or infinite numbers, of which no map can be made"
        raise UsageError("U355", f"picture {number}", what, next_step="look at how it was prepared")
    return images


def _stacked(batches: list[Tensor]) -> Float[Tensor, "b c h w"]:
    sizes = dict.fromkeys(tuple(one.shape[1:]) for one in batches)
    if len(sizes) > 1:
        told = ", ".join(_times(size) for size in list(sizes)[:3])
        step = "give them one by one, or of one size"
        raise UsageError("U355", "", f"pictures of several sizes: {told}", next_step=step)
    return torch.cat([one.to(batches[0]) for one in batches])


def taking(
    **pictures: Callable[[Any, Any], Any],
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a public function take its arguments in all the forms that a user has them.

    pictures: by the names of parameters that are pictures, how they are read. The function's
    first parameter is the network. Parameters called layer and layers may be modules, target may
    be a class name of the network; what is annotated with plain types is held to them.

    Raises UsageError U376 (no network), U380 (an argument of another type), U381 (no such
    option), ModelError M500.
    """

    def made(function: Callable[P, R]) -> Callable[P, R]:
        reader = _Reader(function, pictures)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            named: dict[str, Any] = kwargs
            if not kwargs.keys().isdisjoint(OLD):  # here, as its warning names the caller's line
                named = with_run(function, reader.known, kwargs)
            bound = reader.bound(args, named)
            return function(*bound.args, **bound.kwargs)

        return call

    return made


class _Reader:
    """Reads what a public function is called with."""

    def __init__(
        self, function: Callable[..., Any], pictures: Mapping[str, Callable[[Any, Any], Any]]
    ) -> None:
        self.function, self.pictures = function, pictures
        self.known = inspect.signature(function)
        self.first = next(iter(self.known.parameters))
        self.types, self.rest = _annotations(function)
        every = dict.fromkeys((*self.known.parameters, *self.types))
        self.options = [name for name in every if name not in ("return", self.rest)]
        self.is_open = bool(self.rest) and set(self.options) <= set(self.known.parameters)

    def bound(self, args: Sequence[Any], kwargs: dict[str, Any]) -> inspect.BoundArguments:
        """What the function itself is given."""
        if not self.is_open:
            require_options(self.function.__name__, kwargs, self.options)
        bound = self.known.bind(*args, **kwargs)
        given = bound.arguments
        network = given[self.first]
        for one in _networks(network):
            _require_network(one)
        for values in (given, given.get(self.rest, {})):
            for name in values.keys() - {self.rest, self.first}:
                values[name] = self._read(name, values[name], network)
        _tell_classes(network, self.known.parameters, self.types, given, self.rest)
        return bound

    def _read(self, name: str, value: Any, network: Any) -> Any:
        read, parameter = self.pictures.get(name), self.known.parameters.get(name)
        default = None if parameter is None else parameter.default
        if name == "layer" and value is None and default is inspect.Parameter.empty:
            raise UsageError("U380", name, "None is no layer")
        if read is not None:
            return value if value is None and default is None else read(network, value)
        if name not in ("layer", "layers", "target"):
            _check(name, value, self.types.get(name, ""))
        return _plain(name, value, network, self.types.get(name, ""))


def _networks(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _require_network(given: Any) -> None:
    if not isinstance(given, Network | nn.Module) and not hasattr(given, "model"):
        what = f"{a_kind(given)} is no network"
        step = "give what load returns, or a torch.nn.Module"
        raise UsageError("U376", "", what, next_step=step)


def _annotations(function: Callable[..., Any]) -> tuple[dict[str, str], str]:
    """Parameters by name with what is written there, those of a TypedDict of options too; and
    the name under which such options come."""
    types = {name: str(told) for name, told in function.__annotations__.items()}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            options = types.pop(name).removeprefix("Unpack[").removesuffix("]")
            told = getattr(inspect.unwrap(function).__globals__.get(options), "__annotations__", {})
            return types | {key: _written(one) for key, one in told.items()}, name
    return types, ""


def _written(annotation: Any) -> str:
    return str(getattr(annotation, "__forward_arg__", annotation))


PLAIN: Mapping[str, tuple[type, ...]] = {
    "int": (int, np.integer),
    "float": (int, float, np.integer, np.floating),
    "bool": (bool, np.bool_),
    "str": (str,),
    "None": (type(None),),
    "Path": (Path,),
}
"""What is written in a signature, and what may stand for it."""
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "str": "a text",
    "Path": "a path",
}


def _check(name: str, value: Any, written: str) -> None:
    """Raises UsageError U380 where the value is of another type than is written."""
    kinds = written.split(" | ")
    wanted = ""
    if name == "run":
        wanted = "" if isinstance(value, Run) else "a Run, as convscope.Run(seed=1)"
    elif written == "Sequence[str]":
        several = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
        listed = several and all(isinstance(one, str) for one in value)
        wanted = "" if listed else "a list of names"
    elif written == "Sequence[Path | str]":
        listed = isinstance(value, list | tuple) and all(isinstance(x, str | Path) for x in value)
        wanted = "" if listed else "a list of paths"
    elif all(kind in PLAIN for kind in kinds) and not any(_fits(value, kind) for kind in kinds):
        wanted = " or ".join(WORDS[kind] for kind in kinds if kind in WORDS)
    if wanted:
        raise UsageError("U380", name, f"{shown(value)} is not {wanted}")


def _fits(value: Any, kind: str) -> bool:
    return isinstance(value, PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))


def _plain(name: str, value: Any, network: Any, written: str) -> Any:
    """Layers by their names; a target that is one."""
    if name in ("layer", "layers"):
        return one_layer(network, value) if written == "Layer" else layer_names(network, value)
    return checked_target(value) if name == "target" else value


def layer_names(network: Any, given: Any) -> Any:
    """Names in the places of modules. Raises ModelError M500, UsageError U380."""
    if given is None or isinstance(given, str | nn.Module):
        return None if given is None else layer_name(network, given)
    if not isinstance(given, list | tuple) or not given:
        raise UsageError("U380", "layers", f"{shown(given)} is no layer, nor a list of some")
    return [layer_name(network, one) for one in given]


def one_layer(network: Any, given: Any) -> Any:
    """The layer's name, or a unit of it by the layer's name, also out of a list of one.

    Raises as `layer_names`, UsageError U380 for several.
    """
    if isinstance(given, Unit):
        return unit_of(network, given)
    names = layer_names(network, given)
    if not isinstance(names, list):
        return names
    if len(names) > 1:
        what = f"{len(names)} layers, where one is taken"
        raise UsageError("U380", "layer", what, next_step="give them one by one")
    return names[0]


def unit_of(network: Any, given: Any) -> Unit:
    """A unit, or what its text says, by the layer's name.

    Raises UsageError U201 for anything else, ModelError M500 for a module that is none of the
    network's.
    """
    if isinstance(given, nn.Module):
        what = f"{a_kind(given)} is a whole layer, and no unit of it"
        raise UsageError("U201", "", what, next_step="write Unit(layer, 0) for its first map")
    unit = given if isinstance(given, Unit) else Unit.parse(given)
    return replace(unit, layer=layer_name(network, unit.layer))


def units_of(network: Any, given: Any) -> list[Unit]:
    """One or several of these. Raises as `unit_of`."""
    return [
        unit_of(network, one) for one in (given if isinstance(given, list | tuple) else [given])
    ]


def checked_target(given: Any) -> Any:
    """The target, or a list of some. Raises UsageError U380 where one is something else."""
    several = given if isinstance(given, list | tuple) else [given]
    for one in several:
        index = hasattr(one, "__index__") and getattr(one, "ndim", 0) == 0
        fine = one is None or isinstance(one, str) or callable(one) or index
        if isinstance(one, bool | np.bool_) or not fine:
            if getattr(one, "ndim", 0) == 1:  # an array of indices
                continue
            what = f"{shown(one)} is no class index, class name or function of the scores"
            raise UsageError("U380", "target", what)
    return given


def _tell_classes(
    network: Any, own: Iterable[str], types: Iterable[str], given: dict[str, Any], rest: str
) -> None:
    """A network's class names, to functions that take some; to others an index for a name.

    own, types: the function's parameters, and these with the options that come as `rest`.
    """
    names = network.classes if isinstance(network, Network) else ()
    if not names:
        return
    named = given.get(rest, {})
    if "classes" in types:
        if not (given.get("classes") or named.get("classes")):
            place = given if "classes" in own else given.setdefault(rest, {})
            place["classes"] = names
    elif (target := given.get("target")) is not None:
        several = isinstance(target, list | tuple)
        found = [_index(one, names) for one in (target if several else [target])]
        given["target"] = found if several else found[0]


def _index(target: Any, names: Sequence[str]) -> Any:
    if not isinstance(target, str):
        return target
    if target not in names:
        raise UsageError("U352", target, f"no such class; {nearest(target, names)}")
    return list(names).index(target)
