"""The one table of torch's operations, and a walk of the graph that autograd recorded by it.

All that is known of an operation by its name stands here once; whoever asks "is it pointwise?", "is
it linear?" or "has the backward rule a say?" reads it off. What is not listed is not known: it
costs speed, and never exactness.

Read off the graph itself, so that nothing a network's code does can hide from it. `coverage` says
how far a backward rule reached. `reductions` says what makes maps smaller on the way: pools with
switches, which say where in this picture a signal goes on, or strides, which do not: on the way
down a filter is laid down every so many places, whatever the picture, and where its taps do not
divide evenly among these places, the sums that overlap are uneven and a grid shows.
Sources: Springenberg et al. 2015, "Striving for Simplicity", §3.4; Odena et al. 2016,
"Deconvolution and Checkerboard Artifacts".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction


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


Pair = tuple[int, int]

LEAVES = {"AccumulateGrad"}
"""Nodes at which gradients end."""
HARMLESS = {"BackwardHookFunction"}
"""Functions written in Python that change nothing: torch's own, under a module's backward hook."""


class Coverage(NamedTuple):
    """What was met between pixels and a unit."""

    rewritten: int
    """Rectifiers that follow the rule …"""
    rectifiers: int
    """… of this many activations met."""
    unruled: tuple[str, ...]
    """Activations that a rule for rectifiers does not define, e.g. GELU."""
    hidden: tuple[str, ...]
    """Rectifiers and code out of the rule's sight, e.g. in a scripted function."""
    plain: tuple[str, ...]
    """Other operations that are not linear and pass the plain gradient, e.g. NativeGroupNorm."""
    skipped: int
    """Contrast normalisations that are passed by on the way down."""


def coverage(outputs: Iterable[Tensor], inputs: Iterable[Tensor] = ()) -> Coverage:
    """Look at all operations between `inputs` (pixels) and `outputs`; without inputs, at all
    operations below the outputs."""
    order = below([output.grad_fn for output in outputs])
    ends = {torch.autograd.graph.get_gradient_edge(value).node for value in inputs}
    way = on_the_way(order, ends) if ends else set(order)
    met = Counter[str]()
    names: dict[str, list[str]] = {"unruled": [], "hidden": [], "plain": []}
    for node in order:
        if node in way and node not in ends:
            kind, name = _kind(node, way)
            met[kind] += 1
            if kind in names:
                names[kind].append(name)
    return Coverage(
        rewritten=met["rewritten"],
        rectifiers=met["rewritten"] + met["unruled"] + met["hidden"],
        skipped=met["skipped"],
        **{kind: tuple(dict.fromkeys(named)) for kind, named in names.items()},
    )


def below(roots: Sequence[Any]) -> list[Any]:
    """All nodes below the roots, each after those below it. (No recursion: graphs are deep.)"""
    done: dict[Any, None] = {}
    stack = [(root, False) for root in roots if root is not None]
    while stack:
        node, left = stack.pop()
        if left:
            done[node] = None
        elif node not in done:
            stack.append((node, True))
            stack += [(below, False) for below, _ in node.next_functions if below is not None]
    return list(done)


def on_the_way(order: Sequence[Any], ends: set[Any]) -> set[Any]:
    """The nodes from which an end can be reached: not those of weights."""
    way = set(ends)
    for node in order:
        if any(below in way for below, _ in node.next_functions):
            way.add(node)
    return way


def name_of_node(node: Any) -> str:
    """`Relu` for a ReluBackward0."""
    return re.sub(r"Backward\d*$", "", node.name())


def _kind(node: Any, way: set[Any]) -> tuple[str, str]:
    """One of rewritten, skipped, unruled, hidden, plain and linear; and the operation's name."""
    if isinstance(node, BackwardCFunction):
        function: type = node._forward_cls  # type: ignore[attr-defined]
        kind = "linear" if function.__name__ in HARMLESS else "hidden"
        return getattr(function, "convscope_kind", kind), f"the function {function.__name__}"
    if "jit" in node.name():
        return "hidden", "scripted code"
    name = name_of_node(node)
    if name not in NODES:
        return ("linear" if name in LEAVES else "plain"), name
    operations = NODES[name]
    one = operations[0]
    if one.rectifies and _floor(node) == 0:
        return "hidden", "ReLU" if one.name == "relu" else one.name
    if one.title:
        return "unruled", " or ".join(each.title for each in operations)
    if one.linear in ("weights", "factors"):
        factors = sum(below in way for below, _ in node.next_functions)
        return ("linear" if factors < 2 else "plain"), name
    of_this_batch = getattr(node, "_saved_training", False)
    linear = (one.linear or one.switches) and not of_this_batch
    return ("linear" if linear else "plain"), name


def _floor(node: Any) -> float | None:
    """Below what does this node cut off? None if it does not or by a map."""
    for name in ("_saved_threshold", "_saved_min_val", "_saved_min"):
        if hasattr(node, name):
            value = getattr(node, name)
            return float(value) if isinstance(value, int | float) else None
    return 0.0 if node.name().startswith("Relu") else None


SWITCHES = {node for node, (one, *_) in NODES.items() if one.switches and "Pool" in node}
"""Nodes of the graph that put a signal back to where the picture's maximum was."""
STRIDES = {
    node for node, (one, *_) in NODES.items() if one.places == "window" and one.name != "pad"
} - SWITCHES
"""Nodes that may pass places over or average them; no switch says which they were."""


class Stride(NamedTuple):
    """A convolution between a layer and the pixels that does not stop at every place."""

    layer: str
    """Its name; empty where its filters are no parameter of the network."""
    kernel: Pair
    stride: Pair
    period: Pair
    """Pixels, down and across, from one stop to the next."""
    is_even: bool
    """Do its taps divide evenly among the places between two stops?"""


class Reductions(NamedTuple):
    """Of one layer."""

    has_switches: bool
    """Is what next makes maps smaller, on every way down, a pool with switches? The layer's own
    convolution does not count, as a single neuron goes through it."""
    strides: tuple[Stride, ...]
    """From the layer down, without its own convolution."""


def reductions(
    model: nn.Module, maps: Mapping[str, Tensor], pixels: Float[Tensor, "b c h w"]
) -> dict[str, Reductions]:
    """Read off the graph of a pass up, of each layer's maps."""
    end = torch.autograd.graph.get_gradient_edge(pixels).node
    order = below([each.grad_fn for each in maps.values()])
    way = on_the_way(order, {end})
    steps = _periods([node for node in order if node in way], end)
    names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
    result = {}
    for layer, values in maps.items():
        start = values.grad_fn
        if start is None or start not in way:
            result[layer] = Reductions(False, ())
            continue
        met = set(_next_reductions(start, end, way))
        past = _past_own([start], way)
        under = [node for node in reversed(below(past)) if node in steps and node in way]
        strides = [_stride(node, steps[node], names) for node in under if _strides_over(node)]
        result[layer] = Reductions(met == {"switches"}, tuple(strides))
    return result


def _next_reductions(start: Any, end: Any, way: set[Any]) -> Iterator[str]:
    """On each way down, what is met first: switches, or a stride. Nothing of ways without."""
    done: set[tuple[Any, bool]] = set()
    waiting = [(start, True)]
    while waiting:
        node, is_own = waiting.pop()
        if (node, is_own) in done or node is end:
            continue
        done.add((node, is_own))
        kind = name_of_node(node)
        if kind in SWITCHES:
            yield "switches"
        elif _strides_over(node) and not (is_own and kind == "Convolution"):
            yield "stride"
        else:
            waiting += [
                (each, is_own and kind != "Convolution")
                for each, _ in node.next_functions
                if each in way
            ]


def _past_own(starts: Sequence[Any], way: set[Any]) -> list[Any]:
    """The nodes right below the first convolutions on the ways down."""
    done, past, waiting = set[Any](), list[Any](), list(starts)
    while waiting:
        node = waiting.pop()
        if node in done:
            continue
        done.add(node)
        following = [each for each, _ in node.next_functions if each in way]
        (past if name_of_node(node) == "Convolution" else waiting).extend(following)
    return past


def _periods(order: Sequence[Any], end: Any) -> dict[Any, Pair]:
    """Of each node the pixels from one place of its output to the next."""
    periods: dict[Any, Pair] = {end: (1, 1)}
    for node in order:
        given = [periods[each] for each, _ in node.next_functions if each in periods]
        if given:
            down, across = (max(of_axis) for of_axis in zip(*given, strict=True))
            rows, columns = _step(node)
            if getattr(node, "_saved_transposed", False):
                periods[node] = (max(1, down // rows), max(1, across // columns))
            else:
                periods[node] = (down * rows, across * columns)
    return periods


def _step(node: Any) -> Pair:
    """Places of its input from one place of its output to the next."""
    if name_of_node(node) not in SWITCHES | STRIDES:
        return 1, 1
    stride = getattr(node, "_saved_stride", ()) or getattr(node, "_saved_kernel_size", ()) or (1,)
    return int(stride[0]), int(stride[-1])


def _strides_over(node: Any) -> bool:
    is_transposed = getattr(node, "_saved_transposed", False)
    return name_of_node(node) in STRIDES and not is_transposed and max(_step(node)) > 1


def _stride(node: Any, period: Pair, names: Mapping[int, str]) -> Stride:
    kernel, dilation, name = tuple(getattr(node, "_saved_kernel_size", ())), (1,), ""
    if name_of_node(node) == "Convolution":
        weight = node._saved_weight
        kernel, dilation = tuple(weight.shape[2:]), tuple(node._saved_dilation)
        name = names.get(weight.data_ptr(), "").rpartition(".")[0]
    step = _step(node)
    even = all(is_even(kernel[a], step[a], dilation[a]) for a in (0, -1))
    return Stride(name, (int(kernel[0]), int(kernel[-1])), step, period, even)


def is_even(kernel: int, stride: int, dilation: int = 1) -> bool:
    """Does each of the places between two stops get equally many of the kernel's taps? Without
    dilation: is the kernel a multiple of the stride?"""
    taps = Counter(tap * dilation % stride for tap in range(kernel))
    return len(taps) == stride and len(set(taps.values())) == 1
