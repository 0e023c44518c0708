"""Do the commands train, predict and evaluate say and leave what their help promises?"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from convscope.cli.app import run
from convscope.cli.train import left
from convscope.records.predictions import Evaluation
from convscope.training.recipe import to_toml
from tests.training.conftest import TINY, paint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures/train`, `pictures/val`, `plan.toml`, and a trained `run`."""
    root = tmp_path_factory.mktemp("command")
    paint(root / "pictures" / "train", 13, 0)
    paint(root / "pictures" / "val", 5, 1)
    (root / "plan.toml").write_text(to_toml(TINY))
    assert run(train(root, "--set", "epochs=10")) == 0
    return root


def train(root: Path, *more: str) -> list[str]:
    plan, out = str(root / "plan.toml"), str(root / "run")
    return ["train", str(root / "pictures"), "--recipe", plan, "--out", out, *more]


def test_training_prints_its_folder_and_leaves_curves_and_an_evaluation(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(train(place, "--set", "epochs=10")) == 0
    told = capsys.readouterr()
    assert told.out == f"{place / 'run'}\n"
    assert re.search(r"best epoch \d+ of 10: \d+\.\d% of 15 validation pictures", told.err)
    for name in ("curves.png", "evaluation/confusion.png"):
        with Image.open(place / "run" / name) as figure:
            assert figure.width > 400
    found = Evaluation.load(place / "run" / "evaluation")
    assert found.confusion.sum() == 15
    assert f"{found.top1:.1%}" in told.err


def test_prediction_tells_the_likeliest_classes_in_aligned_lines(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    red = place / "pictures" / "val" / "red" / "00.png"
    green = place / "pictures" / "val" / "green" / "00.png"
    command = ["predict", str(place / "run"), str(red), str(green), "--out", str(place / "figures")]
    assert run([*command, "--views", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(red)
    assert re.fullmatch(r"  red    +\d+\.\d%", lines[1])
    assert sum(float(line.split()[1][:-1]) for line in lines[1:4]) == pytest.approx(100, abs=0.2)
    assert len({len(line) for line in lines[1:4]}) == 1
    assert lines[4] == str(place / "figures" / "00.png")
    assert lines[9] == str(place / "figures" / "00-2.png")  # nothing is overwritten
    assert all(Path(lines[place_]).stat().st_size > 3000 for place_ in (4, 9))


def test_evaluation_tells_top_1_and_top_5_and_saves_a_record(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "measured"
    command = ["evaluate", str(place / "run"), str(place / "pictures" / "val"), "--out", str(out)]
    assert run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    found = Evaluation.load(out)
    right = round(found.top1 * 15)
    assert lines[0].startswith(f"top-1  {found.top1:7.2%}  {right} of 15 pictures; error ")
    assert lines[1] == "top-3  100.00%  15 of 15 pictures; error 0.0 % (0.0 to 20.4)"
    assert lines[2] == str(out)
    assert run(command) == 5
    assert "error[O501]" in capsys.readouterr().err


def test_labels_come_from_a_file_where_folders_do_not_tell(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = place / "pictures" / "val" / "green"
    labels = tmp_path / "labels.json"
    command = ["evaluate", str(place / "run"), str(flat), "--labels", str(labels)]
    assert run(command) == 2
    assert "error[U313]" in capsys.readouterr().err
    labels.write_text(json.dumps({f"{number:02d}.png": "green" for number in range(5)}))
    assert run(command) == 2
    assert "does not hold a class index for each name" in capsys.readouterr().err
    labels.write_text(json.dumps({f"{number:02d}.png": 1 for number in range(4)}))
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    assert "of 4 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (("--set", "epoch=3"), 2, "error[U301]: epoch: no such field in a recipe; did you mean"),
        (("--recipe", "tutoral"), 2, "error[U305]: tutoral: no such recipe; did you mean tutorial"),
        (("--set", "epochs=3"), 5, "error[O511]"),
        (("--validation", "nowhere"), 3, "error[D100]"),
        (
            ("--accelerator", "tpuu"),
            2,
            "error[U378]: tpuu: no such accelerator; there are auto, cpu",
        ),
        (("--accelerator", "mps"), 6, "error[R641]: mps: this machine has none"),
        (("--out", "setup.cfg"), 5, "error[O501]: setup.cfg: is a file"),
        (("--out", "setup.cfg/run"), 5, "error[O501]: setup.cfg: is a file"),
    ],
)
def test_mistakes_are_told_in_one_line(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    status: int,
    said: str,
) -> None:
    monkeypatch.chdir(place)
    Path("setup.cfg").write_text("mine")
    assert run(train(place, *more)) == status
    assert Path("setup.cfg").read_text() == "mine"
    told = capsys.readouterr()
    assert said in told.err.splitlines()[-1]
    assert "Traceback" not in told.err
    assert told.out == ""


def test_asked_to_stop_the_command_ends_with_75_and_the_same_command_goes_on(place: Path) -> None:
    out = place / "stopped"
    command = [*train(place)[:-1], str(out), "--set", "epochs=400"]
    child = subprocess.Popen(
        [sys.executable, "-c", "from convscope.cli.app import main; main()", *command],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with child:
        while not (out / "metrics.csv").exists():
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        assert child.stderr is not None
        told = child.stderr.read()
    assert child.returncode == 75, told
    last = told.splitlines()[-1]
    assert "error[R575]" in last
    assert "the same command goes on from the last finished epoch" in last
    assert "in last.safetensors" in last


def test_time_left_is_told_as_people_tell_it() -> None:
    assert left(59.4) == "0:59 min left"
    assert left(601) == "10:01 min left"
    assert left(3600 * 2 + 125) == "2 h 02 min left"


def test_fewer_pictures_than_a_batch_are_trained_on_and_that_is_said(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    few = ["--set", "batch=64", "--set", "drop_last=true", "--set", "epochs=1"]
    assert run([*train(place)[:-1], out, *few]) == 0
    told = capsys.readouterr()
    assert "39 pictures make less than a batch of 64: one step an epoch" in told.err
    assert told.out == f"{out}\n"
