"""Targets: which number of a network's output an attribution explains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from convscope.core.errors import UsageError, nearest
from convscope.core.foreign import TheirCode
from convscope.network.outputs import both_ways, no_scores

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
