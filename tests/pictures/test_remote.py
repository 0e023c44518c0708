"""Are pictures elsewhere those of a folder here, and is what fails on the way told?"""

from __future__ import annotations

import http.server
import io
import logging
import multiprocessing
import pickle
import random
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope.core.errors import ConvscopeError, DataError, EnvironmentFault
from convscope.pictures.annotations import read_boxes
from convscope.pictures.decode.formats import Limits
from convscope.pictures.framing import Framing
from convscope.pictures.notes import table
from convscope.pictures.opening import as_pictures, inside, open_all, open_pictures
from convscope.pictures.pictures import Pictures, one_picture, split
from convscope.pictures.remote import Store, redacted
from tests.pictures import corpus

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: convscope[remote]")

SECRETS = ("AKIAFROMNOWHERE", "hush", "t0ken")


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A server of the S3 protocol on this machine."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: convscope[remote]")
    moto = pytest.importorskip("moto.server", reason="moto, an S3 server, is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    started = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    yield started
    started.stop()


@pytest.fixture
def s3(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket of it, which convscope finds by fsspec's configuration."""
    host, port = server.get_host_and_port()
    there = {"endpoint_url": f"http://{host}:{port}", "key": SECRETS[0], "secret": SECRETS[1]}
    monkeypatch.setitem(fsspec.config.conf, "s3", there)
    system = fsspec.filesystem("s3", use_listings_cache=False)
    if system.exists("herd"):
        system.rm("herd", recursive=True)
    system.mkdir("herd")
    return system


def upload(system: Any, root: Path, place: str) -> None:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            system.pipe_file(f"{place}/{path.relative_to(root)}", path.read_bytes())


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes and a loose picture, beside what is none."""
    root = tmp_path / "herd"
    for number, name in enumerate(["b/2.png", "b/10.png", "a/x/1.png", "a/.hid.png", "loose.jpg"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        corpus.photo(40 + number, 30).save(root / name)
    (root / "a" / "words.txt").write_text("no picture")
    (root / "a" / "no-ending").write_bytes(corpus.jpeg())
    (root / ".git").mkdir()
    (root / ".git" / "x.png").write_bytes(corpus.png())
    return root


def same(here: Pictures, there: Pictures) -> None:
    """Whether two folders hold the same, in everything but where they lie."""
    assert (there.names, there.labels, there.classes) == (here.names, here.labels, here.classes)
    assert (there.sha256, there.remarks) == (here.sha256, here.remarks)
    for one, other in zip(here.read(), there.read(), strict=True):
        assert (one.number, one.name, one.notes) == (other.number, other.name, other.notes)
        assert np.array_equal(one.pixels, other.pixels)
    assert there.contents() == here.contents()
    assert table(there.skipped) == table(here.skipped)
    assert there.changes == here.changes


def test_a_folder_elsewhere_is_that_here(memory: Any, classes: Path) -> None:
    memory.put(str(classes), "/set", recursive=True)
    with Pictures(classes) as here, open_pictures("memory://set") as there:
        same(here, there)
        assert len(there) == 5
        assert "without a class" in there.remarks[0]
        assert there.place == "memory://set"
        assert there.paths[0] == b"memory://set/a/no-ending"


def test_a_dirty_folder_on_s3_loses_the_same_pictures(s3: Any, tmp_path: Path) -> None:
    root = tmp_path / "dirty"
    root.mkdir()
    for name, (make, *_) in {**corpus.FAULTY, **corpus.USABLE}.items():
        if "\n" not in name:  # which this server does not take
            (root / name).write_bytes(make())
    upload(s3, root, "herd/dirty")
    with Pictures(root, workers=2) as here, Pictures("s3://herd/dirty/", workers=2) as there:
        same(here, there)
        assert len(there.skipped) == len(corpus.FAULTY)
        assert there.summary() == here.summary()


def test_the_order_is_that_of_the_paths_however_they_are_listed(
    memory: Any, classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.put(str(classes), "/set", recursive=True)
    told = type(memory).ls

    def shuffled(self: Any, *where: Any, **how: Any) -> Any:
        return random.Random(5).sample(found := told(self, *where, **how), len(found))

    monkeypatch.setattr(type(memory), "ls", shuffled)
    with Pictures(classes) as here, Pictures("memory://set") as there:
        same(here, there)


@pytest.mark.parametrize("where", ["memory", "s3"])
def test_a_run_that_goes_on_notices_a_file_that_was_replaced(
    where: str, classes: Path, request: pytest.FixtureRequest
) -> None:
    from convscope.scale.folder import manifest

    system = request.getfixturevalue(where)
    upload(system, classes, "herd/set")
    before = Pictures(f"{where}://herd/set")
    assert manifest(before, range(5)) == manifest(Pictures(f"{where}://herd/set"), range(5))
    system.pipe_file("herd/set/loose.jpg", bytes((classes / "loose.jpg").stat().st_size))
    after = Pictures(f"{where}://herd/set")
    assert after.sha256 == before.sha256
    assert manifest(after, range(5)) != manifest(before, range(5))


def test_limits_hold_and_empty_classes_keep_their_place(memory: Any, classes: Path) -> None:
    memory.put(str(classes), "/set", recursive=True)
    memory.mkdir("/set/aa")
    (classes / "aa").mkdir()
    limits = Limits(max_bytes=(classes / "b" / "2.png").stat().st_size)
    with Pictures(classes, limits=limits) as here, Pictures("memory://set", limits=limits) as there:
        same(here, there)
        assert "D110" in {entry.code for entry in there.skipped}
        assert there.classes == ("a", "aa", "b")


def test_names_without_pictures_are_refused(memory: Any, classes: Path) -> None:
    memory.put(str(classes), "/set", recursive=True)
    memory.pipe_file("/words/a.txt", b"none")
    for url, code, said in (
        ("memory://nowhere", "D100", "does not exist"),
        ("memory://set/loose.jpg", "D100", "is a file, not a folder of pictures"),
        ("memory://words", "D100", "holds no pictures; 1 file ignored"),
        ("memory://", "U375", "names no place, only a protocol"),
        ("s33://herd", "U483", "no such protocol; did you mean s3"),
        ("memory://set/b/3.png", "D121", "there is no such file"),
    ):
        with pytest.raises(ConvscopeError) as fault:
            as_pictures(url) if "b/3" in url else open_pictures(url)
        assert (fault.value.code, url.rstrip("/") in str(fault.value)) == (code, True)
        assert said in str(fault.value)


def test_single_pictures_and_files_of_this_machine(memory: Any, classes: Path) -> None:
    memory.put(str(classes), "/set", recursive=True)
    far, near = "memory://set/loose.jpg", str(classes / "loose.jpg")
    assert np.array_equal(one_picture(far).pixels, one_picture(near).pixels)
    assert one_picture(far).name == "loose.jpg"
    assert np.array_equal(one_picture(f"file://{near}").pixels, one_picture(near).pixels)
    with open_pictures(f"file://{classes}") as there, Pictures(classes) as here:
        same(here, there)
        assert there.root == classes
    mixed, folder = open_all([far, near, "memory://set"])
    assert mixed.names == (far, near)
    assert len(list(mixed.read())) == 2
    assert len(folder) == 5


def test_a_folder_of_two_parts_is_split_as_one_here(memory: Any, classes: Path) -> None:
    memory.put(str(classes), "/set/train", recursive=True)
    memory.put(str(classes), "/set/val", recursive=True)
    training, held = split(Pictures("memory://set/train"))
    assert (training.place, held.place) == ("memory://set/train", "memory://set/val")
    assert inside("memory://set", "train") == "memory://set/train"
    assert inside("memory://set/train", "train") == "memory://set/train"
    memory.pipe_file("/set/train/boxes.json", b'{"loose.jpg": [[1, 2, 3, 4]]}')
    assert read_boxes(training.beside("boxes.json"))["loose.jpg"][0].height == 2
    assert not held.beside("boxes.json").is_file()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for number in range(3):
        with tarfile.open(tmp_path / f"val-{number:02}.tar", "w") as archive:
            for row in range(4):
                size = (200, 150 + row + 4 * number)
                noise = np.random.default_rng(row).integers(0, 255, (*size, 3), np.uint8)
                picture = corpus.saved(Image.fromarray(noise), "PNG")
                for end, data in ((".cls", b"%d" % row), (".png", picture)):
                    entry = tarfile.TarInfo(f"{row:04}{end}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
    return tmp_path


def test_empty_files_are_what_they_are_here(s3: Any, tmp_path: Path) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    for name in ("empty.jpg", "empty", "words"):
        (root / name).write_bytes(b"words" if name == "words" else b"")
    (root / "one.png").write_bytes(corpus.png())
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(root / "one.png", "one.png")
        archive.add(root / "empty.jpg", "two.jpg")
    upload(s3, tmp_path, "herd")
    for name in ("empty", "x.tar"):
        with open_pictures(str(tmp_path / name)) as here, open_pictures(f"s3://herd/{name}") as far:
            same(here, far)
            assert [entry.code for entry in far.skipped] == ["D101"]


@pytest.mark.parametrize("cut", [0, 40_000])
def test_shards_on_s3_are_those_here_and_are_not_downloaded_to_be_listed(
    s3: Any, shards: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = shards / "val-02.tar"
    last.write_bytes(last.read_bytes()[: last.stat().st_size - cut])
    upload(s3, shards, "herd")
    read: list[int] = []
    asked = Store.block

    def counted(self: Store, start: int, end: int) -> bytes:
        read.append(end - start)
        return asked(self, start, end)

    monkeypatch.setattr(Store, "block", counted)
    name = "val-{00..02}.tar"
    with open_pictures(str(shards / name)) as here, open_pictures(f"s3://herd/{name}") as there:
        whole = sum(path.stat().st_size for path in shards.iterdir())
        assert 0 < sum(read) < whole / 4
        assert there.numbered
        same(here, there)
        assert [entry.code for entry in there.skipped] == (["D206", "D104"] if cut else [])
        assert there.subset([5, 1]).one(0).name == here.names[5]
    with pytest.raises(DataError, match="cannot be read") as fault:
        open_pictures("s3://herd/val-{01..03}.tar")
    assert (fault.value.code, fault.value.subject) == ("D205", "s3://herd/val-03.tar")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A server that lists folders as pages, and gives no parts of files."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: convscope[remote]")
    handler = partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{started.server_port}"
        started.shutdown()


def test_a_folder_behind_a_web_page_has_the_numbers_of_one_here(
    web: str, classes: Path, shards: Path
) -> None:
    for name in ("2 x.png", "ü%.png", "3#?.png"):
        (classes / "b" / name).write_bytes(corpus.png())
    with Pictures(classes) as here, Pictures(f"{web}/herd/") as there:
        assert (there.names, there.labels, there.classes) == (here.names, here.labels, here.classes)
        for one, other in zip(here.read(), there.read(), strict=True):
            assert np.array_equal(one.pixels, other.pixels)
        assert there.contents() == here.contents()
    assert one_picture(f"{web}/herd/b/2.png?token=1").name == "2.png"
    for name, code, said in (
        ("val-00.tar", "D205", "its server does not give parts of a file. Next: download it"),
        ("nowhere", "D100", "does not exist"),
    ):
        with pytest.raises(DataError, match=said) as fault:
            open_pictures(f"{web}/{name}")
        assert fault.value.code == code


def read_all(folder: Pictures) -> list[tuple[str, int]]:
    with folder:
        return [(picture.name, int(picture.pixels.sum())) for picture in folder.read()]


def test_the_strongest_pictures_are_the_same_to_the_byte(s3: Any, classes: Path) -> None:
    from convscope.network.preprocess import Preprocess
    from convscope.representations.topk import topk
    from tests.nets import Residual

    upload(s3, classes, "herd/set")
    ready = Preprocess(Framing(None, (40, 40)), (0, 0, 0), (1, 1, 1), scale=1.0)
    results = []
    for number, name in enumerate((str(classes), "s3://herd/set")):
        with open_pictures(name) as folder:
            result = topk(Residual(), folder, k=3, batch=4, preprocess=ready)
        result.save(place := classes.parent / str(number))
        results.append({path.name: path.read_bytes() for path in place.iterdir()})
    assert len(results[0]) > 1
    assert results[0] == results[1]


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_copies_in_other_processes_read_for_themselves(
    s3: Any, classes: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    upload(s3, classes, "herd/set")
    for name, value in fsspec.config.conf["s3"].items():
        monkeypatch.setenv(f"FSSPEC_S3_{name.upper()}", value)
    folder = Pictures("s3://herd/set")
    expected = read_all(pickle.loads(pickle.dumps(folder.subset([1, 3]))))
    assert len(expected) == 2
    with multiprocessing.get_context(way).Pool(1) as pool:
        assert pool.apply(read_all, [folder.subset([1, 3])]) == expected
    assert not any(secret.encode() in pickle.dumps(folder) for secret in SECRETS)


class Faulty:
    """Makes a file system fail as told: what of which key, how often, from which call on."""

    def __init__(self, system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.fails: Callable[[str, int], Exception | None] = lambda _key, _call: None
        told = type(system).cat_file
        lock = threading.Lock()

        def cat_file(this: Any, path: str, *where: Any, **how: Any) -> Any:
            with lock:
                self.calls += 1
                call = self.calls
            fault = self.fails(path, call)
            if fault is not None:
                raise fault
            return told(this, path, *where, **how)

        monkeypatch.setattr(type(system), "cat_file", cat_file)
        monkeypatch.setattr("convscope.pictures.remote.PAUSES", (0.01, 0.01, 0.01))


@pytest.fixture
def faulty(memory: Any, monkeypatch: pytest.MonkeyPatch) -> Faulty:
    return Faulty(memory, monkeypatch)


@pytest.fixture
def herd(memory: Any) -> str:
    for number in range(60):
        data = corpus.saved(corpus.photo(20 + number, 20), "PNG")
        memory.pipe_file(f"/herd/{number:02}.png", data)
    return "memory://herd"


def test_what_passes_costs_no_picture(
    herd: str, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = defaultdict(lambda: iter([TimeoutError("slow"), OSError("503"), OSError("EIO")]))
    with Pictures(herd) as folder:
        faulty.fails = lambda key, _call: next(passing[key], None)
        assert len(list(folder.read())) == 60
        assert not folder.skipped


def test_what_the_library_below_has_tried_for_long_is_not_tried_again(
    herd: str, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convscope.pictures.remote.LATE", 0.05)
    tried: list[float] = []

    def fail(key: str, _call: int) -> OSError | None:
        if not key.endswith("59.png"):
            return None
        time.sleep(0.1)
        tried.append(time.monotonic())
        return OSError("503")

    with Pictures(herd, max_bad=1) as folder:
        faulty.fails = fail
        assert len(list(folder.read())) == 59
        assert len(tried) == 2


def test_a_picture_is_asked_for_again_when_others_can_be_had(herd: str, faulty: Faulty) -> None:
    """The network may have been down for as long as this one was tried, and no longer."""
    passing = {"/herd/37.png": iter([OSError("503")] * 4)}
    with Pictures(herd) as folder:
        faulty.fails = lambda key, _call: next(passing.get(key, iter(())), None)
        assert len(list(folder.read())) == 60
        assert not folder.skipped


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (ConnectionResetError("reset by peer"), "D123", "tried again and again (reset by peer)"),
        (PermissionError("Access Denied"), "D122", "cannot be read (Access Denied)"),
        (FileNotFoundError("x"), "D121", "gone since it was listed"),
    ],
)
@pytest.mark.parametrize("number", [0, 37])
def test_a_picture_that_alone_cannot_be_had_is_left_out(
    herd: str, faulty: Faulty, fault: Exception, code: str, said: str, number: int
) -> None:
    with Pictures(herd, max_bad=0.1) as folder:
        faulty.fails = lambda key, _call: fault if f"{number:02}.png" in key else None
        assert len(list(folder.read())) == 59
        (entry,) = folder.skipped
        assert (entry.number, entry.code) == (number, code)
        assert said in entry.text
        folder.check_bad()
        assert code in folder.summary()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (ConnectionResetError("reset by peer"), "R605"),
        (PermissionError("token has expired"), "R608"),
        (FileNotFoundError("the bucket has gone"), "R605"),
    ],
)
def test_an_outage_in_the_middle_ends_in_one_line_and_skips_nothing(
    herd: str, faulty: Faulty, fault: Exception, code: str
) -> None:
    with Pictures(herd) as folder:
        reading = folder.read()
        read = [next(reading).number for _ in range(6)]
        faulty.fails = lambda _key, _call: fault
        with pytest.raises(EnvironmentFault) as told:
            read += (picture.number for picture in reading)
        assert (told.value.code, told.value.exit_status) == (code, 6)
        assert str(fault) in str(told.value)
        assert not folder.skipped
        assert read == list(range(len(read)))
        assert faulty.calls < 60 * 10
        faulty.fails = lambda _key, _call: None  # the same again, when the network is well
        assert len(list(folder.read())) == 60


def test_too_many_pictures_that_cannot_be_had_are_an_outage(
    herd: str, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pictures(herd, max_bad=1) as folder:
        faulty.fails = lambda key, _call: OSError("500") if int(key[-6:-4]) % 2 else None
        with pytest.raises(EnvironmentFault, match="more than 20 pictures within a minute"):
            list(folder.read())


def test_a_server_that_is_silent_is_told_and_does_not_keep_the_command(
    herd: str, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pictures(herd, limits=Limits(patience=0.5)) as folder:
        faulty.fails = lambda _key, call: time.sleep(20 * (call > 10))
        begin = time.monotonic()
        with pytest.raises(EnvironmentFault, match=r"nothing came in 0\.5 s") as told:
            list(folder.read())
        assert (told.value.code, time.monotonic() - begin < 10) == ("R605", True)


def test_memory_is_bounded_however_many_pictures_there_are(
    herd: str, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more is fetched than the window allows while nobody asks for more."""
    monkeypatch.setattr("convscope.pictures.decode.pool.AHEAD", 4)
    monkeypatch.setattr("convscope.pictures.decode.prefetch.TOGETHER", 6)
    with Pictures(herd) as folder:
        before, reading = faulty.calls, folder.read()
        next(reading)
        time.sleep(0.5)
        assert 1 <= faulty.calls - before <= 4 + 6 + 1
        assert len(list(reading)) == 59


def test_what_opens_a_place_is_never_shown(
    s3: Any, classes: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    upload(s3, classes, "herd/set")
    url = "https://user:hush@127.0.0.1:9/set/cat.jpg?X-Amz-Signature=t0ken&b=hush"
    assert redacted(f"no answer of {url}, sorry") == (
        "no answer of https://***@127.0.0.1:9/set/cat.jpg?*** sorry"
    )
    assert redacted("hf://datasets/us/er@main/x.png") == "hf://datasets/us/er@main/x.png"
    assert redacted("ftp://u:p@ss@host/a") == "ftp://***@host/a"
    monkeypatch.setattr("convscope.pictures.remote.PAUSES", (0.01, 0.01, 0.01))
    said = []
    for name in (url, url.replace("/cat.jpg", "/"), url.replace("cat.jpg", "a.tar")):
        with pytest.raises(EnvironmentFault) as fault:
            as_pictures(name)
        said.append(f"{fault.value!s} {fault.value.line()}")
        assert fault.value.code == "R605"
    there = {**fsspec.config.conf["s3"], "endpoint_url": "http://user:hush@127.0.0.1:9"}
    monkeypatch.setitem(fsspec.config.conf, "s3", there)
    with pytest.raises(EnvironmentFault) as fault:
        open_pictures("s3://herd/set")
    said.append(str(fault.value))
    text = "".join(said) + "".join(capsys.readouterr())
    assert not [secret for secret in SECRETS if secret in text]
    assert "https://***@127.0.0.1:9/set/cat.jpg?***" in text


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for a process's variables")
def test_decoding_processes_inherit_no_keys(monkeypatch: pytest.MonkeyPatch, classes: Path) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "FSSPEC_S3_SECRET", "aws_session_token"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    with Pictures(classes) as folder:
        folder.one(0)
        (child,) = folder._pool._idle
        told = Path(f"/proc/{child._process.pid}/environ").read_bytes()
    assert b"hush" not in told
    assert b"LC_ALL=C.UTF-8" in told


BLOCKED = """
import sys
for name in {names!r}:
    sys.modules[name] = None
from convscope.cli.app import main
main(["evaluate", "torchvision:squeezenet1_0:weights=none", {url!r}, "--out", "nowhere"])
"""


@pytest.mark.parametrize(
    ("names", "url", "advice"),
    [
        (["fsspec", "fsspec.core"], "s3://herd/set", "pip install 'convscope[remote]'"),
        (["s3fs"], "s3://herd/set", "pip install 'convscope[remote]'"),
        (["aiohttp"], "https://127.0.0.1/set/", "pip install 'convscope[remote]'"),
        (["gcsfs"], "gs://herd/set", "pip install gcsfs"),
        (["paramiko"], "sftp://127.0.0.1/set", "pip install paramiko"),
    ],
)
def test_a_missing_package_is_one_line_whose_advice_is_right(
    names: list[str], url: str, advice: str, tmp_path: Path
) -> None:
    code = BLOCKED.format(names=names, url=url)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    line = done.stderr.strip().splitlines()[-1]
    assert (done.returncode, line.startswith(f"convscope: error[R624]: {url.rstrip('/')}")) == (
        6,
        True,
    )
    assert line.endswith(f"Next: {advice}.")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = {"fsspec", "s3fs"} if "convscope" in advice else set()
    extra = project["optional-dependencies"].get("remote", ())
    assert wanted <= {entry.split(">")[0] for entry in extra}
