"""Does a bad picture among good ones stop a command, and is it told which ones were left out?"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.cli.app import run

NET = "zfnet:width=0.05,head=compact"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two good pictures of the same name in two folders, and four files that are none."""
    root = tmp_path / "pictures"
    for number, name in enumerate(("b/one.png", "d/one.jpg")):
        (root / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((31, 44, 3), 90 * number + 20, np.uint8)).save(root / name)
    for name in ("a.jpg", "c.jpg", "e.jpg", "f.jpg"):
        (root / name).write_bytes(b"nothing" if name != "c.jpg" else b"")
    return root


def test_prediction_goes_on_past_unusable_pictures_of_a_folder(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["predict", NET, str(pictures), "--out", str(out), "--max-bad", "0.7"]) == 0
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if line.endswith(("png", "jpg"))] == [
        "b/one.png",
        str(out / "b" / "one.png"),
        "d/one.jpg",
        str(out / "d" / "one.png"),
    ]
    assert "2 of 6 pictures used; 4 skipped (4 D101 not an image)" in told.err
    assert f"which, and why: {out / 'skipped.csv'}" in told.err
    with (out / "skipped.csv").open(newline="") as table:
        assert [row["name"] for row in csv.DictReader(table)] == [
            "a.jpg",
            "c.jpg",
            "e.jpg",
            "f.jpg",
        ]


def test_more_unusable_than_allowed_ends_in_3_with_the_figures_kept(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    good = str(pictures / "b" / "one.png")
    bad = [str(pictures / name) for name in ("a.jpg", "c.jpg", "e.jpg", "f.jpg")]
    assert run(["predict", NET, *bad, good, "--out", str(out)]) == 3
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("convscope: error[D118]: 1 of 5 pictures used; 4 skipped")
    for name in bad[:3]:  # the first three by their whole path, and how many more
        assert name in told
    assert bad[3] not in told
    assert "and 1 more" in told
    assert f"Kept: which pictures, and why, in {out / 'skipped.csv'}." in told
    assert "--max-bad" in told
    assert (out / "one.png").is_file()


@pytest.mark.parametrize("command", [("evaluate", "--labels", "labels.json"), ("atlas",)])
def test_the_list_lies_beside_a_place_for_results_that_stays_free(
    command: tuple[str, ...],
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.json").write_text('{"d": 0}')
    out = tmp_path / "out"
    (pictures / "b" / "one.png").unlink()
    for number in ("", "-2"):
        assert run([command[0], NET, str(pictures), "--out", str(out), *command[1:]]) == 3
        listed = tmp_path / f"out-skipped{number}.csv"
        told = capsys.readouterr().err
        assert f"in {listed}." in told
        assert "error[D1" in told
        assert listed.read_text().count("\n") == 5
    assert not out.exists()


def test_a_single_unusable_picture_tells_its_own_fault_with_its_path(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = str(pictures / "c.jpg")
    assert run(["predict", NET, bad, "--out", str(tmp_path / "out")]) == 3
    assert f"error[D101]: {bad}: empty file." in capsys.readouterr().err


def test_what_is_not_there_is_told_before_the_work(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, gone = str(pictures / "b" / "one.png"), str(pictures / "gone.png")
    assert run(["predict", NET, good, gone, "--out", str(tmp_path / "out")]) == 3
    assert f"error[D121]: {gone}: there is no such file." in capsys.readouterr().err
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert run(["predict", NET, good, "--out", str(taken)]) == 5
    assert f"error[O501]: {taken}: is a file" in capsys.readouterr().err
    assert taken.read_text() == "mine"
