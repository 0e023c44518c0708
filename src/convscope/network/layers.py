"""Layer table: layers from pixels to classes, their sizes, costs and receptive fields."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convscope.core.errors import UsageError, shown
from convscope.lens.lens import HOOK, tensors_in
from convscope.lens.twin import ShadowModel, bare, is_scripted
from convscope.network.arguments import taking
from convscope.network.network import Network, whole
from convscope.network.provenance import recorded
from convscope.records.features import LayerTable, ModelCard
from convscope.trace.receptive_field import ReceptiveField, fields

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass
class _Row:
    """What is seen of a module in one run."""

    module: nn.Module
    shape: tuple[int, ...] = ()
    """Of its first output."""
    multiply_adds: int = 0


@taking()
def layers(network: nn.Module | Network, size: int | tuple[int, ...] | None = None) -> LayerTable:
    """The layers from pixels to classes with output, parameters, multiply-adds, receptive field
    and stride: what `convscope layers` prints.

    size: of the input: pixels, (height, width) or (channels, height, width); by default what the
    network's preprocessing makes. Raises UsageError U376 (a bare module without size), U380,
    ModelError M522 (it does not take such a picture), M530.
    """
    if size is None:
        return layer_table(network, whole(network).preprocess.shape)
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, tuple | list) or not all(type(n) is int and n > 0 for n in sides):
        raise UsageError("U380", "size", f"{shown(size)} is no size in pixels")
    first = next((m.in_channels for m in bare(network).modules() if isinstance(m, nn.Conv2d)), 3)
    if len(sides) not in (2, 3):
        raise UsageError(
            "U380", "size", f"{shown(size)} is neither (height, width) nor with channels"
        )
    return layer_table(network, (first, *sides) if len(sides) == 2 else tuple(sides))  # type: ignore[arg-type]


@recorded
def layer_table(model: nn.Module | Network, size: tuple[int, int, int]) -> LayerTable:
    """The layers from pixels to classes, in the order in which they run.

    size: channels, height, width of the input. A layer is a module without children, or with
    parameters of its own. One that runs several times has one row: shape and field of its first
    run, multiply-adds of all. Multiply-adds are those of convolutions and fully connected layers;
    what the network computes outside of modules (sums, attention) is not counted.

    The model is not touched. Raises ModelError M522 (it does not take such a picture), M530.
    """
    model = bare(model)
    known = fields(model, size)
    twin = ShadowModel(model)
    rows = _rows(twin, size)
    names = {module: name for name, module in reversed(list(twin.model.named_modules()))}
    seen = [_seen(known, names[row.module], row) for row in rows]
    counted: set[int] = set()
    return LayerTable(
        name=tuple(names[row.module] for row in rows),
        kind=tuple(type(row.module).__name__ for row in rows),
        shape=tuple(row.shape for row in rows),
        parameters=np.array([_parameters(row.module, counted) for row in rows], np.int64),
        multiply_adds=np.array([row.multiply_adds for row in rows], np.int64),
        field=np.array([field for field, _ in seen], np.int64).reshape(-1, 2),
        stride=np.array([stride for _, stride in seen], np.int64).reshape(-1, 2),
        input=size,
        kernel=tuple(_kernel(row.module) for row in rows),
        of=tuple(
            names[before.module] if before is not None and _normalises(row, before) else ""
            for before, row in zip([None, *rows], rows, strict=False)
        ),
        origin={"method": "layer_table", "network": type(model).__name__},
    )


@recorded
def model_card(
    network: Network, table: LayerTable, top1: float = -1, top5: float = -1
) -> ModelCard:
    """Network and weights in a few words. top1, top5: see `ModelCard`."""
    return ModelCard(
        name=network.spec,
        weights=network.weights,
        sha256=network.sha256,
        parameters=sum(weight.numel() for weight in network.model.parameters()),
        multiply_adds=int(table.multiply_adds.sum()),
        input=table.input,
        classes=network.classes,
        preprocessing=network.preprocess.describe(),
        top1=top1,
        top5=top5,
        origin={"notes": list(network.notes)},
    )


def _rows(twin: ShadowModel, size: tuple[int, int, int]) -> list[_Row]:
    rows: dict[nn.Module, _Row] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        row = rows.setdefault(module, _Row(module))
        results = list(tensors_in(output))
        if results and not row.shape:
            row.shape = tuple(results[0].shape[1:])
        row.multiply_adds += _multiply_adds(module, list(tensors_in(inputs)), results)

    for module in twin.model.modules():
        own = next(module.parameters(recurse=False), None) is not None
        leaf = not any(True for _ in module.children())
        if (own or leaf) and not is_scripted(module):
            module._forward_hooks[HOOK] = note
    like = next(twin.model.parameters(), torch.empty(0))
    blank = torch.zeros(1, *size, dtype=like.dtype, device=like.device)
    with torch.inference_mode():
        twin.run(blank)
    return list(rows.values())


def _kernel(module: nn.Module) -> tuple[int, ...]:
    size = getattr(module, "kernel_size", ())
    sides = (size, size) if isinstance(size, int) else size
    known = isinstance(sides, tuple) and all(isinstance(side, int) for side in sides)
    return tuple(sides) if known else ()


def _normalises(row: _Row, before: _Row) -> bool:
    """Whether a batch normalisation comes straight after a convolution, as `feature_layers` asks
    before it takes its output for the convolution's."""
    return (
        isinstance(row.module, nn.BatchNorm2d)
        and isinstance(before.module, nn.Conv2d)
        and row.module.num_features == before.module.out_channels
    )


def _multiply_adds(module: nn.Module, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Of one run on one picture."""
    if isinstance(module, CONVOLUTIONS):
        return outputs[0].numel() * prod(module.weight.shape[1:])
    if isinstance(module, TRANSPOSED):
        return inputs[0].numel() * prod(module.weight.shape[1:])
    if isinstance(module, nn.Linear):
        return outputs[0].numel() * module.in_features
    return 0


def _parameters(module: nn.Module, counted: set[int]) -> int:
    """Of the module itself; weights that layers share count where they come first."""
    own = {id(weight): weight.numel() for weight in module.parameters(recurse=False)}
    new = sum(count for key, count in own.items() if key not in counted)
    counted.update(own)
    return new


def _seen(
    known: dict[str, ReceptiveField], name: str, row: _Row
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Field and stride; 0 where there are no positions."""
    found = known.get(name) or known.get(f"{name}#1")
    if found is None or len(row.shape) != 3:
        return (0, 0), (0, 0)
    return found.size, found.stride
