"""What if a decoding process crashes, hangs, swells, cannot start, or nobody listens to it?"""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from convscope.core.errors import DataError, EnvironmentFault
from convscope.pictures.decode import formats as limits
from convscope.pictures.decode import pool
from convscope.pictures.decode import pool as process
from convscope.pictures.decode.formats import Fault, Limits
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures

PLANTED = (sys.executable, "-P", str(Path(__file__).parent / "planted.py"))
COUNT = 14


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "COMMAND", PLANTED)


def spoil(root: Path, number: int, harm: str) -> None:
    (root / f"{number:02}.png").rename(root / f"{number:02}-{harm}.png")


@pytest.mark.parametrize(
    ("harm", "code", "text"),
    [
        ("crash", "D130", "the decoding process was ended by SIGSEGV, twice"),
        ("killed", "D130", "the decoding process was ended by SIGKILL, twice"),
        ("exit", "D130", "the decoding process ended with status 3, twice"),
        ("swell", "D130", "the decoding process needed more than 2.0 GiB, twice"),
        ("spin", "D108", "took more than 0.3 s of processor time"),
    ],
)
def test_a_file_that_ends_its_decoder_is_named_and_all_others_come_in_order(
    harm, code, text, herd, planted
) -> None:
    for number in (5, 6):
        spoil(herd, number, harm)
    limits = Limits(seconds=0.3 if harm == "spin" else 20)
    with Pictures(herd, limits=limits, workers=2) as folder:
        reds = [int(picture.pixels[0, 0, 0]) for picture in folder.read()]
    assert reds == [n for n in range(COUNT) if n not in (5, 6)]
    assert [(entry.number, entry.code, entry.text) for entry in folder.skipped] == [
        (5, code, text),
        (6, code, text),
    ]
    assert folder.skipped[0].size > 0


def test_a_file_that_ends_its_decoder_once_gets_a_second_chance(herd, planted) -> None:
    (herd / "03.png").rename(herd / "once-crash.png")
    with Pictures(herd) as folder:
        reds = [int(picture.pixels[0, 0, 0]) for picture in folder.read()]
    assert reds == [0, 1, 2, *range(4, COUNT), 3]
    assert folder.skipped == []


def test_a_failing_disk_ends_the_reading_instead_of_losing_a_picture(herd, planted) -> None:
    spoil(herd, 4, "fail")
    with Pictures(herd, workers=2) as folder, pytest.raises(EnvironmentFault) as caught:
        list(folder.read())
    assert caught.value.code == "R605"
    assert "04-fail.png: could not be read, four times (input/output error)" in str(caught.value)
    assert folder.skipped == []


def test_a_disk_that_hangs_is_not_taken_for_a_bad_picture(herd, planted) -> None:
    spoil(herd, 4, "hang")
    with Pictures(herd, limits=Limits(patience=1.5)) as folder:
        with pytest.raises(
            EnvironmentFault, match=r"04-hang\.png: could not be read, twice"
        ) as caught:
            list(folder.read())
        assert "gave no answer in 1.5 s" in str(caught.value)
        assert caught.value.code == "R605"
        assert folder.skipped == []
        assert folder.one(5).pixels[0, 0, 0] == 5


def test_a_decoder_that_works_on_is_not_called_hung_whatever_the_clock_says(herd, planted) -> None:
    spoil(herd, 4, "spin")
    with Pictures(herd, limits=Limits(seconds=2.5, patience=0.8)) as folder:
        assert len(list(folder.read())) == COUNT - 1
        assert [entry.code for entry in folder.skipped] == ["D108"]


def test_a_disk_that_is_slow_but_goes_on_costs_no_picture(herd, planted) -> None:
    spoil(herd, 4, "trickle")
    with Pictures(herd, limits=Limits(patience=3.0)) as folder:
        assert len(list(folder.read())) == COUNT
        assert folder.skipped == []


def test_a_process_that_waits_for_a_processor_is_not_called_hung() -> None:
    quiet, other = socket.socketpair()
    with quiet, other, selectors.DefaultSelector() as selector:
        selector.register(quiet, selectors.EVENT_READ)
        looks = iter([(True, "7"), (True, "7"), (False, "7"), (False, "7"), (False, "7")])
        patience = process._Patience(0.02, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "activity", lambda _: next(looks))
            with pytest.raises(process.ChildLost):
                patience.wait(selector)
        assert len(list(looks)) == 2, "one look at rest is its whole patience"


def test_activity_is_told_without_proc_too(monkeypatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            time.sleep(0.3)
            assert process.activity(busy.pid)[0]
            monkeypatch.setattr(process, "Path", lambda _: Path("/nowhere"))
            if shutil.which("ps"):
                runs, used = process.activity(busy.pid)
                assert runs
                assert used
        finally:
            busy.kill()
    assert not process.activity(busy.pid)[0]


def test_transient_errors_are_tried_again_and_then_raised(monkeypatch, tmp_path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"content")
    tries, pauses = [], []

    def stale(place: bytes, *rest: object) -> os.stat_result:
        tries.append(place)
        if len(tries) <= failures:
            raise OSError(116, "Stale file handle")
        return status

    status = path.stat()
    monkeypatch.setattr(limits.os, "stat", stale)
    failures = 3
    assert limits.read_file(bytes(path), Limits(), pauses.append) == b"content"
    assert pauses == [0.1, 0.4, 1.6]
    tries.clear()
    failures = 4
    with pytest.raises(OSError, match="Stale"):
        limits.read_file(bytes(path), Limits(), pauses.append)


def test_a_file_that_may_not_be_read_is_left_out(monkeypatch, tmp_path) -> None:
    def refuse(*rest: object) -> int:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jpg").touch()
    monkeypatch.setattr(limits.os, "open", refuse)
    with pytest.raises(Fault, match="cannot be read") as caught:
        limits.read_file(bytes(tmp_path / "a.jpg"), Limits(), pytest.fail)
    assert caught.value.code == "D122"


def test_decoders_that_all_die_stop_the_reading(herd, planted, monkeypatch) -> None:
    monkeypatch.setattr(pool, "MOST_DEATHS", 5)
    for number in range(6):
        spoil(herd, number, "exit")
    with (
        Pictures(herd) as folder,
        pytest.raises(EnvironmentFault, match="within a minute") as caught,
    ):
        list(folder.read())
    assert caught.value.code == "R606"


def test_decoders_that_cannot_start_are_no_fault_of_the_pictures(herd, monkeypatch) -> None:
    broken = (sys.executable, "-c", "raise SystemExit('no Pillow here')")
    monkeypatch.setattr(pool, "COMMAND", broken)
    with (
        Pictures(herd) as folder,
        pytest.raises(EnvironmentFault, match="no Pillow here") as caught,
    ):
        list(folder.read())
    assert caught.value.code == "R604"
    monkeypatch.setattr(pool, "COMMAND", ("/nowhere/python",))
    with Pictures(herd) as folder, pytest.raises(EnvironmentFault, match="does not start"):
        list(folder.read())


def test_two_readings_at_once_do_not_meet(herd) -> None:
    with Pictures(herd, workers=2) as folder:
        answers: dict[int, list[int]] = {}

        def consume(size: int) -> None:
            pictures = folder.read(Framing(None, (size, size)), list(range(COUNT)) * 5)
            answers[size] = [int(p.pixels[0, 0, 0]) for p in pictures if len(p.pixels) == size]

        threads = [threading.Thread(target=consume, args=(size,)) for size in (8, 9, 10, 11)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == {size: list(range(COUNT)) * 5 for size in (8, 9, 10, 11)}


def test_more_may_wait_than_fits_a_pipe(herd, monkeypatch) -> None:
    Image.new("RGB", (1500, 1500), (7, 7, 7)).save(herd / "large.png")
    monkeypatch.setattr("convscope.pictures.decode.pool.AHEAD_BYTES", 1 << 20)
    with Pictures(herd, workers=2) as folder:
        numbers = [COUNT, 0, COUNT, COUNT, 1]
        pictures = []
        for picture in folder.read(numbers=numbers):
            time.sleep(0.05)
            pictures.append(picture.number)
    assert pictures == numbers


def test_one_picture_that_cannot_be_used_is_an_error_with_its_code(herd) -> None:
    (herd / "bad.png").write_bytes(b"")
    with (
        Pictures(herd) as folder,
        pytest.raises(DataError, match=r"bad\.png: empty file") as caught,
    ):
        folder.one(COUNT)
    assert caught.value.code == "D101"
