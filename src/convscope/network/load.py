"""Load a network by its name or .toml file: architecture, weights, preprocessing, classes.

A .toml file that says how a network is loaded:

network = "mynet:net"              # as the commands take it
checkpoint = "weights.pt"          # beside this file
size = 128                         # and whatever else --resize, --mean, --std,
mean = [0.5, 0.5, 0.5]             # --interpolation say; or preprocess = "mynet:validation"
classes = ["daisy", "tulip"]       # or a file of names, or their number
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from convscope.core.errors import (
    CheckpointError,
    ConvscopeError,
    ModelError,
    UsageError,
    a_kind,
    nearest,
    shown,
)
from convscope.core.foreign import TheirCode
from convscope.core.publish import publish_file, require_free
from convscope.core.text import as_toml, checked, one_line, parsed, read_text, unusable
from convscope.network.checkpoint import Checkpoint, open_checkpoint
from convscope.network.conversion import Told, converted
from convscope.network.network import Card, Delivered, Draft, Network, Request, unwrapped
from convscope.network.outputs import meaning, require_told
from convscope.network.preprocess import PARTS, Preprocess
from convscope.network.user_code import (
    COUNTS,
    NAMES,
    from_own,
    from_user_code,
    is_module,
    meant_as_code,
)
from convscope.network.weights import fit
from convscope.network.zfnet import OURS, from_ours, split_classes

SUFFIX = ".toml"
KEYS = ("network", "checkpoint", "preprocess", "classes", *PARTS, "output", "scores")
Plain = str | int | float | bool
TomlValue = Plain | list[Plain] | dict[str, Plain] | None
"""What `load` then looks at itself."""


@dataclass(frozen=True)
class Remembered:
    """What such a file says, as `load` takes it; names of files are from where one stands."""

    network: str
    checkpoint: str | None = None
    preprocess: str | None = None
    classes: TomlValue = None
    size: TomlValue = None
    resize: TomlValue = None
    interpolation: TomlValue = None
    mean: TomlValue = None
    std: TomlValue = None
    output: str | int | bool | None = None
    scores: str | None = None

    def ready(self) -> Any:
        """The preprocessing, as `load` takes it; None where nothing is said."""
        parts = {key: getattr(self, key) for key in PARTS if getattr(self, key) is not None}
        return self.preprocess or parts or None


def remembered(path: Path | str) -> Remembered:
    """Read the file. Raises CheckpointError C417 if it cannot be read so."""
    place = Path(path)
    try:
        plain = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as fault:
        _refuse(path, f"cannot be read as TOML ({fault})")
    if unknown := [key for key in plain if key not in KEYS]:
        _refuse(path, f"has the unknown key {unknown[0]!r}; {nearest(unknown[0], KEYS)}")
    try:
        told = checked({"network": ""} | plain, Remembered)
    except ValueError as fault:
        _refuse(path, f"has a value of another kind ({fault})")
    if not told.network or told.network.endswith(SUFFIX):
        _refuse(path, "names no network", 'write network = "package.module:factory"')
    if "preprocess" in plain and any(key in plain for key in PARTS):
        _refuse(path, "has preprocess, which says all, and parts of it besides")
    return Remembered(**_moved(plain, lambda name: str(place.parent / name), place.parent))


def remember(path: Path, told: Remembered) -> Path:
    """Write such a file. Raises OutputError O501 if there is one, EnvironmentFault R602, R603."""
    require_free(path)
    kept = _moved(asdict(told), lambda name: os.path.relpath(name, path.parent), Path())
    lines = [f"{key} = {as_toml(value)}\n" for key, value in kept.items() if value is not None]
    publish_file(path, "".join(lines).encode("utf-8", "backslashreplace"))
    return path


def _refuse(path: Path | str, what: str, next_step: str = "") -> NoReturn:
    step = next_step or "mend it; docs/networks.md has an example"
    raise CheckpointError("C417", str(path), what, next_step=step)


def _moved(plain: Mapping[str, Any], moved: Callable[[str], str], folder: Path) -> dict[str, Any]:
    """The same with every name of a file as `moved` has it. Names of networks and code stay."""
    result = dict(plain)
    for key in ("network", "checkpoint", "preprocess", "classes"):
        value = plain.get(key)
        if not isinstance(value, str):
            continue
        is_file = key in ("checkpoint", "classes") or value.endswith(".json")
        result[key] = moved(value) if is_file else _network(value, moved, folder)
    return result


def _network(text: str, moved: Callable[[str], str], folder: Path) -> str:
    """A run's folder, a file of weights, or FILE.py:name, moved; anything else stays."""
    file, mark, name = text.partition(".py:")
    if mark:
        return moved(f"{file}.py") + f":{name}"
    known = text in NAMES or ":" in text
    return moved(text) if not known and (folder / text).exists() else text


__all__ = ["Card", "Network", "load"]

IN_A_RUN = ("best.safetensors", "last.safetensors")


def load(
    spec: str | Path | nn.Module,
    checkpoint: Path | str | None = None,
    *,
    classes: int | Sequence[str] | Mapping[str, Any] | Path | None = None,
    preprocess: object = None,
    output: int | str | None = None,
    scores: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Network:
    """The network that `spec` names, in evaluation mode, on the CPU.

    spec: `efficientnet-lite0`, whose ImageNet weights are installed; `zfnet` or `alexnet` with
    options (`zfnet:width=0.5,head=compact`); `torchvision:NAME`, `timm:NAME` (both with their own
    weights, or `…:weights=none`); `package.module:factory`; what training left: its folder, or a
    `.safetensors` in it; or a module of your own, which keeps its mode and device. checkpoint: a
    file of weights that belong to the spec. classes: their number or names, or a file of names.
    preprocess: instead of what is known or assumed: a Preprocess, the user's own pipeline (see
    `converted`), or some parts, as {"size": 128, "mean": 0.5, "std": 0.5}. output: where in what
    the network gives its scores are, as 1, "logits" or "out.logits"; scores: "logits",
    "probabilities", "log-probabilities", "sigmoid" (each label for itself) or "sigmoid-logits".
    Both are found where nothing is said. seed: of random weights. progress: bytes of a download.

    Raises UsageError U230 to U239, U376; ModelError M501, M522, M526, M530, M570 (unknown name),
    M571, M572, M583 (the user's own code), M573 (code named by a file); CheckpointError as
    `open_checkpoint` and `fit`; EnvironmentFault R620 to R622.
    """
    said = _Said(checkpoint, classes, output, scores, [] if preprocess is None else [preprocess])
    spec, said, beside = _with_file(spec, said)
    count, names = classes_asked(said.classes)
    ready = [converted(one, None if one is preprocess else beside) for one in said.preprocess]
    output, scores = require_told(said.output, said.scores)
    request, card = _request(spec, said.checkpoint, count)
    request = replace(request, seed=seed, progress=progress, beside=beside)
    network = _as_told(_finished(_source(request)(request), request, card), names, ready)
    network = replace(network, output=output or network.output, scores=scores or network.scores)
    if said.classes is not None and request.classes is not None:
        _require_as_many(network, request.classes)
    return network


def _with_file(
    spec: str | Path | nn.Module, said: _Said
) -> tuple[str | Path | nn.Module, _Said, Path | None]:
    """What a network's .toml says where the caller says nothing, and the folder it lies in."""
    if not isinstance(spec, str | Path) or not str(spec).endswith(SUFFIX):
        return spec, said, None
    kept = remembered(spec)
    return kept.network, said.over(kept), Path(spec).resolve().parent


def _request(
    spec: str | Path | nn.Module, checkpoint: Path | str | None, count: int | None
) -> tuple[Request, Card | None]:
    """What is asked for, and what its checkpoint says of itself. count: classes, if told."""
    if not isinstance(spec, str | Path | nn.Module):
        what = f"{a_kind(spec)} is no network"
        raise UsageError("U376", "", what, next_step="give a network's name or a torch.nn.Module")
    module, text = (spec, type(spec).__name__) if isinstance(spec, nn.Module) else (None, str(spec))
    file = None if checkpoint is None else open_checkpoint(checkpoint)
    if file is None and module is None and (place := _left_by_training(text)) is not None:
        file = open_checkpoint(place)
        text = _spec_of(file)
    card = None if file is None else Card.of(file)
    if count is None and card is not None and card.classes:
        count = len(card.classes)
    if module is None and ":" not in text:
        text = meant_as_code(text)
    rest = text.partition(":")[2]
    if module is None and rest:
        rest, named = split_classes(rest)
        count = _agreed(named, count, text)
    return Request(text, rest, file, count, module=module), card


@dataclass(frozen=True)
class _Said:
    """What a caller of `load` says of a network."""

    checkpoint: Path | str | None
    classes: Any
    output: int | str | None
    scores: str | None
    preprocess: list[Any]
    """What changes it, one after the other."""

    def over(self, kept: Remembered) -> _Said:
        """This, and what a file says where this says nothing."""
        ready = [] if kept.ready() is None else [kept.ready()]
        return _Said(
            self.checkpoint or kept.checkpoint,
            kept.classes if self.classes is None else self.classes,
            kept.output if self.output is None else self.output,
            self.scores or kept.scores,
            [*ready, *self.preprocess],
        )


def _require_as_many(network: Network, count: int) -> None:
    """Raises UsageError U236 where the network has another number of outputs than classes told."""
    try:
        known = meaning(network)
    except ConvscopeError:
        return  # whoever needs its scores will hear of that
    if known.where is not None and count not in (known.columns, known.classes):
        what = f"has {known.columns} outputs, where {count} classes are told"
        step = "tell as many as it has, in the order of its outputs"
        raise UsageError("U236", network.spec, what, next_step=step)


def _agreed(told: int | None, count: int | None, spec: str) -> int | None:
    """The number of classes, if the spec and the caller do not contradict each other."""
    if told is not None and count not in (None, told):
        raise UsageError("U231", spec, f"has classes={told}, where there are {count} classes")
    return told or count


def _as_told(network: Network, names: tuple[str, ...], told: Sequence[Told]) -> Network:
    """With the names and the preprocessing that the caller knows better."""
    if names:
        network = replace(network, classes=names)
    ready = network.preprocess
    for change in told:
        ready = change(ready)
    note = ready.assumption() or ("preprocessing as it was given" if told else "")
    return replace(network, preprocess=ready, notes=(*network.notes, *([note] if note else [])))


def _left_by_training(spec: str) -> Path | None:
    """The checkpoint meant, if the spec is a path. A folder called zfnet is meant by ./zfnet."""
    path = Path(spec)
    if not spec or unusable(spec) or spec.partition(":")[0] in SOURCES or path.suffix == ".py":
        return None
    if path.is_dir():
        for name in IN_A_RUN:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(
            "C400", spec, f"this folder holds neither {IN_A_RUN[0]} nor {IN_A_RUN[1]}"
        )
    is_path = path.is_file() or path.suffix in (".safetensors", ".pt", ".pth", ".ckpt")
    return path if is_path else None


def _spec_of(checkpoint: Checkpoint) -> str:
    card = Card.of(checkpoint)
    if card is None:
        raise CheckpointError(
            "C415",
            checkpoint.name,
            "does not say which network it belongs to",
            next_step=f"name the network instead, and add --checkpoint {checkpoint.name} "
            "or load(…, checkpoint=…)",
        )
    head = card.spec.partition(":")[0]
    if head not in SOURCES:
        raise ModelError(
            "M573",
            checkpoint.name,
            f"was made with code of its own ({card.spec}), and a file may not choose what is run",
            next_step=f"name {card.spec} yourself, and add --checkpoint {checkpoint.name} "
            "or load(…, checkpoint=…)",
        )
    return card.spec


def _source(request: Request) -> Callable[[Request], Draft]:
    if request.module is not None:
        return from_own
    head = request.spec.partition(":")[0]
    if head in SOURCES:
        return SOURCES[head]
    if ":" in request.spec:
        return from_user_code
    from convscope.network.pretrained import names

    if is_module(head):
        what = "is code; which network in it is meant is not told"
        step = f"write {head}:NAME, with the network's, class's or function's name in it"
        raise ModelError("M570", request.spec, what, next_step=step)
    known = [*OURS, "efficientnet-lite0", *(f"torchvision:{name}" for name in names())]
    given = f"torchvision:{head}" if f"torchvision:{head}" in known else head
    raise ModelError(
        "M570",
        request.spec,
        f"no such network; {nearest(given, known, most=4)}",
        next_step="write efficientnet-lite0, zfnet, alexnet, torchvision:NAME, timm:NAME, "
        "package.module:factory, or the folder of a training run",
    )


def _finished(draft: Draft, request: Request, card: Card | None) -> Network:
    model = _python_module(draft.model, request.spec)
    delivered = Delivered.of(draft.model) if isinstance(draft.model, nn.Module) else None
    if request.module is None:
        model.eval()
    preprocess, classes, notes = draft.preprocess, draft.classes, draft.notes
    if card is not None:
        preprocess, classes, notes = card.preprocess, card.classes, ()
    _give_shapes(model, preprocess, request.spec)
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        raise ModelError("M501", request.spec, "has no convolution (nn.Conv2d) to look into")
    if draft.checkpoint is not None:
        repairs = fit(
            model,
            draft.checkpoint.weights,
            name=draft.checkpoint.name,
            network=request.spec,
            advice=_for_other_classes(draft, request),
        )
        notes = (*draft.checkpoint.notes, *repairs, *notes)
    if draft.finish is not None:
        draft.finish(model)
    if not draft.weights:
        notes = (f"the weights are random (seed {request.seed}): nothing was learned", *notes)
    return Network(
        model,
        preprocess,
        classes,
        request.spec,
        draft.weights or f"random, seed {request.seed}",
        draft.checkpoint.sha256 if draft.checkpoint is not None else draft.sha256,
        notes,
        delivered,
        draft.output,
        draft.scores,
    )


def _for_other_classes(draft: Draft, request: Request) -> str:
    """How the same network is made with {0} classes."""
    if request.module is not None:
        return "make the module with {0} classes"
    if not draft.counted:
        made = f"{request.spec} has no parameter {' or '.join(COUNTS[:2])}"
        return f"name a function that makes the network with {{0}} classes: {made}"
    told = split_classes(request.spec)[1]
    step = "give --classes {0}, or load(…, classes={0})"
    return f"{step}, without :classes={told} in the name" if told else step


def _python_module(model: object, spec: str) -> nn.Module:
    """The module itself, out of what DataParallel, DDP and torch.compile put around it."""
    if not isinstance(model, nn.Module):
        raise ModelError("M572", spec, f"gave a {type(model).__name__}, not an nn.Module")
    inner, _ = unwrapped(model)
    if isinstance(inner, torch.jit.ScriptModule):
        what = "is scripted or traced; its layers cannot be looked into"
        step = "give the Python module it was made from"
        raise ModelError("M530", spec, what, next_step=step)
    return inner


def _give_shapes(model: nn.Module, preprocess: Preprocess, spec: str) -> None:
    """Lazy layers learn their shapes from a first picture."""
    if not any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        return
    blank = torch.zeros(1, *preprocess.shape)
    with torch.no_grad(), TheirCode("M574", spec, [blank]):
        model(blank)


def _later(module: str, name: str) -> Callable[[Request], Draft]:
    """A source whose module is imported when it is asked: torchvision takes seconds."""
    return lambda request: getattr(import_module(f"{SOURCE_MODULES}.{module}"), name)(request)


SOURCE_MODULES = "convscope.network"
SOURCES: dict[str, Callable[[Request], Draft]] = {
    "torchvision": _later("pretrained", "from_torchvision"),
    "timm": _later("pretrained", "from_timm"),
    "efficientnet-lite0": _later("pretrained", "from_lite"),
    **dict.fromkeys(OURS, from_ours),
}


MOST = 1_000_000
"""Classes that are taken; more are no names but a mistake."""
FORMS = 'a name a line, ["daisy", …], {"0": "daisy", …} or {"daisy": 0, …}'


def classes_asked(classes: object) -> tuple[int | None, tuple[str, ...]]:
    """Number and names of the classes, from what was given as `classes`.

    classes: their number, their names in the order of the outputs, or in a text "5",
    "cat,dog" or the name of a file: a name a line, or JSON as ["daisy"], {"0": "daisy"}
    (tutorials), {"daisy": 0} (Keras, torchvision's class_to_idx) or {"0": ["n01440764",
    "tench"]} (ImageNet). Raises UsageError U231, and U235 for a file that cannot be read so.
    """
    if classes is None:
        return None, ()
    if isinstance(classes, str | Path):
        classes = _read(classes)
    if isinstance(classes, int) and not isinstance(classes, bool) and 0 < classes <= MOST:
        return classes, ()
    if isinstance(classes, Mapping):
        classes = _ordered(classes, "classes")
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        raise UsageError(
            "U231",
            f"classes={shown(classes)}",
            "is neither a whole number from 1 nor a list of names",
        )
    return len(classes) or None, tuple(one_line(str(name)) for name in classes)


def _read(text: str | Path) -> object:
    """A number, names with commas between, or what a file holds."""
    if unusable(text) or not Path(text).is_file():
        plain = str(text).strip()
        if plain.isascii() and plain.isdecimal():
            return int(plain) if len(plain) < len(str(MOST)) + 1 else plain
        if "," in plain:
            return [name.strip() for name in plain.split(",")]
        what = "is no number of classes, no names with commas between, and no file"
        raise UsageError("U231", f"classes={plain}", what)
    try:
        whole = read_text(text)
        if not whole.lstrip().startswith(("{", "[")):
            return [line.strip() for line in whole.splitlines() if line.strip()]
        return _ordered(parsed(whole), text)
    except ValueError as fault:
        _refuse_classes(text, f"cannot be read ({fault})")


def _ordered(plain: Any, name: str | Path) -> list[Any]:
    """The names in the order of the outputs, out of what JSON may hold."""
    if isinstance(plain, list):
        if plain and all(isinstance(one, str) for one in plain):
            return plain
        _refuse_classes(name, "holds no list of names")
    if not isinstance(plain, dict) or not plain:
        _refuse_classes(name, "holds no names of classes")
    pairs = list(plain.items())
    if all(type(number) is int for number in plain.values()):
        pairs = [(number, word) for word, number in pairs]
    result = {int(key) if _whole(key) else key: _word(word) for key, word in pairs}
    if result.keys() != set(range(len(pairs))):
        _refuse_classes(name, f"does not number {len(pairs)} classes from 0 to {len(pairs) - 1}")
    names = [result[place] for place in range(len(pairs))]
    if not all(isinstance(one, str) for one in names):
        _refuse_classes(name, "has a class without a name")
    return names


def _whole(key: object) -> bool:
    text = str(key)
    return not isinstance(key, bool) and len(text) < 8 and text.isascii() and text.isdecimal()


def _word(word: object) -> object:
    """The name itself, or the last of ["n01440764", "tench"]."""
    return word[-1] if isinstance(word, list) and word else word


def _refuse_classes(name: str | Path, what: str) -> NoReturn:
    raise UsageError("U235", str(name), what, next_step=f"write {FORMS}")
