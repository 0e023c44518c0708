"""Download weights, checked by their hash."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from convscope.errors import EnvironmentFault
from convscope.publish import publish_file

CHUNK = 1 << 20
TIMEOUT = 30.0


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    timeout: float = TIMEOUT,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Download to `target`, unless it is there already and right; whole or not at all.

    sha256: how the file's hash begins, in hexadecimal, if it is known. timeout: seconds without
    an answer. progress counts bytes.

    Raises EnvironmentFault R620 if the server cannot be reached, R621 if it sent another file.
    """
    if target.is_file() and _hash(target.read_bytes()).startswith(sha256):
        return target
    content = _download(url, timeout, progress)
    if not _hash(content).startswith(sha256):
        raise EnvironmentFault(
            "R621",
            url,
            f"the server sent another file: SHA-256 {_hash(content)[:16]}… instead of {sha256}…",
            next_step="try again later, or download it another way and pass it as checkpoint",
        )
    publish_file(target, content)
    return target


def _download(url: str, timeout: float, progress: Callable[[int, int], None] | None) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "convscope"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            content = bytearray()
            while chunk := answer.read(CHUNK):
                content += chunk
                if progress is not None:
                    progress(len(content), total)
        if len(content) < total:
            raise OSError(f"it broke off after {len(content)} of {total} bytes")
    except (OSError, http.client.HTTPException, ValueError) as fault:
        if isinstance(fault, urllib.error.HTTPError):
            fault.close()
        reason = getattr(fault, "reason", None) or fault
        reason = getattr(reason, "strerror", None) or reason
        raise EnvironmentFault("R620", url, f"cannot be downloaded ({reason})") from fault
    return bytes(content)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
