"""What can go wrong, and what does the user read then?

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
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable
from typing import ClassVar


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
        self.told = False
        """Another of several processes has told it, so that a command keeps silent."""

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
        self.next_step = ""
        """Where it is not the same command that goes on."""

    @property
    def exit_status(self) -> int:
        return 130 if self.number == signal.SIGINT and not self.kept else 75

    def line(self) -> str:
        """The one line a command prints."""
        step = "goes on from there" if self.kept else "starts again"
        kept = printable(self.kept) if self.kept else "nothing, and nothing half done is left"
        rest = f"Kept: {kept}. Next: {self.next_step or f'the same command {step}'}."
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
