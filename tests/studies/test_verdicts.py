"""Does a verdict say what the tests say, and no more?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from convscope.attribution.registry import LAYERED, METHODS
from convscope.studies.explain.figure import LAYER, LIMITS, TITLES, summary, verdict
from tests.studies.fake_explanations import (
    SIZE,
    a_map,
    explanation,
    forgotten,
    of_other,
    outcome,
    prediction,
)


def test_a_map_that_beats_chance_and_the_middle_both_ways_is_supported() -> None:
    said = verdict(explanation(), 0)
    assert (said.level, said.headline) == ("good", "It marks what the network uses here.")
    assert said.reasons == (
        "Mean probability while hiding what it marks first 0.20 (random maps 0.40 to 0.50, "
        "blob 0.45; lower is better), while showing it first 0.80 (random 0.40 to 0.50, "
        "blob 0.45; higher is better).",
    )
    assert said.limit == LAYER


LEVELS: dict[str, tuple[dict[str, Any], str, str]] = {
    "neither hides nor shows": ({"deletion": 0.45, "insertion": 0.45}, "poor", "No better than"),
    "one random map as good": ({"deletion": 0.4, "insertion": 0.5}, "poor", "No better than"),
    "only hides": ({"insertion": 0.45}, "fair", "showing it alone is not enough"),
    "only shows": ({"deletion": 0.45}, "fair", "hiding it hurts no more than chance"),
    "the middle hides as well": ({"blob": (0.2, 0.3)}, "fair", "the middle of the picture"),
    "the middle shows as well": ({"blob": (0.5, 0.9)}, "fair", "the middle of the picture"),
}


@pytest.mark.parametrize("case", LEVELS)
def test_one_test_alone_is_no_support(case: str) -> None:
    areas, level, words = LEVELS[case]
    said = verdict(explanation(tests=[outcome(**areas)]), 0)
    assert said.level == level
    assert words in said.headline


def test_differences_too_small_to_mean_anything_are_none() -> None:
    """A network that stays sure whatever is hidden: all areas lie within one percent."""
    sure = outcome(0.985, 0.995, ((0.99, 0.99), (0.995, 0.985)), (0.992, 0.988), score=1.0)
    assert verdict(explanation(tests=[sure]), 0).level == "poor"
    unlikely = outcome(0.0010, 0.0090, ((0.004, 0.005),), (0.005, 0.004), score=0.01)
    assert verdict(explanation(tests=[unlikely]), 0).level == "good"  # of what there is to lose


def test_nothing_for_the_class_is_said_and_nothing_else() -> None:
    said = verdict(explanation([a_map(np.zeros(SIZE))]), 0)
    assert (said.level, said.headline) == ("none", "No positive evidence for “ant”.")
    assert said.reasons == ()
    against = verdict(explanation([a_map(np.full(SIZE, -1.0))]), 0)
    assert against.level == "none"


def test_a_map_of_a_random_network_takes_the_support_away() -> None:
    said = verdict(explanation(randomised=(forgotten(0.1, 0.6),)), 0)
    assert said.level == "fair"
    assert "learned nothing" in said.headline
    assert "With random weights it draws much the same map (rank correlation 0.60)" in "".join(
        said.reasons
    )
    for fine in (forgotten(0.9, 0.4), forgotten(0.9, math.nan)):  # only the last step counts
        assert verdict(explanation(randomised=(fine,)), 0).level == "good"


def test_the_same_map_for_another_class_takes_the_support_away_and_names_it() -> None:
    said = verdict(explanation(sensitive=(of_other(0.97),)), 0)
    assert said.level == "fair"
    assert "another class" in said.headline
    assert said.reasons[1].startswith("For “bee” it draws nearly the same map")
    unlisted = verdict(explanation(sensitive=(of_other(0.97, second=77),)), 0)
    assert unlisted.reasons[1].startswith("For “class 77”")
    for fine in (of_other(0.94), of_other(math.nan)):
        assert verdict(explanation(sensitive=(fine,)), 0).level == "good"


def test_what_is_poor_stays_poor_and_keeps_its_own_words() -> None:
    found = explanation(
        tests=[outcome(0.45, 0.45)], randomised=(forgotten(1.0),), sensitive=(of_other(1.0),)
    )
    said = verdict(found, 0)
    assert said.level == "poor"
    assert said.headline.startswith("No better than chance")
    assert len(said.reasons) == 3


def test_each_map_is_judged_by_its_own_tests() -> None:
    found = explanation(
        [a_map(), a_map(), a_map()],
        [outcome(0.45, 0.45), outcome(), outcome()],
        randomised=(forgotten(0.0), forgotten(1.0), forgotten(0.0)),
    )
    assert [verdict(found, number).level for number in range(3)] == ["poor", "fair", "good"]
    assert summary(found).endswith("Supported by the tests on this picture: occlusion.")


def test_every_method_of_the_family_says_what_it_does_not_show() -> None:
    assert set(METHODS) - set(LIMITS) <= LAYERED - {"guided-gradcam"}
    assert set(LIMITS) <= set(METHODS)
    assert verdict(explanation(methods=["mine:own"]), 0).limit == ""


def test_the_summary_says_class_truth_and_how_many_maps_hold() -> None:
    assert summary(explanation()) == (
        "“ant”, 60.0%; the runner-up is “bee”, 30.0%. Every map is supported by the tests on this "
        "picture."
    )
    none = explanation(tests=[outcome(0.45, 0.45)], label="wasp")
    assert summary(none) == (
        "“ant”, 60.0% (true: “wasp”); the runner-up is “bee”, 30.0%. None of these maps is well "
        "supported by the tests on this picture."
    )


def test_a_class_that_is_ruled_out_is_said_to_be_so() -> None:
    asked = explanation(target=0, target_name="cat", score=0.004)
    assert "“cat”, 0.4%; its answer is “ant”, 60.0%. The network all but rules it out" in summary(
        asked
    )
    unsure = explanation(score=0.004)  # of 1000 classes the likeliest may have no more
    assert "rules it out" not in summary(unsure)


def test_levels_have_titles_and_names_cannot_forge_lines() -> None:
    assert set(TITLES) == {"good", "fair", "poor", "none"}
    odd = explanation([a_map(np.zeros(SIZE))], target_name="a\nb", prediction=prediction("x\ny"))
    assert "\n" not in verdict(odd, 0).headline
    assert "\n" not in summary(odd)
