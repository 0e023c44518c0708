"""What a network's output means (class scores, logits?), and targets: which number is explained.

Every command, method and study asks here. `scored(network)` is the same network, with the same
layers and weights, whose output is one tensor (b, classes); `meaning(network)` says what its
numbers are, and makes probabilities of them. It is found by running the network once on noise and
looking at the calls that made its output; where these do not tell, at the numbers for several
pictures. What stays ambiguous is refused, and can be said by `load(…, output=, scores=)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from convscope.core.errors import ModelError, UsageError, nearest
from convscope.core.foreign import TheirCode
from convscope.lens.lens import around, dressed, undressed
from convscope.lens.torch_private import version
from convscope.lens.twin import bare
from convscope.network.network import Network
from convscope.network.output_search import (
    BEFORE,
    KINDS,
    Kind,
    Told,
    at,
    leaves,
    no_scores,
    rows_of,
    search,
)
from convscope.trace.layers import WithoutLast

__all__ = [
    "KINDS",
    "Kind",
    "Meaning",
    "both_ways",
    "known",
    "leaves",
    "meaning",
    "no_scores",
    "plain",
    "remember",
    "require_told",
    "scored",
    "understood",
]

REMEMBERED = "_convscope_meaning"


@dataclass(frozen=True)
class Meaning:
    """Where in a network's output its scores are, and what they are.

    It is put around the network's forward by `scored`, and answers the scores there.
    """

    kind: Kind
    columns: int
    """Numbers for a picture, as the network gives them."""
    where: tuple[str, ...] | None = ()
    """Names or numbers that lead to the tensor; None: what it gives are no scores of classes, and
    is handed on as it is."""
    last: int = 0
    """Which of its activations (softmax, sigmoid, …) is the last over the scores; 0 for none."""
    activations: int = 0
    """How often such are called in one run."""
    is_before: bool = False
    """Whether the scores from before that last one are given."""
    notes: tuple[str, ...] = ()
    """What has been decided, where it is not plain logits in one tensor; for every report."""

    @property
    def is_single(self) -> bool:
        """One number a picture: for the class, or against it. It becomes two, and two classes."""
        return self.columns == 1

    @property
    def classes(self) -> int:
        return 2 if self.is_single else self.columns

    @property
    def is_exclusive(self) -> bool:
        """Whether one of the classes is true, and the probabilities add up to 1."""
        return self.is_single or self.kind in ("logits", "probabilities", "log-probabilities")

    @property
    def space(self) -> str:
        """What a class's score is: "logit", "probability" or "log-probability"."""
        words = {"log-probabilities": "log-probability"}
        words |= dict.fromkeys(("logits", "sigmoid-logits"), "logit")
        return words.get(self.kind, "probability")

    def before(self) -> Meaning:
        """The same of the scores from before the last activation, where it can be left out."""
        if not self.last or self.is_before:
            return self
        return replace(self, kind=BEFORE[self.kind], is_before=True)

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.is_before:
            output = run(*args, **kwargs)
        else:
            with WithoutLast(self.last) as mode:
                output = run(*args, **kwargs)
            if mode.met != self.activations:
                what = "calls softmax or sigmoid as often as the picture has it"
                step = "let it put out the scores from before its last softmax"
                raise ModelError("M524", "the network", what, next_step=step)
        pictures = next((one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)), None)
        return self.scores(output, 1 if pictures is None else len(pictures))

    def scores(self, output: Any, count: int) -> Float[Tensor, "b classes"]:
        """The scores in what the network gives for so many pictures.

        Raises ModelError M520 where they are not there as they were when it was looked at.
        """
        if self.where is None:
            result: Tensor = output
            return result
        value = at(output, self.where)
        if isinstance(value, Tensor):
            value = rows_of(value, count)
            if value.shape == (count, self.columns):
                return _both(value, self.kind) if self.is_single else value
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        what = f"gives {got} for {count} pictures, in the place of {self.columns} scores for each"
        raise ModelError("M520", "the network", what)

    def probabilities(self, scores: Float[Tensor, "b classes"]) -> Float[Tensor, "b classes"]:
        """Of each class, in float32 at least; each label's own where they are independent.

        scores: as this network gives them. Raises ModelError M520 where they are none of classes.
        """
        scores = self.require(scores)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if self.kind == "logits" and not self.is_single:
            return scores.softmax(1)
        if self.kind in ("logits", "sigmoid-logits"):
            return scores.sigmoid()
        return scores.exp() if self.kind == "log-probabilities" else scores

    def log_probabilities(self, scores: Float[Tensor, "b classes"]) -> Float[Tensor, "b classes"]:
        """Their logarithms, exact where probabilities are too small for their numbers."""
        scores = self.require(scores).double()
        if self.kind == "logits" and not self.is_single:
            return scores.log_softmax(1)
        if self.kind in ("logits", "sigmoid-logits"):
            return nn.functional.logsigmoid(scores)
        return scores if self.kind == "log-probabilities" else scores.clamp_min(1e-300).log()

    def require(self, scores: Tensor) -> Float[Tensor, "b classes"]:
        """Raises ModelError M520 where the network gives no scores of classes."""
        if self.where is None:
            raise no_scores(scores)
        return scores

    def require_exclusive(self, asks: str) -> None:
        """Raises ModelError M525 where labels are independent; asks: who needs one true class."""
        if self.where is not None and not self.is_exclusive:
            what = f"gives each label a probability of its own, but {asks} needs one true class"
            step = "look at single labels (explain, occlusion), or let it put out logits"
            raise ModelError("M525", "the network", what, next_step=step)


def meaning(given: nn.Module | Network, images: Tensor | None = None) -> Meaning:
    """What the output of a network, or of a module, means; found once, and remembered.

    images: of the shape that it takes, (b, c, h, w); a Network knows that itself.

    Raises ModelError M520 (no scores), M521 (several that could be them), M522 (no such picture),
    M523 (they are not what `scores=` says), M526, M530; UsageError U239 (`output=` is not there).
    """
    model = bare(given)
    result = known(given, images)
    if result is not None:
        return result
    told = _told(given, images)
    result = _found(model, told)
    with suppress(TypeError):  # a module that cannot be hashed is not remembered
        _KNOWN.setdefault(model, {})[told] = _state(model), result
    return result


def known(given: nn.Module | Network, images: Tensor | None = None) -> Meaning | None:
    """The same, if it has been found before; nothing is run."""
    model = bare(given)
    put = _put(model)
    if put is not None or (images is None and not isinstance(given, Network)):
        return put
    try:
        state, result = _KNOWN.get(model, {}).get(_told(given, images), (None, None))
    except TypeError:  # a module that cannot be hashed is not remembered
        return None
    return result if state == _state(model) else None


def _put(model: nn.Module) -> Meaning | None:
    """What was put around a network, or said of a copy."""
    put = next((one for one in reversed(around(model)) if isinstance(one, Meaning)), None)
    return put or model.__dict__.get(REMEMBERED)


def remember(copy: nn.Module, known: Meaning) -> None:
    """The output of this copy of a network, which is ours, means what the network's does, whatever
    its weights are now."""
    copy.__dict__[REMEMBERED] = known


def scored(
    given: nn.Module | Network, images: Tensor | None = None, *, before: bool = False
) -> nn.Module:
    """The network whose output is its scores, (b, classes), with the same layers and weights.

    before: the scores from before a last softmax or sigmoid, as methods of gradients want them;
    where there is none that could be left out, as without. One score for a picture becomes two:
    against and for it. An output that has no scores of classes stays as it is. images: see
    `meaning`, which raises.
    """
    result = meaning(given, images)
    model = plain(bare(given))
    return dressed(model, result.before() if before else result)


def understood(network: Network) -> Network:
    """The same, its model `scored`; notes say what has been decided. Raises as `meaning`."""
    result = meaning(network)
    notes = tuple(note for note in result.notes if note not in network.notes)
    return replace(network, model=scored(network), notes=(*network.notes, *notes))


def plain(model: nn.Module) -> nn.Module:
    """The user's own, without what `scored` put around it."""
    while (put := around(model)) and isinstance(put[-1], Meaning):
        model = undressed(model)
    return model


def both_ways(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of a network's classes; of one that has one score for one class also the other."""
    return (f"not {classes[0]}", classes[0]) if len(classes) == 1 else tuple(classes)


def require_told(output: object, scores: object) -> tuple[str, str]:
    """What a user says of an output, as text. Raises UsageError U238, U239."""
    if scores not in (None, "", *KINDS):
        raise UsageError(
            "U238", str(scores), f"is no kind of scores; {nearest(str(scores), KINDS)}"
        )
    if output is None or (isinstance(output, (int, str)) and not isinstance(output, bool)):
        return "" if output is None else str(output), str(scores or "")
    step = "give a number or a name, as 1, 'logits' or 'out.logits'"
    raise UsageError("U239", repr(output), "names no part of an output", next_step=step)


def _both(value: Float[Tensor, "b 1"], kind: Kind) -> Float[Tensor, "b 2"]:
    """Against and for the one class."""
    if kind in ("logits", "sigmoid-logits"):
        return torch.cat((-value, value), 1)
    if kind == "log-probabilities":
        return torch.cat(((-value.exp()).log1p(), value), 1)
    return torch.cat((1 - value, value), 1)


_KNOWN: WeakKeyDictionary[nn.Module, dict[Told, tuple[Any, Meaning]]] = WeakKeyDictionary()


def _state(model: nn.Module) -> Any:
    """Another one when a module or a weight was changed, as by a step of training."""
    parts = tuple(id(module) for module in model.modules())
    weights = tuple((id(one), version(one)) for one in model.parameters())
    return hash((parts, weights))


def _told(given: nn.Module | Network, images: Tensor | None) -> Told:
    wrapped = [getattr(one, "scores", "") for one in around(bare(given))]
    scores = next((one for one in reversed(wrapped) if isinstance(one, str)), "")
    if isinstance(given, Network):
        shape = given.preprocess.shape if images is None else tuple(images.shape[-3:])
        return Told(given.output, given.scores or scores, len(given.classes), shape)
    assert images is not None, "a bare module does not say what pictures it takes"
    return Told("", scores, 0, tuple(images.shape[-3:]))


def _found(model: nn.Module, told: Told) -> Meaning:
    kind, columns, where, last, activations, notes = search(model, told)
    # After a logsigmoid there is nothing that could be taken: it is left out in any case.
    is_before = bool(last) and kind in BEFORE.values()
    return Meaning(kind, columns, where, last, activations, is_before, notes)


Function = Callable[[Tensor], Tensor]
"""From scores (b, classes) to one number a picture (b,)."""
Target = int | str | Function
"""A class index, a class name, or a function of the scores."""


@dataclass(frozen=True)
class Targets:
    """One target for each picture of a batch; None stands for the likeliest class."""

    each: tuple[int | Function | None, ...]

    @classmethod
    def of(
        cls,
        target: Target | Iterable[Target] | None,
        count: int,
        classes: Sequence[str] = (),
    ) -> Targets:
        """Read what a user says: nothing, one target for all pictures, or one for each.

        Raises UsageError U351 (another number of targets than pictures), U352 (no such class).
        """
        classes = both_ways(classes)
        if target is None or isinstance(target, str) or callable(target) or _is_number(target):
            return cls((_read(target, classes),) * count)
        several = tuple(_read(one, classes) for one in target)  # type: ignore[union-attr]
        if len(several) != count:
            what = f"{len(several)} targets for {count} pictures"
            raise UsageError("U351", "", what, next_step="give one target, or one a picture")
        return cls(several)

    def settled(self, scores: Tensor) -> Targets:
        """The same with the likeliest class in the place of None. Raises UsageError U353 for a
        class index that the network does not have."""
        if all(callable(one) for one in self.each):
            return self
        known = scores.shape[1]
        for one in self.each:
            if isinstance(one, int) and not 0 <= one < known:
                what = f"no such class; the network has {known}, numbered 0 to {known - 1}"
                raise UsageError("U353", f"class {one}", what)
        likeliest = scores.argmax(1).tolist()
        return Targets(
            tuple(
                top if one is None else one for one, top in zip(self.each, likeliest, strict=True)
            )
        )

    def only(self, number: int) -> Targets:
        """The target of one picture."""
        return Targets((self.each[number],))

    def times(self, count: int) -> Targets:
        """The one target, for `count` variations of its picture."""
        return Targets(self.each * count)

    def scores(self, answer: Tensor) -> Float[Tensor, "b"]:
        """The number that is explained, for each picture. Raises UsageError U354 where a function
        gives something else than one number a picture."""
        kinds = set(self.each)
        if len(kinds) == 1:
            return _score(self.each[0], answer)
        if not any(callable(kind) for kind in kinds):
            index = torch.tensor(self.each, device=answer.device)
            return answer.gather(1, index[:, None])[:, 0]
        rows = [_score(one, answer[i : i + 1]) for i, one in enumerate(self.each)]
        return torch.cat(rows)

    @property
    def has_function(self) -> bool:
        """Whether a function is among them: it is given the scores as the network gives them."""
        return any(callable(one) for one in self.each)

    def answer(self, output: Any) -> Tensor:
        """The tensor that targets choose from, in what a `scored` network puts out: scores
        (b, classes) for classes; for functions also any other shape.

        Raises ModelError M520 where there is none.
        """
        if isinstance(output, Tensor) and (
            output.dim() == 2 or all(callable(one) for one in self.each)
        ):
            return output
        raise no_scores(output)

    @property
    def indices(self) -> tuple[int, ...]:
        """Class indices; -1 for a function."""
        return tuple(one if isinstance(one, int) else -1 for one in self.each)

    def words(self, number: int, classes: Sequence[str]) -> str:
        """How to name a picture's target to a reader."""
        one = self.each[number]
        if isinstance(one, int):
            names = both_ways(classes)
            return names[one] if one < len(names) else f"class {one}"
        return getattr(one, "__name__", repr(one))


def _is_number(target: Any) -> bool:
    return (
        not isinstance(target, (list, tuple))
        and getattr(target, "ndim", 0) == 0
        and (hasattr(target, "__index__"))
    )


def _read(target: Any, classes: Sequence[str]) -> int | Function | None:
    if target is None or callable(target):
        return target  # type: ignore[no-any-return]
    if not isinstance(target, str):
        return int(target)
    if not classes:
        step = "pass classes=, or a class index"
        raise UsageError("U352", target, "the classes' names are not known", next_step=step)
    if target not in classes:
        raise UsageError("U352", target, f"no such class; {nearest(target, classes)}")
    return list(classes).index(target)


def _score(target: int | Function | None, answer: Tensor) -> Tensor:
    if isinstance(target, int):
        return answer[:, target]
    assert target is not None, "settle the targets first"
    with TheirCode("M575", getattr(target, "__name__", "the target function")):
        score = target(answer)
    if not isinstance(score, Tensor) or score.shape != answer.shape[:1]:
        got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
        what = f"gave {got} for {len(answer)} pictures; it must give one number a picture"
        raise UsageError("U354", getattr(target, "__name__", "the target function"), what)
    return score
