"""Do the flowers arrive whole over a bad connection, and nothing else with them?"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import corpus
import numpy as np
import pytest

from convscope.errors import ConvscopeError, DataError, EnvironmentFault, OutputError, UsageError
from convscope.images import fetch as module
from convscope.images import unpack as unpacking
from convscope.images.builtin import open_pictures
from convscope.images.fetch import Source, fetch
from convscope.images.flowers import ARCHIVE, download
from convscope.images.folder import Folder
from convscope.images.split import split, validation, write_class_indices
from convscope.images.unpack import unpack


def tgz(entries: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in entries.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


NOISE = np.random.default_rng(3).bytes(60_000)
NAMES = [f"flower_photos/{kind}/flower{n}.jpg" for kind in ("daisy", "roses") for n in range(30)]
DATA = tgz(
    {"flower_photos": special("flower_photos", tarfile.DIRTYPE)}
    | {name: corpus.jpeg() + NOISE[1000 * n :][:1000] for n, name in enumerate(NAMES)}
    | {"flower_photos/LICENSE.txt": b"CC-BY"}
)


class Server:
    """An HTTP server on this machine that misbehaves as told."""

    def __init__(self) -> None:
        self.content, self.tag, self.date = DATA, '"one"', ""
        self.ranges, self.stops_after = True, [len(DATA)]
        self.statuses: list[int] = []
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *rest: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/flower_photos.tgz"

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        wanted = to.headers.get("Range")
        self.asked.append(wanted)
        if self.statuses:
            to.send_error(self.statuses.pop(0))
            return
        start = 0
        same = to.headers.get("If-Range") in (self.tag, self.date)
        if wanted and self.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            to.send_response(206)
            to.send_header(
                "Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
            )
        else:
            to.send_response(200)
        if self.tag:
            to.send_header("ETag", self.tag)
        if self.date:
            to.send_header("Last-Modified", self.date)
        to.send_header("Content-Length", str(len(self.content) - start))
        to.end_headers()
        most = self.stops_after.pop(0) if self.stops_after else len(self.content)
        to.wfile.write(self.content[start : start + most])

    def source(self) -> Source:
        return Source(self.url, len(DATA), hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.http.shutdown()
    started.http.server_close()


def get(server: Server, target: Path, **options: object) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    fetch(
        server.source(), target, progress=lambda *n: told.append(n), wait=lambda s: None, **options
    )
    return told


def test_a_file_arrives_with_progress_and_leaves_nothing_beside_it(server, tmp_path) -> None:
    told = get(server, tmp_path / "new" / "a.tgz")
    assert (tmp_path / "new" / "a.tgz").read_bytes() == DATA
    assert told[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.tgz"]


def test_a_broken_transfer_goes_on_where_it_stopped(server, tmp_path) -> None:
    server.stops_after = [10_000, 5_000, len(DATA)]
    get(server, tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == DATA
    assert server.asked == [None, "bytes=10000-", "bytes=15000-"]


def test_a_download_given_up_is_taken_up_by_the_next_command(server, tmp_path) -> None:
    server.stops_after = [7_000] + [0] * 20
    with pytest.raises(EnvironmentFault, match="lost 5 times in a row") as caught:
        get(server, tmp_path / "a.tgz")
    assert caught.value.code == "R610"
    assert "7,000 bytes, from which it goes on" in str(caught.value)
    server.stops_after = []
    asked_before = len(server.asked)
    get(server, tmp_path / "a.tgz")
    assert server.asked[asked_before:] == ["bytes=7000-"]
    assert (tmp_path / "a.tgz").read_bytes() == DATA


@pytest.mark.parametrize(
    "change",
    [
        lambda server: setattr(server, "ranges", False),
        lambda server: setattr(server, "tag", '"two"'),
    ],
    ids=["the server knows no ranges", "the file has changed"],
)
def test_what_cannot_be_continued_begins_again(change, server, tmp_path) -> None:
    server.stops_after = [7_000] + [0] * 5
    with pytest.raises(EnvironmentFault):
        get(server, tmp_path / "a.tgz")
    change(server)
    server.stops_after = []
    get(server, tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz").read_bytes() == DATA


def test_a_weak_tag_is_no_ground_for_continuing_but_a_date_is(server, tmp_path) -> None:
    for tag, date, ranges in (
        ('W/"one"', "", [None, None]),
        ('W/"one"', "Wed, 21 Oct 2015 07:28:00 GMT", [None, "bytes=9000-"]),
        ("", "", [None, None]),
    ):
        server.tag, server.date, server.asked = tag, date, []
        server.stops_after = [9_000]
        get(server, tmp_path / "a.tgz")
        assert server.asked == ranges
        assert (tmp_path / "a.tgz").read_bytes() == DATA


def test_a_part_of_another_address_is_not_continued(server, tmp_path) -> None:
    (tmp_path / "a.tgz.part").write_bytes(b"x" * 500)
    label = {"url": "http://elsewhere/a.tgz", "mark": '"one"'}
    (tmp_path / "a.tgz.part.json").write_text(json.dumps(label))
    get(server, tmp_path / "a.tgz")
    assert server.asked == [None]


def test_the_wrong_content_is_refused_and_not_kept(server, tmp_path) -> None:
    server.content = DATA[:-1] + b"x"
    with pytest.raises(EnvironmentFault, match="wrong content") as caught:
        get(server, tmp_path / "a.tgz")
    assert caught.value.code == "R613"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("length", "code"), [(-1, "R610"), (1, "R613")])
def test_a_file_of_another_length_is_refused(length, code, server, tmp_path) -> None:
    server.content = DATA[:length] if length < 0 else DATA[1:] + b"xx"
    with pytest.raises(EnvironmentFault) as caught:
        get(server, tmp_path / "a.tgz")
    assert caught.value.code == code
    assert not (tmp_path / "a.tgz").exists()


def test_a_busy_server_is_asked_again_and_a_refusing_one_is_not(server, tmp_path) -> None:
    server.statuses = [503, 500, 429]
    get(server, tmp_path / "a.tgz")
    server.statuses = [404] * 2
    with pytest.raises(EnvironmentFault, match="the server answers 404 Not Found") as caught:
        get(server, tmp_path / "b.tgz")
    assert caught.value.code == "R612"
    assert len(server.statuses) == 1


def test_a_server_that_is_not_there_is_named(tmp_path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.tgz"
    with pytest.raises(
        EnvironmentFault, match=r"cannot be reached \(connection refused\)"
    ) as caught:
        fetch(Source(url, 5, ""), tmp_path / "a.tgz")
    assert caught.value.code == "R611"


def test_only_http_is_spoken(tmp_path) -> None:
    with pytest.raises(UsageError) as caught:
        fetch(Source("file:///etc/passwd", 5, ""), tmp_path / "a.tgz")
    assert caught.value.code == "U212"


def test_a_full_disk_is_noticed_before_and_while_writing(server, tmp_path, monkeypatch) -> None:
    honest = module._pour

    def full(*arguments: object) -> Iterator[int]:
        yield next(honest(*arguments))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "PIECE", 4_000)
    monkeypatch.setattr(module, "_pour", full)
    with pytest.raises(EnvironmentFault, match=r"disk is full.*Kept: 4,000 bytes") as caught:
        get(server, tmp_path / "a.tgz")
    assert caught.value.code == "R602"
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(EnvironmentFault, match="MB more are needed") as caught:
        get(server, tmp_path / "a.tgz")
    assert caught.value.code == "R602"


def test_flowers_are_downloaded_unpacked_and_found_again(server, tmp_path) -> None:
    with pytest.raises(DataError, match=r"Next: convscope flowers --out .*flower_photos"):
        open_pictures("flowers", cache=tmp_path)
    place = download(tmp_path / "flower_photos", source=server.source())
    assert [path.name for path in tmp_path.iterdir()] == ["flower_photos"]
    assert (place / "LICENSE.txt").read_bytes() == b"CC-BY"
    folder = open_pictures("flowers", cache=tmp_path)
    assert folder.classes == ("daisy", "roses")
    assert len(folder) == len(NAMES)
    with pytest.raises(OutputError) as caught:
        download(place, source=server.source())
    assert caught.value.code == "O501"


def test_an_archive_that_lies_there_is_used_without_a_network(tmp_path) -> None:
    (tmp_path / "here.tgz").write_bytes(DATA)
    source = Source("http://127.0.0.1:1/none", len(DATA), hashlib.sha256(DATA).hexdigest())
    assert len(Folder(download(tmp_path / "here", source=source))) == len(NAMES)
    (tmp_path / "other.tgz").write_bytes(DATA[:-9])
    with pytest.raises(EnvironmentFault, match="wrong content"):
        download(tmp_path / "other", source=source)


def test_the_flowers_are_the_published_ones() -> None:
    assert ARCHIVE.size == 228_813_984
    assert len(ARCHIVE.sha256) == 64


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("/etc/evil", b"x"),
        ("flower_photos/../../evil", b"x"),
        ("..\\evil", b"x"),
        ("flower_photos/link", special("flower_photos/link", tarfile.SYMTYPE, "/etc/passwd")),
        ("flower_photos/hard", special("flower_photos/hard", tarfile.LNKTYPE, "/etc/passwd")),
        ("flower_photos/pipe", special("flower_photos/pipe", tarfile.FIFOTYPE)),
        ("flower_photos/tty", special("flower_photos/tty", tarfile.CHRTYPE)),
    ],
)
def test_an_archive_that_reaches_out_is_not_unpacked_at_all(name, content, tmp_path) -> None:
    (tmp_path / "a.tgz").write_bytes(tgz({"flower_photos/fine.jpg": b"x", name: content}))
    with pytest.raises(DataError) as caught:
        unpack(tmp_path / "a.tgz", tmp_path / "out")
    assert caught.value.code == "D170"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_an_archive_that_swells_or_is_damaged_is_not_unpacked(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.tgz").write_bytes(tgz({"top/zeros": bytes(100_000)}))
    for setting, value in (("MOST_BYTES", 50_000), ("MOST_FILES", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(unpacking, setting, value)
            with pytest.raises(DataError) as caught:
                unpack(tmp_path / "a.tgz", tmp_path / "out")
        assert caught.value.code == "D171"
    for damaged in (DATA[: len(DATA) // 2], corpus.flipped(DATA, 0.5), b"no archive", b""):
        (tmp_path / "a.tgz").write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            unpack(tmp_path / "a.tgz", tmp_path / "out")
        assert caught.value.code == "D172"
    assert not (tmp_path / "out").exists()


def test_the_split_is_decided_by_each_name_alone() -> None:
    # By hand: sha256("12240303_80d87f77a3_n.jpg") begins 46f3…; its first 8 bytes mod 10.
    name = "12240303_80d87f77a3_n.jpg"
    first = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
    assert validation(name) == validation(f"roses/{name}") == (first % 10 == 0)
    assert validation(f"a/b/{name}".encode()) == validation(name)
    held = sum(validation(f"{n}.jpg") for n in range(20_000))
    assert abs(held - 2_000) < 150  # 3.5 standard deviations


def test_the_two_parts_are_everything_once_and_keep_the_classes(tmp_path) -> None:
    (tmp_path / "a.tgz").write_bytes(DATA)
    unpack(tmp_path / "a.tgz", tmp_path / "photos")
    folder = Folder(tmp_path / "photos")
    training, held = split(folder)
    assert sorted(training.names + held.names) == list(folder.names)
    assert not set(training.names) & set(held.names)
    assert training.classes == held.classes == folder.classes
    assert all(validation(name) for name in held.names)
    with pytest.raises(DataError) as caught:
        split(held)
    assert caught.value.code == "D119"


def test_class_indices_are_written_as_the_tutorials_do(tmp_path) -> None:
    write_class_indices(tmp_path / "class_indices.json", ("daisy", "rosé"))
    expected = '{\n    "0": "daisy",\n    "1": "ros\\u00e9"\n}'
    assert (tmp_path / "class_indices.json").read_text() == expected


def test_every_fault_is_one_line(server, tmp_path) -> None:
    faults: list[ConvscopeError] = []
    for cause in (
        lambda: fetch(Source("http://127.0.0.1:1/a", 5, ""), tmp_path / "a"),
        lambda: open_pictures("flowers", cache=tmp_path),
    ):
        with pytest.raises(ConvscopeError) as caught:
            _call(cause)
        faults.append(caught.value)
    assert all("\n" not in fault.line() for fault in faults)


def _call(cause: Callable[[], object]) -> None:
    cause()
