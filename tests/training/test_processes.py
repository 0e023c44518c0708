"""Do two processes train what one would have trained?"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import HashStore

from convscope.core.errors import (
    ConvscopeError,
    DataError,
    EnvironmentFault,
    Stopped,
    UsageError,
)
from convscope.network.checkpoint import read_weights
from convscope.network.load import load
from convscope.pictures.pictures import Pictures
from convscope.training import processes
from convscope.training.data import PictureCache
from convscope.training.processes import Processes, Watch
from convscope.training.recipe import Recipe, to_toml
from convscope.training.trainer import train, validate
from tests.training.conftest import TINY, paint
from tests.training.test_resume import after, end_of

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

        def wait(self, timeout: float = 0) -> None: ...

        def poll(self) -> None: ...

        def kill(self) -> None:
            ended.append(True)

    monkeypatch.setattr(processes.subprocess, "Popen", Started)
    monkeypatch.setattr(processes, "JOINING", timedelta(seconds=1))
    before = dict(os.environ)
    joined = Processes.of(14, 2, 1, "cpu").joined()
    with (
        pytest.raises(EnvironmentFault, match="process 1 of 2: cannot") as caught,
        joined,
    ):
        pass
    assert caught.value.code == "R642"
    assert [(env["RANK"], env["WORLD_SIZE"]) for env in started] == [("1", "2")]
    assert ended == [True]
    assert {name: os.environ.get(name) for name in processes.LAUNCHED} == {
        name: before.get(name) for name in processes.LAUNCHED
    }


PLACE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("given", "nodes", "said"),
    [
        (PLACE, 1, "MASTER_ADDR and MASTER_PORT: not set, but RANK is set"),
        ({"RANK": "0", "WORLD_SIZE": "2"} | MEETING, 1, "LOCAL_RANK and LOCAL_WORLD_SIZE: not"),
        (PLACE | MEETING | {"RANK": "2"}, 1, "RANK=2: must be below the count, which is 2"),
        (PLACE | MEETING | {"LOCAL_RANK": "x"}, 1, "LOCAL_RANK=x: must be a whole number"),
        (MEETING, 2, "NODE_RANK: not set, but --nodes is 2"),
    ],
)
def test_a_variable_that_is_missing_or_wrong_is_named(
    given: dict[str, str], nodes: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*processes.LAUNCHED, "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        Processes.of(14, 1, nodes, "cpu")
    assert caught.value.code == "U308"
    assert said in str(caught.value)


def test_places_are_those_of_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (PLACE | MEETING | {"RANK": "5", "WORLD_SIZE": "7"}).items():
        monkeypatch.setenv(name, value)
    made = Processes.of(14, 1, 1, "cpu")
    assert (made.rank, made.local, made.count, made.here) == (5, 1, 7, 2)
    for name in processes.PLACE:
        monkeypatch.setenv(name, str(int(name.endswith("SIZE"))))
    monkeypatch.delenv("MASTER_ADDR")  # one alone needs no place to meet
    assert (Processes.of(14, 1, 1, "cpu").count, processes.launched()) == (1, False)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watch]]:
    """The watches of two processes, with a store in memory and quick beats."""
    monkeypatch.setattr(processes, "BEAT", 0.05)
    monkeypatch.setattr(processes, "SILENT", 8)
    monkeypatch.setattr(processes.os, "_exit", lambda status: None)
    store = HashStore()
    watches = [Watch(store, (rank, 2, rank), {}) for rank in range(2)]
    joining = threading.Thread(target=watches[1].join)
    joining.start()
    watches[0].join()
    joining.join()
    yield watches
    for watch in watches:
        watch.leave()


def known(watch: Watch) -> ConvscopeError:
    until = time.monotonic() + 10
    while watch.fault is None and time.monotonic() < until:
        time.sleep(0.01)
    assert watch.fault is not None
    return watch.fault


def test_the_fault_of_one_process_ends_all_and_is_told_once(two: list[Watch]) -> None:
    mine = DataError("D153", "cat.jpg", "is gone", next_step="put it back")
    assert two[1].reason(mine) is mine
    theirs = known(two[0])
    assert (type(theirs), str(theirs), theirs.exit_status) == (DataError, str(mine), 3)
    assert (mine.told, theirs.told) == (False, True)
    # What then goes wrong between them came of it.
    assert two[0].reason(RuntimeError("[gloo/pair.cc:1] Connection closed by peer")) is theirs
    bug = KeyError("of the other")
    assert two[0].reason(bug) is bug


def test_a_process_without_a_sign_of_life_ends_the_others(two: list[Watch]) -> None:
    time.sleep(0.5)
    assert two[0].fault is None
    two[1]._over.set()
    fault = known(two[0])
    assert (fault.code, fault.exit_status, fault.told) == ("R576", 75, False)
    assert fault.subject.startswith("process 1 of 2 (pid ")
    assert "the same command goes on" in fault.next_step


def test_a_connection_that_broke_names_the_process_that_is_lost(two: list[Watch]) -> None:
    two[0]._over.set()
    fault = two[1].reason(RuntimeError("[gloo/pair.cc:1] Connection closed by peer"))
    assert isinstance(fault, Stopped)
    assert fault.subject.startswith("process 0 of 2 (pid ")
    own = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert two[1].reason(own) is own


def command(launcher: str, count: int, out: Path, *more: str) -> list[str]:
    """`convscope train` in so many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    torchrun += [*more, "--master-port", "29513"] if launcher == "torchrun" else []
    train = [str(COMMAND), "train", str(out.parent / "painted"), "--out", str(out)]
    train += ["--recipe", str(out.parent / "plan.toml"), "--accelerator", "cpu"]
    if launcher == "torchrun":
        return [*torchrun, *train]
    return [sys.executable, *train, "--devices", str(count)]


def started(
    command: list[str], log: Path, more: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CONVSCOPE_TEST": str(log), **(more or {})},
        )


def processes_of(log: Path) -> dict[int, list[str]]:
    """All that live and came of the command with this log: process number and environment."""
    alive = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if f"CONVSCOPE_TEST={log}" in variables and not dead:
                alive[int(folder.name)] = variables
    return alive


def of_rank(rank: int, log: Path, launcher: subprocess.Popen[bytes]) -> int:
    """The number of the process with that rank; that of the launcher for -1."""
    found = [
        number
        for number, variables in processes_of(log).items()
        if f"RANK={rank}" in variables and b"convscope.pictures" not in _line(number)
    ]
    return launcher.pid if rank < 0 or not found else found[0]


def _line(number: int) -> bytes:
    return Path(f"/proc/{number}/cmdline").read_bytes()


def killed(command: list[str], rank: int, how: signal.Signals, out: Path, epochs: int) -> str:
    """What it said that was killed after so many epochs; all of it has to end within 40 s."""
    log = out.with_suffix(f".{rank}.log")
    launcher, until = started(command, log), time.monotonic() + 60
    metrics = out / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) <= epochs:
        assert launcher.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(of_rank(rank, log, launcher), how)
    until = time.monotonic() + 40
    launcher.wait(40)
    while processes_of(log) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(log) == {}
    assert not (out / "done.json").exists()
    said = log.read_text()
    assert len([line for line in said.splitlines() if "error[" in line]) == 1, said
    return f"{launcher.returncode} {said}"


def plan(recipe: Recipe, epochs: int, folder: Path, judged: int = 25) -> None:
    """A recipe, 3 × 13 pictures, and as a rule 75 to judge by: more than a process does at once."""
    (folder / "plan.toml").write_text(to_toml(dataclasses.replace(recipe, epochs=epochs)))
    paint(folder / "painted" / "train", 13, 0)
    paint(folder / "painted" / "val", judged, 1)


def test_a_killed_process_ends_the_run_and_one_alone_goes_on(tmp_path: Path) -> None:
    plan(PLAIN, 12, tmp_path, judged=5)
    run = tmp_path / "run"
    said = killed(command("trainer", 2, run), 1, signal.SIGKILL, run, 2)
    assert said.startswith("75 ")
    assert "error[R576]: process 1 of 2 (pid " in said
    assert "was ended by SIGKILL" in said
    before = (run / "metrics.csv").read_text().splitlines()
    recipe = dataclasses.replace(PLAIN, epochs=12)
    root = tmp_path / "painted"
    with Pictures(root / "train") as teaching, Pictures(root / "val") as judging:
        result = train(recipe, teaching, judging, run)
        alone = train(recipe, teaching, judging, tmp_path / "alone")
    assert result.resumed_from == len(before) - 1 >= 2
    same_within_rounding(run, alone.folder)


def same_within_rounding(one: Path, two: Path) -> None:
    """Weights, losses and accuracies: the sum over pictures is taken in another order."""
    ours, theirs = (read_weights(run / "last.safetensors")[0] for run in (one, two))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)
    rows = [np.loadtxt(run / "metrics.csv", delimiter=",", skiprows=1) for run in (one, two)]
    np.testing.assert_allclose(rows[0][:, 1:6], rows[1][:, 1:6], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "count", "rank", "how", "status"),
    [
        ("trainer", 2, 0, signal.SIGKILL, -9),
        ("trainer", 2, 0, signal.SIGTERM, 75),
        ("torchrun", 2, 0, signal.SIGKILL, 1),
        ("torchrun", 3, 2, signal.SIGKILL, 1),
        ("torchrun", 2, -1, signal.SIGKILL, -9),
        ("torchrun", 2, -1, signal.SIGTERM, 1),
    ],
)
def test_whoever_is_killed_all_end_and_the_same_command_ends_with_the_same_bits(
    launcher: str, count: int, rank: int, how: signal.Signals, status: int, tmp_path: Path
) -> None:
    """With running means, batch normalisation and dropout."""
    plan(TINY, 24, tmp_path)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert started(command(launcher, count, whole), tmp_path / "log").wait(120) == 0
    said = killed(command(launcher, count, run), rank, how, run, 2)
    assert said.startswith(f"{status} "), said
    assert ("R575" if how == signal.SIGTERM else "R576") in said
    assert started(command(launcher, count, run), tmp_path / "log").wait(120) == 0
    assert end_of(run) == end_of(whole)
    assert float((run / "metrics.csv").read_text().splitlines()[-1].split(",")[0]) == 24


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_stopped(tmp_path: Path) -> None:
    plan(PLAIN, 6, tmp_path)
    root, run = tmp_path / "painted", tmp_path / "run"
    recipe = dataclasses.replace(PLAIN, epochs=6)
    with Pictures(root / "train") as teaching, Pictures(root / "val") as judging:
        alone = train(recipe, teaching, judging, tmp_path / "alone")
        with pytest.raises(Stopped):
            train(recipe, teaching, judging, run, stop=after(8))
    assert not (run / "done.json").exists()
    assert started(command("trainer", 2, run), tmp_path / "log").wait(120) == 0
    same_within_rounding(run, alone.folder)


@pytest.mark.slow
@pytest.mark.parametrize("other", [[], ["--set", "seed=1"]], ids=["same", "another recipe"])
def test_processes_started_by_hand_train_together_the_same_thing(
    other: list[str], tmp_path: Path
) -> None:
    plan(PLAIN, 2, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = MEETING | {"MASTER_PORT": str(free.getsockname()[1])}
    run = command("trainer", 1, tmp_path / "run")
    alive = []
    for rank in (1, 0):
        place = where | PLACE | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        more = other if rank else []
        alive.append(started([*run, *more], tmp_path / f"{rank}.log", place))
    assert [process.wait(60) for process in alive] == ([3, 3] if other else [0, 0])
    said = "".join((tmp_path / f"{rank}.log").read_text() for rank in (0, 1))
    assert said.count("error[D155]") == said.count("error[") == (1 if other else 0)


@pytest.mark.slow
def test_torchrun_starts_a_killed_run_again_by_itself(tmp_path: Path) -> None:
    plan(TINY, 24, tmp_path)
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert started(command("torchrun", 2, whole), log).wait(120) == 0
    launcher = started(command("torchrun", 2, run, "--max-restarts", "1"), log)
    while not (run / "checkpoints" / "epoch-0002").exists():
        time.sleep(0.02)
    os.kill(of_rank(1, log, launcher), signal.SIGKILL)
    assert launcher.wait(120) == 0
    assert "error[R576]" in log.read_text()
    assert end_of(run) == end_of(whole)


@pytest.mark.slow
def test_what_is_reported_of_a_network_is_what_its_saved_weights_give(tmp_path: Path) -> None:
    """Statistics of normalisation are those of the first process, in all that judge."""
    plan(TINY, 4, tmp_path)
    run = tmp_path / "run"
    assert started(command("trainer", 2, run), tmp_path / "log").wait(120) == 0
    rows = np.loadtxt(run / "metrics.csv", delimiter=",", skiprows=1)
    network = load(run / "last.safetensors")
    with Pictures(tmp_path / "painted" / "val") as judging:
        cache = PictureCache(judging, network.preprocess.framing, memory=10**9)
        alone = Processes(torch.device("cpu"))
        loss, accuracy = validate(network.model, cache, network.preprocess, alone).means()
    assert rows[-1][3:5] == pytest.approx([loss, accuracy], rel=1e-6)
