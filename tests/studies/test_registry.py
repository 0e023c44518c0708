"""Is every study in the registry whole: its options, records, help, example and row in the docs?"""

from __future__ import annotations

import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from convscope.cli.app import run
from convscope.core.errors import UsageError
from convscope.core.record import Record
from convscope.core.text import lines
from convscope.studies.base import Study, option_of
from convscope.studies.registry import FOLDERS, by_name, by_record, studies, study, table

ALL = list(studies())
MADE = [one for one in ALL if not one.by_hand]
NOT_ASKED = {
    "correspondence": {"fill"},
    "invariance": {"changes"},
    "features": {"units", "count", "side", "overlap", "tuning", "precision"},
    "evolution": {"side"},
    "transfer": {"without", "scratch", "runs"},
    "occlusion": {"boxes", "others", "kept"},
}
"""Keyword parameters that no option of a command sets, beside those that every study may have."""
USUAL = {"progress", "training", "searching", "run", "tell", "stop", "how"}


@pytest.mark.parametrize("one", MADE, ids=lambda one: one.folder)
def test_options_are_the_parameters_of_its_function(one: Study) -> None:
    module = one.module("study")
    known = inspect.signature(getattr(module, one.function or one.folder)).parameters
    own = {entry.name for entry in fields(one.options)}
    given = {name for name in own if not option_of(one.options, name)[1].command_only}
    given.discard("seed")  # travels in `run`
    assert given <= set(known)
    optional = {name for name, told in known.items() if told.kind is told.KEYWORD_ONLY}
    assert optional - given <= NOT_ASKED.get(one.folder, set()) | USUAL
    for entry in fields(one.options):
        if entry.name in given and known[entry.name].default is not inspect.Parameter.empty:
            assert entry.default == known[entry.name].default, entry.name


@pytest.mark.parametrize("one", MADE, ids=lambda one: one.folder)
def test_help_names_its_options_and_its_example_only_those(
    one: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([one.name, "--help"]) == 0
    said = capsys.readouterr().out
    for entry in fields(one.options):
        names = option_of(one.options, entry.name)[1].names
        words = names or (f"--{entry.name.replace('_', '-')}",)
        shown = entry.name if entry.name in one.needs else words[0].split("/")[0]
        assert shown in said
    words = shlex.split(one.example)
    assert words[:2] == ["convscope", one.name]
    assert all(word in said for word in words if word.startswith("-"))


def test_every_folder_is_in_the_registry_and_every_record_is_there() -> None:
    home = Path(inspect.getfile(Study)).parent
    assert sorted(FOLDERS) == sorted(path.parent.name for path in home.glob("*/study.py"))
    kinds = {kind.__name__ for kind in _below(Record)}
    for one in ALL:
        one.module("study")
        kinds |= {kind.__name__ for kind in _below(Record)}
        assert set(one.records) <= kinds
        assert all(by_record(kind) == one for kind in one.records)
        assert set(one.about) <= set(one.records)


def _below(kind: type) -> set[type]:
    return {kind, *(one for sub in kind.__subclasses__() for one in _below(sub))}


def test_a_study_is_found_by_every_name_and_no_other() -> None:
    for one in ALL:
        for name in (one.name, one.folder, *one.aliases):
            assert by_name(name) == one
    with pytest.raises(UsageError) as fault:
        study("invarience")
    assert fault.value.code == "U433"
    assert "did you mean invariance?" in str(fault.value)


def test_docs_name_every_study_with_its_page() -> None:
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "studies.md").read_text(encoding="utf-8")
    assert "\n".join(lines([table()])) in text
    assert all((docs / f"{one.page}.md").is_file() for one in ALL)
    readme = (docs.parent / "README.md").read_text(encoding="utf-8")
    assert all(re.search(rf"convscope {name}\b", readme + text) for name in (o.name for o in ALL))
