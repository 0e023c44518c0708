"""The decoding process itself: paths in on fd 0, pixels or faults out on fd 1.

Started as `python -m convscope.pictures.decode.child` by pool.py, with neither torch nor NumPy,
so that it is ready in well under a tenth of a second. It ends when its input ends.

Request: kind, length, payload: a path, a place in an archive (PLACE), or the length of a content
and a name, behind which the content itself comes. Answer: kind, height, width, SHA-256 of the file,
its size, length of the text; then the text (of a fault its code and words; of pixels a line of code
and words for each note), then height × width × 3 bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import BinaryIO

from PIL import Image

from convscope.pictures.decode.decode import NOTES, NOTHING_SEEN, Decoding, decode, is_flat
from convscope.pictures.decode.formats import (
    Fault,
    Limits,
    Part,
    claimed,
    ending,
    load_plugins,
    read_file,
)
from convscope.pictures.framing import Framing

load_plugins()
REQUEST = struct.Struct("<cI")
ANSWER = struct.Struct("<cII32sQI")
SETUP, PATH, MEMBER, CONTENT = b"S", b"P", b"T", b"C"
PLACE = struct.Struct("<QQI")
"""Of a member: first byte, size, length of the archive's path; path and own name follow."""
LENGTH = struct.Struct("<Q")
"""Of a content; the picture's name follows, and behind the request the content."""
READY, PIXELS, FAULT, UNREAD, MEMORY = b"H", b"P", b"F", b"U", b"M"


@dataclass(frozen=True)
class Work:
    """What is done with each picture of a reading."""

    limits: Limits = field(default_factory=Limits)
    framing: Framing | None = None
    decoding: Decoding = field(default_factory=Decoding)

    def packed(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpacked(cls, data: bytes) -> Work:
        told = json.loads(data)
        framing = told["framing"] and Framing(**told["framing"])
        return cls(Limits(**told["limits"]), framing, Decoding(**told["decoding"]))


class Worker:
    """One decoding process, from its pipes on."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self.requests = requests
        self.answers = answers
        self.work = Work()

    def run(self) -> None:
        self.answer(READY)
        while len(header := self.requests.read(REQUEST.size)) == REQUEST.size:
            kind, length = REQUEST.unpack(header)
            payload = self.requests.read(length)
            if kind == SETUP:
                self.work = Work.unpacked(payload)
                hold_back(self.work.limits)
            elif kind == MEMBER:
                start, size, long = PLACE.unpack_from(payload)
                rest = payload[PLACE.size :]
                self.picture(self.file(rest[:long], (start, size)), ending(rest[long:]))
            elif kind == CONTENT:
                content = self.requests.read(*LENGTH.unpack_from(payload))
                self.picture(partial(bytes, content), ending(payload[LENGTH.size :]))
            else:
                self.picture(self.file(payload), ending(payload))

    def file(self, path: bytes, part: Part | None = None) -> Callable[[], bytes]:
        """To read a file, or a part of it."""
        return partial(read_file, path, self.work.limits, time.sleep, part)

    def picture(self, read: Callable[[], bytes], name_ends: bytes) -> None:
        """Answer for one picture.

        SIGPROF ends the process when its processor time is over.
        """
        signal.setitimer(signal.ITIMER_PROF, self.work.limits.seconds)
        try:
            data = read()
        except Fault as fault:
            self.answer(FAULT, f"{fault.code} {fault.text}")
        except OSError as fault:
            self.answer(UNREAD, fault.strerror or str(fault))
        except MemoryError:
            self.answer(MEMORY)
        else:
            self.content(data, name_ends)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    def content(self, data: bytes, name_ends: bytes) -> None:
        notes: dict[str, str] = {}
        try:
            whole = decode(data, self.work.limits, notes.__setitem__, self.work.decoding)
            framing = self.work.framing
            picture = whole if framing is None else framing.image(whole)
            pixels = picture.tobytes()
        except Fault as fault:
            self.answer(FAULT, f"{fault.code} {fault.text}", data)
        except MemoryError:
            self.answer(MEMORY)
        except Exception as fault:  # whatever it is, it is this picture's
            self.answer(FAULT, f"D105 cannot be decoded ({type(fault).__name__}: {fault})", data)
        else:
            if picture is not whole and not notes.keys() & NOTHING_SEEN and is_flat(picture):
                notes["N119"] = "all of one value in the part that is read, nothing can be seen"
            kind = claimed(data)
            if name_ends and kind is not None and name_ends not in kind.endings:
                notes["N102"] = ""
            told = "\n".join(f"{code} {notes[code]}" for code in NOTES if code in notes)
            self.answer(PIXELS, told, data, picture.size, pixels)

    def answer(
        self,
        kind: bytes,
        text: str = "",
        data: bytes = b"",
        size: tuple[int, int] = (0, 0),
        pixels: bytes = b"",
    ) -> None:
        told = text.encode("utf-8", "backslashreplace")
        digest = hashlib.sha256(data).digest()
        width, height = size
        self.answers.write(ANSWER.pack(kind, height, width, digest, len(data), len(told)) + told)
        self.answers.write(pixels)
        self.answers.flush()


def hold_back(limits: Limits) -> None:
    """Bound what this process may take; where the system has no such bounds, do without."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = limits.memory if most == resource.RLIM_INFINITY else min(limits.memory, most)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))


def main(prepare: Callable[[], None] | None = None) -> None:
    """Serve until the input ends. `prepare` runs before, in tests that plant a fault."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    Image.MAX_IMAGE_PIXELS = None  # Limits.max_pixels is checked instead, with its own message
    answers = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # whatever a decoder prints must not get between the pixels
    os.dup2(silence, 2)  # and what it warns of is told by code
    if prepare is not None:
        prepare()
    try:
        Worker(sys.stdin.buffer, answers).run()
    except BrokenPipeError:  # nobody listens any more
        os._exit(0)


if __name__ == "__main__":
    main()
