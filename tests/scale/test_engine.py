"""Is the result the same, byte for byte, whichever way a pass over pictures came about?"""

from __future__ import annotations

import csv
import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convscope
from convscope.core.errors import DataError, EnvironmentFault, OutputError, Stopped, UsageError
from convscope.core.run import Run
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Picture, Pictures
from convscope.records.topk import TopK
from convscope.representations.topk import topk
from convscope.scale import engine, folder, processes
from convscope.scale.engine import Job
from convscope.scale.processes import Processes
from convscope.scale.segments import Arrays
from tests.nets import Ender, Residual
from tests.pictures import corpus

COUNT = 23
READY = Preprocess(Framing(None, (40, 40)), (0, 0, 0), (1, 1, 1), scale=1.0)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a copy, a damaged picture and a grey one among others."""
    where, numbers = tmp_path / "pictures", np.random.default_rng(0)
    where.mkdir()
    for number in range(COUNT):
        pixels = numbers.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(where / f"{number:02d}.png")
    (where / "05.png").write_bytes((where / "04.png").read_bytes())
    (where / "11.png").write_bytes((where / "11.png").read_bytes()[:300])
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(where / "17.png")
    return where


@pytest.fixture(autouse=True)
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part for each batch, as if each took long."""
    monkeypatch.setattr(engine, "SECONDS", -1.0)


def mined(place: Path, run: Run = Run(), model: nn.Module | None = None) -> TopK:  # noqa: B008
    with Pictures(place, max_bad=0.2) as pictures:
        result = topk(model or Residual(), pictures, k=3, batch=4, preprocess=READY, run=run)
        assert [one.name for one in pictures.skipped] == ["11.png"]
        assert pictures.duplicates() == {5: 4}
    return result


def same(one: TopK, other: TopK, tmp: Path) -> bool:
    """Whether they are written as the same bytes."""
    written = []
    for number, record in enumerate((one, other)):
        where = tmp / f"record{number}"
        if where.exists():
            for file in where.iterdir():
                file.unlink()
            where.rmdir()
        record.save(where)
        written.append({file.name: file.read_bytes() for file in sorted(where.iterdir())})
    return written[0] == written[1]


class Killed(Exception):
    pass


def stopping(after: int) -> Run:
    """A run that is told to stop when so many batches are done."""
    asked = iter(range(1000))
    return Run(stop=lambda: next(asked) > after)


def test_a_pass_that_is_kept_and_one_that_goes_on_give_the_same_bytes(
    place: Path, tmp_path: Path
) -> None:
    plain = mined(place)
    kept = tmp_path / "run"
    assert same(plain, mined(place, Run(folder=kept)), tmp_path)
    assert len(list((kept / "topk" / "seg").iterdir())) == 6
    read = []
    reading = Run(folder=kept, progress=lambda done, total: read.append(done))
    assert same(plain, mined(place, reading), tmp_path)
    for name in sorted((kept / "topk" / "seg").iterdir())[1::2]:
        name.unlink()
    assert same(plain, mined(place, Run(folder=kept)), tmp_path)


def test_nothing_is_computed_twice(place: Path, tmp_path: Path) -> None:
    model = Residual()
    seen = []
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    mined(place, Run(folder=tmp_path / "run"), model)
    probes = len(seen)
    mined(place, Run(folder=tmp_path / "run"), model)
    assert len(seen) - probes == probes - 6  # the network's shapes are asked for again


def test_a_stop_keeps_what_is_done_and_the_same_call_goes_on(place: Path, tmp_path: Path) -> None:
    for after in range(5):
        kept = tmp_path / f"run{after}"
        run = Run(folder=kept, stop=stopping(after).stop)
        with pytest.raises(Stopped) as told:
            mined(place, run)
        assert told.value.exit_status == 75
        assert "of 23 pictures, in" in str(told.value)
        assert same(mined(place), mined(place, Run(folder=kept)), tmp_path)


def test_processes_give_the_same_bytes_also_when_one_is_killed(place: Path, tmp_path: Path) -> None:
    plain = mined(place)
    for count in (1, 2):
        assert same(plain, mined(place, Run(engine=Processes(count, part=4))), tmp_path)
    kept = tmp_path / "run"
    assert same(plain, mined(place, Run(folder=kept, engine=Processes(2, part=8))), tmp_path)
    assert same(plain, mined(place, Run(folder=kept)), tmp_path)


@pytest.fixture
def white(tmp_path: Path) -> Path:
    where = tmp_path / "some"
    where.mkdir()
    for number in range(6):
        pixels = np.full((40, 40, 3), 255 if number == 4 else number, np.uint8)
        Image.fromarray(pixels).save(where / f"{number}.png")
    return where


def test_a_process_that_dies_is_replaced(white: Path, tmp_path: Path) -> None:
    model = Ender(str(tmp_path / "counter"), 1)
    run = Run(engine=Processes(1, part=6), folder=tmp_path / "run")
    result = topk(model, white, k=2, batch=2, preprocess=READY, run=run)
    assert result.seen == 6
    assert (tmp_path / "counter").read_text() == ".."


def test_a_picture_that_ends_its_process_each_time_is_named(white: Path, tmp_path: Path) -> None:
    model = Ender(str(tmp_path / "counter"), 1000)
    run = Run(engine=Processes(1, part=6), folder=tmp_path / "run")
    with pytest.raises(EnvironmentFault, match=r"4\.png to 5\.png: .* SIGKILL") as told:
        topk(model, white, k=2, batch=2, preprocess=READY, run=run)
    assert told.value.code == "R651"
    model.times = 0
    assert topk(model, white, k=2, batch=2, preprocess=READY, run=run).seen == 6


def test_a_fault_in_a_process_is_told_as_here(place: Path) -> None:
    with Pictures(place) as strict, pytest.raises(DataError) as here:
        topk(Residual(), strict, k=3, batch=4, preprocess=READY)
    with Pictures(place) as strict, pytest.raises(DataError) as there:
        topk(Residual(), strict, k=3, batch=4, preprocess=READY, run=Run(engine=Processes(1)))
    assert str(here.value) == str(there.value)


def test_what_cannot_be_sent_is_refused(place: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    model.told = lambda: 0
    with pytest.raises(UsageError) as told:
        topk(model, place, k=3, preprocess=READY, run=Run(engine=Processes(1)))
    assert told.value.code == "U222"


def test_parts_of_another_run_are_refused(place: Path, tmp_path: Path) -> None:
    kept = tmp_path / "run"
    mined(place, Run(folder=kept))
    with Pictures(place, max_bad=0.2) as pictures, pytest.raises(OutputError) as told:
        topk(Residual(), pictures, k=4, batch=4, preprocess=READY, run=Run(folder=kept))
    assert told.value.code == "O514"
    assert "k was 3, is 4" in str(told.value)
    other = replace(READY, mean=(0.25, 0.5, 0.5))
    with Pictures(place, max_bad=0.2) as pictures, pytest.raises(OutputError) as told:
        topk(Residual(), pictures, k=3, batch=4, preprocess=other, run=Run(folder=kept))
    assert "preprocessing mean was [" in str(told.value)
    assert "is [0.25, 0.5, 0.5]" in str(told.value)
    os.utime(place / "03.png", ns=(1, 1))
    (place / "02.png").unlink()
    expected = r"1 gone \(02\.png\), 1 changed \(03\.png\)"
    with Pictures(place) as pictures, pytest.raises(OutputError, match=expected):
        topk(Residual(), pictures, k=3, batch=4, preprocess=READY, run=Run(folder=kept))


def test_a_newer_run_is_refused(place: Path, tmp_path: Path) -> None:
    kept = tmp_path / "run"
    mined(place, Run(folder=kept))
    index = kept / "topk" / "RUN.json"
    told = json.loads(index.read_text())
    index.write_text(json.dumps({**told, "min_reader": 2}))
    with pytest.raises(OutputError, match="newer convscope"):
        mined(place, Run(folder=kept))
    index.write_text("{")
    with pytest.raises(OutputError, match=r"RUN\.json is damaged"):
        mined(place, Run(folder=kept))


def test_damaged_segments_are_put_aside_and_computed_again(place: Path, tmp_path: Path) -> None:
    plain, kept = mined(place), tmp_path / "run"
    mined(place, Run(folder=kept))
    segments = sorted((kept / "topk" / "seg").iterdir())
    content = segments[2].read_bytes()
    segments[2].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    segments[4].write_bytes(b"")
    assert same(plain, mined(place, Run(folder=kept)), tmp_path)
    assert len(list((kept / "topk" / "seg").glob("*.bad"))) == 2


def test_two_results_for_the_same_pictures_are_an_alarm(place: Path, tmp_path: Path) -> None:
    kept = tmp_path / "run"
    mined(place, Run(folder=kept))
    run = folder.RunFolder(
        folder.store(kept / "topk"), json.loads((kept / "topk/RUN.json").read_text())["run_key"], 1
    )
    first = run.segments()[0]
    segment = run.load(first.name)
    assert segment is not None
    run.keep(segment)
    mined(place, Run(folder=kept))  # the same twice is fine
    value = np.array(segment.arrays["value"])
    value[0, 0] += 1
    run.keep(
        engine.Segment(
            segment.start, segment.stop, {**segment.arrays, "value": value}, 4, segment.looked
        )
    )
    with pytest.raises(EnvironmentFault, match="gave two results") as told:
        mined(place, Run(folder=kept))
    assert told.value.code == "R650"


def test_many_segments_are_merged_where_they_do_not_grow(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MOST_BYTES", 1)
    for number in range(COUNT, 80):
        pixels = np.full((40, 40, 3), number, np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    kept = tmp_path / "run"
    plain = mined(place)
    assert same(plain, mined(place, Run(folder=kept)), tmp_path)
    assert len(list((kept / "topk" / "seg").iterdir())) == 1 + 20 - 16
    assert same(plain, mined(place, Run(folder=kept)), tmp_path)


def test_a_run_goes_on_with_the_threads_it_was_begun_with(place: Path, tmp_path: Path) -> None:
    kept, before = tmp_path / "run", torch.get_num_threads()
    with pytest.raises(Stopped):
        mined(place, Run(folder=kept, threads=1, stop=stopping(3).stop))
    used = []
    model = Residual()
    model.register_forward_pre_hook(lambda *_: used.append(torch.get_num_threads()))
    exact = []
    model.register_forward_pre_hook(lambda *_: exact.append(torch.backends.cudnn.allow_tf32))
    mined(place, Run(folder=kept, threads=3), model)
    assert used[-1] == 1
    assert torch.get_num_threads() == before
    assert exact[-1] is False
    assert torch.backends.cudnn.allow_tf32


def test_a_full_disk_leaves_what_is_kept(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, real, count = tmp_path / "run", folder.publish_file, iter(range(100))

    def full(target: Path, content: bytes) -> None:
        if next(count) == 4:
            raise EnvironmentFault("R602", str(target), "the disk is full")
        real(target, content)

    monkeypatch.setattr(folder, "publish_file", full)
    with pytest.raises(EnvironmentFault):
        mined(place, Run(folder=kept))
    assert len(list((kept / "topk" / "seg").iterdir())) == 2
    assert same(mined(place), mined(place, Run(folder=kept)), tmp_path)


class Sums(Job):
    """What is looked at in every picture without a network: the sum of its pixels."""

    name, batch = "sums", 2
    facts: ClassVar = {"of": "pixels"}

    def __init__(self) -> None:
        self.sums, self.looked = dict[int, int](), list[int]()

    @contextmanager
    def looking(self) -> Iterator[Callable[[list[Picture]], object]]:
        yield self.look

    def look(self, pictures: list[Picture]) -> None:
        self.sums |= {one.number: int(one.pixels.sum(dtype=np.int64)) for one in pictures}
        self.looked += [one.number for one in pictures]

    def take(self) -> Arrays:
        sums, self.sums = self.sums, {}
        return {"number": np.array([*sums], np.int64), "sum": np.array([*sums.values()], np.int64)}


def summed(place: Path, run: Run) -> tuple[dict[str, Any], list[int]]:
    """What the pass gives, and which pictures were looked at."""
    job = Sums()
    with Pictures(place / "pictures", max_bad=0.2) as pictures:
        arrays, _ = engine.merged(job, pictures, run)
        told = {
            "sums": dict(zip(map(str, arrays["number"]), arrays["sum"].tolist(), strict=True)),
            "skipped": [[one.name, one.code, one.text] for one in pictures.skipped],
            "changes": [[one.name, one.code] for one in pictures.changes],
            "duplicates": {str(one): other for one, other in pictures.duplicates().items()},
        }
    return told, job.looked


GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_run_folder_of_schema_1_is_gone_on_with(tmp_path: Path) -> None:
    """For ever: it was written when schema 1 was new, and stopped after eight of its pictures."""
    with zipfile.ZipFile(GOLDEN / "pass-1.zip") as file:
        file.extractall(tmp_path)
    for path in (tmp_path / "pictures").iterdir():
        os.utime(path, ns=(10**18, 10**18))
    expected = json.loads((tmp_path / "expected.json").read_text())
    segments = sorted((tmp_path / "run" / "sums" / "seg").iterdir())
    before = [path.read_bytes() for path in segments]
    assert summed(tmp_path, Run(folder=tmp_path / "run")) == (expected, [8, 9])
    assert [path.read_bytes() for path in segments] == before
    assert summed(tmp_path, Run(folder=tmp_path / "run")) == (expected, [])
    assert summed(tmp_path, Run())[0] == expected


class Hangs(Sums):
    """On its first batch, when a file says so."""

    def __init__(self, begun: Path) -> None:
        super().__init__()
        self.begun = begun

    def look(self, pictures: list[Picture]) -> None:
        self.begun.touch()
        time.sleep(1000)


def test_a_process_ends_with_the_one_that_it_works_for_also_where_it_hangs(
    white: Path, tmp_path: Path
) -> None:
    with Pictures(white) as pictures:
        work = engine.Work(Hangs(tmp_path / "begun"), pictures, range(6), 1)
        worker = processes._Worker(processes.packed(work), 1)
    try:
        worker._send(pickle.dumps((0, 6)))
        while not (tmp_path / "begun").exists():
            assert worker._process.poll() is None
            time.sleep(0.05)
        worker._line.close()  # as the system does for one that is killed
        assert worker._process.wait(10) == 0
    finally:
        worker.end()


def test_dirty_pictures_among_good_ones_change_nothing_but_the_list(tmp_path: Path) -> None:
    """One of each kind of bad input; the strongest are those of the good pictures alone."""
    dirty, good = tmp_path / "dirty", tmp_path / "good"
    for where in (dirty, good):
        where.mkdir()
        for number in range(12):
            corpus.photo(90 + number, 60).save(where / f"photo{number}.png")
    for name, (make, _) in corpus.USABLE.items():
        (good / name).write_bytes(make())
    (good / os.fsdecode(corpus.UNDECODABLE)).write_bytes(corpus.jpeg())
    (good / "link.jpg").symlink_to("plain.jpg")
    corpus.write(dirty)
    for name in (".DS_Store", "Thumbs.db", "._photo0.png", "__MACOSX/photo0.png", "@eaDir/a.jpg"):
        (dirty / name).parent.mkdir(exist_ok=True)
        (dirty / name).write_bytes(b"\0\5\x16\7")
    (dirty / "around").symlink_to(dirty)
    best, skipped = [], []
    kept = Run(folder=tmp_path / "run")
    for where, run in ((dirty, kept), (dirty, kept), (good, Run())):
        with Pictures(where, max_bad=0.6) as pictures:
            result = topk(Residual(), pictures, k=9, batch=4, preprocess=READY, run=run)
            names = [*pictures.names, "nobody"]
            best.append([[names[number] for number in row] for row in result.image])
            pictures.write_skipped(tmp_path / "skipped.csv")
        with (tmp_path / "skipped.csv").open(newline="") as file:
            skipped.append({row["name"]: row["code"] for row in csv.DictReader(file)})
    assert best[0] == best[1] == best[2]
    bad = {name: code for name, (_, code, _) in corpus.FAULTY.items()}
    bad |= {name: code for name, (code, _) in corpus.SPECIAL.items()}
    assert skipped == [{**bad, "around": "D120"}] * 2 + [{}]


def test_it_is_in_the_front_door() -> None:
    assert convscope.Processes is Processes


def test_parts_are_kept_behind_a_url_too(place: Path, tmp_path: Path) -> None:
    plain, kept = mined(place), f"memory://{tmp_path}"
    with pytest.raises(Stopped):
        mined(place, Run(folder=kept, stop=stopping(3).stop))
    there = folder.store(f"{kept}/topk")
    assert 0 < len(there.names("seg")) < 6
    there.put(there.names("seg")[0], b"")
    assert same(plain, mined(place, Run(folder=kept)), tmp_path)
    assert len(there.names("seg")) == 7
    assert there.get("seg/none") is None
    assert same(plain, mined(place, Run(folder=kept)), tmp_path)
