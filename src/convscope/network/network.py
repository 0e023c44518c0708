"""A network with its preprocessing, classes and origin, and its forward pass; NaN is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import CheckpointError, ModelError, UsageError, printable
from convscope.core.text import parsed
from convscope.lens.lens import run_with_hooks
from convscope.lens.machine import fitting, sizes
from convscope.lens.twin import bare
from convscope.network.checkpoint import Checkpoint
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import of_module

KEY = "convscope"
"""Of a checkpoint's metadata: its card."""
ACTS_OTHERWISE = ("BatchNorm", "InstanceNorm", "Dropout", "DropPath", "StochasticDepth")
"""Kinds of modules that compute something else in train mode, by parts of their names."""
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True)
class Delivered:
    """Modes and wrappers of a network as it was found."""

    modules: int = 0
    training: tuple[str, ...] = ()
    """Names of the modules in train mode; "" is the network itself."""
    acting: Mapping[str, int] = field(default_factory=dict)
    """Class → how many of the modules in train mode compute something else because of it."""
    wrappers: tuple[str, ...] = ()
    """What was put around the network, the outermost first, e.g. DataParallel."""

    @classmethod
    def of(cls, model: nn.Module) -> Delivered:
        """Look at a network. It is not touched."""
        inner, wrappers = unwrapped(model)
        named = list(inner.named_modules())
        training = [(name, module) for name, module in named if module.training]
        kinds = (type(module).__name__ for _, module in training)
        acting = Counter(kind for kind in kinds if any(part in kind for part in ACTS_OTHERWISE))
        names = tuple(name for name, _ in training)
        return cls(len(named), names, dict(acting), wrappers)


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The network inside of what DataParallel, DDP and torch.compile put around it, and these."""
    wrappers: list[str] = []
    while True:
        compiled = getattr(model, "_orig_mod", None)
        if isinstance(model, PARALLEL):
            wrappers.append(type(model).__name__)
            model = model.module
        elif compiled is not None:
            wrappers.append("torch.compile")
            model = compiled
        else:
            if getattr(model, "_compiled_call_impl", None) is not None:
                wrappers.append("torch.compile")
            return model, tuple(wrappers)


@dataclass(frozen=True, eq=False)
class Network:
    """A model, how pictures are made ready for it, and where it came from."""

    model: nn.Module
    """In evaluation mode; a module of the caller's own is left in the mode it has, and every
    method looks at it in evaluation mode all the same."""
    preprocess: Preprocess
    classes: tuple[str, ...]
    """Names in the order of the outputs; empty if unknown."""
    spec: str
    """What `load` builds the same architecture from."""
    weights: str
    """Where the weights came from: a file, weights of torchvision, or random numbers."""
    sha256: str
    """Of the weights' file; empty if they came from none."""
    notes: tuple[str, ...] = ()
    """What was repaired or assumed; for every report."""
    delivered: Delivered | None = None
    """Modes and wrappers before `load` set eval mode and unwrapped; None if it is not known."""
    output: str = ""
    """Where in what the model gives its scores are, as 1, logits or out.logits; where nothing is
    said it is found, see `network/outputs.py`."""
    scores: str = ""
    """What they are, a kind of `outputs.KINDS`; found where nothing is said."""

    def __repr__(self) -> str:
        """A few lines, and no module."""
        kinds = [type(module).__name__ for module in self.model.modules()]
        layers = sum(not any(module.children()) for module in self.model.modules())
        few = ", ".join(self.classes[:3]) + (", …" if len(self.classes) > 3 else "")
        told = [
            f"Network {self.spec}",
            f"  weights: {self.weights}",
            f"  preprocessing: {self.preprocess.describe()}",
            f"  classes: {len(self.classes):,} ({few})" if self.classes else "  classes: not known",
            f"  layers: {layers:,}, of which {kinds.count('Conv2d'):,} Conv2d",
            *(f"  note: {note}" for note in self.notes[:3]),
        ]
        more = len(self.notes) - 3
        return "\n".join(
            [*map(printable, told), *([f"  and {more} notes more"] if more > 0 else [])]
        )

    def provenance(self) -> dict[str, Any]:
        """What a result has to tell of the network: its name, its weights as they are now, the
        preprocessing and whether it is known or assumed, precision, device and versions."""
        return {
            "model": self.spec,
            "weights": self.weights,
            "sha256": self.sha256,
            "preprocessing": self.preprocess.describe(),
            "preprocessing is": "assumed" if self.preprocess.assumed else "known",
            **self._output(),
            **of_module(self.model),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """All of it that decides numbers, in plain JSON."""
        told = self.provenance()
        del told["device"]
        return {**told, "preprocess": self.preprocess.to_json()}

    def _output(self) -> dict[str, str]:
        """What the output was taken for, where that was asked and is not plain logits."""
        from convscope.network.outputs import known  # which knows networks

        result = known(self)
        return {"output": "; ".join(result.notes)} if result and result.notes else {}


def whole(given: Network | nn.Module) -> Network:
    """The network, where a bare module will not do. Raises UsageError U376 for anything else."""
    if isinstance(given, Network):
        return given
    kind = type(given).__name__
    if isinstance(given, nn.Module):
        what = f"a bare {kind} does not say how pictures are made ready for it"
        raise UsageError(
            "U376", "", what, next_step="give load(module), or load(module, preprocess=…)"
        )
    raise UsageError("U376", "", f"a {kind} is no network", next_step="give what load returns")


@dataclass(frozen=True, eq=False)
class Card:
    """What a checkpoint of ours says about itself, in its safetensors metadata."""

    spec: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else its maker wrote: recipe, epoch, …; plain JSON."""

    def metadata(self) -> dict[str, str]:
        """For `save_weights`."""
        plain = {
            **self.more,
            "spec": self.spec,
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_json(),
        }
        return {KEY: json.dumps(plain)}

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Card | None:
        """The card in the file, if it has one. Raises CheckpointError C414 on a damaged one."""
        if KEY not in checkpoint.metadata:
            return None
        try:
            plain = parsed(checkpoint.metadata[KEY])
            preprocess = Preprocess.from_json(plain.pop("preprocess"))
            spec, classes = str(plain.pop("spec")), tuple(map(str, plain.pop("classes")))
            return cls(spec, classes, preprocess, plain)
        except (ValueError, TypeError, KeyError, AttributeError) as fault:
            raise CheckpointError(
                "C414", checkpoint.name, f"its convscope metadata are damaged ({fault})"
            ) from fault
        except CheckpointError as fault:
            raise CheckpointError("C414", checkpoint.name, fault.what) from fault


@dataclass(frozen=True, eq=False)
class Request:
    """What was asked of `load`, split up for the one source that answers."""

    spec: str
    rest: str
    """The spec after its first colon."""
    checkpoint: Checkpoint | None
    classes: int | None
    seed: int = 0
    progress: Callable[[int, int], None] | None = None
    module: nn.Module | None = None
    """The caller's own, in the place of a spec."""
    beside: Path | None = None
    """The folder of the file that names the network, if one does: code has to lie there."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A source's answer: the model built, its weights not yet in it if `checkpoint` is set."""

    model: object
    preprocess: Preprocess
    classes: tuple[str, ...] = ()
    weights: str = ""
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = ()
    finish: Callable[[nn.Module], None] | None = None
    """What is left to do once the weights are in."""
    sha256: str = ""
    """Of the file of weights that are in the model already."""
    counted: bool = True
    """Whether the source would build it with another number of classes."""
    output: str = ""
    scores: str = ""
    """As of a Network."""


T = TypeVar("T")
MADE = "network.preprocess.tensor(network.preprocess.framing(picture))"


NOT_IN_THIS_ORDER = "view size is not compatible"
"""How torch says that code wants numbers channel by channel in memory."""


def prepared(model: nn.Module | Network, images: Tensor) -> Float[Tensor, "b c h w"]:
    """Pictures where and in the precision in which the network computes; one picture is a batch
    of one. model: or what holds it, as `load` returns it. Raises UsageError U355 on anything but
    preprocessed pictures."""
    if not isinstance(images, Tensor):
        what = f"this is no picture for a network: {type(images).__name__}"
        raise UsageError("U355", "", what, next_step=f"preprocess it to a tensor: {MADE}")
    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or not images.is_floating_point() or not len(images):
        got = f"{tuple(images.shape)} in {str(images.dtype).removeprefix('torch.')}"
        step = "preprocess them to floating point, as (pictures, channels, height, width)"
        raise UsageError("U355", "", f"these are no pictures for a network: {got}", next_step=step)
    model = bare(model)
    known = model.parameters() if isinstance(model, nn.Module) else ()  # else Lens refuses it
    weights = (weight for weight in known if weight.is_floating_point())
    like = next(weights, images)
    images = images.detach().clone() if images.is_inference() else images.detach()
    return images.to(like.device, like.dtype)


def forward(network: Callable[[Tensor], Any], images: Float[Tensor, "b c h w"]) -> Any:
    """Run the network on a copy of pictures, as it may work in place, that lies pixel by pixel in
    memory, which is up to twice as fast on a CPU; channel by channel where its code needs that.

    network: a Lens, or what calls one. Raises ModelError M522 where it does not take pictures of
    this size, M574 where its code fails.
    """
    try:
        return network(images.clone(memory_format=torch.channels_last))
    except ModelError as fault:
        if NOT_IN_THIS_ORDER not in fault.what:
            raise
        return network(images.clone(memory_format=torch.contiguous_format))


def finite(layer: str, maps: Tensor) -> Tensor:
    """Raises ModelError M543 where there is a NaN or an infinity."""
    if not bool(torch.isfinite(maps).all()):
        raise ModelError(
            "M543", layer, "has NaN or infinite numbers", next_step="check the weights"
        )
    return maps


def wide(values: Tensor) -> Tensor:
    """In float32, unless it is more precise already."""
    return values if values.dtype == torch.float64 else values.float()


def surveyed(
    model: nn.Module, images: Float[Tensor, "b c h w"], see: Callable[[nn.Module, Tensor], T]
) -> tuple[list[tuple[str, T]], Any]:
    """As `run_with_hooks`. Raises ModelError M522 where the network cannot take such pictures."""
    found: tuple[list[tuple[str, T]], Any] = forward(
        lambda seen: run_with_hooks(model, seen, see), images
    )
    return found


def batch_size(model: nn.Module, images: Float[Tensor, "b c h w"]) -> int:
    """Variations of a picture at once. On an accelerator no more than on a CPU: where gradients
    are asked for, all layers' outputs are held."""
    return fitting(sizes(model, images[:1].clone()).largest, torch.device("cpu"))
