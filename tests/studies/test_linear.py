"""Are linear classifiers the ones that scikit-learn finds, and accuracies counted by class?"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from convscope.core.errors import DataError, UsageError
from convscope.studies.probes.study import (
    average_precision,
    divisions,
    enough,
    first_of_each,
    per_class_accuracy,
    require_folds,
    trained,
)


def clouds(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds of unequal sizes."""
    draw = np.random.default_rng(seed)
    label = np.concatenate([np.full(20 + 7 * c, c) for c in range(classes)])
    middle = draw.standard_normal((classes, 12)) + 0.5
    return (middle[label] + draw.standard_normal((len(label), 12))).astype(np.float32), label


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("strength", [0.1, 3.0])
def test_the_support_vector_machine_is_scikit_learn_s(classes: int, strength: float) -> None:
    features, label = clouds(classes)
    cut = trained("svm", features, label, classes, strength)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    left = unit - unit.mean(0)
    left /= np.sqrt((left**2).sum(1).mean())
    peer = LinearSVC(C=strength, tol=1e-8, max_iter=100_000).fit(left, label)
    theirs = peer.decision_function(left)
    ours = cut.scores(features)
    if classes == 2:
        np.testing.assert_allclose(ours, np.stack([-theirs, theirs], 1), atol=1e-2)
    else:
        np.testing.assert_allclose(ours, theirs, atol=1e-2)
    assert np.abs(theirs).max() > 0.1


@pytest.mark.parametrize("classes", [2, 5])
def test_the_softmax_has_no_slope_at_its_own_probabilities(classes: int) -> None:
    features, label = clouds(classes)
    cut = trained("softmax", features, label, classes, 10.0)
    scores = cut.scores(features).astype(np.float64)
    share = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    # The bias has no penalty: at the minimum, probabilities add up to the number of pictures.
    np.testing.assert_allclose(share.sum(0), np.bincount(label), rtol=0.02)
    assert (share.argmax(1) == label).mean() > 2 / classes - 0.2


def test_lengths_of_features_do_not_count_and_zeros_do_no_harm() -> None:
    features, label = clouds(3)
    longer = features * np.linspace(1, 50, len(label), dtype=np.float32)[:, None]
    ours, theirs = (trained("svm", rows, label, 3) for rows in (features, longer))
    np.testing.assert_allclose(ours.scores(features), theirs.scores(longer), atol=1e-3)
    assert np.isfinite(ours.scores(np.zeros((1, 12), np.float32))).all()


@pytest.mark.parametrize("kind", ["svm", "softmax"])
def test_features_that_are_nearly_the_same_are_told_apart_all_the_same(kind: str) -> None:
    """As in early layers, whose features share most of their length."""
    draw = np.random.default_rng(0)
    label = np.arange(600) % 60
    small = draw.standard_normal((60, 100))[label] + 0.3 * draw.standard_normal((600, 100))
    features = (30 + small).astype(np.float32)
    cut = trained(kind, features, label, 60)
    assert (cut.scores(features).argmax(1) == label).mean() > 0.95


def test_each_class_counts_the_same_however_many_pictures_it_has() -> None:
    scores = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 0]]
    accuracy = per_class_accuracy(scores, np.array([0, 0, 0, 1, 1]))
    assert accuracy[:2].tolist() == [1, 0.5]
    assert np.isnan(accuracy[2])


def test_average_precision_is_counted_as_by_hand() -> None:
    positive = np.array([True, False, True, False, False])
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    # recall 1/2 at precision 1, recall 1 at precision 2/3
    assert average_precision(score, positive) == pytest.approx((1 + 2 / 3) / 2)
    late = np.array([False, True, True])
    # precision 1/2, then 2/3: made to fall only, it is 2/3 at both
    assert average_precision(np.array([3.0, 2.0, 1.0]), late) == pytest.approx(2 / 3)
    assert average_precision(np.zeros(4), np.array([True, False, False, False])) == 0.25
    assert np.isnan(average_precision(score, np.zeros(5, bool)))


def test_no_picture_is_in_training_and_test_and_fewer_are_some_of_more() -> None:
    label = np.repeat([0, 1, 2, -1], [9, 4, 12, 5])
    usable, short = enough(label, ("a", "b", "c"), 5)
    assert short == ("b",)
    folds = list(divisions(usable, 5, 3, folds=4, seed=1))
    for train, check in folds:
        assert not set(train) & set(check)
        assert np.bincount(label[train], minlength=3).tolist() == [5, 0, 5]
        assert np.bincount(label[check], minlength=3).tolist() == [3, 0, 3]
        few, some = (set(first_of_each(train, usable, n).tolist()) for n in (1, 3))
        assert few < some < set(train.tolist())
        assert len(few) == 2
    assert len({tuple(train) for train, _ in folds}) == 4
    again = list(divisions(usable, 5, 3, folds=4, seed=1))
    assert [train.tolist() for train, _ in again] == [train.tolist() for train, _ in folds]


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError) as fault:
        require_folds([], 1, 1)
    assert fault.value.code == "U429"
    with pytest.raises(DataError) as none:
        enough(np.array([0, 0, -1]), ("a",), 1)
    assert none.value.code == "D175"
    with pytest.raises(DataError) as few:
        enough(np.array([0, 0, 0, 1, 1]), ("a", "b"), 2)
    assert few.value.code == "D176"
    assert "at most 1 a class" in str(few.value)
