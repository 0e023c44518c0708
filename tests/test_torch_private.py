"""PyTorch's private names: those that are used are there, and what takes their place."""

from __future__ import annotations

import ast
import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convscope.lens import torch_private
from convscope.lens.torch_private import (
    NAMES,
    max_unpooled,
    private,
    tree_leaves,
    tree_map_only,
    unseen,
    version,
)
from convscope.trace.recorder import record_calls

SOURCE = Path(torch_private.__file__).parent
TESTED = (2, 15)
"""The last torch that was seen to have all these names."""
Pair = namedtuple("Pair", "one two")


def installed() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a torch that has none of the names."""
    monkeypatch.setattr(torch_private, "private", lambda name: None)


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_torch_has_the_name(name: str) -> None:
    if installed() > TESTED and private(name) is None:
        pytest.skip(f"gone from torch {torch.__version__}: what takes its place is used")
    assert private(name) is not None


def test_a_name_that_is_nowhere_is_none() -> None:
    assert private("_C.NoSuchName.at_all") is None
    assert private("ops.aten.no_such_operation") is None


def private_names(code: str) -> set[str]:
    """`torch._x…`, `torch.…._x…` and `torch.ops.…`, as they are written."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            written = ast.unparse(node)
            if re.match(r"torch\.(ops\.|(\w+\.)*_(?!_))", written):
                names.add(written)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names |= {node.module or ""} if "._" in (node.module or "") else set()
    return names


def test_no_other_module_calls_them() -> None:
    others = [path for path in SOURCE.rglob("*.py") if path.name != "torch_private.py"]
    named = {str(path): private_names(path.read_text(encoding="utf-8")) for path in others}
    assert {path: names for path, names in named.items() if names} == {}
    assert private_names("import torch\ntorch._C.x()\nfrom torch.utils._pytree import y") != set()


TREE = {"a": [torch.ones(1), (2, torch.zeros(1))], "b": Pair("c", torch.ones(2)), "d": None}


def test_trees_are_opened_the_same_without(without: None) -> None:
    found = tree_leaves(TREE)
    assert [type(leaf) for leaf in found if leaf is not None] == [Tensor, int, Tensor, str, Tensor]
    changed = tree_map_only(Tensor, torch.numel, TREE)
    assert changed == {"a": [1, (2, 1)], "b": Pair("c", 2), "d": None}
    assert type(changed["b"]) is Pair


def test_versions_count_what_is_written() -> None:
    x = torch.zeros(2)
    before = version(x)
    assert version(x) == before
    x.add_(1)
    assert version(x) > before
    with torch.inference_mode():
        assert version(torch.zeros(1)) == -1


def test_without_versions_every_tensor_may_have_changed(without: None) -> None:
    x = torch.zeros(2)
    assert version(x) != version(x)
    assert max(version(x), version(x)) < 0


def pooled(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(2, 3, 9, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    y, switches = torch.nn.functional.max_pool2d(x, 3, 2, return_indices=True)
    return x, y, switches


def test_pools_are_undone_the_same_without(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, switches = pooled(torch.float64)
    how: Any = ((3, 3), (2, 2), (1, 1))
    known = max_unpooled(y, torch.empty_like(x), switches, how)
    monkeypatch.setattr(torch_private, "private", lambda name: None)
    torch.testing.assert_close(max_unpooled(y, torch.empty_like(x), switches, how), known)
    assert known.abs().sum() > 0


def test_calls_can_be_hidden_from_a_recorder() -> None:
    class Hides(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with unseen():
                x.detach().exp()
            return x.mean((2, 3))

    recording, _ = record_calls(Hides(), torch.ones(3, 4, 4))
    assert [call.operation.name for call in recording.calls] == ["mean"]


def test_without_a_way_to_hide_the_block_still_runs(without: None) -> None:
    with unseen():
        assert float(torch.ones(1)) == 1.0
