"""Are windows cut where they all hang over, and neurons grouped so that it pays?"""

from __future__ import annotations

import itertools

import numpy as np

from convscope.trace.backward.descent import Reach, _split, alike
from convscope.trace.backward.windows import Frame
from convscope.trace.receptive_field import Affine

# A window of 7 places, 2 before the neuron's own of which there are 9, on a map of 13.
RULE = Affine(7, 1, -3)


def reach(effort: float = 1.0) -> Reach:
    return Reach(0, (RULE, RULE), (13, 13), 4, effort)


def on_the_map(place: int) -> set[int]:
    return {cell for cell in range(place - 3, place + 4) if 0 <= cell < 13}


def test_a_window_of_several_places_holds_all_that_each_sees_of_the_map():
    places = np.arange(13)
    sides = reach().sides(0, places)
    for first, last in itertools.combinations_with_replacement(range(13), 2):
        seen = [on_the_map(place) for place in range(first, last + 1)]
        relative = {
            cell - place
            for place, cells in zip(range(first, last + 1), seen, strict=True)
            for cell in cells
        }
        assert sides[first, last] == len(relative)
        assert reach().numbers(((first, last), (5, 6))) == 4 * len(relative) * 7


def test_each_neuron_is_in_one_group_and_groups_are_like_places():
    rng = np.random.default_rng(0)
    places = rng.integers(0, 13, (50_000, 2))
    groups = alike(places, [reach()])
    assert sorted(np.concatenate(groups).tolist()) == list(range(50_000))
    assert len(groups) == 49  # 3 before, 3 after and all the rest, along both axes
    for group in groups:
        overhang = reach().overhang(0, places[group, 0])
        assert (overhang == overhang[:, :1]).all()


def test_a_few_neurons_stay_together():
    assert len(alike(np.array([[0, 0], [6, 6], [12, 3]]), [reach()])) == 1


def cost(places: np.ndarray, groups: list[np.ndarray]) -> float:
    """Rows of all windows, at 7 columns and 3 multiplications each, and 4 whole windows for each
    group."""

    def rows(some: np.ndarray) -> int:
        return len({cell - place for place in set(some.tolist()) for cell in on_the_map(place)})

    return 3 * 7 * sum(rows(group) * len(group) + 4 * rows(places) for group in groups)


def test_no_other_groups_of_neighbours_cost_less():
    rng = np.random.default_rng(1)
    there, known = np.array([0, 1, 2, 6, 11, 12]), [reach(2.0), reach(1.0)]
    for many in (5, 30, 200):
        places = rng.choice(there, many)

        ours = cost(places, [places[group] for group in _split(places, known, 0, 4.0)])
        cuts = itertools.product([False, True], repeat=5)
        values = np.unique(places)
        others = []
        for cut in cuts:
            part = np.concatenate([[0], np.cumsum(cut)])[: len(values)]
            label = part[np.searchsorted(values, places)]
            others.append(cost(places, [places[label == one] for one in np.unique(label)]))
        assert ours == min(others)
        assert many != 200 or ours < others[0]  # in one group


def test_what_is_far_from_the_border_is_one_group():
    places = np.random.default_rng(0).integers(3, 10, (2000, 2))
    assert len(alike(places, [reach()])) == 1


def test_frames_are_cut_where_all_hang_over():
    frame = Frame.at(np.array([[0, 5], [1, 9]])).below((7, 7), (1, 1), (3, 3))
    assert frame.overhang((13, 10)) == ((2, 0), (0, 0))
    cut = frame.cropped(((2, 0), (0, 1)))
    assert (cut.side, cut.offset) == ((5, 6), (-1, -3))
    assert cut.corners(0).tolist() == [-1, 0]
    down = cut.below((3, 2), (2, 1), (1, 0))
    assert (down.side, down.jump, down.offset) == ((11, 7), (2, 1), (-3, -3))
