"""Are maps put to the test rightly, where it is known what a true map looks like?"""

from __future__ import annotations

import importlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convscope.attribution.formulas import METHODS as CAMS
from convscope.core.errors import ConvscopeError
from convscope.core.run import Run
from convscope.core.units import Box
from convscope.metrics.faithfulness import (
    Asked,
    blob,
    faithfulness,
    grain_of,
    order,
    random_map,
    softened,
)
from convscope.network.outputs import Targets
from convscope.records.maps import Faithfulness, area
from tests.metrics.faithful_nets import Linear, Lookalike, Square, a_map, noise
from tests.nets import pictures, state_of
from tests.oracles import faithfulness as slow

ARRAYS = ("deletion", "insertion", "random_deletion", "random_insertion", "blob_deletion")


def first(scores: torch.Tensor) -> torch.Tensor:
    """The first class's logit."""
    return scores[:, 0]


def probability(net: nn.Module, target: int) -> Any:
    def score(image: torch.Tensor) -> float:
        with torch.no_grad():
            return float(net(image[None]).softmax(1)[0, target])

    return score


def test_the_curves_are_those_of_the_slow_twin() -> None:
    net, image, values = Lookalike().eval(), pictures(1, 21, 16)[0], noise(21, 16)
    (found,) = faithfulness(net, image, [a_map(values, 2)], steps=7)
    score = probability(net, 2)
    deleted = slow.curve(score, image, torch.zeros_like(image), values, 7)
    inserted = slow.curve(score, slow.blurred(image), image, values, 7)
    assert np.ptp(deleted) > 0.01
    assert np.ptp(inserted) > 0.01
    assert found.deletion == pytest.approx(deleted, abs=1e-6)
    assert found.insertion == pytest.approx(inserted, abs=1e-6)
    assert found.score == pytest.approx(deleted[0], abs=1e-6)
    assert (found.target, found.method) == (2, "made")
    counts = np.array([round(step * 21 * 16 / 7) for step in range(8)])
    assert found.share == pytest.approx(counts / (21 * 16))


def test_a_linear_networks_curves_are_sums_of_what_each_pixel_adds() -> None:
    net, image = Linear().double(), pictures(1, 12, 9)[0].double()
    worth = (net.fc.weight[0].detach().reshape(3, 12, 9) * image).sum(0)
    values = noise(12, 9)
    (found,) = faithfulness(net, image, [a_map(values)], target=first, steps=108)
    in_order = worth.flatten()[np.argsort(-values.astype(np.float32).ravel())].numpy()
    left = in_order.sum() - np.concatenate([[0], np.cumsum(in_order)])
    assert found.deletion == pytest.approx(left, rel=1e-5, abs=1e-5)
    assert found.deletion_area == pytest.approx(np.trapezoid(left, np.arange(109) / 108), rel=1e-5)


def test_no_order_beats_what_each_pixel_adds_in_a_linear_network() -> None:
    net, image = Linear(), pictures(1, 12, 9)[0]
    worth = (net.fc.weight[0].detach().reshape(3, 12, 9) * image).sum(0).numpy()
    others = [
        a_map(noise(12, 9, seed=seed) + factor * worth) for seed in range(8) for factor in (0, 1)
    ]
    best, *rest = faithfulness(net, image, [a_map(worth), *others], target=first, random=20)
    assert best.deletion_area < min(one.deletion_area for one in rest)
    assert best.deletion_area < min(best.random_deletion_areas)
    gain = worth - (net.fc.weight[0].detach().reshape(3, 12, 9) * softened(image)).sum(0).numpy()
    (best,) = faithfulness(net, image, [a_map(gain)], target=first)
    assert best.insertion_area > max(one.insertion_area for one in rest)


def test_the_square_that_a_network_looks_at_is_told_from_any_other_map() -> None:
    box = Box(2, 3, 8, 9)
    net, image = Square(box), torch.ones(3, 30, 24)
    truth = np.zeros((30, 24))
    truth[2:8, 3:9] = 1
    good, bad = faithfulness(net, image, [a_map(truth, 1), a_map(1 - truth, 1)], steps=20)
    assert good.score == pytest.approx(1 / (1 + np.exp(-6)), abs=1e-6)
    assert good.deletion[1:] == pytest.approx(np.full(20, 1 / (1 + np.exp(6))), abs=1e-6)
    assert good.deletion_area < 0.03  # half of a step, as the square is one step's 36 pixels
    assert bad.deletion_area > 0.95
    assert min(good.random_deletion_areas) > 0.2
    assert area(good.blob_deletion, good.share) > 0.2
    assert good.drop == pytest.approx(0, abs=1e-6)
    assert bad.drop == pytest.approx(1, abs=0.01)
    assert not good.increase


def test_a_map_that_hides_what_speaks_against_the_class_raises_its_score() -> None:
    net, image = Square(Box(2, 3, 8, 9)), torch.ones(3, 30, 24)
    image[:, 2:8, 3:6] = 0.2
    left, right = np.zeros((30, 24)), np.zeros((30, 24))
    left[2:8, 3:6], right[2:8, 6:9] = 1, 1
    kept = faithfulness(net, image, [a_map(left, 0), a_map(right, 0)])
    whole = 1 / (1 + np.exp(12 * (0.6 - 0.5)))
    assert [one.increase for one in kept] == [True, True]
    assert [one.drop for one in kept] == [0, 0]
    assert kept[0].score == pytest.approx(whole, abs=1e-6)
    (lost,) = faithfulness(net, image, [a_map(left, 1)])
    seen = 1 / (1 + np.exp(-12 * (0.1 - 0.5)))
    assert lost.drop == pytest.approx(1 - seen / (1 - whole), abs=1e-5)


def test_only_the_positive_part_of_a_map_lights_a_picture_up() -> None:
    net, image = Linear(), pictures(1, 12, 9)[0]
    image = image * net.fc.weight[0].detach().reshape(3, 12, 9).sign() * image.sign()
    values = noise(12, 9)
    (found,) = faithfulness(net, image, [a_map(values)], target=first)
    light = torch.from_numpy(np.maximum(values, 0) / values.max()).float()
    with torch.no_grad():
        whole, seen = float(net(image[None])[0, 0]), float(net((image * light)[None])[0, 0])
    assert found.drop == pytest.approx((whole - seen) / whole, rel=1e-5)


def test_where_nothing_is_to_be_lost_there_is_no_drop() -> None:
    (found,) = faithfulness(Linear(), pictures(1, 12, 9)[0], [a_map(noise(12, 9))], target=below)
    assert found.score < 0
    assert np.isnan(found.drop)


def below(scores: torch.Tensor) -> torch.Tensor:
    return -scores[:, 0].abs() - 1


def test_equal_values_are_erased_in_random_order() -> None:
    ranks = order(np.zeros((20, 30)))
    assert sorted(ranks.ravel()) == list(range(600))
    rows = np.array([ranks[row].mean() for row in range(20)])
    assert np.abs(rows - 299.5).max() < 5 * 600 / np.sqrt(12 * 30)
    assert (ranks == order(np.zeros((20, 30)))).all()
    assert (ranks != order(np.zeros((20, 30)), seed=1)).mean() > 0.9


def test_a_flat_map_tells_as_little_as_a_random_one() -> None:
    net, image = Square(Box(0, 0, 8, 24)), torch.ones(3, 30, 24)
    (found,) = faithfulness(net, image, [a_map(np.zeros((30, 24)), 1)], random=8)
    # From the picture's top the square would be gone after 8 of 30 rows: an area of 0.14.
    assert found.deletion_area == pytest.approx(0.5, abs=0.05)


def test_larger_values_come_first_whatever_their_type() -> None:
    for kind in (np.float16, np.float64, np.int8, np.uint8, bool):
        ranks = order(np.array([[0, 1, 0]]).astype(kind))
        assert ranks[0, 1] == 0


def test_the_same_seed_gives_the_same_curves_and_another_seed_others() -> None:
    net, image = Lookalike(), pictures(1, 21, 16)[0]
    maps = [a_map(np.round(noise(21, 16)), 2)]
    one, same = (faithfulness(net, image, maps, road=True)[0] for _ in range(2))
    (other,) = faithfulness(net, image, maps, run=Run(seed=1), road=True)
    for name in (*ARRAYS, "road_most", "road_least"):
        assert (getattr(one, name) == getattr(same, name)).all()
        assert (getattr(one, name) != getattr(other, name)).any() or name.startswith("blob")


@pytest.mark.parametrize("size", [(224, 224), (197, 251), (64, 96)])
@pytest.mark.parametrize("grain", [4, 7, 13, 28])
def test_random_maps_are_as_smooth_as_what_they_are_compared_with(
    size: tuple[int, int], grain: int
) -> None:
    made = [random_map((grain, grain), size, seed) for seed in range(20)]
    found = Counter(cells for one in made for cells in grain_of(one))
    halved = {side // 2**power for side in size for power in range(8)}
    near = sum(count for cells, count in found.items() if 0.66 * grain < cells < 1.51 * grain)
    assert set(found) <= halved | {4}
    assert near >= (32 if grain > 7 else 26)  # of 40; coarse ones cannot be measured as well


def test_maps_of_single_pixels_are_compared_with_maps_of_single_pixels() -> None:
    assert grain_of(noise(197, 251)) == (197, 251)
    assert grain_of(np.zeros((64, 48))) == (4, 4)
    assert grain_of(np.add.outer(np.arange(64.0), np.arange(48.0))) == (4, 4)


def test_random_maps_are_even_and_the_blob_stands_in_the_middle() -> None:
    small = random_map((40, 30), (40, 30), 3)
    assert small.mean() == pytest.approx(0.5, abs=0.03)
    assert small.std() == pytest.approx(1 / np.sqrt(12), abs=0.02)
    middle = blob((41, 31))
    assert np.unravel_index(middle.argmax(), middle.shape) == (20, 15)
    assert middle == pytest.approx(middle[::-1, ::-1])
    assert middle[20, 0] == pytest.approx(middle[0, 15])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (9, 10), (11, 5)])
def test_tiny_pictures_can_be_tested(size: tuple[int, int]) -> None:
    image = pictures(1, *size)[0]
    assert softened(image).numpy() == pytest.approx(slow.blurred(image).numpy(), abs=1e-5)
    net, values = Linear(3, *size), noise(*size)
    (found,) = faithfulness(net, image, [a_map(values)], target=first, road=True)
    start = net(image[None]).detach()[0, 0].item()
    assert found.deletion[[0, -1]] == pytest.approx([start, 0], abs=1e-5)
    assert found.insertion[-1] == pytest.approx(start, abs=1e-5)
    assert found.share[-1] == 1


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_any_batch_gives_the_same_numbers(batch: int) -> None:
    asked = Asked.of(Lookalike(), pictures(1, 21, 16)[0], Targets((2,)))
    ranks, counts = order(noise(21, 16)), range(0, 336, 16)
    whole = replace(asked, batch=21).deleted(ranks, counts)
    parts = replace(asked, batch=batch).deleted(ranks, counts)
    assert np.abs(whole - parts).max() < 1e-6
    assert np.ptp(whole) > 0.01


def outcome(answer: Any = None, target: Any = 2, **how: Any) -> Faithfulness:
    net = Lookalike(answer)
    (found,) = faithfulness(
        net, pictures(1, 21, 16)[0], [a_map(noise(21, 16), 2)], target=target, **how
    )
    return found


@pytest.mark.parametrize(
    "answer",
    [
        lambda scores: (scores, scores[:, :2]),
        lambda scores: {"aux": scores[:, None, None], "logits": scores},
        lambda scores: scores[:, :, None, None],
        lambda scores: scores.softmax(1),
        lambda scores: scores.log_softmax(1),
    ],
    ids=["tuple", "dict", "maps of one place", "probabilities", "their logarithms"],
)
def test_scores_are_found_and_made_probabilities_once(answer: Any) -> None:
    plain, other = outcome(), outcome(answer)
    for name in ARRAYS:
        assert getattr(other, name) == pytest.approx(getattr(plain, name), abs=1e-5)


def test_a_function_of_the_scores_is_followed_as_it_is() -> None:
    plain, other = outcome(), outcome(target=lambda scores: scores.softmax(1)[:, 2])
    assert other.deletion == pytest.approx(plain.deletion, abs=1e-6)
    assert (plain.target, other.target) == (2, -1)


def test_a_class_may_be_named_and_maps_name_their_own() -> None:
    named = outcome(target="c", classes=list("abcde"))
    assert named.deletion == pytest.approx(outcome(target=None).deletion)
    net, image = Lookalike().eval(), pictures(1, 21, 16)[0]
    one, two = faithfulness(net, image, [a_map(noise(21, 16), 1), a_map(noise(21, 16), 4)])
    assert one.score == pytest.approx(probability(net, 1)(image), abs=1e-6)
    assert two.score == pytest.approx(probability(net, 4)(image), abs=1e-6)
    (likeliest,) = faithfulness(net, image, [a_map(noise(21, 16), -1)])
    assert likeliest.target == int(net(image[None]).argmax())


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_give_about_the_same(kind: torch.dtype) -> None:
    image, maps = pictures(1, 21, 16)[0], [a_map(noise(21, 16), 2)]
    (plain,) = faithfulness(Lookalike(), image, maps, road=True)
    (other,) = faithfulness(Lookalike().to(kind), image, maps, road=True)
    close = {torch.float64: 1e-6, torch.float16: 3e-3, torch.bfloat16: 3e-2}[kind]
    for name in (*ARRAYS, "road_most", "road_least"):
        assert np.abs(getattr(other, name) - getattr(plain, name)).max() < close


def test_grey_networks_and_odd_sizes_are_tested_too() -> None:
    net, image = Lookalike(channels=1), pictures(1, 197, 251)[0, :1]
    (map_,) = CAMS["gradcam"](net, image[None], target=3, layer="conv2")
    (found,) = faithfulness(net, image, [map_], steps=4, random=1)
    assert found.deletion.shape == (5,)
    assert found.score == pytest.approx(probability(net.eval(), 3)(image), abs=1e-6)


def test_nothing_of_the_model_or_of_the_random_numbers_is_touched() -> None:
    net, image = Lookalike(), pictures(1, 21, 16)[0]
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    kept, chance, numbers = state_of(net), torch.get_rng_state(), np.random.get_state()[1].copy()
    faithfulness(net, image, [a_map(noise(21, 16), 2)], road=True)
    assert state_of(net) == kept
    assert (torch.get_rng_state() == chance).all()
    assert (np.random.get_state()[1] == numbers).all()


def test_sixteen_threads_get_the_serial_answers() -> None:
    net, images = Lookalike(), pictures(16, 21, 16)

    def one(number: int) -> np.ndarray:
        maps = [a_map(noise(21, 16, seed=number), number % 5)]
        (found,) = faithfulness(net, images[number], maps, road=True, random=2)
        return np.concatenate([found.deletion, found.insertion, found.road_most])

    serial = [one(number) for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        parallel = list(pool.map(one, range(16)))
    assert np.abs(np.array(serial) - np.array(parallel)).max() < 1e-6


def test_progress_counts_every_curve_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    net, image = Lookalike(), pictures(1, 21, 16)[0]
    maps = [a_map(noise(21, 16), 1), a_map(noise(21, 16), 2), a_map(noise(21, 16, seed=1), 2)]
    faithfulness(
        net, image, maps, road=True, random=3, run=Run(progress=lambda *now: told.append(now))
    )
    # Two targets, each with three random maps and the blob; three maps with two and two curves.
    total = 2 * (2 * 3 + 2) + 3 * 4
    assert told == [(done, total) for done in range(1, total + 1)]


def test_results_are_saved_and_read(tmp_path: Path) -> None:
    found = outcome(road=True)
    found.save(tmp_path / "it")
    again = Faithfulness.load(tmp_path / "it")
    assert (again.deletion == found.deletion).all()
    assert (again.road, again.increase, again.origin) == (found.road, found.increase, found.origin)


IMAGE, MAPS = pictures(1, 21, 16)[0], [a_map(noise(21, 16), 2)]
WRONG: dict[str, tuple[str, str, dict[str, Any]]] = {
    "an array for a map": ("U393", "ndarray in the place of a map", {"maps": [noise(21, 16)]}),
    "one map for a list": ("U393", "one Attribution in the place", {"maps": MAPS[0]}),
    "a map of another size": ("U390", "a map of 16×21 beside", {"maps": [a_map(noise(16, 21), 2)]}),
    "a map with NaN": ("U394", "NaN or infinite", {"maps": [a_map(np.full((21, 16), np.nan), 2)]}),
    "two pictures": ("U392", "2 pictures", {"image": pictures(2, 21, 16)}),
    "an array for a picture": ("U376", "no ndarray", {"image": IMAGE.numpy()}),
    "whole numbers": ("U355", "in uint8", {"image": IMAGE.to(torch.uint8)}),
    "no steps": ("U391", "steps=0: must be 1 or more", {"steps": 0}),
    "no random maps": ("U391", "random=0: must be 1 or more", {"random": 0}),
    "a class too many": ("U353", "numbered 0 to 4", {"target": 5}),
    "a map's class too many": ("U353", "class 9", {"maps": [a_map(noise(21, 16), 9)]}),
    "an unknown class": ("U352", "did you mean", {"target": "dogs", "classes": ["dog", "cat"]}),
    "two targets": ("U351", "2 targets for 1", {"target": [1, 2]}),
    "a function of all": ("U354", "one number a picture", {"target": lambda scores: scores.sum()}),
    "no scores": ("M520", "no scores", {"model": Lookalike(lambda s: s.sum())}),
    "NaN": ("M514", "NaN", {"model": Lookalike(lambda s: s / 0 * 0)}),
    "colours": ("M522", "does not take", {"image": IMAGE[:1]}),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_clear_line(case: str) -> None:
    code, words, given = WRONG[case]
    call = {"model": Lookalike(), "image": IMAGE, "maps": MAPS, **given}
    with pytest.raises(ConvscopeError) as fault:
        faithfulness(call.pop("model"), call.pop("image"), call.pop("maps"), **call)
    assert fault.value.code == code
    assert words in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_model_is_left_as_it_was_after_an_error() -> None:
    net = Lookalike(lambda scores: scores / 0 * 0)
    kept = state_of(net)
    with pytest.raises(ConvscopeError):
        faithfulness(net, IMAGE, MAPS)
    assert state_of(net) == kept


def test_what_a_network_keeps_for_itself_may_still_be_differentiated() -> None:
    """As positions that are computed once and shared: under inference mode they could not."""

    class Keeping(Lookalike):
        kept: dict[str, torch.Tensor] = {}  # noqa: RUF012

        def forward(self, x: torch.Tensor) -> Any:
            self.kept.setdefault("positions", torch.ones_like(x[:1]))
            return super().forward(x * self.kept["positions"])

    net = Keeping()
    faithfulness(net, IMAGE, MAPS)
    pixels = IMAGE[None].clone().requires_grad_()
    net.eval()(pixels)[0, 0].backward()
    assert pixels.grad is not None


def test_noise_of_imputation_can_be_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    with_noise = outcome(road=True)
    # The package has a function of this name, so the module is asked for by its path.
    module = importlib.import_module("convscope.metrics.faithfulness")
    monkeypatch.setattr(module, "NOISE", 0.0)
    without = outcome(road=True)
    gap = np.abs(with_noise.road_most - without.road_most)
    assert 0 < gap.max() < 0.02
