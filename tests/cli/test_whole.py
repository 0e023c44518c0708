"""Is a result whole or not there: killed, on a full disk, or made by two commands at once?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.cli.app import run
from convscope.cli.results import add_file, add_study

ROOT = Path(__file__).parents[2]
KILLS = ROOT / "bench" / "kills.py"
NET = "zfnet:width=0.0625,head=compact"
FEATURES = [NET, "--layers", "conv1", "--maps", "random:2", "--top", "2"]
RUN = [sys.executable, "-c", "from convscope.cli.app import main; main()"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, chance = tmp_path_factory.mktemp("whole") / "pics", np.random.default_rng(0)
    place.mkdir()
    for number in range(3):
        pixels = chance.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((240, 240)).save(place / f"{number}.png")
    return place


def survey(*options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(KILLS), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_features_killed_at_some_moments_are_completed_by_the_same_command() -> None:
    assert " 0 wrong" in survey("--studies", "features", "--kills", "2", "--seed", "1")


def test_features_on_a_disk_that_is_full_at_some_moments_leave_nothing() -> None:
    assert " 0 wrong" in survey("--studies", "features", "--kills", "2", "--seed", "2", "--full")


@pytest.mark.slow
def test_sixty_kills_of_six_commands_leave_no_trace() -> None:
    assert survey("--kills", "60").splitlines()[-1].startswith("60 tried, 0 wrong")


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes; skips where we may not make one."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no disk can be made here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("size", [4096, 16_384, 40_000, 60_000])
def test_a_disk_that_is_really_full_is_r602_and_stays_empty(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        command = ["features", *FEATURES, "--out", str(disk / "o")]
        command.insert(2, str(pictures))
        assert run(command) == 6
        told = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(told) == 1
        assert "error[R602]" in told[0]
        assert [path.name for path in disk.iterdir()] in ([], ["o-run"])
        assert ("Kept: the finished parts" in told[0]) == (disk / "o-run").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert run(command) == 0
        assert sorted(path.name for path in disk.iterdir()) == ["o"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_where_nothing_can_be_written_is_told_before_the_work(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o555)
    assert run(["atlas", "none:such", str(pictures), "--out", str(tmp_path / "at")]) == 6
    assert "error[R603]" in capsys.readouterr().err


def test_of_two_atlases_of_one_place_the_second_is_told_at_once(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["atlas", NET, str(pictures), "--out", str(tmp_path / "at")]
    first = subprocess.Popen([*RUN, *command], stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not (tmp_path / ".at.convscope-lock").exists() and time.monotonic() < until:
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # so that it is at it, however long we take
    try:
        assert run(["atlas", "none:such", *command[2:]]) == 5  # before it looks at the network
        told = capsys.readouterr().err
        assert "error[O501]" in told
        assert "another convscope is making this very result now" in told
    finally:
        first.kill()
        first.communicate()
    assert run(["atlas", NET, str(pictures), "--layers", "conv1", *command[3:]]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["at"]


def test_the_same_file_or_study_is_not_kept_twice_and_another_is_numbered(tmp_path: Path) -> None:
    place = tmp_path / "a.png"
    for content, name in ((b"1", "a.png"), (b"2", "a-2.png"), (b"1", "a.png"), (b"2", "a-2.png")):
        assert add_file(place, content).name == name
    for content, name in (("1", "r"), ("2", "r-2"), ("2", "r-2"), ("1", "r")):

        def write(folder: Path, content: str = content) -> None:
            (folder / "in").mkdir()
            (folder / "in" / "x").write_text(content)

        assert add_study(tmp_path / "r", write).name == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.png", "a.png", "r", "r-2"]


def test_pictures_left_out_are_listed_in_the_result_itself(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for path in pictures.iterdir():
        (some / path.name).write_bytes(path.read_bytes())
    (some / "no.png").write_bytes(b"no picture")
    out = tmp_path / "o"
    assert (
        run(
            ["features", FEATURES[0], str(some), *FEATURES[1:], "--max-bad", "1", "--out", str(out)]
        )
        == 0
    )
    assert f"which, and why: {out / 'skipped.csv'}" in capsys.readouterr().err
    assert "no.png" in (out / "skipped.csv").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "some"]


def test_a_url_is_no_place_for_a_result(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["features", FEATURES[0], str(pictures), *FEATURES[1:], "--out", "s3://a/b"]) == 2
    assert not list(tmp_path.iterdir())
