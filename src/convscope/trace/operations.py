"""The one table of torch's operations: what each does to places, maps and gradients.

All that is known of an operation by its name stands here once; whoever asks "is it pointwise?", "is
it linear?" or "has the backward rule a say?" reads it off. What is not listed is not known: it
costs speed, and never exactness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Operation:
    """One operation under all its spellings: function, method, in place, operator."""

    name: str
    places: Literal["", "number", "place", "moved", "window"] = ""
    """What a number of the result is made of: of the numbers in its own position ("number"); of
    those at its own row and column, in any map ("place"); it is one that was somewhere else
    ("moved"); of those in a window ("window")."""
    linear: Literal["", "sum", "first", "weights", "factors"] = ""
    """In what it is affine: in all its tensors together ("sum"), in the first ("first"), in the
    first while the others are constant ("weights"), in any one of them ("factors")."""
    maps: Literal["", "alike", "own"] = ""
    """Of (b, maps, h, w) it treats each map alone: all alike, or each perhaps in its own manner."""
    each_alone: bool = False
    """Does it treat each picture of a batch for itself, whatever its arguments?"""
    idle: bool = False
    """Does it hand on the numbers that it is given, where it is for training and that is off?"""
    training: int | None = None
    """The place of the argument that says whether it is at work by chance, or by the batch."""
    title: str = ""
    """What it is called, if it is an activation for which rules for rectifiers say nothing."""
    rectifies: bool = False
    """Is it max(x, 0) with some arguments?"""
    switches: bool = False
    """Does it choose numbers, to whose places a signal goes back? Linear while the choice stays."""
    reads: Literal["all", "like", "nothing", "python"] = "all"
    """What it needs of its tensors: all; the numbers of the first, and the shape or type of others
    ("like"); shapes or types only ("nothing"); the same, for plain Python values ("python")."""
    counts: bool = False
    """Is the result as long as the numbers in a tensor have it?"""
    probabilities: bool = False
    """Does it make probabilities of scores?"""
    weighed: bool = False
    """Is it what a layer with weights does?"""
    vmap: Literal["", "one by one", "one by one in place", "dense"] = ""
    """How torch.vmap (2.15) takes it: one by one too, and complaining; or only if what it is given
    lies channel by channel in memory."""
    arguments: tuple[str, ...] = ()
    """The first ones by their names, of operations on windows."""
    nodes: tuple[str, ...] = ()
    """What autograd calls its nodes, without `Backward0`."""


_CONVOLVED = "input weight bias stride padding dilation groups"
_MAX_POOLED = "input kernel_size stride padding dilation"
_AVERAGED = "input kernel_size stride padding"
_ACTIVATIONS = """
celu Celu CELU
elu Elu ELU
gelu Gelu GELU
hardshrink Hardshrink Hardshrink
hardswish Hardswish Hardswish
leaky_relu LeakyRelu LeakyReLU
mish Mish Mish
selu Elu SELU
silu Silu SiLU
softplus Softplus Softplus
softshrink Softshrink Softshrink
softsign - Softsign
tanh Tanh Tanh
tanhshrink - Tanhshrink
"""
"""Name, node and title of those that have no other traits."""

_NUMBER: Mapping[str, Any] = {"places": "number"}
_ACTIVATION: Mapping[str, Any] = {"places": "number", "maps": "alike"}
_DROPOUT: Mapping[str, Any] = {**_ACTIVATION, "linear": "first", "idle": True, "training": 2}
_MOVED: Mapping[str, Any] = {"places": "moved", "linear": "sum"}
_SUM: Mapping[str, Any] = {"places": "number", "linear": "sum"}
_COPY: Mapping[str, Any] = {**_ACTIVATION, "linear": "sum", "idle": True}
_WEIGHTS: Mapping[str, Any] = {"linear": "weights", "weighed": True}
_POOL: Mapping[str, Any] = {"maps": "alike", "each_alone": True}
_MAX_POOL: Mapping[str, Any] = {"switches": True, "places": "window", "arguments": _MAX_POOLED}

_GROUPS: Sequence[tuple[str, Mapping[str, Any]]] = (
    # activations
    *(
        (name, {**_ACTIVATION, "title": title, "nodes": node.strip("-")})
        for name, node, title in (line.split() for line in _ACTIVATIONS.strip().splitlines())
    ),
    ("abs", {**_ACTIVATION, "title": "abs", "nodes": "Abs"}),
    ("relu", {**_ACTIVATION, "rectifies": True, "nodes": "Relu"}),
    ("relu6", {**_ACTIVATION, "rectifies": True}),
    (
        "clamp clip",
        {
            **_ACTIVATION,
            "rectifies": True,
            "vmap": "one by one in place",
            "nodes": "Clamp ClampMin",
        },
    ),
    ("clamp_min", {**_ACTIVATION, "rectifies": True, "nodes": "ClampMin"}),
    ("clamp_max", _ACTIVATION),
    ("hardtanh", {**_ACTIVATION, "rectifies": True, "title": "Hardtanh", "nodes": "Hardtanh"}),
    ("threshold", {**_ACTIVATION, "rectifies": True, "title": "Threshold", "nodes": "Threshold"}),
    ("sigmoid", {**_ACTIVATION, "probabilities": True, "title": "Sigmoid", "nodes": "Sigmoid"}),
    (
        "hardsigmoid",
        {**_ACTIVATION, "probabilities": True, "title": "Hardsigmoid", "nodes": "Hardsigmoid"},
    ),
    (
        "logsigmoid",
        {**_ACTIVATION, "probabilities": True, "title": "LogSigmoid", "nodes": "LogSigmoid"},
    ),
    ("softmax", {"probabilities": True, "title": "Softmax", "nodes": "Softmax"}),
    ("log_softmax", {"probabilities": True, "title": "LogSoftmax", "nodes": "LogSoftmax"}),
    ("prelu", {**_NUMBER, "title": "PReLU", "nodes": "PreluKernel"}),
    ("rrelu", {**_NUMBER, "training": 3, "title": "RReLU", "nodes": "RreluWithNoise"}),
    ("glu", {"title": "GLU", "nodes": "Glu"}),
    ("dropout alpha_dropout feature_dropout", {**_DROPOUT, "nodes": "NativeDropout"}),
    ("dropout1d dropout2d dropout3d feature_alpha_dropout", _DROPOUT),
    # arithmetic
    ("add sub", {**_SUM, "nodes": "Add Sub Rsub"}),
    ("neg", {**_SUM, "nodes": "Neg"}),
    ("mul", {**_NUMBER, "linear": "factors", "nodes": "Mul"}),
    ("div", {**_NUMBER, "linear": "weights", "nodes": "Div"}),
    ("rdiv pow erf exp lerp log log1p nan_to_num reciprocal rsqrt sign sqrt square", _NUMBER),
    ("eq ge gt le lt minimum ne where masked_fill positive", _NUMBER),
    ("maximum fmax", {**_NUMBER, "rectifies": True}),
    # copies, and copies in another precision
    ("clone", {**_COPY, "nodes": "Clone"}),
    ("contiguous", _COPY),
    ("detach identity", {**_NUMBER, "idle": True}),
    ("alias", {**_SUM, "nodes": "Alias"}),
    ("copy", {"linear": "sum", "nodes": "Copy CopyBackwards CopySlices"}),
    ("float half bfloat16 double", {**_SUM, "nodes": "ToCopy"}),
    ("to type_as", {**_SUM, "reads": "like", "nodes": "ToCopy"}),
    ("full_like ones_like zeros_like", {**_NUMBER, "reads": "nothing"}),
    ("empty_like rand_like randn_like", {"reads": "nothing"}),
    ("new_empty new_full new_ones new_tensor new_zeros", {"reads": "nothing"}),
    # numbers are moved about
    ("view flatten reshape unflatten", {**_MOVED, "nodes": "View ReshapeAlias UnsafeView"}),
    ("view_as reshape_as", {**_MOVED, "reads": "like", "nodes": "View ReshapeAlias UnsafeView"}),
    ("as_strided", {"linear": "sum", "nodes": "AsStrided"}),
    ("cat", {**_MOVED, "nodes": "Cat"}),
    ("stack", {**_MOVED, "nodes": "Stack"}),
    ("chunk split", {**_MOVED, "nodes": "Split SplitWithSizes UnsafeSplit"}),
    ("expand", {**_MOVED, "nodes": "Expand"}),
    ("expand_as", {**_MOVED, "reads": "like", "nodes": "Expand"}),
    ("flip", {**_MOVED, "nodes": "Flip"}),
    ("getitem", {"places": "moved", "linear": "first", "nodes": "Index Select Slice"}),
    ("gather", {"linear": "first", "nodes": "Gather"}),
    ("index_select", {"linear": "first", "nodes": "IndexSelect"}),
    ("narrow", {**_MOVED, "nodes": "Slice"}),
    ("select", {**_MOVED, "nodes": "Select"}),
    ("movedim permute", {**_MOVED, "nodes": "Permute"}),
    ("swapaxes transpose", {**_MOVED, "nodes": "Transpose"}),
    ("t", {"linear": "sum", "nodes": "T"}),
    ("channel_shuffle", _MOVED),
    ("pixel_shuffle", {**_MOVED, "nodes": "PixelShuffle"}),
    ("pixel_unshuffle", {**_MOVED, "nodes": "PixelUnshuffle"}),
    ("repeat", {**_MOVED, "nodes": "Repeat"}),
    ("roll", {**_MOVED, "nodes": "Roll"}),
    ("squeeze", {**_MOVED, "nodes": "Squeeze"}),
    ("unsqueeze", {**_MOVED, "nodes": "Unsqueeze"}),
    ("unbind", {**_MOVED, "nodes": "Unbind"}),
    # windows
    (
        "conv2d",
        {
            **_WEIGHTS,
            "places": "window",
            "arguments": _CONVOLVED,
            "nodes": "Convolution ConvolutionOverrideable CudnnConvolution MiopenConvolution"
            " MkldnnConvolution SlowConv2D",
        },
    ),
    ("conv1d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", _WEIGHTS),
    (
        "max_pool2d",
        {**_POOL, **_MAX_POOL, "nodes": "MaxPool2DWithIndices"},
    ),
    ("max_pool2d_with_indices", {**_MAX_POOL, "nodes": "MaxPool2DWithIndices"}),
    ("adaptive_max_pool2d", {**_POOL, "switches": True, "nodes": "AdaptiveMaxPool2D"}),
    ("adaptive_max_pool2d_with_indices", {"switches": True, "nodes": "AdaptiveMaxPool2D"}),
    (
        "fractional_max_pool2d fractional_max_pool2d_with_indices",
        {"switches": True, "nodes": "FractionalMaxPool2D"},
    ),
    (
        "avg_pool2d",
        {
            **_POOL,
            "places": "window",
            "linear": "first",
            "arguments": _AVERAGED,
            "nodes": "AvgPool2D",
        },
    ),
    (
        "adaptive_avg_pool2d",
        {**_POOL, "linear": "first", "vmap": "dense", "nodes": "AdaptiveAvgPool2D"},
    ),
    ("avg_pool1d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool3d", {"linear": "first"}),
    (
        "pad",
        {
            "places": "window",
            "linear": "first",
            "arguments": "input pad mode value",
            "nodes": "ConstantPadNd ReflectionPad2D ReplicationPad2D",
        },
    ),
    ("unfold", {"linear": "first", "nodes": "Im2Col"}),
    (
        "interpolate",
        {"linear": "first", "nodes": "UpsampleBicubic2D UpsampleBilinear2D UpsampleNearest2D"},
    ),
    # sums, products, norms
    ("sum mean", {"linear": "first", "nodes": "Sum Mean"}),
    ("amax", {"switches": True, "nodes": "Amax"}),
    ("max", {"switches": True, "rectifies": True, "nodes": "Max"}),
    ("linear", {**_WEIGHTS, "nodes": "Linear MkldnnLinear"}),
    ("bilinear", {"weighed": True}),
    (
        "matmul mm bmm mv addmm addmv baddbmm",
        {"linear": "factors", "weighed": True, "nodes": "Mm Bmm Mv Addmm Addmv Baddbmm"},
    ),
    ("einsum tensordot", {"linear": "factors", "weighed": True}),
    (
        "batch_norm",
        {
            "maps": "own",
            "each_alone": True,
            "linear": "first",
            "training": 5,
            "nodes": "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm",
        },
    ),
    ("local_response_norm", {"places": "place", "each_alone": True}),
    ("layer_norm group_norm", {"each_alone": True}),
    ("multi_head_attention_forward scaled_dot_product_attention", {"vmap": "one by one"}),
    # of other results
    (
        "get len assert data_ptr dim element_size get_device is_complex is_contiguous"
        " is_floating_point ndimension nelement numel size storage_offset stride",
        {"reads": "python"},
    ),
    (
        "argwhere bincount masked_select nonzero nonzero_numpy"
        " unique unique_consecutive unique_dim unique2",
        {"counts": True},
    ),
)


def _listed() -> Iterator[Operation]:
    for names, facts in _GROUPS:
        split = {key: tuple(facts.get(key, "").split()) for key in ("arguments", "nodes")}
        for name in names.split():
            yield Operation(name, **{**facts, **split})


OPERATIONS: Mapping[str, Operation] = {operation.name: operation for operation in _listed()}
"""Name → operation."""
_OPERATORS = ("add", "sub", "mul", "matmul")
ALIASES: Mapping[str, str] = {
    **{f"{side}{name}": name for name in _OPERATORS for side in "ri"},
    **dict.fromkeys(("truediv", "itruediv", "idiv", "true_divide", "divide"), "div"),
    **dict.fromkeys(("rtruediv",), "rdiv"),
    **dict.fromkeys(("rpow", "ipow"), "pow"),
    "absolute": "abs",
    "concat": "cat",
    "concatenate": "cat",
    "expit": "sigmoid",
    "log_sigmoid": "logsigmoid",
    "multiply": "mul",
    "negative": "neg",
    "subtract": "sub",
}
"""Other names of operations."""
NODES: Mapping[str, tuple[Operation, ...]] = {
    node: tuple(one for one in OPERATIONS.values() if node in one.nodes)
    for node in sorted({node for one in OPERATIONS.values() for node in one.nodes})
}
"""What autograd calls a node → the operations that leave it."""


def spelled(call: Any) -> str:
    """A function's own name, e.g. `clamp_min_` of `torch.ops.aten.clamp_min_.default`."""
    return str(getattr(call, "__name__", call)).split(".")[0]


def name_of(call: Any) -> str:
    """An operation's name, whatever the spelling: "add" for `x + y`, `x += y` and `x.add_(y)`."""
    name = spelled(call).strip("_").removeprefix("special_")
    return ALIASES.get(name, name)


def operation_of(call: Any) -> Operation:
    """What is known of a function of torch."""
    name = name_of(call)
    return OPERATIONS.get(name) or Operation(name)


def in_place(call: Any, kwargs: Mapping[str, Any]) -> bool:
    """Does the call overwrite its first tensor?"""
    name = spelled(call)
    own = name.startswith("__i") if name.startswith("__") else name.endswith("_")
    return own or bool(kwargs.get("inplace"))
