"""How far is it, and how long will it take? Shown on stderr, only to a person."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import typer

from convscope.core.text import one_line

Tick = Callable[[int, int], None]


@contextmanager
def progress(what: str) -> Iterator[Tick]:
    """A bar with counts and time left; gives the callback `(done, total)` that moves it."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console  # here: it takes 0.1 s, which only a bar needs
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def phases() -> Iterator[Callable[[str], Tick]]:
    """Bars one after the other: each appears with its first step, in the place of the one before.

    Two at a time would write over each other.
    """
    with ExitStack() as stack:
        bars: dict[str, Tick] = {}

        def named(what: str) -> Tick:
            def tick(done: int, total: int) -> None:
                if what not in bars:
                    stack.close()
                    bars.clear()
                    bars[what] = stack.enter_context(progress(what))
                bars[what](done, total)

            return tick

        yield named


def say(line: str) -> None:
    """A remark beside the result, for people; one line, whatever names are in it."""
    typer.echo(one_line(line), err=True)


def tell(*lines: object) -> None:
    """The result, on stdout; each of these is one line, whatever names are in it."""
    for line in lines:
        typer.echo(one_line(str(line)))
