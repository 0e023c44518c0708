"""Provenance of results: which network with which weights, which pictures, versions, machine.

Every public function that gives records is `recorded`: what is told here is filled into the origin
of each, in this one place. Nothing of it changes from run to run: no times, no folders.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from dataclasses import fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor, nn

from convscope import __version__
from convscope.core.errors import ConvscopeError
from convscope.core.record import Record
from convscope.pictures.notes import PICTURE_NOTES, codes_of
from convscope.pictures.opening import as_pictures
from convscope.pictures.pictures import Picture, Pictures

P = ParamSpec("P")
R = TypeVar("R")
Facts = dict[str, Any]

BLOCK = 512
"""Words of 8 bytes whose sum tells whether weights are still what they were."""
SMALL = 1 << 16
"""Bytes of a tensor that is not summed but hashed at once."""
HANDED_ON = (
    "model",
    "network",
    "weights",
    "sha256",
    "weights_sha256",
    "preprocessing",
    "preprocessing is",
    "ensemble",
    "pictures_sha256",
    "contents_sha256",
    PICTURE_NOTES,
    "seed",
)
"""What a result made of other results takes over from these."""

PICTURES = ("picture", "image", "images", "pictures", "queries")
"""Arguments that are pictures, or their files."""

FOLDERS = ("Pictures", "FolderLike")
"""How parameters are annotated that are a folder of pictures, or its name."""

_asked: ContextVar[bool] = ContextVar("asked", default=False)
"""Whether a recorded function is running already."""
_known: WeakKeyDictionary[nn.Module, tuple[bytes, str]] = WeakKeyDictionary()


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers as they are now: names, shapes, types and numbers.

    Asked again of the same module it costs one sum over the weights, by which a change is seen
    whichever way it was made.
    """
    tensors = list(_tensors(model))
    now = _state(tensors)
    try:
        known = _known.get(model)
    except TypeError:  # a module that cannot be hashed is not remembered
        return _hashed(tensors)
    if known is not None and known[0] == now:
        return known[1]
    result = _hashed(tensors)
    _known[model] = now, result
    return result


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from sorted(model.named_parameters(remove_duplicate=False), key=lambda pair: pair[0])
    yield from sorted(model.named_buffers(remove_duplicate=False), key=lambda pair: pair[0])


def _words(tensor: Tensor) -> np.ndarray:
    """The tensor's numbers as bytes; none of one that has no numbers yet, or not in memory."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return np.zeros(0, np.uint8)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.int_repr()
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    result: np.ndarray = flat.view(torch.uint8).numpy()
    return result


def _about(name: str, tensor: Tensor) -> bytes:
    lazy = nn.parameter.is_lazy(tensor)
    return f"{name}\0{tensor.dtype}\0{'lazy' if lazy else tuple(tensor.shape)}\n".encode()


def _hashed(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(_about(name, tensor))
        digest.update(_words(tensor).data)
    return digest.hexdigest()


def _state(tensors: Iterable[tuple[str, Tensor]]) -> bytes:
    """Another one if a weight was changed: sums of blocks in the place of all numbers."""
    digest = hashlib.blake2b()
    for name, tensor in tensors:
        digest.update(_about(name, tensor))
        words = _words(tensor)
        if len(words) > SMALL:
            cut = len(words) // (8 * BLOCK) * 8 * BLOCK
            blocks = words[:cut].view(np.uint64).reshape(-1, BLOCK)
            digest.update(blocks.sum(1, dtype=np.uint64).data)
            words = words[cut:]
        digest.update(words.data)
    return digest.digest()


def of_module(model: nn.Module) -> Facts:
    """What a module says of itself, and what it runs on."""
    tensors = [tensor for _, tensor in _tensors(model) if not nn.parameter.is_lazy(tensor)]
    kinds = sorted({str(one.dtype)[6:] for one in tensors if one.is_floating_point()})
    device = tensors[0].device if tensors else torch.device("cpu")
    return {
        "network": type(model).__name__,
        "weights_sha256": weights_sha256(model),
        "precision": " and ".join(kinds) or "float32",
        "device": device_words(device),
        **versions(model),
    }


def device_words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"cpu, {capability}" if device.type == "cpu" else device.type


def versions(model: nn.Module | None = None) -> Facts:
    """Of what computed, the library among them that the network's code is from."""
    homes = [] if model is None else [type(part).__module__ for part in model.modules()]
    used = {home.partition(".")[0] for home in homes} & {"torchvision", "timm", "transformers"}
    result = {"convscope": __version__, "torch": str(torch.__version__), "numpy": np.__version__}
    result |= {"pillow": PIL.__version__}
    for name in sorted(used):
        try:
            result[name] = version(name)
        except PackageNotFoundError:
            result[name] = str(getattr(sys.modules.get(name), "__version__", "unknown"))
    return result


def recorded(function: Callable[P, R]) -> Callable[P, R]:
    """Fill the origin of every record that the function gives with what made it.

    What the function itself told stays. Networks, pictures and records are found among the
    arguments by what they are; of a list of records, one a picture, each gets its own picture's
    hash. Records that come one by one are filled as they come; what such a function asks of a bare
    module on its way is left to it. A folder's name is opened here, and closed at the end.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which says what is wrong
        if _asked.get() and not any(hasattr(one, "provenance") for one in bound.arguments.values()):
            return function(*args, **kwargs)
        token = _asked.set(True)
        try:
            with ExitStack() as opened:
                _open(bound, opened)
                read = [
                    one.readings for one in bound.arguments.values() if isinstance(one, Pictures)
                ]
                result = function(*bound.args, **bound.kwargs)
                if _comes_one_by_one(result):
                    opened.pop_all()
        finally:
            _asked.reset(token)
        bound.apply_defaults()
        given = dict(bound.arguments)
        for name, entry in signature.parameters.items():
            if entry.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name)
        return cast(R, _filled(result, _made_by(given, *read[:1]), _each_picture(given, result)))

    return wrapper


def _open(bound: inspect.BoundArguments, opened: ExitStack) -> None:
    """The folders of pictures that are named among the arguments."""
    for name, value in bound.arguments.items():
        kind = str(bound.signature.parameters[name].annotation)
        if kind.startswith(FOLDERS) and value is not None and not isinstance(value, Pictures):
            with suppress(ConvscopeError):  # the function says it, after what is said first
                folder = as_pictures(value)
                if folder is not value:  # else it is the caller's
                    bound.arguments[name] = folder
                    opened.callback(folder.close)


def _comes_one_by_one(result: Any) -> bool:
    parts = result if isinstance(result, tuple) else (result,)
    return any(isinstance(part, Iterator) for part in parts)


def _made_by(given: Mapping[str, Any], read: int = 0) -> Facts:
    """What the arguments say. read: how often the first folder had been read before."""
    facts = _networks(given.values()) or _handed_on(given.values())
    if given.get("preprocess") is not None and hasattr(given["preprocess"], "describe"):
        facts |= {"preprocessing": given["preprocess"].describe(), "preprocessing is": "given"}
    facts |= {"seed": given["seed"]} if isinstance(given.get("seed"), int) else {}
    for name, value in given.items():
        if isinstance(value, Pictures):
            # What is kept, in a cache or in the runs of a study that goes on, is not read again.
            kept = not given.keys().isdisjoint(("cache", "out"))
            contents = "" if kept else value.contents(read)
            facts |= {"pictures_sha256": value.sha256}
            facts |= {"contents_sha256": contents} if contents else {}
            noted = {} if kept else dict(value.noted_since(read))
            facts |= {PICTURE_NOTES: noted} if noted else {}
            facts |= value.decoding.told()
            break
        if name in PICTURES and (digest := picture_sha256(value)):
            facts |= {"pictures_sha256": digest}
            noted = codes_of(value.notes) if isinstance(value, Picture) else {}
            facts |= {PICTURE_NOTES: noted} if noted else {}
            break
    return facts if "convscope" in facts else {**facts, **versions()}


def _networks(values: Iterable[Any]) -> Facts:
    for value in values:
        many = value if isinstance(value, list | tuple) else [value]
        told = [facts for facts in map(provenance, many) if facts]
        if told:
            return told[0] if len(told) == 1 else {"ensemble": told, **versions()}
    return {}


def provenance(given: Any) -> Facts:
    """Of a network or a bare module; nothing of anything else."""
    if isinstance(given, nn.Module):
        return of_module(given)
    told = getattr(given, "provenance", None)
    return dict(told()) if callable(told) else {}


def _handed_on(values: Iterable[Any]) -> Facts:
    """Of a result that is made of other results."""
    records = [record for value in values for record in _records(value)]
    facts: Facts = {}
    for name in HANDED_ON:
        told = [record.origin[name] for record in records if name in record.origin]
        if told:
            alike = all(one == told[0] for one in told)
            facts[name] = told[0] if alike else told
    return facts


def _records(value: Any) -> Iterator[Record]:
    if isinstance(value, Record):
        yield value
    elif isinstance(value, Mapping):
        yield from (one for one in value.values() if isinstance(one, Record))
    elif isinstance(value, list | tuple):
        yield from (one for one in value if isinstance(one, Record))


def picture_sha256(value: Any) -> str:
    """Of pictures' numbers, shape and type, or of a picture's file; empty if it is none."""
    if isinstance(value, Picture):
        return picture_sha256(value.pixels)
    if isinstance(value, Image.Image):
        return picture_sha256(np.asarray(value))
    if isinstance(value, str | Path):
        return _file_sha256(value)
    digest = hashlib.sha256()
    if isinstance(value, np.ndarray) and value.ndim >= 2:
        digest.update(f"{value.dtype}\0{value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data)
    elif isinstance(value, Tensor) and value.dim() >= 3:
        digest.update(_about("", value))
        digest.update(_words(value).data)
    else:
        return ""
    return digest.hexdigest()


def _file_sha256(path: Path | str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""


def _each_picture(given: Mapping[str, Any], result: Any) -> list[str]:
    """The hash of each picture of a batch that gave as many records."""
    if isinstance(result, list):
        for value in given.values():
            if isinstance(value, Tensor) and value.dim() == 4 and len(value) == len(result):
                return [picture_sha256(one) for one in value]
    return []


def _filled(result: Any, facts: Facts, each: list[str]) -> Any:
    """The same with these facts in the origins of its records, where they are not told yet."""
    if isinstance(result, Record):
        return _filled_record(result, facts)
    if isinstance(result, list):
        own = [{**facts, "pictures_sha256": one} for one in each] or [facts] * len(result)
        return [_filled(one, fact, []) for one, fact in zip(result, own, strict=True)]
    if isinstance(result, tuple):
        inside = [_filled(one, facts, []) for one in result]
        return type(result)(*inside) if hasattr(result, "_fields") else tuple(inside)
    if isinstance(result, dict):
        return {name: _filled(one, facts, []) for name, one in result.items()}
    if isinstance(result, Iterator):
        return (_filled(one, facts, []) for one in result)
    if is_dataclass(result) and not isinstance(result, type) and hasattr(result, "origin"):
        return _filled_record(result, facts)
    return result


def _filled_record(result: Any, facts: Facts) -> Any:
    """Those inside it, too."""
    inside = {
        entry.name: _filled(value, facts, [])
        for entry in fields(result)
        if isinstance(value := getattr(result, entry.name), Record)
        or (isinstance(value, tuple) and value and isinstance(value[0], Record))
    }
    return replace(result, **inside, origin={**result.origin, **_missing(result.origin, facts)})


def _missing(origin: Mapping[str, Any], facts: Facts) -> Facts:
    return {name: value for name, value in facts.items() if name not in origin}
