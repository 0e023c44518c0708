"""Does training teach, keep what it promises, and refuse what it cannot do?"""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convscope.core.errors import ConvscopeError, ModelError, OutputError, UsageError
from convscope.network.load import load
from convscope.pictures.pictures import Pictures
from convscope.records.predictions import Series
from convscope.representations.predict import evaluate
from convscope.training.recipe import Recipe, recipe
from convscope.training.state import COLUMNS
from convscope.training.trainer import Progress, TrainResult, train
from tests.training.conftest import TINY, paint


@pytest.fixture(scope="module")
def run(
    training: Pictures, validation: Pictures, tmp_path_factory: pytest.TempPathFactory
) -> TrainResult:
    recipe = dataclasses.replace(TINY, epochs=12)
    return train(recipe, training, validation, tmp_path_factory.mktemp("runs") / "run")


def test_three_colours_are_learnt_and_the_network_loads_with_all_that_belongs_to_it(
    run: TrainResult, validation: Pictures
) -> None:
    assert run.best_accuracy > 0.9
    network = load(str(run.folder))
    assert network.classes == ("blue", "green", "red")
    assert network.preprocess.size == (48, 48)
    assert not network.model.training
    found = evaluate(network, validation)
    assert found.top1 == run.best_accuracy
    assert found.confusion.sum() == 15


def test_a_run_folder_holds_what_the_docs_say(run: TrainResult) -> None:
    there = {path.name for path in run.folder.iterdir()} - {".lock"}
    assert there == {
        "run.json",
        "precision.json",
        "recipe.toml",
        "class_indices.json",
        "metrics.csv",
        "tensorboard",
        "series",
        "best.safetensors",
        "last.safetensors",
        "skipped.csv",
        "done.json",
    }
    names = json.loads((run.folder / "class_indices.json").read_text())
    assert names == {"0": "blue", "1": "green", "2": "red"}
    assert recipe(run.folder / "recipe.toml") == dataclasses.replace(TINY, epochs=12)


def test_metrics_series_and_tensorboard_tell_the_same_story(run: TrainResult) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = list(csv.DictReader((run.folder / "metrics.csv").read_text().splitlines()))
    record = Series.load(run.folder / "series")
    assert [int(row["epoch"]) for row in rows] == record.epochs.tolist() == list(range(1, 13))
    for column in COLUMNS:
        told = [float(row[column]) for row in rows]
        kept = record.values[:, record.columns.index(column)]
        np.testing.assert_allclose(told, kept, rtol=1e-6)
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    told = [event.value for event in events.Scalars("accuracy/val")]
    np.testing.assert_allclose(told, record.values[:, COLUMNS.index("val_accuracy")], rtol=1e-6)
    assert record.origin["best_epoch"] == run.best_epoch


def test_a_finished_run_is_not_run_again(
    run: TrainResult, training: Pictures, validation: Pictures
) -> None:
    before = (run.folder / "best.safetensors").stat().st_mtime_ns
    again = train(dataclasses.replace(TINY, epochs=12), training, validation, run.folder)
    assert again.resumed_from == 12
    assert (again.best_accuracy, again.best_epoch) == (run.best_accuracy, run.best_epoch)
    assert np.array_equal(again.series.values, run.series.values)
    assert (run.folder / "best.safetensors").stat().st_mtime_ns == before


def test_another_recipe_or_other_pictures_are_refused_with_what_differs(
    run: TrainResult, training: Pictures, validation: Pictures
) -> None:
    other = dataclasses.replace(TINY, epochs=3, flip=0.25)
    with pytest.raises(OutputError) as caught:
        train(other, training, validation, run.folder)
    assert (caught.value.code, caught.value.exit_status) == ("O511", 5)
    assert "recipe.epochs 12 → 3, recipe.flip 0.5 → 0.25" in str(caught.value)
    fewer = training.subset(range(20))
    with pytest.raises(OutputError, match="the training pictures"):
        train(dataclasses.replace(TINY, epochs=12), fewer, validation, run.folder)


def test_a_folder_with_other_things_in_it_is_left_alone(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError) as caught:
        train(TINY, training, validation, tmp_path)
    assert caught.value.code == "O501"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("damage", ["", "[1]", '{"schema": 1, "recipe": {}}', '{"schema": 99}'])
def test_a_run_that_cannot_be_read_is_told_and_left_alone(
    damage: str, training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(OutputError, match=r"run\.json: was written by a newer") as caught:
        train(TINY, training, validation, tmp_path)
    assert caught.value.code == "O512"
    assert (tmp_path / "run.json").read_text() == damage


def test_observers_see_the_network_at_rest_before_training_and_after_each_epoch(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    seen: list[tuple[int, bool, float]] = []

    def observer(epoch: int, model: nn.Module) -> None:
        torch.rand(3)  # what an observer draws must not change the training
        seen.append((epoch, model.training, float(model.conv1.weight.detach().sum())))

    told: list[Progress] = []
    with_observer = train(
        TINY, training, validation, tmp_path / "a", observers=[observer], progress=told.append
    )
    without = train(TINY, training, validation, tmp_path / "b")
    assert [(epoch, mode) for epoch, mode, _ in seen] == [(n, False) for n in range(5)]
    assert len({weights for *_, weights in seen}) == 5
    assert weights_of(with_observer) == weights_of(without)
    steps = [one for one in told if one.stage == "training"]
    assert [one.done for one in steps] == list(range(1, 17))
    assert [one.done for one in told if one.stage == "reading"] == list(range(1, 55))
    assert steps[-1].seconds_left == pytest.approx(0.0, abs=1e-6)
    assert all(one.total == 16 and one.epochs == 4 for one in steps)


def test_training_gives_the_callers_random_state_and_settings_back(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = (torch.rand(2).tolist(), random.random(), float(np.random.rand()))
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    train(dataclasses.replace(TINY, epochs=1), training, validation, tmp_path / "run")
    assert (torch.rand(2).tolist(), random.random(), float(np.random.rand())) == expected
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_last_good_epoch(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    wild = dataclasses.replace(
        TINY, optimiser="sgd", learning_rate=1e-3, schedule="constant", ema=0.0, epochs=5
    )
    broken: list[int] = []

    def break_weights(epoch: int, model: nn.Module) -> None:
        if epoch == 2:
            broken.append(epoch)
            with torch.no_grad():
                model.conv3.weight[0, 0, 0, 0] = float("inf")

    with pytest.raises(ModelError) as caught:
        train(wild, training, validation, tmp_path / "run", observers=[break_weights])
    fault = caught.value
    assert broken == [2]
    assert (fault.code, fault.exit_status) == ("M551", 4)
    assert fault.subject == "epoch 3, step 1 of 4"
    assert "conv3.weight" in fault.what
    assert "learning_rate=0.0001" in fault.next_step


def test_a_rate_far_too_high_is_told_as_such(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    wild = dataclasses.replace(
        TINY,
        model="zfnet:width=0.1,head=compact",
        optimiser="sgd",
        learning_rate=1e5,
        schedule="constant",
        ema=0.0,
    )
    with pytest.raises(ModelError, match="the loss is not finite"):
        train(wild, training, validation, tmp_path / "run")


def test_only_one_process_at_a_time_may_train_in_a_folder(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    second: list[ConvscopeError] = []

    def intrude(epoch: int, model: nn.Module) -> None:
        if epoch == 1:
            with pytest.raises(OutputError) as caught:
                train(TINY, training, validation, tmp_path / "run")
            second.append(caught.value)

    train(TINY, training, validation, tmp_path / "run", observers=[intrude])
    assert [fault.code for fault in second] == ["O513"]


def test_pictures_that_cannot_be_used_are_listed(validation: Pictures, tmp_path: Path) -> None:
    paint(tmp_path / "train", 13, 0)
    (tmp_path / "train" / "red" / "broken.png").write_bytes(b"<!DOCTYPE html>")
    one = dataclasses.replace(TINY, epochs=1)
    with Pictures(tmp_path / "train", max_bad=0.1) as folder:
        train(one, folder, validation, tmp_path / "run")
    listed = list(csv.DictReader((tmp_path / "run" / "skipped.csv").read_text().splitlines()))
    assert [(row["name"], row["code"]) for row in listed] == [("red/broken.png", "D101")]
    with Pictures(tmp_path / "train") as strict, pytest.raises(ConvscopeError) as caught:
        train(one, strict, validation, tmp_path / "other")
    assert caught.value.exit_status == 3


def test_classes_must_be_two_at_least_and_the_same_in_both_folders(
    painted: Path, training: Pictures, tmp_path: Path
) -> None:
    paint(tmp_path / "val", 2, 0)
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "rot")
    with Pictures(tmp_path / "val") as other, pytest.raises(UsageError, match="red, rot") as caught:
        train(TINY, training, other, tmp_path / "run")
    assert caught.value.code == "U307"
    with Pictures(painted / "val" / "red") as flat, pytest.raises(ConvscopeError) as alone:
        train(TINY, flat, flat, tmp_path / "run")
    assert alone.value.code == "D150"
    assert not (tmp_path / "run").exists()


def test_the_papers_way_works_on_a_small_scale(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    """Inputs from 0 to 255 minus the mean picture, contrast normalisation, clipped filters."""
    paper = dataclasses.replace(
        recipe("paper"),
        model="zfnet:width=0.1,norm=lrn,head=compact",
        epochs=2,
        batch=12,
        size=48,
        test_size=48,
        test_resize=54,
        filter_rms=0.011,
    )
    result = train(paper, training, validation, tmp_path / "run")
    network = load(str(result.folder))
    assert np.shape(network.preprocess.mean) == (3, 48, 48)
    assert 60 < float(np.mean(network.preprocess.mean)) < 140
    sizes = network.model.conv1.weight.detach().square().mean((1, 2, 3)).sqrt()
    assert float(sizes.max()) <= 0.011 * (1 + 1e-6)
    assert float(sizes.max()) > 0.01
    assert evaluate(network, validation, views=10).views == 10


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"channels_last": False}])
def test_other_number_formats_and_layouts_train_too(
    change: dict[str, str], training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    fast = dataclasses.replace(TINY, epochs=3, **change)
    result = train(fast, training, validation, tmp_path / "run")
    assert result.series.values[-1, 0] < result.series.values[0, 0]
    for value in load(str(result.folder)).model.state_dict().values():
        assert value.dtype in (torch.float32, torch.int64)


def test_a_batch_must_be_divisible_among_the_processes(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        train(Recipe(batch=15), training, validation, tmp_path / "run", devices=2)
    assert caught.value.code == "U306"


def weights_of(result: TrainResult) -> bytes:
    return (result.folder / "last.safetensors").read_bytes()
