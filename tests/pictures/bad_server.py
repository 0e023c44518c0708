"""An archive of flowers, and an HTTP server on this machine that misbehaves as told."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from convscope.pictures.download import Source
from tests.pictures import corpus


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
