"""The front door: few names, namespaces below them, and the names of the version before."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

import convscope
import convscope.pictures.opening
from convscope.core.errors import a_kind, nearest
from convscope.core.namespace import MOVED

ROOT = Path(__file__).parent.parent
CODE = [
    *(ROOT / "src").rglob("*.py"),
    *(ROOT / "bench").glob("*.py"),
    *(ROOT / "docs").glob("*.py"),
]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def test_every_name_is_there() -> None:
    for name in (*convscope.__all__, *convscope._NAMESPACES, *convscope._BEFORE):
        assert getattr(convscope, name) is not None, name
    assert not set(convscope.__all__) & {*convscope._BEFORE, *convscope._NAMESPACES}
    assert set(convscope._HOME) | {"wrap"} == set(convscope.__all__)


def test_no_room_hides_a_function() -> None:
    """Importing a package sets it as a name of its parent, whatever is there."""
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "src" / "convscope").iterdir()}
    assert not rooms & {*convscope.__all__, *convscope._BEFORE}


def test_a_name_of_the_version_before_is_told_once_with_the_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in convscope._BEFORE:
        monkeypatch.delitem(vars(convscope), name, raising=False)
        with pytest.warns(DeprecationWarning, match=f"convscope.{name} is .*: write") as told:
            before = getattr(convscope, name)
        assert told[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert getattr(convscope, name) is before


def test_the_new_name_is_there_too() -> None:
    for _, now in convscope._BEFORE.values():
        found = convscope
        for part in now.partition("(")[0].split("."):
            found = getattr(found, part)
        if named := re.search(r'method="([^"]+)"', now):
            methods = {*convscope.attribution.METHODS, "dream"}
            assert named[1] in methods
        if named := re.search(r'study\("([^"]+)"', now):
            from convscope.studies.registry import by_name

            assert by_name(named[1])


def test_nothing_of_ours_asks_for_a_name_of_the_version_before() -> None:
    names = "|".join(convscope._BEFORE)
    asked = re.compile(
        rf"\bconvscope\.({names})\b(?![./])|from convscope import [^\n]*\b({names})\b"
    )
    rooms = re.compile(rf"convscope\.({'|'.join(convscope._NAMESPACES)})\.\w+")
    for path in [*CODE, *PAGES]:
        if path.name != "CHANGELOG.md":
            text = rooms.sub("", path.read_text(encoding="utf-8"))
            assert not asked.search(text), f"{path}: {asked.search(text)}"


def test_the_docs_import_from_no_deep_path() -> None:
    deep = re.compile(r"^(?:from|import) convscope\.\w+\.\w+", re.M)
    for path in [*PAGES, *(ROOT / "docs").glob("*.py")]:
        assert not deep.findall(path.read_text(encoding="utf-8")), path


def test_import_is_instant() -> None:
    code = "import sys, convscope; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_modules_that_the_documentation_of_before_named_lead_on() -> None:
    for name, now in MOVED.items():
        sys.modules.pop(f"convscope.{name}", None)
        with pytest.warns(DeprecationWarning, match=f"is convscope.{now} now"):
            before = import_module(f"convscope.{name}")
        there = import_module(f"convscope.{now}")
        own = [key for key, value in vars(there).items() if callable(value)]
        assert own
        assert all(getattr(before, key) is getattr(there, key) for key in own)
    with pytest.raises(ModuleNotFoundError):
        import_module("convscope.methods.nosuch")
    with pytest.raises(ImportError, match="nosuch"):
        from convscope.methods.layers import nosuch  # noqa: F401


def test_the_help_of_explain_names_every_method() -> None:
    from convscope.cli.explain import Explaining

    hint = get_type_hints(Explaining, include_extras=True)["method"]
    named = set(re.findall(r"[a-z+]+(?:-[a-z]+)*", hint.__metadata__[0].help))
    assert set(convscope.attribution.METHODS) <= named


def test_kinds_have_their_article_and_nothing_to_choose_from_is_said() -> None:
    assert (a_kind(3), a_kind([])) == ("an int", "a list")
    assert nearest("x", []) == "there are none to choose from"
    with pytest.raises(convscope.ConvscopeError, match=r"an int is .*convscope.open"):
        convscope.pictures.opening.as_pictures(3)


def test_a_name_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="did you mean attribute"):
        _ = convscope.atribute
    with pytest.raises(AttributeError, match=r"has no attribute 'qqqq'$"):
        _ = convscope.qqqq


def test_a_result_shows_itself_in_one_line() -> None:
    one = convscope.Attribution(np.zeros((200, 300), np.float32), 3, origin={"long": ["x"] * 999})
    assert repr(one).startswith("Attribution(values=<200×300 float32>, target=3, ")
    assert len(repr(one)) < 300
    assert "origin" not in repr(one)
