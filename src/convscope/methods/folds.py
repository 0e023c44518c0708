"""Which pictures of each class are for training and which for testing, several times over?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from convscope.errors import DataError, UsageError

TEST = 50
"""Most test pictures a class. Source: Zeiler and Fergus 2014, section 5.2 (Caltech-101)."""

Division = tuple[Int64[np.ndarray, "training"], Int64[np.ndarray, "testing"]]
"""Rows; the training rows in an order in which the first n of each class can be taken."""


def require_folds(per_class: Sequence[int], test: int, folds: int) -> None:
    """Raise UsageError U429 on numbers of pictures or folds that cannot be."""
    if not per_class or min(per_class) < 1 or test < 1 or folds < 1:
        given = f"per class {list(per_class)}, test {test}, folds {folds}"
        raise UsageError("U429", given, "all of them are at least 1")


def divisions(
    label: Int64[np.ndarray, "n"],
    most: int,
    test: int = TEST,
    *,
    folds: int = 5,
    seed: int = 0,
) -> Iterator[Division]:
    """Random training rows, `most` of each class, and up to `test` of the others, fold by fold.

    label: -1 for rows that do not count. Give it what `enough` returns.
    """
    rows = [np.flatnonzero(label == number) for number in np.unique(label[label >= 0])]
    for fold in range(folds):
        draw = np.random.default_rng([seed, fold])
        mixed = [draw.permutation(members) for members in rows]
        yield (
            np.concatenate([members[:most] for members in mixed]),
            np.concatenate([members[most : most + test] for members in mixed]),
        )


def enough(
    label: Int64[np.ndarray, "n"], classes: Sequence[str], most: int
) -> tuple[Int64[np.ndarray, "n"], tuple[str, ...]]:
    """The labels with -1 in classes of which `most` rows leave none to test, and their names.

    Raises DataError D175 (no two classes) or D176 (no two with enough pictures).
    """
    present, many = np.unique(label[label >= 0], return_counts=True)
    if len(present) < 2:
        raise DataError(
            "D175",
            "",
            "the pictures have no two classes, so there is nothing to tell apart",
            next_step="put each class's pictures into a folder with the class's name",
        )
    if (many > most).sum() < 2:
        second = int(np.sort(many)[-2])
        raise DataError(
            "D176",
            "",
            f"only {int((many > most).sum())} of {len(many)} classes have more than {most} usable "
            "pictures, so none are left to test",
            next_step=f"take at most {second - 1} a class" if second > 1 else "add pictures",
        )
    short = present[many <= most]
    names = tuple(classes[int(number)] for number in short)
    return np.where(np.isin(label, short), -1, label), names


def first_of_each(
    training: Int64[np.ndarray, "training"], label: Int64[np.ndarray, "n"], count: int
) -> Int64[np.ndarray, "some"]:
    """The first `count` rows of each class."""
    truth = label[training]
    chosen = [training[truth == number][:count] for number in np.unique(truth)]
    return np.concatenate(chosen)
