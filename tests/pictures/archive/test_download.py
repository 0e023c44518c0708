"""Does a file arrive whole over a bad connection?"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from convscope.core.errors import EnvironmentFault, UsageError
from convscope.pictures import download
from convscope.pictures.download import Source, fetch
from tests.pictures.bad_server import DATA, Server


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
    honest = download._Part._pour

    def full(*arguments: object) -> Iterator[int]:
        yield next(honest(*arguments))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "PIECE", 4_000)
    monkeypatch.setattr(download._Part, "_pour", full)
    with pytest.raises(EnvironmentFault, match=r"disk is full.*Kept: 4,000 bytes") as caught:
        get(server, tmp_path / "a.tgz")
    assert caught.value.code == "R602"
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(EnvironmentFault, match="MB more are needed") as caught:
        get(server, tmp_path / "a.tgz")
    assert caught.value.code == "R602"
