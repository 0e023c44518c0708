"""Are the nearest vectors found exactly, ties and all?"""

from __future__ import annotations

import numpy as np
import pytest

from convscope.core.errors import UsageError
from convscope.representations import embedding as neighbours
from convscope.representations.embedding import Metric, nearest_vectors


def slow(queries: np.ndarray, base: np.ndarray, metric: str, own: list[int]) -> list[list[int]]:
    """Row numbers of `base` sorted by (distance, number), one query and one vector at a time."""
    found = []
    for query, not_this in zip(queries.astype(np.float64), own, strict=True):
        listed = []
        for number, vector in enumerate(base.astype(np.float64)):
            if metric == "euclidean":
                distance = float(np.sqrt(((query - vector) ** 2).sum()))
            else:
                lengths = np.linalg.norm(query) * np.linalg.norm(vector)
                distance = 1 - float(query @ vector / lengths) if lengths else 1.0
            if number != not_this:
                listed.append((round(distance, 9), number))
        found.append([number for _, number in sorted(listed)])
    return found


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_nearest_are_those_of_a_slow_search(
    metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    monkeypatch.setattr(neighbours, "QUERIES", 3)
    draw = np.random.default_rng(0)
    base = draw.integers(-2, 3, (50, 3)).astype(np.float32)  # full of ties
    base[20] = 0
    own = np.arange(0, 50, 5)
    number, distance = nearest_vectors(base[own], base, 6, metric=metric, without=own)
    expected = slow(base[own], base, metric, own.tolist())
    if metric == "euclidean":  # whole numbers: ties are exact
        assert number.tolist() == [row[:6] for row in expected]
    assert (np.diff(distance, axis=1) >= 0).all()
    for row, (place, far) in enumerate(zip(number, distance, strict=True)):
        assert own[row] not in place
        for near, said in zip(place, far, strict=True):
            query, vector = base[own[row]].astype(float), base[near].astype(float)
            lengths = np.linalg.norm(query) * np.linalg.norm(vector)
            cosine = 1 - query @ vector / lengths if lengths else 1.0
            truth = np.linalg.norm(query - vector) if metric == "euclidean" else cosine
            assert said == pytest.approx(truth, abs=1e-12)
        worst = sorted(slow_distances(base, own[row], metric))[5]
        assert far[-1] == pytest.approx(worst, abs=1e-12)


def slow_distances(base: np.ndarray, own: int, metric: str) -> list[float]:
    found = []
    for number, vector in enumerate(base.astype(float)):
        query = base[own].astype(float)
        lengths = np.linalg.norm(query) * np.linalg.norm(vector)
        cosine = 1 - query @ vector / lengths if lengths else 1.0
        if number != own:
            found.append(np.linalg.norm(query - vector) if metric == "euclidean" else cosine)
    return found


def test_equal_vectors_far_from_zero_are_at_exactly_zero() -> None:
    base = (1e4 + np.random.default_rng(0).standard_normal((300, 40))).astype(np.float32)
    base[299] = base[3]
    number, distance = nearest_vectors(base[3:4], base, 3)
    assert number[0, :2].tolist() == [3, 299]
    assert distance[0, :2].tolist() == [0, 0]
    assert distance[0, 2] > 1


def test_a_few_vectors_give_few_neighbours() -> None:
    base = np.eye(3, dtype=np.float32)
    number, distance = nearest_vectors(base, base, 4, without=np.arange(3))
    assert number.tolist() == [[1, 2, -1, -1], [0, 2, -1, -1], [0, 1, -1, -1]]
    assert np.isinf(distance[:, 2:]).all()


def test_what_cannot_be_searched_is_refused() -> None:
    base = np.eye(3, dtype=np.float32)
    with pytest.raises(UsageError) as fault:
        nearest_vectors(base, base, 0)
    assert fault.value.code == "U426"
    with pytest.raises(UsageError) as fault:
        nearest_vectors(base[:, :2], base, 1)
    assert fault.value.code == "U427"


@pytest.mark.slow
def test_a_million_vectors_are_searched_in_the_memory_of_a_chunk() -> None:
    draw = np.random.default_rng(0)
    base = draw.standard_normal((1_000_000, 64), dtype=np.float32)
    queries = base[::100_000] + np.float32(0.01)
    number, _ = nearest_vectors(queries, base, 6)
    assert number[:, 0].tolist() == list(range(0, 1_000_000, 100_000))
