"""Does a result appear whole or not at all, whatever fails on the way?"""

from __future__ import annotations

import errno
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

from convscope.core import publish
from convscope.core.errors import EnvironmentFault, OutputError
from convscope.core.publish import (
    claimed,
    publish_file,
    publish_folder,
    publishing,
    sweep,
    unfinished,
)

HELD = """
import sys, time
from pathlib import Path
from convscope.core.publish import claimed, publishing
with claimed(Path(sys.argv[1])), publishing(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    publish_file(tmp_path / "a" / "b.txt", b"one")
    publish_file(tmp_path / "a" / "b.txt", b"two")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"two"
    assert left(tmp_path / "a") == ["b.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    publish_file(tmp_path / "b.txt", b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if call == "fsync" else Path, call, full)
    with pytest.raises(EnvironmentFault, match="disk is full") as caught:
        publish_file(tmp_path / "b.txt", b"new")
    assert caught.value.code == "R602"
    assert (tmp_path / "b.txt").read_bytes() == b"old"
    assert left(tmp_path) == ["b.txt"]


def test_a_folder_with_something_in_it_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="nothing is overwritten"):
        publish_folder(tmp_path / "run", lambda folder: None)
    assert left(tmp_path / "run") == ["mine.txt"]


def test_a_writer_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        publish_folder(tmp_path / "run", write)
    assert left(tmp_path) == []


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    publish_folder(tmp_path / "run", lambda folder: (folder / "a").write_text("x") and None)
    assert left(tmp_path / "run") == ["a"]


@contextmanager
def another(target: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is making `target`."""
    process = subprocess.Popen([sys.executable, "-c", HELD, str(target)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_what_a_killed_process_left_goes_and_what_a_living_one_makes_stays(tmp_path: Path) -> None:
    with another(tmp_path / "dead") as process, another(tmp_path / "alive"):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert len(left(tmp_path)) == 4
        sweep(tmp_path)
        assert [name.partition(".convscope")[0] for name in left(tmp_path)] == [".alive", ".alive"]
        publish_folder(tmp_path / "dead", lambda folder: (folder / "a").write_text("x") and None)
        with claimed(tmp_path / "dead2"):
            pass
    with claimed(tmp_path / "dead3"), claimed(tmp_path / "alive"):
        pass
    assert left(tmp_path) == ["dead"]
    (tmp_path / ".gone.convscope-lock").touch()
    (tmp_path / own_name(start=1)).mkdir()
    with pytest.raises(OutputError), claimed(tmp_path / "dead"):  # whatever it comes to
        pass
    assert left(tmp_path) == ["dead"]


def test_who_comes_second_is_told_at_once_and_a_dead_holder_is_none(tmp_path: Path) -> None:
    with another(tmp_path / "new" / "out") as process:
        with pytest.raises(OutputError, match="another convscope is making") as told:
            claimed(tmp_path / "new" / "out").__enter__()
        assert told.value.code == "O501"
        process.kill()
        process.wait()
        with claimed(tmp_path / "new" / "out"):
            assert left(tmp_path / "new") == [".out.convscope-lock"]
    assert left(tmp_path / "new") == []


def test_a_claim_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b" / "c"):
        assert (tmp_path / "a" / "b").is_dir()
    assert left(tmp_path) == []


def own_name(**other: object) -> str:
    """The name of unfinished work, with some parts of it another's."""
    found = publish.WORK.fullmatch(publish._beside(Path("x")).name)
    assert found is not None
    parts = {**found.groupdict(), **other}
    return ".x.convscope-{host}-{boot}-{pid}-{start}-0123abcd".format(**parts)


def test_a_number_given_out_again_protects_nothing(tmp_path: Path) -> None:
    if publish._started(os.getpid()) is None:
        pytest.skip("this system does not say when a process began")
    (tmp_path / own_name(start=1)).mkdir()
    (tmp_path / own_name()).mkdir()
    sweep(tmp_path)
    assert left(tmp_path) == [own_name()]


def test_another_machines_work_stays_until_it_is_forgotten(tmp_path: Path) -> None:
    for age, stays in ((3600, True), (publish.FORGOTTEN + 60, False)):
        there = tmp_path / own_name(host="000000", pid=999_999_999)
        there.mkdir(exist_ok=True)
        os.utime(there, (time.time() - age,) * 2)
        sweep(tmp_path)
        assert there.exists() is stays


def test_work_from_before_this_machine_started_goes(tmp_path: Path) -> None:
    told = publish._said(Path("/proc/uptime"))
    if not told:
        pytest.skip("this system does not say when it started")
    there = tmp_path / own_name(boot="000000")
    there.mkdir()
    sweep(tmp_path)
    assert there.exists()  # another container of this machine may be at it
    os.utime(there, (time.time() - float(told.split()[0]) - 60,) * 2)
    sweep(tmp_path)
    assert not there.exists()


def test_unfinished_work_is_no_result(tmp_path: Path) -> None:
    assert unfinished(own_name())
    assert unfinished(".out.convscope-lock")
    assert not unfinished("out.convscope-lock")
    (tmp_path / own_name(start=1)).write_text("half")
    publish_folder(tmp_path, lambda folder: (folder / "a").write_text("x") and None)
    assert left(tmp_path) == ["a"]


def test_a_name_as_long_as_disks_allow_is_no_fault(tmp_path: Path) -> None:
    for name in ("a" * 255, "ä" * 127, os.fsdecode(b"\xff" * 250)):
        with claimed(tmp_path / name), publishing(tmp_path / name) as folder:
            assert unfinished(folder.name)
            (folder / "a").write_text("x")
        assert left(tmp_path / name) == ["a"]


def test_where_one_stands_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="replaced as a whole"), claimed(Path()):
        pass


def test_a_link_to_an_empty_folder_leads_there(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to("far")
    with claimed(tmp_path / "out"):
        publish_folder(tmp_path / "out", lambda folder: (folder / "a").write_text("x") and None)
    assert left(tmp_path / "far") == ["a"]
    assert (tmp_path / "out").is_symlink()


def test_somebody_who_was_faster_is_not_overwritten(tmp_path: Path) -> None:
    def write(_: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("x")

    with pytest.raises(OutputError, match="meanwhile") as told:
        publish_folder(tmp_path / "out", write)
    assert told.value.code == "O501"
    assert left(tmp_path / "out") == ["theirs"]
    assert left(tmp_path) == ["out"]


def test_what_is_of_no_use_any_more_goes_with_the_same_step_or_stays(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "1").write_text("x")
    with pytest.raises(OutputError), publishing(tmp_path / "out", instead=[parts]):
        publish_file(tmp_path / "out" / "theirs", b"x")
    assert left(parts) == ["1"]
    with publishing(tmp_path / "new", instead=[parts, tmp_path / "none"]):
        assert left(parts) == ["1"]
    assert left(tmp_path) == ["new", "out"]


@pytest.mark.parametrize(
    "fault",
    [
        OSError("2048 requested and 512 written"),
        OSError("encoder error -2 when writing image file"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_in_whatever_words(tmp_path: Path, fault: Exception) -> None:
    def write(_: Path) -> None:
        raise fault

    with pytest.raises(EnvironmentFault) as told:
        publish_folder(tmp_path / "out", write)
    assert told.value.code == "R602"
    assert left(tmp_path) == []


def test_a_device_that_is_full_says_so_through_numpy(tmp_path: Path) -> None:
    def write(_: Path) -> None:
        with Path("/dev/full").open("wb") as full:
            np.lib.format.write_array(full, np.zeros(100_000))

    if not Path("/dev/full").exists():
        pytest.skip("no such device")
    with pytest.raises(EnvironmentFault) as told:
        publish_folder(tmp_path / "out", write)
    assert told.value.code == "R602"


def test_a_fault_of_reading_is_told_of_what_was_read(tmp_path: Path) -> None:
    def write(_: Path) -> None:
        (tmp_path / "in.png").read_bytes()

    with pytest.raises(EnvironmentFault, match=r"in\.png: cannot be used"):
        publish_folder(tmp_path / "out", write)
