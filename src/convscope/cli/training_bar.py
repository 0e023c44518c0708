"""How is training going? Loss, accuracy, pictures a second and time left, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from convscope.cli.progress import say

if TYPE_CHECKING:
    from convscope.training.story import Progress as Standing

Tell = Callable[["Standing"], None]


@contextmanager
def training_bar() -> Iterator[Tell]:
    """Gives the `progress` for `train`: a bar for a person, one line an epoch for a log."""
    if not sys.stderr.isatty():
        yield _log()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(24),
        TextColumn("{task.fields[how]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading", total=None, how="")

        def tell(standing: Standing) -> None:
            if standing.stage == "remark":
                console.print(standing.remark, markup=False, highlight=False)
                return
            bar.update(
                task,
                description="reading" if standing.stage == "reading" else _epoch(standing),
                completed=standing.done,
                total=standing.total,
                how=described(standing),
            )

        yield tell


def described(standing: Standing) -> str:
    """One line on where the run stands."""
    if standing.stage == "reading":
        return f"{standing.done:,} of {standing.total:,} pictures"
    judged = standing.val_accuracy
    parts = [f"loss {standing.loss:.3f}", f"accuracy {standing.accuracy:.1%}"]
    parts += [] if judged is None else [f"validation {judged:.1%}"]
    parts += [f"{standing.pictures_per_second:,.0f} pictures/s", left(standing.seconds_left)]
    return ", ".join(parts)


def left(seconds: float) -> str:
    """Time left, in words."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min left"
    return f"{minutes}:{rest:02d} min left"


def _epoch(standing: Standing) -> str:
    return f"epoch {standing.epoch}/{standing.epochs}"


def _log() -> Tell:
    def tell(standing: Standing) -> None:
        if standing.stage == "remark":
            say(standing.remark)
        if standing.stage == "judged":
            say(f"{_epoch(standing)}: {described(standing)}")

    return tell
