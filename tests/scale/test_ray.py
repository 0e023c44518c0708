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

from convscope.core.errors import Stopped
from convscope.core.run import Run
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.pictures.pictures import Pictures
from convscope.records.topk import TopK
from convscope.representations.topk import topk
from convscope.scale.folder import RunFolder
from convscope.scale.processes import Lost, Parts
from convscope.scale.ray_engine import RayEngine
from tests.nets import Slow

ray = pytest.importorskip("ray", reason="Ray is not installed (convscope[ray])")
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
    engine = RayEngine(cluster.address, part=4)
    done: list[int] = []
    run = Run(engine=engine, progress=lambda some, _: done.append(some))
    assert same(mined(place), mined(place, run), tmp_path)
    assert done == sorted(done)
    assert done[-1] == 40
    assert not ray.is_initialized()


def test_a_lost_node_changes_nothing(
    cluster: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, lost = [], Parts.lost

    def noted(parts: Parts, start: int, loss: Lost, *, counts: bool = True) -> None:
        losses.append((str(loss), counts))
        lost(parts, start, loss, counts=counts)

    def killing(done: int, _: int) -> None:
        if done >= 8 and len(cluster.worker_nodes) == 1:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    monkeypatch.setattr(Parts, "lost", noted)
    run = Run(engine=RayEngine(cluster.address, part=4), progress=killing)
    try:
        assert same(mined(place), mined(place, run, seconds=0.2), tmp_path)
        assert [counts for _, counts in losses] == [False], losses
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
