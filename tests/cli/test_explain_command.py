"""Do `convscope explain` and `convscope pointing` answer in words, and refuse in one line?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.cli.app import run

MODEL = "zfnet:width=0.1,head=compact,classes=3"
OWN = """
def middle(model, images, target):
    maps = images[:, 0] * 0
    maps[:, 100, 100] = 1
    return maps
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw = np.random.default_rng(0)
    (tmp_path / "many").mkdir()
    for name in ("one.png", "many/a.png", "many/b.png"):
        pixels = draw.integers(0, 255, (240, 260, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "many" / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "my_maps.py").write_text(OWN)
    (tmp_path / "boxes.json").write_text(json.dumps({"a.png": [[0, 0, 260, 240]]}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_picture_gets_a_line_a_method_and_a_page(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = run(
        ["explain", MODEL, "one.png", "--method", "gradcam,my_maps:middle", "--out", "why"]
    )
    said = capfd.readouterr().out
    assert status == 0
    assert "gradcam" in said
    assert "my_maps:middle" in said
    assert said.splitlines()[-1] == "why/index.html"
    assert (place / "why" / "figure.png").stat().st_size > 10_000
    assert (place / "why" / "records" / "maps" / "gradcam" / "record.json").exists()


def test_of_a_folder_the_broken_picture_is_left_out(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = ["explain", MODEL, "many", "--method", "gradcam", "--max-bad", "0.5", "--out", "why"]
    assert run(told) == 0
    assert (place / "why" / "skipped.csv").exists()
    assert len(list((place / "why" / "pictures").iterdir())) == 2
    assert "2 of 3 pictures" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "status"),
    [
        (["one.png", "--method", "gradcan"], "U395", 2),
        (["none.png"], "D100", 3),
        (["one.png", "--out", "many"], "O501", 5),
        (["one.png", "--method", "gradcam", "--layer", "conv55"], "M500", 4),
        (["one.png", "--method", "gradcam", "--target", "9"], "U353", 2),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    place: Path,
    capfd: pytest.CaptureFixture[str],
    more: list[str],
    code: str,
    status: int,
) -> None:
    assert run(["explain", MODEL, *more]) == status
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"error[{code}]" in said


def test_pointing_counts_what_a_box_around_everything_must_hold(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = run(["pointing", MODEL, "many", "--boxes", "boxes.json", "--method", "my_maps:middle"])
    said = capfd.readouterr().out
    assert status == 0
    assert "| my_maps:middle | 100.0%" in said
    assert (place / "pointing" / "record.json").exists()
