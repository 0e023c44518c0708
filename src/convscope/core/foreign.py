"""What did somebody else's code do when it failed, and where in it?

A network's forward, a target, a method or a module of the user's own runs inside one block:

    with TheirCode("M574", "the network", pictures):
        output = model(pictures)

What fails there is told as theirs, with its name and words and the line of their own code that it
came from; what fails in convscope's own hooks inside it stays what it is.
"""

from __future__ import annotations

import dis
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from traceback import FrameSummary, extract_tb
from types import TracebackType
from typing import Any, Self

from convscope.core.errors import ModelError, is_out_of_memory

PACKAGE = Path(__file__).parents[1]
NETWORKS = (PACKAGE / "network" / "sources", PACKAGE / "network" / "wrap.py")
"""What stands there is a network like any other."""
LIBRARIES = ("site-packages", "dist-packages")
STANDARD = sysconfig.get_path("stdlib")
PASSED_ON = ("__torch_function__", "__torch_dispatch__", "_plain")
"""Functions of ours through which calls of their code go on to torch."""
SIZES = (
    "cannot be multiplied",
    "can't be greater",
    "doesn't match model",
    "expected input",
    "expected size",
    "input channels",
    "is invalid for input of size",
    "more than 1 spatial element",
    "more than 1 value per channel",
    "must match except",
    "must match the size",
    "non-empty 3d or 4d",
    "normalized_shape",
    "not divisible by",
    "to be divisible by",
    "or 4d (batched) input",
    "output size is too small",
    "padding size should be less",
    "running_mean should contain",
    "shape mismatch",
    "size mismatch",
    "stack expects each tensor",
    "wrong image height",
    "wrong image width",
)
"""How torch and libraries say that tensors of these sizes do not fit, in lower case."""


class TheirCode:
    """Raises ModelError in the place of what the code inside the block raises.

    That is with `code`; where `pictures` are known and a size or number of channels does not fit,
    as torch or a library says it, M522. What it was is the error's `__cause__`. Left alone are
    faults of convscope, memory that ran out, and an interrupt from outside.
    """

    def __init__(self, code: str, subject: str, given: Sequence[Any] = ()) -> None:
        """given: what the code is called with; the first with a shape is the pictures."""
        self.code, self.subject = code, subject
        self.shapes = [tuple(one.shape) for one in given if hasattr(one, "shape")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, fault: BaseException | None, trace: TracebackType | None) -> None:
        if fault is None:
            return
        frames = list(_frames(trace))[1:]  # the first is that of the block itself
        if is_theirs(fault, frames):
            raise self._told(fault, frames) from fault

    def _told(self, fault: BaseException, frames: Sequence[TracebackType]) -> ModelError:
        place = _place(frames)
        if not self.shapes or not _is_about_size(fault, frames):
            return ModelError(self.code, self.subject, told(fault, frames))
        where = f"; {place}" if place else ""
        size = " × ".join(map(str, self.shapes[0][1:]))
        what = f"does not take a picture of {size} ({type(fault).__name__}: {words(fault)}{where})"
        return ModelError("M522", self.subject, what)


def is_theirs(fault: BaseException, frames: Sequence[TracebackType]) -> bool:
    """Whether it came out of somebody else's code, which these frames lead into."""
    if type(fault).__module__.partition(".")[0] == "convscope" or is_out_of_memory(fault):
        return False
    passed = isinstance(fault, RuntimeError)
    owner = _owner(frames, passed=passed)
    if isinstance(fault, Exception):
        return owner != "convscope"
    if isinstance(fault, SystemExit):  # a handler of signals of ours may raise it
        return owner != "convscope"
    return bool(frames) and _kind(frames[-1]) == "user" and _raises(frames[-1])


def blamed(fault: BaseException) -> str:
    """The same words for a fault that came out outside of all blocks; empty where it is not, as
    far as one can see, somebody's own code that failed."""
    frames = list(_frames(fault.__traceback__))
    own = is_theirs(fault, frames) and _owner(frames, passed=False) == "user"
    return told(fault, frames) if own else ""


def told(fault: BaseException, frames: Sequence[TracebackType]) -> str:
    """What their code raised, and where in it, not in what it calls."""
    place = _place(frames)
    where = f" ({place})" if place else ""
    if isinstance(fault, SystemExit):
        return f"its code ended the program: SystemExit: {fault.code}{where}"
    said = words(fault)
    if not said:
        line = _line(frames)
        said = f"at {line}" if line else "no message"
    return f"its code raised {type(fault).__name__}: {said}{where}"


def words(fault: BaseException) -> str:
    """The first line that a fault says."""
    try:
        lines = str(fault).strip().splitlines()
    except Exception:  # words are their code, too
        lines = []
    return lines[0].rstrip() if lines else ""


def _frames(trace: TracebackType | None) -> Iterator[TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _kind(frame: TracebackType) -> str:
    """Whose code it is: "convscope", "library" or "user"."""
    file = frame.tb_frame.f_code.co_filename
    path = Path(file)
    if PACKAGE in path.parents:
        return (
            "library" if any(place in (path, *path.parents) for place in NETWORKS) else "convscope"
        )
    foreign = any(name in path.parts for name in LIBRARIES) or file.startswith("<frozen")
    return "library" if foreign or file.startswith(STANDARD) else "user"


def _owner(frames: Sequence[TracebackType], *, passed: bool) -> str:
    """Whose code failed: convscope's own, a user's, or only libraries'.

    passed: whether a fault in what our `__torch_function__` calls is that of the call itself.
    """
    within = False
    inside: list[bool] = []  # below a function of ours through which calls go on
    for frame in frames:
        within |= frame.tb_frame.f_code.co_name in PASSED_ON
        inside.append(within)
    for frame, below in zip(reversed(frames), reversed(inside), strict=True):
        kind = _kind(frame)
        goes_on = frame.tb_frame.f_code.co_name in PASSED_ON or (below and passed)
        if kind == "user" or (kind == "convscope" and not goes_on):
            return kind
    return "library"


def _is_about_size(fault: BaseException, frames: Sequence[TracebackType]) -> bool:
    """Whether torch or a library says so, not the user's own code."""
    if not isinstance(fault, RuntimeError | ValueError | AssertionError | IndexError):
        return False
    own = bool(frames) and _kind(frames[-1]) == "user" and _raises(frames[-1])
    said = words(fault).lower()
    return not own and any(sign in said for sign in SIZES)


def _raises(frame: TracebackType) -> bool:
    """Whether the frame ended at a `raise` of its own: an interrupt comes at any other place."""
    code = frame.tb_frame.f_code.co_code
    return dis.opname[code[frame.tb_lasti]] == "RAISE_VARARGS"


def _where(frames: Sequence[TracebackType]) -> TracebackType | None:
    """The last frame of the user's own code; else of a library that is not torch or Python's."""
    for frame in reversed(frames):
        if _kind(frame) == "user":
            return frame
    for frame in reversed(frames):
        file = frame.tb_frame.f_code.co_filename
        is_python = file.startswith((STANDARD, "<frozen")) and not any(
            name in file for name in LIBRARIES
        )
        if _kind(frame) == "library" and not is_python and "torch" not in Path(file).parts:
            return frame
    return None


def _summary(frames: Sequence[TracebackType]) -> FrameSummary | None:
    frame = _where(frames)
    return None if frame is None else extract_tb(frame, limit=1)[0]


def _place(frames: Sequence[TracebackType]) -> str:
    frame = _summary(frames)
    if frame is None:
        return ""
    path = Path(frame.filename)
    here = path.relative_to(Path.cwd()) if Path.cwd() in path.parents else Path(path.name)
    return f"{here}, line {frame.lineno}"


def _line(frames: Sequence[TracebackType]) -> str:
    frame = _summary(frames)
    return (frame.line or "") if frame is not None else ""
