"""Weights for a network: load a state dict, download pretrained ones, list snapshots of epochs."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from convscope.core.errors import CheckpointError, DataError, EnvironmentFault, printable
from convscope.network.checkpoint import OWN, open_checkpoint
from convscope.network.network import Card
from convscope.network.zfnet import Options, Tower, alexnet, zfnet
from convscope.pictures.download import Progress, Source, fetch

COMPILED = "_orig_mod."
COUNTER = "num_batches_tracked"
"""torch itself lets it be absent: batch norm only counts with it."""
WRAPPERS = ("module", "model", "net", "network", "backbone")


def fit(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    name: str = "the weights",
    network: str = "",
    advice: str = "give load(…, classes={0})",
) -> tuple[str, ...]:
    """Put the weights into the model, every one and no other; return what was repaired.

    Names may carry what DataParallel, DDP, torch.compile and Lightning put before them. Then they
    must agree with the model's in every name and shape; only `num_batches_tracked` may be absent.
    name, network: the file and the model in the messages. advice: how the model gets another number
    of classes, {0}.

    Raises CheckpointError C410 another network, C411 several copies of it, C412 another number
    of classes. The model is untouched then.
    """
    match = _Match(model.state_dict(), dict(weights), name)
    match.unwrap()
    match.compare(network or type(model).__name__, advice)
    wanted, given = match.wanted, match.given
    there, here = _kinds(given), _kinds(wanted)
    if there != here:
        to = f"the weights were {' and '.join(there)}, converted to {' and '.join(here)}"
        match.notes.append(to)
    # Into the model's own state dict, whose hidden versions of the layers some networks ask for.
    wanted.update({key: value for key, value in given.items() if key in wanted})
    model.load_state_dict(wanted, strict=True)
    if _untouched_batch_norm(model):
        match.notes.append("all batch norm statistics are 0 and 1: this network may be untrained")
    return tuple(map(printable, match.notes))


@dataclass
class _Match:
    """What a model wants, and what a file gives."""

    wanted: dict[str, Tensor]
    given: dict[str, Tensor]
    name: str
    """Of the file."""
    notes: list[str] = field(default_factory=list)

    def unwrap(self) -> None:
        """Bring the weights under the model's own names, if any prefix makes them so."""
        if _has(COMPILED, self.given) and not _has(COMPILED, self.wanted):
            self.given = {key.replace(COMPILED, ""): value for key, value in self.given.items()}
            self.notes.append(f"stripped '{COMPILED}' (torch.compile) from the names")
        if set(self.given) == set(self.wanted):
            return
        prefixes = self.prefixes()
        if len(prefixes) > 1:
            parts = [prefix.rstrip(".") or OWN for prefix in prefixes]
            sign = "." if "#" in Path(self.name).name else "#"
            what = f"holds several copies of the network: {', '.join(parts)}"
            step = f"choose one, as {' or '.join(f'{self.name}{sign}{part}' for part in parts)}"
            raise CheckpointError("C411", self.name, what, next_step=step)
        prefix = prefixes[0] if prefixes else self.wrapper()
        left = [key for key in self.given if not key.startswith(prefix)]
        self.given = {
            key.removeprefix(prefix): value
            for key, value in self.given.items()
            if key.startswith(prefix)
        }
        if prefix:
            self.notes.append(f"stripped '{prefix}' from the names")
        if left:
            self.notes.append(f"left out what lies outside '{prefix}': {', '.join(left[:4])}")

    def prefixes(self) -> list[str]:
        """All prefixes under which every name of the model is there; of several, those that fit."""
        wanted, given = self.wanted, self.given
        needed = [key for key in wanted if not key.endswith(COUNTER)]
        if not needed:
            return []
        ends = [key.removesuffix(needed[0]) for key in given if key.endswith(needed[0])]
        whole = [
            prefix
            for prefix in dict.fromkeys(ends)
            if (not prefix or prefix.endswith(".")) and all(prefix + key in given for key in needed)
        ]
        if len(whole) == 1:
            return whole
        return [
            prefix
            for prefix in whole
            if all(given[prefix + key].shape == wanted[key].shape for key in needed)
        ]

    def wrapper(self) -> str:
        """The wrappers' names that stand before all names, so that a difference can be shown."""
        prefix = ""
        while True:
            heads = {key.removeprefix(prefix).partition(".")[0] for key in self.given}
            head = heads.pop() if len(heads) == 1 else ""
            if head not in WRAPPERS:
                return prefix
            prefix += head + "."

    def compare(self, network: str, advice: str) -> None:
        """Raise CheckpointError C410 or C412 unless names and shapes are the same."""
        wanted, given = self.wanted, self.given
        missing = [key for key in wanted if key not in given and not key.endswith(COUNTER)]
        extra = [key for key in given if key not in wanted and not key.endswith(COUNTER)]
        reshaped = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
        if not missing and not extra and reshaped:
            self.compare_classes(reshaped, advice)
        # The first in the network's own order, from the input on.
        wrong = [key for key in wanted if key in missing or key in reshaped] or extra
        if wrong:
            raise CheckpointError(
                "C410",
                self.name,
                f"the weights look like {looks_like(given)} ({len(given)} tensors), the model is "
                f"{network} ({len(wanted)}); "
                f"first difference: {wrong[0]} is {self.state(wrong[0])}",
                next_step="name the network that these weights were trained in",
            )

    def compare_classes(self, reshaped: list[str], advice: str) -> None:
        """Raise CheckpointError C412 if only the number of outputs differs."""
        pairs = [(self.given[key].shape, self.wanted[key].shape) for key in reshaped]
        counts = {(there[:1], here[:1]) for there, here in pairs}
        tails = all(there[1:] == here[1:] for there, here in pairs)
        weights = [key for key, value in self.wanted.items() if value.ndim >= 2]
        if len(counts) == 1 and tails and weights and weights[-1] in reshaped:
            there, here = counts.pop()
            layer = weights[-1].rpartition(".")[0]
            what = f"{layer} is {there[0]} classes in the file, {here[0]} in the model"
            raise CheckpointError("C412", self.name, what, next_step=advice.format(there[0]))

    def state(self, key: str) -> str:
        """Of a tensor that differs."""
        if key not in self.given:
            return "not in the file"
        if key not in self.wanted:
            return "only in the file"
        there, here = _shape(self.given[key]), _shape(self.wanted[key])
        return f"{there} in the file, {here} in the model"


def _has(part: str, names: Iterable[str]) -> bool:
    return any(part in name for name in names)


def _kinds(weights: Mapping[str, Tensor]) -> list[str]:
    """The kinds of floating point numbers, as float16."""
    kinds = {value.dtype for value in weights.values() if value.is_floating_point()}
    return sorted(str(kind).removeprefix("torch.") for kind in kinds)


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "one number"


def _untouched_batch_norm(model: nn.Module) -> bool:
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    ]
    return bool(norms) and all(
        torch.all(module.running_mean == 0) and torch.all(module.running_var == 1)  # type: ignore[arg-type]
        for module in norms
    )


Shapes = dict[str, tuple[int, ...]]

# Part of a name that only these families have -> beginnings of torchvision's names for them.
FAMILIES = {
    "layer1.0.": ("resnet", "resnext", "wide_resnet"),
    "features.denseblock1.": ("densenet",),
    "features.3.squeeze.": ("squeezenet1_0", "squeezenet1_1"),
    "inception3a.": ("googlenet",),
    "Mixed_5b.": ("inception_v3",),
    "stage2.0.": ("shufflenet",),
    "layers.8.0.": ("mnasnet",),
    "features.1.conv.": ("mobilenet_v2",),
    "features.1.block.": ("mobilenet_v3",),
    "features.1.0.block.": ("efficientnet", "convnext"),
    "features.0.weight": ("alexnet", "vgg"),
}


def looks_like(weights: Mapping[str, Tensor]) -> str:
    """The name of the network with the same tensors, whatever its classes; else what they say."""
    given = _shapes(weights)
    if "fc8.weight" in given and len(given.get("conv1.weight", ())) == 4:
        spec, model = _tower(given)
        if _same(given, _shapes(model.state_dict())):
            return spec
    for part, families in FAMILIES.items():
        if any(part in key for key in given):
            for name in _torchvision_names():
                if name.startswith(families) and _same(given, _torchvision(name)):
                    return f"torchvision:{name}"
    heads = list(dict.fromkeys(key.partition(".")[0] for key in given))
    return "no network we know, with " + ", ".join(heads[:4]) + (", …" if len(heads) > 4 else "")


def _shapes(weights: Mapping[str, Tensor]) -> Shapes:
    """Shapes by name, but for what training alone uses."""
    unused = ("aux1.", "aux2.", "AuxLogits.")
    return {
        key: tuple(value.shape)
        for key, value in weights.items()
        if not key.endswith("num_batches_tracked") and not key.startswith(unused)
    }


def _same(given: Shapes, known: Shapes) -> bool:
    """Equal but for the number of outputs of the known network's last layer."""
    last = [key for key, shape in known.items() if len(shape) >= 2][-1].rpartition(".")[0] + "."
    return given.keys() == known.keys() and all(
        given[key][1:] == shape[1:] if key.startswith(last) else given[key] == shape
        for key, shape in known.items()
    )


def _tower(given: Shapes) -> tuple[str, nn.Module]:
    """The tower of ours that comes nearest."""
    name, maker = ("zfnet", zfnet) if given["conv1.weight"][-1] == 7 else ("alexnet", alexnet)
    width = max(1, min(16 * 96, given["conv1.weight"][0])) / Tower.maps[0]
    chosen: Options = {"width": width} if width != 1 else {}
    if "fc6.weight" not in given:
        chosen["head"] = "compact"
    if "bn1.weight" in given:
        chosen["norm"] = "batch"
    words = ",".join(f"{key}={value}" for key, value in chosen.items())
    return f"{name}:{words}" if words else name, maker(init=None, **chosen)


def _torchvision_names() -> list[str]:
    import torchvision  # takes seconds to import, and is wanted for one message only

    models = torchvision.models
    return list(models.list_models(module=models))  # type: ignore[attr-defined]


@functools.cache
def _torchvision(name: str) -> Shapes:
    import torchvision

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    try:
        with torch.device("meta"):
            build = torchvision.models.get_model  # type: ignore[attr-defined]
            model = build(name, weights=None, **options)
    except NotImplementedError:  # a network that computes with its weights while it is built
        return {"": (0, 0)}
    return _shapes(model.state_dict())


def fetched_weights(
    spec: str, url: str, target: Path, *, sha256: str = "", progress: Progress | None = None
) -> Path:
    """Download to `target`, unless it is there already and right; a broken download goes on where
    it stopped.

    spec: the network, as `torchvision:resnet18`. sha256: how the file's hash begins, if it is
    known. Raises EnvironmentFault R620 if they cannot be had, R621 if the server sent another file.
    """
    source = Source(url, None, sha256)
    try:
        if target.is_file():
            source.check(target)
            return target
    except EnvironmentFault:
        pass  # a damaged copy
    try:
        fetch(source, target, progress=progress)
    except EnvironmentFault as fault:
        if fault.code == "R613":
            what = f"the server sent another file: it {fault.what}"
            step = "try again later, or download it another way and pass it as checkpoint"
            raise EnvironmentFault("R621", url, what, next_step=step) from fault
        if fault.code in ("R610", "R611", "R612"):
            raise no_weights(spec, f"its weights cannot be had from {url}: {fault.what}") from fault
        raise
    return target


def no_weights(spec: str, what: str) -> EnvironmentFault:
    step = f"pass a checkpoint, or write {spec}:weights=none for random weights"
    return EnvironmentFault("R620", spec, what, next_step=step)


KINDS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
KEPT = "epochs"
"""In a run's folder: the epochs that `train(keep=…)` kept."""
MANY = 20
"""Epochs that a message names one by one."""
LIGHTNING = re.compile(r"epoch=(\d+)")
"""Lightning counts from 0: `epoch=0` was kept after the first epoch."""
NAMED = re.compile(r"(?:^|[^a-z])(?:epoch|ep)[-_. ]?(\d+)", re.IGNORECASE)
NUMBER = re.compile(r"(?:(?:checkpoint|ckpt|model|net|weights|e)[-_.]?)?(\d+)", re.IGNORECASE)


def snapshots(folder: Path | str) -> dict[int, Path]:
    """Epoch → file, ascending: of a run's folder what `keep` kept, of any other its checkpoints.

    The epoch is taken from the name (`epoch-010.safetensors`, `epoch_10.pt`, `10.pth`,
    Lightning's `epoch=9-step=420.ckpt`), or else from what convscope wrote into the file. Files
    of no known epoch, such as `best.pt`, are left out.

    Raises DataError D190 no checkpoints there, D191 of none the epoch is known, D192 two of one
    epoch; CheckpointError C440 no folder.
    """
    place = Path(folder)
    if not place.is_dir():
        what = "is no folder, so it holds no checkpoints of several epochs"
        raise CheckpointError("C440", str(folder), what, next_step="name the folder they are in")
    is_run = (place / "run.json").is_file()
    inside = place / KEPT if is_run or (place / KEPT).is_dir() else place
    files = sorted(path for path in _listed(inside) if path.suffix in KINDS and path.is_file())
    if not files:
        what = "this run kept no epochs" if is_run else "holds no checkpoints"
        step = "train with --keep 1,2,5,10" if is_run else f"they end in {', '.join(KINDS)}"
        raise DataError("D190", str(folder), what, next_step=step)
    return _by_epoch(files, str(folder))


def chosen(
    there: Mapping[int, Path], epochs: Sequence[int] | None, usual: Collection[int], folder: str
) -> list[int]:
    """Of the epochs there those asked for; if none are (None), the usual ones and the last.

    Raises DataError D193 if one asked for is not there, D194 if they are fewer than two.
    """
    if epochs is None:
        result = sorted({epoch for epoch in there if epoch in usual} | {max(there)})
        result = result if len(result) > 2 else sorted(there)
    else:
        result = sorted(set(epochs))
        missing = [str(epoch) for epoch in result if epoch not in there]
        if missing:
            names = [str(epoch) for epoch in sorted(there)]
            known = names if len(names) <= MANY else [*names[:3], "…", names[-1]]
            what = f"has no checkpoint of epoch {', '.join(missing)}; it has {', '.join(known)}"
            raise DataError("D193", folder, what, next_step="name epochs from these")
    if len(result) < 2:
        what = f"epoch {result[0]} alone cannot be compared" if result else "no epoch is named"
        raise DataError("D194", folder, what, next_step="give two epochs or more")
    return result


def epoch_named(name: str) -> int | None:
    """The epoch that a file's name tells."""
    if counted := LIGHTNING.search(name):
        return int(counted[1]) + 1
    if named := NAMED.search(name):
        return int(named[1])
    alone = NUMBER.fullmatch(Path(name).stem)
    return int(alone[1]) if alone else None


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _by_epoch(files: Sequence[Path], folder: str) -> dict[int, Path]:
    result: dict[int, Path] = {}
    for path in files:
        epoch = epoch_named(path.name)
        epoch = _epoch_inside(path) if epoch is None else epoch
        if epoch is None:
            continue
        if epoch in result:
            what = f"both {result[epoch].name} and {path.name} are of epoch {epoch}"
            raise DataError("D192", folder, printable(what), next_step="move one away")
        result[epoch] = path
    if not result:
        names = printable(", ".join(path.name for path in files[:4]))
        what = f"no file's name tells its epoch: {names}"
        raise DataError("D191", folder, what, next_step="name them as epoch-010.safetensors")
    return dict(sorted(result.items()))


def _epoch_inside(path: Path) -> int | None:
    """What convscope wrote into a file, if it did."""
    if path.suffix != ".safetensors":
        return None
    card = Card.of(open_checkpoint(path))
    epoch = None if card is None else card.more.get("epoch")
    return epoch if isinstance(epoch, int) else None
