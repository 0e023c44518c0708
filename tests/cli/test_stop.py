"""Does a command that is told to stop end at once, with one line, and leave nothing?"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.cli.stop import AGAIN, stop_on_signals, stoppable
from convscope.core.errors import StopAsked

NET = "zfnet:width=0.0625,head=compact"
RUN = [sys.executable, "-c", "from convscope.cli.app import main; main()"]
LOUD = """
import os, signal, sys
sys.argv[1:1] = []
number, moment = int(os.environ["NUMBER"]), os.environ["MOMENT"]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == moment:
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder())
from convscope.cli.app import main
main()
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, chance = tmp_path_factory.mktemp("stop") / "pics", np.random.default_rng(0)
    place.mkdir()
    for number in range(3):
        pixels = chance.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((240, 240)).save(place / f"{number}.png")
    return place


@pytest.mark.parametrize(
    "moment", ["torch.nn.modules", "torch.autograd.function", "convscope.lens.lens"]
)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_wherever_a_stop_comes_it_is_one_line(
    tmp_path: Path, pictures: Path, moment: str, number: int, status: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOUD, "atlas", NET, str(pictures), "--out", str(tmp_path / "at")],
        env={**os.environ, "NUMBER": str(int(number)), "MOMENT": moment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    *_, last = done.stderr.strip().splitlines()
    assert last.startswith("convscope: ")
    assert last.endswith("Kept: nothing, and nothing half done is left. Next: the same command "
                         "starts again.")  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_stop_in_the_middle_of_the_work_leaves_nothing_and_no_process(
    tmp_path: Path, pictures: Path, number: int
) -> None:
    command = [*RUN, "explain", NET, str(pictures), "--out", str(tmp_path / "why")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(tmp_path.glob(".*/pictures/0/index.html")) and time.monotonic() < until:
        time.sleep(0.05)
    children = _children(process.pid)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "error[R575]" in said
    assert "stopped as asked" in said
    assert "Traceback" not in said
    assert re.search(r"Kept: (3 of 3 pictures|the finished parts), in .*why-run", said)
    assert [path.name for path in tmp_path.iterdir()] == ["why-run"]
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def _children(pid: int) -> list[int]:
    place = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in place.read_text().split()] if place.exists() else []


def test_what_is_ignored_stays_ignored_as_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable(), stop_on_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def stopped(work: Callable[[], None]) -> StopAsked:
    """What comes out of the work, told to stop."""

    def all_of_it() -> None:
        with stoppable():
            work()

    with pytest.raises(StopAsked) as told:
        all_of_it()
    return told.value


def test_a_stop_that_was_swallowed_is_asked_for_again() -> None:
    def work() -> None:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        time.sleep(20 * AGAIN)
        raise AssertionError("not asked again")

    assert stopped(work).number == signal.SIGTERM


def test_a_stop_where_nothing_can_be_raised_is_asked_for_again_without_a_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Goes:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        Goes()
        time.sleep(20 * AGAIN)
        raise AssertionError("not asked again")

    assert stopped(work).number == signal.SIGTERM
    assert capsys.readouterr().err == ""


def test_a_stop_that_was_made_another_fault_is_still_one() -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise RuntimeError("what a library makes of it") from None

    assert stopped(work).number == signal.SIGTERM


def test_clean_up_is_not_interrupted() -> None:
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            time.sleep(2 * AGAIN)
            cleaned.append(1)

    assert stopped(work).exit_status == 130
    assert cleaned == [1]


def test_what_goes_on_later_ends_at_its_next_good_moment_or_at_the_second_call(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        with stop_on_signals() as stop:
            assert not stop()
            signal.raise_signal(signal.SIGTERM)
            assert stop()
            signal.raise_signal(signal.SIGINT)
        raise AssertionError("not stopped")

    assert stopped(work).exit_status == 130
    assert capfd.readouterr().err.count("\n") == 1


def test_a_stop_after_all_is_done_does_not_change_the_status() -> None:
    late = "import atexit, os; atexit.register(os.kill, os.getpid(), {}); "
    for number in (signal.SIGTERM, signal.SIGINT):
        done = subprocess.run(
            [sys.executable, "-c", late.format(int(number)) + RUN[2], "--version"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_handlers_are_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stoppable(), stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_pass_that_is_stopped_keeps_its_parts_and_the_same_command_goes_on(
    tmp_path: Path, pictures: Path
) -> None:
    out = tmp_path / "seen"
    told = ["features", NET, "builtin:scenes", "--maps", "random:1", "--out", str(out)]
    each = "from convscope.scale import engine; engine.SECONDS = -1; " + RUN[2]  # a part a batch
    command = [*RUN[:2], each, *told]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not list(tmp_path.glob("seen-run/*/*/seg/*.seg")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Next: give the same command again to go on" in said
    assert [path.name for path in tmp_path.iterdir()] == ["seen-run"]
    subprocess.run(command, check=True, capture_output=True)
    assert [path.name for path in tmp_path.iterdir()] == ["seen"]
    files = json.loads((out / "DONE.json").read_text())["files"]
    there = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
    assert there.keys() - {"DONE.json"} == files.keys()
    for name, (size, digest) in files.items():
        content = there[name].read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)
