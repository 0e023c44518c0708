"""PyTorch's private names that convscope uses, and what takes the place of one that is missing.

Torch 2.15, the pinned one, has all of them (`tests/test_torch_private.py`). One without a name
loses speed or a shortcut by it, never a number. What PyTorch's notes on autograd describe
(`node._saved_…`) and the tables of `nn.Module` (`_parameters`, `_forward_hooks`) stand where they
are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from itertools import count
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

NAMES = (
    "Tensor._version",
    "_C.DisableTorchFunction",
    "ops.aten.max_pool2d_with_indices_backward",
    "utils._pytree.tree_leaves",
    "utils._pytree.tree_map_only",
)
_unknown = count(2)


@cache
def private(name: str) -> Any:
    """What torch has under this name; None where it has nothing."""
    value: Any = torch
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def tree_leaves(tree: Any) -> list[Any]:
    """All that nested lists, tuples and dictionaries hold; torch's own also opens what libraries
    have registered with it."""
    known = private("utils._pytree.tree_leaves")
    if known is not None:
        return list(known(tree))
    if not isinstance(tree, (list, tuple, Mapping)):
        return [tree]
    inner = tree.values() if isinstance(tree, Mapping) else tree
    return [leaf for value in inner for leaf in tree_leaves(value)]


def tree_map_only(kind: type, change: Callable[[Any], Any], tree: Any) -> Any:
    """The same with every leaf of this kind changed."""
    known = private("utils._pytree.tree_map_only")
    if known is not None:
        return known(kind, change, tree)
    again = partial(tree_map_only, kind, change)
    if isinstance(tree, Mapping):
        return type(tree)(**{k: again(v) for k, v in tree.items()})
    if isinstance(tree, (list, tuple)):
        inner = map(again, tree)
        return type(tree)(*inner) if hasattr(tree, "_fields") else type(tree)(inner)
    return change(tree) if isinstance(tree, kind) else tree


def version(tensor: Tensor) -> int:
    """How often a tensor was written to; -1 in inference mode, which does not count. Where torch
    does not say, another negative number each time: the tensor may have been changed."""
    if tensor.is_inference():
        return -1
    return -next(_unknown) if private("Tensor._version") is None else tensor._version


def unseen() -> AbstractContextManager[Any]:
    """A block whose calls no function mode sees. Where torch has none they are recorded, and what
    follows them is computed whole."""
    hidden = private("_C.DisableTorchFunction")
    return nullcontext() if hidden is None else hidden()


def max_unpooled(
    values: Float[Tensor, "n c r k"],
    like: Float[Tensor, "n c h w"],
    switches: Int64[Tensor, "n c r k"],
    window: tuple[Sequence[int], Sequence[int], Sequence[int]],
) -> Float[Tensor, "n c h w"]:
    """Each value at the place that its switch names, added where several meet.

    like: a tensor of the result's size and memory format. switches: places of a map counted row
    after row. window: the pool's side, stride and dilation.
    """
    known = private("ops.aten.max_pool2d_with_indices_backward")
    if known is not None:
        side, stride, dilation = window
        how = (side, stride, (0, 0), dilation, False)
        return known(values, like, *how, switches)  # type: ignore[no-any-return]
    flat = torch.zeros_like(like, memory_format=torch.contiguous_format).flatten(2)
    flat.scatter_add_(2, switches.flatten(2), values.flatten(2))
    return flat.view(like.shape)
