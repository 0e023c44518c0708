"""Pictures and a server that several tests need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.pictures.bad_server import Server

COUNT = 14


@pytest.fixture
def herd(tmp_path: Path) -> Path:
    """Pictures 00.png to 13.png whose number is their red value."""
    for number in range(COUNT):
        Image.new("RGB", (31, 17), (number, 9, 9)).save(tmp_path / f"{number:02}.png")
    return tmp_path


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.http.shutdown()
    started.http.server_close()
