"""A decoding process in which files with certain names do harm, by their content no picture."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from convscope.pictures.decode import child
from convscope.pictures.decode.formats import Limits, Part, read_file

honest = read_file


def read(
    path: bytes, limits: Limits, wait: Callable[[float], object], part: Part | None = None
) -> bytes:
    name = os.fsdecode(path.rsplit(b"/", 1)[-1])
    met = Path(os.fsdecode(path) + ".met")
    if name.startswith("once-"):
        if met.exists():
            return honest(path, limits, wait, part)
        met.touch()
    for word, harm in HARMS.items():
        if word in name:
            harm()
    return honest(path, limits, wait, part)


def spin() -> None:
    while True:
        pass


def trickle() -> None:
    """As from a disk that brings a little every half second, for four seconds."""
    for _ in range(8):
        time.sleep(0.45)
        until = time.process_time() + 0.03
        while time.process_time() < until:
            pass


def swell() -> None:
    bytearray(1 << 40)


def fail() -> None:
    raise OSError(errno.EIO, "Input/output error")


HARMS: dict[str, Callable[[], object]] = {
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "hang": lambda: time.sleep(1000),
    "spin": spin,
    "trickle": trickle,
    "swell": swell,
    "fail": fail,
}

child.read_file = read
if __name__ == "__main__":
    child.main()
