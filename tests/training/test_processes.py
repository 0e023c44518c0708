"""Do two processes train what one would have trained?"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convscope.network.checkpoint import read_weights
from convscope.pictures.pictures import Pictures
from convscope.training import processes
from convscope.training.processes import Processes
from convscope.training.recipe import to_toml
from convscope.training.trainer import train
from tests.training.conftest import TINY

COMMAND = Path(sys.executable).parent / "convscope"
PLAIN = dataclasses.replace(
    TINY,
    model="zfnet:width=0.1,head=compact,dropout=0",
    optimiser="sgd",
    learning_rate=0.01,
    batch=14,
    ema=0.9,
    epochs=2,
)
"""Neither dropout nor batch normalisation, which see each process's own pictures."""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["trainer", "torchrun"])
def test_two_processes_end_with_the_weights_of_one(
    launcher: str, painted: Path, training: Pictures, validation: Pictures, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(to_toml(PLAIN))
    arguments = ["train", str(painted), "--recipe", str(plan), "--out", str(tmp_path / "two")]
    arguments += ["--accelerator", "cpu"]
    command = [sys.executable, str(COMMAND), *arguments, "--devices", "2"]
    if launcher == "torchrun":
        run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29511"]
        command = [sys.executable, *run, str(COMMAND), *arguments]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "two")
    train(PLAIN, training, validation, tmp_path / "one")
    one, _ = read_weights(tmp_path / "one" / "last.safetensors")
    two, _ = read_weights(tmp_path / "two" / "last.safetensors")
    for name, value in one.items():
        # The sum over pictures is taken in another order: equal up to rounding, not in all bits.
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    columns = [2, 4]  # training and validation accuracy: whole numbers of pictures
    rows = [
        [
            [line.split(",")[column] for column in columns]
            for line in (tmp_path / run / "metrics.csv").read_text().splitlines()
        ]
        for run in ("one", "two")
    ]
    assert rows[0] == rows[1]


def test_processes_that_cannot_join_are_ended_and_leave_no_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[dict[str, str]] = []
    ended: list[bool] = []

    class Started:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            started.append(dict(env))

        def wait(self) -> None: ...

        def terminate(self) -> None:
            ended.append(True)

    def unreachable(backend: str) -> None:
        raise ConnectionError(backend)

    monkeypatch.setattr(processes.subprocess, "Popen", Started)
    monkeypatch.setattr(processes.distributed, "init_process_group", unreachable)
    before = dict(os.environ)
    with pytest.raises(ConnectionError, match="gloo"), Processes.of(14, 2, 1, "cpu").joined():
        pass
    assert [(env["RANK"], env["WORLD_SIZE"]) for env in started] == [("1", "2")]
    assert ended == [True]
    assert {name: os.environ.get(name) for name in processes.LAUNCHED} == {
        name: before.get(name) for name in processes.LAUNCHED
    }
