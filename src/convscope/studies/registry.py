"""All studies. To add one: a folder beside this file, its name in FOLDERS, docs page and test."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from convscope.core.errors import UsageError, nearest, shown
from convscope.core.text import Table
from convscope.studies.base import Study

FOLDERS = (
    "occlusion",
    "features",
    "evolution",
    "retrieval",
    "probes",
    "transfer",
    "ablation",
    "correspondence",
    "invariance",
    "filters",
    "unit_ablation",
    "pointing",
    "explain",
    "audit",
)


def studies() -> Iterator[Study]:
    for folder in FOLDERS:
        module = import_module(f"convscope.studies.{folder}")
        yield from getattr(module, "STUDIES", ()) or (module.STUDY,)


def by_record(kind: str) -> Study | None:
    """The study that writes records of this kind."""
    return next((study for study in studies() if kind in study.records), None)


def by_name(name: str) -> Study:
    """By its command, an older one, or its function. Raises UsageError U433."""
    if not isinstance(name, str):
        step = 'give the name first: study("invariance", network, pictures)'
        raise UsageError("U433", "", f"{shown(name)} is no study's name", next_step=step)
    known: dict[str, Study] = {}
    for one in studies():
        for word in (one.function or one.folder, one.folder, one.name, *one.aliases):
            known.setdefault(word, one)
    if name not in known:
        commands = [one.name for one in studies()]
        raise UsageError("U433", name, f"is no study; {nearest(name, commands)}")
    return known[name]


def study(name: str, *given: Any, **options: Any) -> Any:
    """Run a study by its name: `study("invariance", network, pictures, border="edge")`.

    What it takes and gives, and what it raises, is as of its own function; its options are as of
    its command. Raises UsageError U433 if there is no such study.
    """
    return by_name(name).call(*given, **options)


def table() -> Table:
    """Of docs/studies.md."""
    head = ("study", "shows", "of the paper", "command")
    rows = [
        (f"[{one.title}]({one.page}.md)", one.shows, one.paper, f"`convscope {one.name}`")
        for one in studies()
    ]
    return Table.of(head, rows)
