"""The one table of torch's operations: what each does to places, maps and gradients.

All that is known of an operation by its name stands here once; whoever asks "is it pointwise?", "is
it linear?" or "has the backward rule a say?" reads it off. What is not listed is not known: it
costs speed, and never exactness.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    reads: Literal["all", "like", "blank", "python"] = "all"
    """What it needs of its tensors: all; the numbers of the first, and the shape or type of others
    ("like"); shapes or types only ("blank"); the same, for plain Python values ("python")."""
    counts: bool = False
    """Is the result as long as the numbers in a tensor have it?"""
    probabilities: bool = False
    """Does it make probabilities of scores?"""
    weighed: bool = False
    """Is it what a layer with weights does?"""
    vmap: Literal["", "complains", "inplace", "dense"] = ""
    """How torch.vmap (2.15) takes it: one by one, complaining; or only if what it is given lies
    channel by channel in memory."""
    nodes: tuple[str, ...] = ()
    """What autograd calls its nodes, without `Backward0`."""


TABLE = """
relu                       | number alike rectifies                  | Relu
relu6                      | number alike rectifies                  |
clamp clip                 | number alike rectifies inplace          | Clamp ClampMin
clamp_min                  | number alike rectifies                  | ClampMin
clamp_max                  | number alike                            |
hardtanh                   | number alike rectifies =Hardtanh        | Hardtanh
threshold                  | number alike rectifies =Threshold       | Threshold
maximum fmax               | number rectifies                        |
abs                        | number alike =abs                       | Abs
celu                       | number alike =CELU                      | Celu
elu                        | number alike =ELU                       | Elu
selu                       | number alike =SELU                      | Elu
gelu                       | number alike =GELU                      | Gelu
hardshrink                 | number alike =Hardshrink                | Hardshrink
hardswish                  | number alike =Hardswish                 | Hardswish
leaky_relu                 | number alike =LeakyReLU                 | LeakyRelu
mish                       | number alike =Mish                      | Mish
silu                       | number alike =SiLU                      | Silu
softplus                   | number alike =Softplus                  | Softplus
softshrink                 | number alike =Softshrink                | Softshrink
softsign                   | number alike =Softsign                  |
tanh                       | number alike =Tanh                      | Tanh
tanhshrink                 | number alike =Tanhshrink                |
sigmoid                    | number alike =Sigmoid probabilities     | Sigmoid
hardsigmoid                | number alike =Hardsigmoid probabilities | Hardsigmoid
logsigmoid                 | number alike =LogSigmoid probabilities  | LogSigmoid
softmax                    | =Softmax probabilities                  | Softmax
log_softmax                | =LogSoftmax probabilities               | LogSoftmax
prelu                      | number =PReLU                           | PreluKernel
rrelu                      | number =RReLU training@3                | RreluWithNoise
glu                        | =GLU                                    | Glu
dropout alpha_dropout      | number alike first idle training@2      | NativeDropout
feature_dropout            | number alike first idle training@2      | NativeDropout
dropout1d dropout2d        | number alike first idle training@2      |
dropout3d                  | number alike first idle training@2      |
feature_alpha_dropout      | number alike first idle training@2      |

add sub                    | number sum                              | Add Sub Rsub
neg                        | number sum                              | Neg
mul                        | number factors                          | Mul
div                        | number weights                          | Div
rdiv pow exp log log1p erf | number                                  |
sqrt rsqrt square sign     | number                                  |
lerp nan_to_num reciprocal | number                                  |
positive masked_fill where | number                                  |
eq ge gt le lt ne minimum  | number                                  |

clone                      | number alike sum idle                   | Clone
contiguous                 | number alike sum idle                   |
detach identity            | number idle                             |
alias                      | number sum                              | Alias
copy                       | sum                                     | Copy CopyBackwards CopySlices
float half bfloat16 double | number sum                              | ToCopy
to type_as                 | number sum like                         | ToCopy
full_like ones_like        | number blank                            |
zeros_like                 | number blank                            |
empty_like rand_like       | blank                                   |
randn_like new_empty       | blank                                   |
new_full new_ones          | blank                                   |
new_zeros new_tensor       | blank                                   |

view flatten reshape       | moved sum                               | View ReshapeAlias UnsafeView
unflatten                  | moved sum                               | View ReshapeAlias UnsafeView
view_as reshape_as         | moved sum like                          | View ReshapeAlias UnsafeView
as_strided                 | sum                                     | AsStrided
cat                        | moved sum                               | Cat
stack                      | moved sum                               | Stack
chunk split                | moved sum                               | Split SplitWithSizes
chunk split                | moved sum                               | UnsafeSplit
expand                     | moved sum                               | Expand
expand_as                  | moved sum like                          | Expand
flip                       | moved sum                               | Flip
getitem                    | moved first                             | Index Select Slice
gather                     | first                                   | Gather
index_select               | first                                   | IndexSelect
narrow                     | moved sum                               | Slice
select                     | moved sum                               | Select
movedim permute            | moved sum                               | Permute
swapaxes transpose         | moved sum                               | Transpose
t                          | sum                                     | T
channel_shuffle            | moved sum                               |
pixel_shuffle              | moved sum                               | PixelShuffle
pixel_unshuffle            | moved sum                               | PixelUnshuffle
repeat                     | moved sum                               | Repeat
roll                       | moved sum                               | Roll
squeeze                    | moved sum                               | Squeeze
unsqueeze                  | moved sum                               | Unsqueeze
unbind                     | moved sum                               | Unbind

conv2d                     | window weights weighed                  | Convolution MkldnnConvolution
conv2d                     | window weights weighed                  | CudnnConvolution SlowConv2D
conv2d                     | window weights weighed                  | MiopenConvolution
conv2d                     | window weights weighed                  | ConvolutionOverrideable
conv1d conv3d              | weights weighed                         |
conv_transpose1d           | weights weighed                         |
conv_transpose2d           | weights weighed                         |
conv_transpose3d           | weights weighed                         |
max_pool2d                 | window alike each switches              | MaxPool2DWithIndices
max_pool2d_with_indices    | window switches                         | MaxPool2DWithIndices
adaptive_max_pool2d        | alike each switches                     | AdaptiveMaxPool2D
adaptive_max_pool2d_with_indices | switches                                | AdaptiveMaxPool2D
fractional_max_pool2d      | switches                                | FractionalMaxPool2D
fractional_max_pool2d_with_indices | switches                                | FractionalMaxPool2D
avg_pool2d                 | window alike each first                 | AvgPool2D
adaptive_avg_pool2d        | alike each first dense                  | AdaptiveAvgPool2D
avg_pool1d avg_pool3d      | first                                   |
adaptive_avg_pool1d        | first                                   |
adaptive_avg_pool3d        | first                                   |
pad                        | window first                            | ConstantPadNd ReflectionPad2D
pad                        | window first                            | ReplicationPad2D
unfold                     | first                                   | Im2Col
interpolate                | first                                   | UpsampleNearest2D
interpolate                | first                                   | UpsampleBilinear2D
interpolate                | first                                   | UpsampleBicubic2D

sum mean                   | first                                   | Sum Mean
amax                       | switches                                | Amax
max                        | switches rectifies                      | Max
linear                     | weights weighed                         | Linear MkldnnLinear
bilinear                   | weighed                                 |
matmul mm bmm mv addmm     | factors weighed                         | Mm Bmm Mv Addmm Addmv Baddbmm
addmv baddbmm              | factors weighed                         | Mm Bmm Mv Addmm Addmv Baddbmm
einsum tensordot           | factors weighed                         |
batch_norm                 | own each first training@5               | NativeBatchNorm
batch_norm                 | own each first training@5               | CudnnBatchNorm
batch_norm                 | own each first training@5               | MiopenBatchNorm
local_response_norm        | place each                              |
layer_norm group_norm      | each                                    |
multi_head_attention_forward | complains                               |
scaled_dot_product_attention | complains                               |

get len assert data_ptr    | python                                  |
dim element_size           | python                                  |
get_device is_complex      | python                                  |
is_contiguous              | python                                  |
is_floating_point nelement | python                                  |
ndimension numel size      | python                                  |
storage_offset stride      | python                                  |
argwhere bincount nonzero  | counts                                  |
masked_select              | counts                                  |
nonzero_numpy unique       | counts                                  |
unique_consecutive         | counts                                  |
unique_dim unique2         | counts                                  |
"""
"""Operations, their traits (`TRAITS`; =Title; training@place of the argument), autograd's nodes."""
TRAITS: Mapping[str, Mapping[str, Any]] = {
    **{word: {"places": word} for word in ("number", "place", "moved", "window")},
    **{word: {"linear": word} for word in ("sum", "first", "weights", "factors")},
    **{word: {"maps": word} for word in ("alike", "own")},
    **{word: {"reads": word} for word in ("like", "blank", "python")},
    **{word: {"vmap": word} for word in ("complains", "inplace", "dense")},
    **{
        word: {word: True}
        for word in ("idle", "rectifies", "switches", "counts", "probabilities", "weighed")
    },
    "each": {"each_alone": True},
}


def _listed() -> dict[str, Operation]:
    operations: dict[str, Operation] = {}
    for row in TABLE.split("\n"):
        names, traits, nodes = (cell.split() for cell in (row or "||").split("|"))
        facts: dict[str, Any] = {}
        for trait in traits:
            word, _, value = trait.partition("@" if "@" in trait else "=")
            facts |= {"training": int(value)} if word == "training" else TRAITS.get(word, {})
            facts |= {} if word else {"title": value}
        for name in names:
            more = operations[name].nodes if name in operations else ()
            operations[name] = Operation(name, **facts, nodes=(*more, *nodes))
    return operations


OPERATIONS: Mapping[str, Operation] = _listed()
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
