"""Is the fastest way chosen, noise ignored, memory kept to, and the answer remembered?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import convscope
from convscope.core.errors import UsageError
from convscope.core.run import Run
from convscope.network import tuning as tuner
from convscope.network.network import Network
from convscope.network.tuning import Trial, Tuning, tune
from convscope.pictures.pictures import Pictures
from convscope.representations.topk import topk
from tests.nets import state_of

Cost = Callable[[Trial], float]


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn1(self.conv1(x)).relu().mean((2, 3)))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return convscope.load(Normed())


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[Cost], list[Trial]]:
    """Let ways take as long as a function says, rather than what they take here."""

    def with_cost(cost: Cost) -> list[Trial]:
        ran: list[Trial] = []

        def run(self: object, trial: Trial) -> Callable[[], float]:
            def once() -> float:
                ran.append(trial)
                return cost(trial)

            return once

        monkeypatch.setattr(tuner._Tuner, "_run", run)
        return ran

    return with_cost


def test_the_fastest_way_is_chosen(network: Network, pretend, tmp_path: Path) -> None:
    def cost(trial: Trial) -> float:
        return abs(trial.batch - 8) + (1 if trial.fold else 5) + (0 if trial.channels_last else 9)

    pretend(cost)
    best = tune(network, cache=tmp_path).best
    assert (best.batch, best.fold, best.channels_last) == (8, True, True)


def test_what_is_hardly_faster_does_not_replace_the_usual_way(
    network: Network, pretend, tmp_path: Path
) -> None:
    pretend(lambda trial: 1.0 if trial.channels_last and not trial.fold else 0.97)
    best = tune(network, cache=tmp_path).best
    assert best.channels_last
    assert not best.fold


def test_one_slow_run_of_the_usual_way_decides_nothing(
    network: Network, pretend, tmp_path: Path
) -> None:
    ran: list[Trial] = []
    ran = pretend(lambda trial: 40.0 if len(ran) == 4 and trial == ran[0] else 1.0)
    assert tune(network, cache=tmp_path).best.named() == ran[0].named()
    assert len(set(ran[:3])) == 3
    assert ran[3] == ran[0]  # the slow one


def test_hopeless_ways_are_tried_once(network: Network, pretend, tmp_path: Path) -> None:
    ran = pretend(lambda trial: 1.0 if trial.channels_last else 2.0)
    tune(network, cache=tmp_path)
    contiguous = [trial for trial in ran if not trial.channels_last]
    assert len(contiguous) == 2  # the first run of anything does not count


def test_it_is_measured_once_and_remembered(network: Network, pretend, tmp_path: Path) -> None:
    ran = pretend(lambda trial: 9 / trial.batch)
    first = tune(network, cache=tmp_path)
    count = len(ran)
    assert tune(network, cache=tmp_path) == first
    assert len(ran) == count > 0
    tune(network, cache=tmp_path, fresh=True)
    tune(network, cache=tmp_path, run=Run(memory=10**8))
    assert len(ran) > 2 * count
    assert len(list(tmp_path.rglob("*.json"))) == 2


def test_a_damaged_memory_is_measured_again(
    network: Network, pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(lambda trial: 9 / trial.batch)
    monkeypatch.setattr(tuner, "_workers", lambda framing, seconds: 2)
    first = tune(network, cache=tmp_path)
    (kept,) = tmp_path.rglob("*.json")
    plain = json.loads(kept.read_text())
    for damage in ('{"best"', "[]", json.dumps({**plain, "best": {**plain["best"], "batch": 0}})):
        kept.write_text(damage)
        assert tune(network, cache=tmp_path) == first


def test_what_does_not_fit_into_memory_is_not_tried(
    network: Network, pretend, tmp_path: Path
) -> None:
    ran = pretend(lambda trial: 9 / trial.batch)
    found = tune(network, cache=tmp_path, run=Run(memory=20_000_000))
    assert found.bytes <= 20_000_000
    assert max(trial.batch for trial in ran) == found.batch < 64


def test_a_memory_too_small_for_one_picture_is_refused(network: Network, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"one picture needs about .* MB, and 0 MB are allowed"):
        tune(network, cache=tmp_path, run=Run(memory=1000))


def test_half_precision_is_tried_only_where_asked_and_not_emulated(
    network: Network, pretend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuner, "has_bfloat16", lambda device: False)
    ran = pretend(lambda trial: 1.0 if trial.precision == "float32" else 0.3)
    assert tune(network, cache=tmp_path).best.precision == "float32"
    assert {trial.precision for trial in ran} == {"float32"}
    assert tune(network, cache=tmp_path, half=True).best.precision == "float32"
    monkeypatch.setattr(tuner, "has_bfloat16", lambda device: True)
    again = tune(network, cache=tmp_path, half=True, fresh=True)
    assert again.best.precision == "bfloat16"


def test_a_real_measurement_leaves_model_and_threads_as_they_were(
    network: Network, tmp_path: Path
) -> None:
    network.model.train()
    before, threads = state_of(network.model), torch.get_num_threads()
    found = tune(network, cache=tmp_path, seconds=0.3)
    assert state_of(network.model) == before
    assert torch.get_num_threads() == threads
    assert all(0 < trial.seconds < 10 for trial in found.trials)
    assert found.trials[0].named() in "\n".join(found.lines())
    assert "<- chosen" in "\n".join(found.lines())


def pictures(folder: Path) -> Pictures:
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(7):
        pixels = rng.integers(0, 255, (230, 250, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return Pictures(folder)


@pytest.mark.parametrize("way", [Trial(3, fold=True), Trial(2, channels_last=False)])
def test_a_tuned_search_finds_the_same_but_for_rounding_and_says_how(
    way: Trial, network: Network, tmp_path: Path
) -> None:
    network.model.bn1.running_mean.normal_()
    tuning = Tuning(way, workers=2, bytes=1, machine="here")
    before = state_of(network.model)
    with pictures(tmp_path) as folder:
        usual = topk(network, folder, k=3)
        tuned = topk(network, folder, k=3, tuning=tuning)
        again = topk(network, folder, k=3, tuning=tuning, batch=way.batch)
        parts = [topk(network, folder, k=3, tuning=tuning, part=(n, 2)) for n in (0, 1)]
    assert tuned.layers == ("bn1",)
    assert np.allclose(tuned.value, usual.value, rtol=1e-5)
    assert (tuned.image == usual.image).all()
    assert tuned.origin["batch"] == way.batch
    assert tuned.origin["tuning"] == tuning.origin()
    assert "tuning" not in usual.origin
    for other in (again, parts[1].merge(parts[0])):
        assert other.value.tobytes() == tuned.value.tobytes()
    assert state_of(network.model) == before
    with pytest.raises(UsageError, match="not parts of one pass"):
        parts[0].merge(usual)


def test_evaluation_and_features_take_a_tuning_and_nothing_else(network: Network) -> None:
    for call in (convscope.evaluate, convscope.features, convscope.topk):
        with pytest.raises(UsageError, match="an int is no tuning"):
            call(network, "builtin:photos", tuning=8)
