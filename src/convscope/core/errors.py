"""Errors: what can go wrong and what the user reads then; failures in somebody else's code.

    ConvscopeError
    ├── UsageError         exit 2   the command or call itself is wrong
    ├── DataError          exit 3   pictures: nothing usable, or too many unusable
    ├── ModelError         exit 4   network: unknown layer, unsupported operation, non-finite
    │   └── CheckpointError         weights: unsafe, damaged, of another network
    ├── OutputError        exit 5   the place for results holds something else
    ├── EnvironmentFault   exit 6   disk, permission, memory, device, network
    └── Stopped            exit 75  stopped on request; the same command goes on from there

Codes are one letter (D data, C checkpoint, M model, O output, R runtime, U usage) and three
digits, listed in docs/errors.md, and never change their meaning.

A network's forward, a target, a method or a module of the user's own runs inside one block:

    with TheirCode("M574", "the network", pictures):
        output = model(pictures)

What fails there is told as theirs, with its name and words and the line of their own code that it
came from; what fails in convscope's own hooks inside it stays what it is.
"""

from __future__ import annotations

import difflib
import dis
import signal
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from traceback import FrameSummary, extract_tb
from types import TracebackType
from typing import Any, ClassVar, Self


class ConvscopeError(Exception):
    """A fault that the user can understand and mend; anything else is our own bug (exit 70)."""

    exit_status: ClassVar[int] = 70

    def __init__(
        self, code: str, subject: str, what: str, *, kept: str = "", next_step: str = ""
    ) -> None:
        """code: "D104". subject: the file, layer or option it is about. what: one clause."""
        super().__init__(code, subject, what)
        self.code = code
        self.subject = subject
        self.what = what
        self.kept = kept
        self.next_step = next_step

    def __str__(self) -> str:
        parts = [f"{_cut(self.subject)}: {self.what}" if self.subject else self.what]
        if self.kept:
            parts.append(f"Kept: {self.kept}")
        if self.next_step:
            parts.append(f"Next: {self.next_step}")
        text = " ".join(part if part.endswith("?") else part.rstrip(".") + "." for part in parts)
        return printable(text)

    def line(self) -> str:
        """The one line a command prints."""
        return f"convscope: error[{self.code}]: {self}"


class UsageError(ConvscopeError):
    exit_status = 2


class DataError(ConvscopeError):
    exit_status = 3


class ModelError(ConvscopeError):
    exit_status = 4


class CheckpointError(ModelError):
    pass


class OutputError(ConvscopeError):
    exit_status = 5


class EnvironmentFault(ConvscopeError):
    exit_status = 6


class Stopped(ConvscopeError):
    exit_status = 75


class StopAsked(BaseException):
    """A signal asks the command to stop at once. No Exception and no KeyboardInterrupt: nothing on
    the way may take it for a fault, or for something that somebody's code raised."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.kept = ""
        """What is safe, if more than nothing; said by who knows it while this passes."""

    @property
    def exit_status(self) -> int:
        return 130 if self.number == signal.SIGINT else 75

    def line(self) -> str:
        """The one line a command prints."""
        step = "goes on from there" if self.kept else "starts again"
        kept = printable(self.kept) if self.kept else "nothing, and nothing half done is left"
        rest = f"Kept: {kept}. Next: the same command {step}."
        if self.number == signal.SIGINT:
            return f"convscope: stopped by the keyboard. {rest}"
        name = signal.Signals(self.number).name
        return f"convscope: error[R575]: stopped as asked, by {name}. {rest}"


LONGEST = 200
"""Letters of a subject that a message shows whole."""


def _cut(text: str) -> str:
    """Both ends of a text that is too long for one line."""
    return text if len(text) <= LONGEST else f"{text[:60]}…{text[-60:]}"


def shown(value: object, most: int = 60) -> str:
    """A value that was given, as a message shows it: its repr where that is short and one line,
    else what it is."""
    text = repr(value)
    if len(text) <= most and text.isprintable():
        return text
    if isinstance(value, str):
        return repr(f"{value[: most // 2]}…{value[-most // 4 :]}")
    return a_kind(value)


def a_kind(value: object) -> str:
    """What kind of thing it is, with its article: "an int", "a list"."""
    name = type(value).__name__
    return f"an {name}" if name[:1].lower() in "aeio" else f"a {name}"


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether memory ran out. torch tells that of main memory by words alone."""
    if not isinstance(fault, RuntimeError | OSError):
        return isinstance(fault, MemoryError)
    said = str(fault).lower()
    return any(w in said for w in ("can't allocate memory", "out of memory", "not enough memory"))


def printable(text: str) -> str:
    """Text that cannot forge a second line or hide: control and undecodable bytes escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
        for c in text
    )


def require_options(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises UsageError U381 for the name of an option that the function does not have."""
    names = list(known)
    for one in given:
        if one not in names:
            raise UsageError("U381", function, f"has no option {one!r}; {nearest(one, names)}")


def nearest(given: object, known: Iterable[str], *, most: int = 12) -> str:
    """What to say after "no such NAME": near matches, or else what there is."""
    names = list(known)
    close = difflib.get_close_matches(given, names, 3) if isinstance(given, str) else []
    if close:
        return "did you mean " + " or ".join(close) + "?"
    shown = names if len(names) <= most else [*names[: most - 1], "…", names[-1]]
    return "it has " + ", ".join(shown) if shown else "there are none to choose from"


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
