"""Does `convscope optimise` make, keep and tell what it was asked for?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.cli.app import run
from convscope.cli.optimise import Job
from convscope.records.maps import OptimisedPicture

NET = ["optimise", "zfnet:width=0.125,head=compact", "--size", "64x72", "--steps", "3"]


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    levels = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    path = tmp_path / "photograph.png"
    Image.fromarray(levels).save(path)
    return path


def test_units_and_classes_are_made_in_their_order_on_one_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    asked = ["--unit", "conv2:3", "--unit", "conv3:1@2,2", "--class", "7", "--out", str(out)]
    assert run([*NET, *asked]) == 0
    assert capsys.readouterr().out == f"{out / 'sheet.png'}\n"
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "7",
        "7.png",
        "DONE.json",
        "conv2-3",
        "conv2-3.png",
        "conv3-1-2-2",
        "conv3-1-2-2.png",
        "sheet.png",
    ]
    found = OptimisedPicture.load(out / "conv2-3")
    assert found.pixels.shape == (3, 64, 72)
    assert (found.kind, found.subject, found.asked) == ("unit", "conv2:3", 3)
    with Image.open(out / "conv2-3.png") as picture:
        assert picture.size == (72, 64)


def test_a_photograph_is_inverted_and_dreamt_of(tmp_path: Path, photograph: Path) -> None:
    out = tmp_path / "made"
    asked = ["--invert", str(photograph), "--dream", str(photograph)]
    assert run([*NET, *asked, "--layer", "conv1", "--layer", "conv2", "--out", str(out)]) == 0
    kinds = {path.name: OptimisedPicture.load(path).kind for path in out.iterdir() if path.is_dir()}
    assert kinds == {
        "inverted-conv1": "inversion",
        "inverted-conv2": "inversion",
        "dream-conv1": "dream",
        "dream-conv2": "dream",
    }


def test_the_best_photograph_is_told_beside_a_unit(tmp_path: Path, photograph: Path) -> None:
    out = tmp_path / "made"
    pictures = ["--pictures", str(photograph.parent)]
    assert run([*NET, "--unit", "conv2:3", *pictures, "--out", str(out)]) == 0
    assert np.isfinite(OptimisedPicture.load(out / "conv2-3").natural)


def test_a_stopped_picture_is_saved_and_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def stop_soon() -> Iterator[Callable[[], bool]]:
        asked = iter(range(100))
        yield lambda: next(asked) >= 2

    out = tmp_path / "made"
    asked = ["--unit", "conv2:3", "--unit", "conv2:4"]
    with monkeypatch.context() as patch:
        patch.setattr("convscope.cli.optimise.stop_on_signals", stop_soon)
        assert run([*NET, *asked, "--out", str(out)]) == 75
    told = capsys.readouterr()
    assert told.out == f"{out / 'sheet.png'}\n"
    assert "error[R575]" in told.err
    assert f"--start {out / 'conv2-3'}" in told.err
    assert sorted(path.name for path in out.iterdir()) == [
        *("DONE.json", "conv2-3", "conv2-3.png", "sheet.png")
    ]
    kept = OptimisedPicture.load(out / "conv2-3")
    assert len(kept.values) == 2
    more = [*NET, "--unit", "conv2:3", "--start", str(out / "conv2-3"), "--out", str(out / "more")]
    assert run(more) == 0
    gone_on = OptimisedPicture.load(out / "more" / "conv2-3")
    assert gone_on.value > kept.value
    assert gone_on.origin["start"] == "a picture"


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ([], "U368"),
        (["--layer", "conv1"], "U368"),
        (["--invert", "x.png"], "U368"),
        (["--unit", "conv2:3", "--layer", "conv1"], "U368"),
        (["--unit", "conv2"], "U201"),
        (["--unit", "conv99:1"], "M500"),
        (["--unit", "conv2:3", "--over", "median"], "U365"),
        (["--unit", "conv2:3", "--size", "big"], "U320"),
        (["--unit", "conv2:3", "--start", "nowhere"], "D140"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    asked: list[str], code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*NET, *asked, "--out", str(tmp_path / "made")]) in (2, 3, 4)
    assert f"convscope: error[{code}]: " in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "made").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("")
    assert run([*NET, "--unit", "conv2:3", "--out", str(tmp_path)]) == 5
    assert "O501" in capsys.readouterr().err


def test_file_names_are_safe() -> None:
    made = Job("../a: b/c@1", lambda: None)  # type: ignore[arg-type, return-value]
    assert made.file_name == "a-b-c-1"
