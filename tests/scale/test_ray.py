"""Does a Ray cluster give the same bytes as this process, also when nodes and drivers are lost?"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from convscope.core.errors import EnvironmentFault, Stopped, UsageError
from convscope.core.run import Run
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.records.topk import TopK
from convscope.representations.topk import TopKJob, topk
from convscope.scale import processes, ray_engine
from convscope.scale.engine import Work
from convscope.scale.folder import RunFolder
from convscope.scale.processes import Lost, Parts
from convscope.scale.ray_engine import RayEngine
from tests.nets import Ender, Slow, Wide

ray = pytest.importorskip("ray", reason="Ray is not installed: convscope[ray]")
READY = Preprocess(Framing(None, (40, 40)), (0, 0, 0), (1, 1, 1), scale=1.0)
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
}

TABLES = ("value", "image", "row", "column", "content", "active", "invalid", "seen")


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """A server of the S3 protocol on this machine; as fsspec is told of it. Empty without moto."""
    try:
        import s3fs  # noqa: F401 - the file system
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield {}
        return
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield {"endpoint_url": f"http://{host}:{port}", "key": "someone", "secret": "hush"}
    started.stop()


@pytest.fixture(scope="module")
def cluster(server: dict[str, str]) -> Iterator[Any]:
    """Two nodes, of which the first is the head; they can read what the server has."""
    from ray.cluster_utils import Cluster

    told = {f"FSSPEC_S3_{name.upper()}": value for name, value in server.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", **told}.items():
            patch.setenv(name, value)
        head = {**NODE, "include_dashboard": False, "_system_config": QUICK}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(**NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where, numbers = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(40):
        pixels = numbers.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(where / f"{number:02d}.png")
    (where / "05.png").write_bytes((where / "04.png").read_bytes())
    (where / "11.png").write_bytes((where / "11.png").read_bytes()[:300])
    return where


def mined(
    place: Path | str,
    run: Run = Run(),  # noqa: B008
    seconds: float = 0,
) -> TopK:
    """seconds: that the network takes over a batch."""
    with Pictures(place, max_bad=0.2) as pictures:
        result = topk(Slow(seconds), pictures, k=3, batch=4, preprocess=READY, run=run)
        assert [one.name for one in pictures.skipped] == ["11.png"]
        assert pictures.duplicates() == {5: 4}
    return result


def same(one: TopK, other: TopK, tmp: Path) -> bool:
    """Whether they are written as the same bytes."""
    written = []
    for record in (one, other):
        where = tmp / os.urandom(4).hex()
        record.save(where)
        written.append({file.name: file.read_bytes() for file in sorted(where.iterdir())})
    return written[0] == written[1]


def test_a_cluster_gives_the_same_bytes(cluster: Any, place: Path, tmp_path: Path) -> None:
    done: list[int] = []
    ray.init(cluster.address, log_to_driver=False)  # one connection for both passes
    try:
        engine = RayEngine(num_cpus=1, part=4)
        run = Run(engine=engine, threads=2, progress=lambda some, _: done.append(some))
        assert same(mined(place, Run(threads=2)), mined(place, run), tmp_path)
        assert done == sorted(done)
        assert done[-1] == 40
        results = [
            topk(
                Wide(),
                Pictures(place, max_bad=0.2),
                ["fc"],
                k=3,
                batch=4,
                preprocess=READY,
                run=one,
            )
            for one in (Run(threads=2), replace(run, progress=None))
        ]
        assert same(*results, tmp_path)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_lost_node_changes_nothing(
    cluster: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[bool] = []
    lost, share_out = Parts.lost, ray_engine._Actors._share_out

    def noted(parts: Parts, start: int, loss: Lost, *, counts: bool = True) -> None:
        losses.append(counts)
        lost(parts, start, loss, counts=counts)

    def killing(actors: ray_engine._Actors, parts: Parts) -> None:
        """Begin when both actors have, and kill a node as soon as it has something to do."""
        if losses or all(one.node for one in actors._all):
            share_out(actors, parts)
        for node in list(cluster.worker_nodes):
            if any(one.node == node.node_id and one.task for one in actors._all):
                cluster.remove_node(node, allow_graceful=False)

    monkeypatch.setattr(Parts, "lost", noted)
    monkeypatch.setattr(ray_engine._Actors, "_share_out", killing)
    run = Run(engine=RayEngine(cluster.address, part=4))
    try:
        assert same(mined(place), mined(place, run, seconds=0.2), tmp_path)
        assert not ray.is_initialized()
        assert losses == [False]  # the node's fault, and no picture's
    finally:
        cluster.add_node(**NODE)


DRIVER = """
import sys
from convscope import RayEngine, Run
from tests.scale.test_ray import mined
address, place, kept = sys.argv[1:]
mined(place, Run(engine=RayEngine(address, part=4), folder=kept), seconds=0.3)
"""


def test_after_the_driver_is_killed_the_same_call_goes_on(
    cluster: Any, place: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "run"
    command = [sys.executable, "-c", DRIVER, cluster.address, str(place), str(kept)]
    root = Path(__file__).parents[2]
    driver = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(list(kept.glob("topk/seg/*.seg"))) < 3 and time.monotonic() < until:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = list(kept.glob("topk/seg/*.seg"))
    assert 3 <= len(before) < 10
    run = Run(engine=RayEngine(cluster.address, part=4), folder=kept)
    assert same(mined(place), mined(place, run, seconds=0.3), tmp_path)
    assert {*before} < {*kept.glob("topk/seg/*.seg")}
    assert len(list(kept.glob("topk/seg/*.seg"))) == 10


def test_an_object_store_holds_pictures_and_parts(
    cluster: Any,
    server: dict[str, str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not server:
        pytest.skip("moto or s3fs is not installed")
    monkeypatch.setitem(fsspec.config.conf, "s3", server)
    system = fsspec.filesystem("s3", use_listings_cache=False)
    system.mkdir("bucket")
    for path in sorted(place.iterdir()):
        system.pipe_file(f"bucket/pictures/{path.name}", path.read_bytes())
    monkeypatch.setattr(RunFolder, "keep", None)  # the actors do that
    run = Run(engine=RayEngine(cluster.address, part=4), folder="s3://bucket/run")
    parts = "bucket/run/topk/seg"
    few = replace(run, stop=lambda: system.exists(parts) and len(system.ls(parts)) > 2)
    with pytest.raises(Stopped, match=r"of 40 pictures, in s3://bucket/run\. Next: give the same"):
        mined("s3://bucket/pictures", few, seconds=0.1)
    before = system.ls(parts)
    assert 2 < len(before) < 10
    result = mined("s3://bucket/pictures", run)
    assert {*before} < {*system.ls(parts)}
    assert len(system.ls(parts)) == 10
    assert "hush" not in system.cat("bucket/run/topk/RUN.json").decode()
    here = mined(place)
    assert all(np.array_equal(getattr(here, n), getattr(result, n)) for n in TABLES)
    assert same(result, mined("s3://bucket/pictures"), tmp_path)


@pytest.fixture
def white(tmp_path: Path) -> Path:
    where = tmp_path / "some"
    where.mkdir()
    for number in range(6):
        pixels = np.full((40, 40, 3), 255 if number == 4 else number, np.uint8)
        Image.fromarray(pixels).save(where / f"{number}.png")
    return where


@pytest.mark.slow
def test_a_picture_that_ends_its_actor_each_time_is_named(
    cluster: Any, white: Path, tmp_path: Path
) -> None:
    model = Ender(str(tmp_path / "counter"), 1000)
    run = Run(engine=RayEngine(cluster.address, part=6), folder=tmp_path / "run")
    with pytest.raises(EnvironmentFault, match=r"4\.png to 5\.png: .* ended") as told:
        topk(model, white, k=2, batch=2, preprocess=READY, run=run)
    assert told.value.code == "R651"
    assert (tmp_path / "counter").read_text() == "..."


@pytest.mark.slow
def test_a_hung_actor_is_replaced(
    cluster: Any, white: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 4.0)
    model = Ender(str(tmp_path / "counter"), 1, signal.SIGSTOP)
    run = Run(engine=RayEngine(cluster.address, part=6))
    assert topk(model, white, k=2, batch=2, preprocess=READY, run=run).seen == 6
    assert (tmp_path / "counter").read_text() == ".."


def test_an_actor_without_room_is_refused(cluster: Any, place: Path) -> None:
    with pytest.raises(EnvironmentFault, match="needs 1 CPU, 1 GPU: no node has them") as told:
        mined(place, Run(engine=RayEngine(cluster.address, num_gpus=1), threads=1))
    assert told.value.code == "R657"


def test_a_cluster_that_is_not_there_is_told(place: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"Ray at 127\.0\.0\.1:9: cannot be reached") as told:
        mined(place, Run(engine=RayEngine("127.0.0.1:9")))
    assert told.value.code == "R655"


def test_without_ray_it_is_told_what_to_install(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'convscope\[ray\]'") as told:
        mined(place, Run(engine=RayEngine()))
    assert told.value.code == "R626"


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"num_gpus": -1}, {"num_cpus": float("nan")}])
def test_impossible_numbers_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(numbers))):
        RayEngine(**numbers)


def test_a_node_that_differs_is_refused(place: Path) -> None:
    picture, versions = os.fsencode(place / "00.png"), ray_engine._versions()
    size, actor = (place / "00.png").stat().st_size, ray_engine.Actor(1)
    told = ray_engine._Told(None, versions, [(picture, size)])
    actor._require(told)
    for other, words in (
        (told._replace(versions={**versions, "torch": "1.0"}), "while the command has 1.0"),
        (told._replace(device="cuda"), "has no GPU"),
        (told._replace(pictures=[(picture + b"x", size)]), "does not have .*00.pngx"),
        (told._replace(pictures=[(picture, size + 1)]), "has another .*00.png"),
    ):
        with pytest.raises(EnvironmentFault, match=words) as fault:
            actor._require(other)
        assert fault.value.code == "R656"


def test_a_pass_moves_to_the_device_of_its_actor(place: Path) -> None:
    with Pictures(place) as pictures:
        job = TopKJob(Slow(0), READY, None, 3, batch=4)
        work = Work(job, pictures, range(len(pictures)), 1)
        moved = processes.unpacked(processes.packed(work), "meta")
        assert {one.device.type for one in processes.networks_of(moved)[0].parameters()} == {"meta"}
        assert moved.job.told() == {"device": "meta"}
        with pytest.raises(UsageError, match="on meta, and the actors have no GPU") as told:
            RayEngine().working(moved).__enter__()
    assert told.value.code == "U223"
