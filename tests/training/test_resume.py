"""Does a run that was killed end as one that never was?"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from convscope.core.errors import EnvironmentFault, Stopped
from convscope.pictures.pictures import Pictures
from convscope.training import state
from convscope.training.trainer import TrainResult, train
from tests.training.conftest import TINY

KILLED = """
import sys, time
from convscope.pictures.pictures import Pictures
from convscope.training.recipe import recipe
from convscope.training.trainer import train

def tell(progress):
    if progress.stage == "training":
        print(progress.done, flush=True)
        time.sleep(0.05)

root, plan, out = sys.argv[1:]
with Pictures(root + "/train") as training, Pictures(root + "/val") as validation:
    train(recipe(plan), training, validation, out, progress=tell)
"""


@pytest.fixture(scope="module")
def whole(
    training: Pictures, validation: Pictures, tmp_path_factory: pytest.TempPathFactory
) -> TrainResult:
    """Never killed."""
    return train(TINY, training, validation, tmp_path_factory.mktemp("whole") / "run")


def end_of(run: Path) -> tuple[bytes, bytes, list[str]]:
    """Last and best weights, and metrics without what a clock says."""
    metrics = [line.split(",")[:6] for line in (run / "metrics.csv").read_text().splitlines()]
    last, best = (run / f"{name}.safetensors" for name in ("last", "best"))
    return last.read_bytes(), best.read_bytes(), [",".join(line) for line in metrics]


def after(steps: int) -> Callable[[], bool]:
    """Asks to stop at that step of the process."""
    seen = 0

    def stop() -> bool:
        nonlocal seen
        seen += 1
        return seen > steps

    return stop


def test_a_run_killed_in_the_middle_of_an_epoch_ends_with_the_same_bits(
    whole: TrainResult, painted: Path, training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    threads = str(torch.get_num_threads())
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, painted, whole.folder / "recipe.toml", run],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
    )
    assert child.stdout is not None
    with child, child.stdout:
        for line in child.stdout:
            if int(line) == 10:  # the second step of the third epoch
                child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (run / "done.json").exists()
    assert [path.name for path in sorted((run / "checkpoints").iterdir())][-1] == "epoch-0002"
    result = train(TINY, training, validation, run)
    assert result.resumed_from == 2
    assert end_of(run) == end_of(whole.folder)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"optimiser": "sgd", "schedule": "plateau", "patience": 1, "ema": 0.0, "nesterov": True},
        {"optimiser": "adam", "precision": "bfloat16", "channels_last": False, "mix": 0.5},
    ],
    ids=["adamw, onecycle, ema", "sgd, plateau", "adam, bfloat16, mixing"],
)
def test_a_run_stopped_again_and_again_ends_with_the_same_bits(
    change: dict[str, object],
    training: Pictures,
    validation: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("convscope.training.trainer.GRACE", 0.0)
    recipe = dataclasses.replace(TINY, **change)  # type: ignore[arg-type]
    whole = train(recipe, training, validation, tmp_path / "whole")
    run, resumed = tmp_path / "run", []
    for steps in (2, 5, 7, 3):  # of which the second and third end an epoch
        with pytest.raises(Stopped) as caught:
            train(recipe, training, validation, run, stop=after(steps))
        assert caught.value.exit_status == 75
        assert "last finished epoch" in caught.value.next_step
    result = train(recipe, training, validation, run, progress=lambda p: resumed.append(p.epoch))
    assert result.resumed_from == 2
    assert end_of(run) == end_of(whole.folder)
    assert max(resumed) == 4


def test_asked_to_stop_near_the_end_of_an_epoch_training_finishes_it_first(
    training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    with pytest.raises(Stopped) as caught:
        train(TINY, training, validation, tmp_path / "run", stop=after(5))
    assert caught.value.subject == "epoch 3, step 1 of 4"
    assert "epoch 2" in caught.value.kept


def test_a_state_that_the_disk_has_spoilt_is_passed_over(
    whole: TrainResult, training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        train(TINY, training, validation, run, stop=after(12))
    states = sorted((run / "checkpoints").iterdir())
    assert [path.name for path in states] == ["epoch-0002", "epoch-0003"]
    tensors = states[1] / "state.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-5] ^= 1
    tensors.write_bytes(data)
    half = run / "checkpoints" / ".epoch-0004.tmp-1-aa"
    half.mkdir()
    result = train(TINY, training, validation, run)
    assert result.resumed_from == 2
    assert end_of(run) == end_of(whole.folder)


def test_a_full_disk_ends_the_run_with_a_clear_line_and_nothing_is_lost(
    whole: TrainResult,
    training: Pictures,
    validation: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, real = tmp_path / "run", state.save_file

    def full(tensors: object, path: Path) -> None:
        if "epoch-0003" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(EnvironmentFault) as caught:
        train(TINY, training, validation, run)
    assert caught.value.code == "R602"
    monkeypatch.setattr(state, "save_file", real)
    assert train(TINY, training, validation, run).resumed_from == 2
    assert end_of(run) == end_of(whole.folder)


def test_a_run_killed_after_its_last_epoch_is_only_finished(
    whole: TrainResult,
    training: Pictures,
    validation: Pictures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"

    def killed(*_: object) -> None:
        raise KeyError("killed")

    monkeypatch.setattr(state.RunFolder, "finish", killed)
    with pytest.raises(KeyError):
        train(TINY, training, validation, run)
    monkeypatch.undo()
    result = train(TINY, training, validation, run)
    assert result.resumed_from == 4
    assert result.best_accuracy == whole.best_accuracy
    assert end_of(run) == end_of(whole.folder)
    assert not (run / "checkpoints").exists()
    (run / "checkpoints" / "epoch-0004").mkdir(parents=True)  # killed right after it was done
    train(TINY, training, validation, run)
    assert not (run / "checkpoints").exists()
    shutil.rmtree(run)
