"""Does the table of operations say of each what torch does, and what lists of old have said?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from convscope.trace import backward_rule, operations
from convscope.trace import graph as nodes
from convscope.trace.backward.steps import STEPS
from convscope.trace.operations import (
    ALIASES,
    NODES,
    OPERATIONS,
    STRIDES,
    SWITCHES,
    in_place,
    name_of,
    name_of_node,
    operation_of,
)
from convscope.trace.receptive_field import ARGUMENTS
from convscope.trace.recorder import Call, Slot

POINTWISE = """
abs add clamp clamp_max clamp_min clip div eq erf exp ge gt le lerp log log1p lt maximum minimum
mul nan_to_num ne neg pow reciprocal rsqrt sigmoid sign sqrt square sub tanh truediv true_divide
where clone contiguous detach to float half bfloat16 double type_as positive identity celu elu gelu
hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid mish prelu relu relu6 rrelu selu
silu softplus softshrink softsign tanhshrink threshold alpha_dropout dropout dropout1d dropout2d
dropout3d feature_dropout feature_alpha_dropout local_response_norm masked_fill full_like ones_like
zeros_like
"""
MOVES = """
cat channel_shuffle chunk concat expand flatten flip getitem movedim narrow permute pixel_shuffle
pixel_unshuffle repeat reshape roll select split squeeze stack swapaxes transpose unbind unflatten
unsqueeze view
"""
AFFINE_IN_THE_FIRST = """
conv1d conv2d conv3d conv_transpose2d linear avg_pool1d avg_pool2d avg_pool3d mean sum
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d div __truediv__ true_divide __getitem__
"""
AFFINE_IN_ALL = """
flatten view reshape squeeze unsqueeze permute transpose contiguous clone expand neg select narrow
chunk split unbind add __radd__ sub __rsub__ cat stack
"""
LINEAR_NODES = """
AdaptiveAvgPool2D AdaptiveMaxPool2D Add Alias Amax AsStrided AvgPool2D Cat Clone ConstantPadNd Copy
CopyBackwards CopySlices CudnnBatchNorm Expand FractionalMaxPool2D Flip Gather Im2Col Index
IndexSelect Max MaxPool2DWithIndices Mean MiopenBatchNorm NativeBatchNorm NativeDropout Neg Permute
PixelShuffle PixelUnshuffle ReflectionPad2D Repeat ReplicationPad2D ReshapeAlias Roll Rsub Select
Slice Split SplitWithSizes Squeeze Stack Sub Sum T ToCopy Transpose Unbind UnsafeSplit UnsafeView
Unsqueeze UpsampleBicubic2D UpsampleBilinear2D UpsampleNearest2D View
"""
PRODUCT_NODES = """
Addmm Addmv Baddbmm Bmm Convolution ConvolutionOverrideable CudnnConvolution Div Linear
MiopenConvolution MkldnnConvolution MkldnnLinear Mm Mul Mv SlowConv2D
"""
ACTIVATION_NODES = """
Abs Celu Elu Gelu Glu Hardshrink Hardsigmoid Hardswish Hardtanh LeakyRelu LogSigmoid LogSoftmax Mish
PreluKernel RreluWithNoise Sigmoid Silu Softmax Softplus Softshrink Tanh Threshold
"""
PROBABILITIES = "softmax log_softmax sigmoid hardsigmoid logsigmoid"
WEIGHED = """
linear conv1d conv2d conv3d addmm matmul rmatmul mm bmm baddbmm einsum bilinear conv_transpose2d
tensordot
"""
IDLE = """
dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout
contiguous identity detach clone
"""


def known(name: str) -> Any:
    name = name.strip("_")
    return OPERATIONS[ALIASES.get(name, name)]


LISTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "pointwise": (POINTWISE, lambda one: one.places in ("number", "place")),
    "moves": (MOVES, lambda one: one.places == "moved"),
    "affine in the first": (AFFINE_IN_THE_FIRST, lambda one: one.linear in ("first", "weights")),
    "affine in all": (AFFINE_IN_ALL, lambda one: one.linear == "sum"),
    "affine in one": ("mul multiply matmul", lambda one: one.linear == "factors"),
    "probabilities": (PROBABILITIES, lambda one: one.probabilities),
    "with weights": (WEIGHED, lambda one: one.weighed),
    "idle": (IDLE, lambda one: one.idle),
}


@pytest.mark.parametrize("name", LISTS)
def test_the_table_says_what_lists_of_old_have_said(name: str) -> None:
    names, holds = LISTS[name]
    assert [one for one in names.split() if not holds(known(one))] == []


def test_nodes_are_linear_products_or_activations() -> None:
    for node in LINEAR_NODES.split():
        assert all((one.linear or one.switches) and not one.title for one in NODES[node])
    for node in PRODUCT_NODES.split():
        assert all(one.linear in ("weights", "factors") for one in NODES[node])
    for node in ACTIVATION_NODES.split():
        assert all(one.title for one in NODES[node])
    assert {"MaxPool2DWithIndices", "AdaptiveMaxPool2D", "FractionalMaxPool2D"} == SWITCHES
    assert {"Convolution", "AvgPool2D"} <= STRIDES


def test_operations_of_one_node_are_alike() -> None:
    for sharing in NODES.values():
        assert len({bool(one.title) for one in sharing}) == 1
        assert len({one.linear in ("weights", "factors") for one in sharing}) == 1
        assert len({one.rectifies for one in sharing}) == 1


def test_an_operation_stands_in_the_table_once_and_under_no_other_name() -> None:
    said: dict[str, str] = {}
    for row in filter(None, operations.TABLE.split("\n")):
        names, traits, _ = row.split("|")
        assert all(
            said.setdefault(name, traits.strip()) == traits.strip() for name in names.split()
        )
    assert not set(ALIASES) & set(OPERATIONS)


def test_what_others_do_by_name_is_known_by_these_names() -> None:
    assert {name for name, one in OPERATIONS.items() if one.rectifies} == set(
        backward_rule.SPELLINGS
    )
    assert all(OPERATIONS[name].switches for name in backward_rule.POOLS)
    assert set(nodes.MAPS) <= set(OPERATIONS)
    assert set(ARGUMENTS) == {name for name, one in OPERATIONS.items() if one.places == "window"}
    ours = {"Rectify", "PassedBy", "LastWins"}
    assert set(STEPS) - ours <= set(NODES)


class Seen(TorchFunctionMode):
    """Writes down the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.in_place: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(name_of(func))
        self.in_place.append(in_place(func, kwargs or {}))
        return func(*args, **(kwargs or {}))


def spellings() -> Iterator[tuple[str, bool, Callable[[Tensor], Any]]]:
    def iadd(x: Tensor) -> None:
        x += 1

    yield from [
        ("add", False, lambda x: x + 1),
        ("add", False, lambda x: 1 + x),
        ("add", True, iadd),
        ("add", True, lambda x: x.add_(1)),
        ("sub", False, lambda x: 1 - x),
        ("mul", False, lambda x: torch.multiply(x, 2)),
        ("div", False, lambda x: x / 2),
        ("rdiv", False, lambda x: 1 / x),
        ("relu", False, lambda x: F.relu(x)),
        ("relu", True, lambda x: F.relu(x, inplace=True)),
        ("relu", True, lambda x: torch.relu_(x)),
        ("sigmoid", False, lambda x: torch.special.expit(x)),
        ("threshold", False, lambda x: F.threshold(x, 0, 0)),
        ("max_pool2d", False, lambda x: F.max_pool2d(x, 2)),
        ("getitem", False, lambda x: x[:, 1]),
    ]


@pytest.mark.parametrize(("name", "place", "call"), list(spellings()))
def test_an_operation_is_known_in_every_spelling(
    name: str, place: bool, call: Callable[[Tensor], Any]
) -> None:
    with Seen() as seen:
        call(torch.ones(1, 2, 4, 4))
    assert name in seen.names
    assert seen.in_place[seen.names.index(name)] is place


ELEMENTWISE = sorted(
    name
    for name, one in OPERATIONS.items()
    if one.places == "number" and one.maps == "alike" and hasattr(F, name) and one.training is None
)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_activations_are_elementwise_and_leave_the_node_that_the_table_names(name: str) -> None:
    x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    more = {"threshold": (0.5, -1.0)}.get(name, ())
    y = getattr(F, name)(x, *more)
    alone = torch.stack([getattr(F, name)(one.reshape(1), *more) for one in x.detach().flatten()])
    assert torch.allclose(y.detach().flatten(), alone.flatten(), atol=1e-6)
    one = OPERATIONS[name]
    if one.nodes:
        assert name_of_node(y.grad_fn) in one.nodes


def test_calls_are_affine_in_the_manner_of_the_table() -> None:
    def affine(function: Any, *args: Any, **kwargs: Any) -> bool:
        return Call(function, args, kwargs, (1,)).is_affine

    a, b, weight = Slot(0), Slot(1), torch.ones(2, 2)
    assert affine(torch.add, a, b)
    assert affine(torch.mul, a, 2)
    assert not affine(torch.mul, a, b)
    assert affine(torch.div, a, 2)
    assert not affine(torch.div, 2, a)
    assert affine(F.linear, a, weight)
    assert not affine(F.linear, weight, a)
    assert affine(F.dropout, a, 0.5, False)
    assert not affine(F.dropout, a, 0.5, True)
    assert not affine(F.relu, a)
    assert not affine(max, a)
    assert operation_of(max).name == "max"
