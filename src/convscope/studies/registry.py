"""All studies. To add one: a folder beside this file, its name in FOLDERS, docs page and test."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from convscope.studies.base import Study

FOLDERS = ("correspondence", "invariance", "filters", "unit_ablation")


def studies() -> Iterator[Study]:
    for folder in FOLDERS:
        yield import_module(f"convscope.studies.{folder}").STUDY


def by_record(kind: str) -> Study | None:
    """The study that writes records of this kind."""
    return next((study for study in studies() if kind in study.records), None)
