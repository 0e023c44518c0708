"""Find the class scores in a network's output by its calls and numbers.

`outputs.py` asks here once for each network: it is run on noise, and the calls that made its output
are looked at; where these do not tell, the numbers for several pictures are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError
from convscope.lens.lens import Lens
from convscope.trace.layers import HIDDEN, Origin, Run, run_seen

Kind = Literal["logits", "probabilities", "log-probabilities", "sigmoid", "sigmoid-logits"]
"""Of one list of classes, one of which is true: logits, before a softmax; probabilities, after
one; and their logarithms. Of labels that stand each for itself: sigmoid, probabilities, and
sigmoid-logits, before a sigmoid."""
KINDS: tuple[Kind, ...] = get_args(Kind)
MADE_BY: Mapping[str, Kind] = {
    "softmax": "probabilities",
    "log_softmax": "log-probabilities",
    "sigmoid": "sigmoid",
    "hardsigmoid": "sigmoid",
}
"""Last call over the scores → what they are after it."""
BEFORE: Mapping[Kind, Kind] = {
    "probabilities": "logits",
    "log-probabilities": "logits",
    "sigmoid": "sigmoid-logits",
}
"""What they were before it."""
HANDED_ON = {
    *("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("contiguous", "to", "float", "double", "half", "bfloat16", "type", "type_as", "clone"),
    *("detach", "cpu", "cuda", "permute", "transpose", "swapaxes", "t", "get", "requires_grad"),
    *("alias", "dropout", "alpha_dropout", "feature_dropout", "nan_to_num"),
}
"""Calls after which the numbers are the same."""
CHOSEN = {"getitem", "select", "narrow", "chunk", "split", "unbind", "index_select"}
SCALED = {
    *("mul", "div", "neg", "add", "sub"),
}
JOINED = {"cat", "stack", "hstack", "vstack", "sum", "nansum", "lerp", "where"}
POOLED = {
    *("mean", "nanmean", "median", "max", "amax", "maximum", "min", "amin", "minimum", "logsumexp"),
    *("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"),
    *("boolean_dispatch", "fn"),  # what functional max pools are called
}
WITHIN_ONE = HANDED_ON | CHOSEN | SCALED | JOINED | (POOLED - {"logsumexp"}) | {"clamp", "clip"}
"""Calls that can leave numbers between 0 and 1 there."""
MIXED = {"mul", "add", "sub", "sum"}
"""Of logits and other numbers these make logits again."""
LIKE_LOGITS = {
    *HANDED_ON,
    *CHOSEN,
    *SCALED,
    *JOINED,
    *POOLED,
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("hardswish", "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"),
    *("masked_fill", "expand", "expand_as", "repeat", "gather", "index", "take", "pad", "flip"),
    *("interpolate", "movedim", "roll", "sort", "adaptive_avg_pool1d", "avg_pool1d"),
}
"""Calls that logits may go through: networks end in them after their last layer of weights."""
NAMES = ("logits", "class_logits", "cls_logits", "out", "output", "scores", "prediction", "pred")
"""What scores are called, the surest name first."""
DEEPEST = 100
PROBES = 4
"""Pictures by whose numbers probabilities are known."""
CLOSE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
ASK = "say which one: load(…, output={0}), or --output {1}"
ASK_SCORES = "say it: load(…, scores=…), or --scores logits|probabilities|log-probabilities|sigmoid"
OTHERWISE = "if they are others say so: load(…, scores=…), or --scores logits"


class Told(NamedTuple):
    """What a user says, and the shape of pictures."""

    output: str
    scores: str
    names: int
    """Classes that have names; 0 where that is not known."""
    shape: tuple[int, ...]


class Found(NamedTuple):
    """See `outputs.Meaning`."""

    kind: Kind
    columns: int
    where: tuple[str, ...] | None
    last: int
    activations: int
    notes: tuple[str, ...]


def search(model: nn.Module, told: Told) -> Found:
    """Raises as `outputs.meaning`."""
    probes = [_noise(model, told.shape, seed) for seed in range(PROBES)]
    run = run_seen(model, probes[0])
    choice = _chosen(run, told, _Batch(model, probes[:2]))
    if choice is None:
        return Found("logits", 0, None, 0, 0, ())
    path, value, source = choice
    columns = value.numel()
    finder = _Numbers(model, path, probes, columns, rows_of(value, 1))
    kind, last, why = _kind(finder, source, told)
    notes = (*_told_where(run.output, path, columns), *([why] if why else []))
    return Found(kind, columns, path, last, run.origins.activations, notes)


def no_scores(output: Any) -> ModelError:
    """That there are no scores of classes in this, and what to do then."""
    result = [(path, value) for path, value in leaves(output)]
    shapes = ", ".join(str(tuple(value.shape)) for _, value in result) or "no tensor"
    what = f"puts out {_kind_of(output)} ({shapes}), in which there are no scores (b, classes)"
    step = "wrap it so that it returns its scores"
    if any(path[-1:] == ("boxes",) for path, _ in result):
        step = "explain one box: convscope.wrap.detection(model, box=…, label=…)"
    elif any(value.dim() == 4 and value.shape[2:].numel() > 1 for _, value in result):
        step = (
            "explain a region: convscope.wrap.segmentation(model, …); or give a function as target"
        )
    return ModelError("M520", "the network", what, next_step=step)


def leaves(output: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """All tensors in an output, with the names or numbers that lead to them."""
    if isinstance(output, Tensor):
        yield path, output
        return
    for name, value in _parts(output) if len(path) < 4 else ():
        yield from leaves(value, (*path, name))


def _parts(output: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(output, Mapping):
        return [(str(key), value) for key, value in output.items()]
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if isinstance(output, (list, tuple)):
        return [(str(number), value) for number, value in enumerate(output)]
    if dataclasses.is_dataclass(output):
        names = [one.name for one in dataclasses.fields(output)]
        return [(name, getattr(output, name, None)) for name in names]
    return list(getattr(output, "__dict__", {}).items())


def at(output: Any, where: Sequence[str]) -> Any:
    for name in where:
        output = dict(_parts(output)).get(name)
    return output


def _kind_of(output: Any) -> str:
    return "a tensor" if isinstance(output, Tensor) else f"{type(output).__name__}"


def rows_of(value: Tensor, count: int) -> Tensor:
    """A row for each picture, where it is one but for its shape: (b, n, 1, 1), (b,), or (n,) of a
    single picture whose batch was squeezed away."""
    if value.dim() == 4 and value.shape[2:] == (1, 1):
        return value.flatten(1)
    return value.reshape(count, -1) if value.dim() < 2 and value.numel() % count == 0 else value


def _noise(model: nn.Module, shape: tuple[int, ...], seed: int) -> Float[Tensor, "1 c h w"]:
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
    like = next((one for one in model.parameters() if one.is_floating_point()), noise)
    return noise.to(like.device, like.dtype)


_Choice = tuple[tuple[str, ...], Tensor, Origin | None]


@dataclass(frozen=True)
class _Batch:
    """What the network gives for two pictures: is a batch of one squeezed away?"""

    model: nn.Module
    pictures: list[Tensor]

    def has_rows(self, path: tuple[str, ...], value: Tensor) -> bool:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), Lens(self.model, ()) as lens:
            two = at(lens(torch.cat(self.pictures)), path)
        return isinstance(two, Tensor) and two.numel() == 2 * value.numel() and len(two) == 2


def _chosen(run: Run, told: Told, batch: _Batch) -> _Choice | None:
    """Which tensor has the scores; None where it is a tensor that has none."""
    every = list(leaves(run.output))
    if told.output:
        return _named(every, run, told.output)
    fitting = [(p, v, run.origins.of(v)) for p, v in every if _is_row(v)]
    if not fitting and len(every) == 1 and _is_squeezed(every[0][1]) and batch.has_rows(*every[0]):
        ((path, value),) = every
        fitting = [(path, value, run.origins.of(value))]
    if not fitting:
        if isinstance(run.output, Tensor):
            return None
        raise no_scores(run.output)
    for narrowed in _narrowed(fitting, told.names):
        if len(narrowed) == 1:
            return narrowed[0]
    shown = " or ".join(f"{'.'.join(p)} ({v.numel()} numbers)" for p, v, _ in narrowed)
    what = f"puts out several lists of scores: {shown}"
    name = ".".join(narrowed[0][0])
    step = ASK.format(name if name.isdecimal() else repr(name), name)
    raise ModelError("M521", "the network", what, next_step=step)


def _is_row(value: Tensor) -> bool:
    single = value.dim() == 2 or (value.dim() == 4 and value.shape[2:] == (1, 1))
    return single and value.is_floating_point() and len(value) == 1 and value.numel() > 0


def _is_squeezed(value: Tensor) -> bool:
    return value.dim() < 2 and value.is_floating_point() and value.numel() > 0


def _named(every: list[tuple[tuple[str, ...], Tensor]], run: Run, name: str) -> _Choice:
    for path, value in every:
        if ".".join(path) == name and (_is_row(value) or _is_squeezed(value)):
            return path, value, run.origins.of(value)
    there = [f"{'.'.join(p) or 'the one tensor'} {tuple(v.shape)}" for p, v in every]
    what = f"no scores (b, classes) there; the network puts out {', '.join(there) or 'no tensor'}"
    raise UsageError("U239", f"output {name}", what)


def _narrowed(choices: list[_Choice], names: int) -> Iterator[list[_Choice]]:
    """The choices that are left after more and more evidence; never none."""
    yield choices
    exact = [one for one in choices if one[0][-1:] == ("logits",)]
    choices = exact or choices
    yield choices
    fitting = [one for one in choices if names and one[1].numel() == names]
    choices = fitting or choices
    yield choices
    choices = _once(choices)
    yield choices
    choices = _latest(choices)
    yield choices
    straight = [one for one in choices if _source(one[2]).weighed]
    choices = straight or choices
    yield choices
    for name in NAMES:
        known = [one for one in choices if one[0][-1:] == (name,)]
        if known:
            yield known


def _once(choices: list[_Choice]) -> list[_Choice]:
    """Of tensors that are the same scores, as logits and their softmax, the one least changed."""
    best: dict[int, tuple[int, _Choice]] = {}
    for one in choices:
        source = _source(one[2])
        steps = sum(1 for _ in _walk(one[2], scaled=True))
        if id(source) not in best or steps < best[id(source)][0]:
            best[id(source)] = steps, one
    return [one for _, one in best.values()]


def _latest(choices: list[_Choice]) -> list[_Choice]:
    """Without those from which others are computed by layers with weights."""
    inner = {
        id(_source(other[2]))
        for one in choices
        for other in choices
        if one is not other
        and one[2] is not None
        and _weighed_between(_source(other[2]), _source(one[2]))
    }
    return [one for one in choices if id(_source(one[2])) not in inner] or choices


def _weighed_between(low: Origin, high: Origin) -> bool:
    """Whether a layer with weights computes the one from the other."""
    calls = (call for call in high.before() if call.weighed and call is not low)
    return any(low is origin for call in calls for origin in call.before())


def _walk(origin: Origin | None, *, scaled: bool = False) -> Iterator[Origin]:
    """The calls from the last one back, as long as the numbers stay the same; scaled: or only
    their scale, zero or activation is another."""
    while origin is not None:
        yield origin
        passing = HANDED_ON | CHOSEN | SCALED | set(MADE_BY) if scaled else HANDED_ON
        if origin.name not in passing or len(origin.takes) != 1:
            return
        origin = origin.takes[0]


def _source(origin: Origin | None) -> Origin:
    """The call that computed the scores."""
    *_, last = _walk(origin, scaled=True) if origin is not None else [Origin(HIDDEN, ())]
    return last


class _Numbers:
    """The scores for several pictures, asked for only where the calls do not tell."""

    def __init__(
        self,
        model: nn.Module,
        where: tuple[str, ...],
        pictures: list[Tensor],
        columns: int,
        first: Float[Tensor, "1 n"],
    ) -> None:
        self._model, self._where, self._pictures = model, where, pictures[1:]
        self.columns, self._rows = columns, [first]

    @property
    def close(self) -> float:
        return CLOSE.get(self._rows[0].dtype, 1e-3)

    def rows(self, many: int) -> Float[Tensor, "many n"]:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), Lens(self._model, ()) as lens:
            for picture in self._pictures[len(self._rows) - 1 : many - 1]:
                value = rows_of(at(lens(picture.clone()), self._where), 1)
                self._rows.append(value)
        return torch.cat(self._rows[:many]).double()

    def add_up(self, many: int, *, logarithms: bool = False) -> bool:
        """Whether they are probabilities (or their logarithms), of which one is true."""
        values = self.rows(many)
        if logarithms:
            values = values.exp() if bool((values <= self.close).all()) else values - 1
        fits = (values >= -self.close).all() & ((values.sum(1) - 1).abs() <= self.close).all()
        return self.columns > 1 and bool(fits)

    def within_one(self, many: int) -> bool:
        values = self.rows(many)
        return bool((values >= -self.close).all() & (values <= 1 + self.close).all())

    def constant_sum(self) -> float | None:
        """To what all pictures' numbers add up, none of which is below 0; None: to none such."""
        if self.columns == 1 or bool((self.rows(1) < 0).any()):
            return None
        values = self.rows(PROBES)
        sums = values.sum(1)
        same = (sums - sums[0]).abs().max() <= self.close * sums[0]
        return float(sums[0]) if same and not bool((values < 0).any()) else None


def _kind(numbers: _Numbers, source: Origin | None, told: Told) -> tuple[Kind, int, str]:
    """What the numbers are, the last activation over them, and how to tell that."""
    *_, call = _walk(source) if source is not None else [Origin(HIDDEN, ())]
    made = MADE_BY.get(call.name)
    whole = call.count == numbers.columns
    if made == "probabilities" and not (whole and numbers.add_up(1)):
        made = None
    if made == "log-probabilities" and not (whole and numbers.add_up(1, logarithms=True)):
        made = None
    if told.scores and (call.name, told.scores) != ("logsigmoid", "sigmoid"):
        return _as_told(numbers, told.scores, made, call)
    if call.name == "logsigmoid":
        return "sigmoid-logits", call.number, _words("sigmoid-logits", numbers.columns, "")
    if made is not None:
        return made, call.number, _words(made, numbers.columns, call.name)
    kind = _by_numbers(numbers, call)
    why = _words(kind, numbers.columns, "")
    return kind, 0, f"{why} (found by their values; {OTHERWISE})" if kind == "sigmoid" else why


def _by_numbers(numbers: _Numbers, call: Origin) -> Kind:
    """Raises ModelError M521 where the calls say no logits, and the numbers may be others."""
    if call.weighed:
        return "logits"
    if numbers.add_up(1) and numbers.add_up(PROBES):
        return "probabilities"
    if numbers.add_up(1, logarithms=True) and numbers.add_up(PROBES, logarithms=True):
        return "log-probabilities"
    if _made_of(call, _is_share, WITHIN_ONE) and numbers.within_one(PROBES):
        return "sigmoid"
    if _made_of(call, _is_weighed, LIKE_LOGITS, MIXED):
        return "logits"
    what = ""
    if numbers.within_one(1) and numbers.within_one(PROBES):
        what = "between 0 and 1: probabilities?"
    elif (total := numbers.constant_sum()) is not None:
        what = f"that add up to {total:.4g} for every picture: probabilities, but for a factor?"
    if not what:
        return "logits"
    how = "by code that cannot be looked into" if call.name == HIDDEN else "after its last layer"
    raise ModelError("M521", "the network", f"gives numbers {how}, {what}", next_step=ASK_SCORES)


def _is_share(call: Origin) -> bool:
    """Whether it is a softmax or a sigmoid, also one written out, as 1 / (1 + exp(-z))."""
    if call.name in MADE_BY:
        return MADE_BY[call.name] != "log-probabilities"
    if call.name not in ("reciprocal", "rdiv", "div", "pow"):
        return False
    *above, below = call.takes or (call,)
    exponentials = {one.name for one in (*above, *below.takes)} == {"exp"}
    return below.name == "add" and exponentials


def _is_weighed(call: Origin) -> bool:
    return call.weighed or call.name == "cdist"


def _made_of(
    call: Origin,
    ends: Callable[[Origin], bool],
    through: Collection[str],
    mixed: Collection[str] = (),
) -> bool:
    """Whether all that it is made of are such ends, and calls to go through; of mixed calls it is
    enough where one argument is."""
    known: dict[int, bool] = {}

    def made(one: Origin, deep: int) -> bool:
        if id(one) not in known:
            enough = any if one.name in mixed else all
            passes = one.name in through and bool(one.takes) and deep < DEEPEST
            known[id(one)] = ends(one) or (
                passes and enough(made(source, deep + 1) for source in one.takes)
            )
        return known[id(one)]

    return made(call, 0)


def _as_told(
    numbers: _Numbers, scores: str, made: Kind | None, call: Origin
) -> tuple[Kind, int, str]:
    """Raises ModelError M523 where the numbers are not what the user says."""
    wrong = ""
    if scores == "probabilities" and not (numbers.add_up(1) or numbers.columns == 1):
        wrong = f"add up to {float(numbers.rows(1).sum()):.4g}"
    if scores == "log-probabilities" and not (
        numbers.add_up(1, logarithms=True) or numbers.columns == 1
    ):
        wrong = f"exponentials add up to {float(numbers.rows(1).exp().sum()):.4g}"
    if scores in ("probabilities", "sigmoid") and not wrong and not numbers.within_one(1):
        wrong = "are not between 0 and 1" if scores == "probabilities" or made else ""
    if wrong:
        what = f"is said to give {scores}, but for a picture they {wrong}"
        raise ModelError("M523", "the network", what, next_step=ASK_SCORES)
    kind: Kind = next(one for one in KINDS if one == scores)
    if kind == "sigmoid" and made != "sigmoid" and not _sigmoids_already(numbers, call):
        kind = "sigmoid-logits"
    last = call.number if made == kind else 0
    return kind, last, f"{_words(kind, numbers.columns, '')} (as it was said)".lstrip()


def _sigmoids_already(numbers: _Numbers, call: Origin) -> bool:
    return not call.weighed and numbers.within_one(PROBES)


def _words(kind: Kind, columns: int, call: str) -> str:
    """What a report says about the numbers; nothing about plain logits of several classes."""
    ends = f"the network ends in {call}" if call else "the network's numbers"
    if columns == 1:
        if kind in ("logits", "sigmoid-logits"):
            return "the network gives one score: its sigmoid is taken as the probability of class 1"
        return f"{ends}: one probability, of class 1; that of class 0 is what is left to 1"
    told = {
        "probabilities": f"{ends}: probabilities, which are taken as they are",
        "log-probabilities": f"{ends}: logarithms of probabilities",
        "sigmoid": f"{ends}: {columns} labels, each with a probability of its own",
        "sigmoid-logits": f"{columns} labels: each one's sigmoid is its probability",
    }
    return told.get(kind, "")


def _told_where(output: Any, path: tuple[str, ...], columns: int) -> tuple[str, ...]:
    if not path:
        return ()
    what = f"its scores are {'.'.join(path)} ({columns} numbers a picture)"
    return (f"the network puts out a {_kind_of(output)}; {what}",)
