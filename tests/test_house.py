"""Can a stranger live here? Sizes of the house, and how its front door is used."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "convscope"
MODULES = sorted(SOURCE.rglob("*.py"))
LINES, FILES = 50_800, 192
"""A little more than there are: lowered as the house gets smaller, raised for a new room alone."""
LONGEST_FUNCTION, LONGEST_FILE, BEFORE_THE_STAR = 40, 600, 6
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_the_house_does_not_grow() -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES)
    assert lines <= LINES, "find what can go before adding more"
    assert len(MODULES) <= FILES, "look for a file that has room"


def test_no_file_and_no_function_is_too_long_to_read() -> None:
    long = [
        f"{path.relative_to(SOURCE)}: {len(path.read_text(encoding='utf-8').splitlines())}"
        for path in MODULES
        if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE
    ]
    long += [
        f"{path.relative_to(SOURCE)}: {node.name} {node.end_lineno - node.lineno + 1}"
        for path in MODULES
        for node in functions(path)
        if node.end_lineno is not None and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert long == []


def test_no_function_takes_more_than_six_parameters_before_the_star() -> None:
    many = [
        f"{path.relative_to(SOURCE)}: {node.name}"
        for path in MODULES
        for node in functions(path)
        if len(
            [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in {"self", "cls"}]
        )
        > BEFORE_THE_STAR
    ]
    assert many == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_imports_from_a_deep_path(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^\s*(?:from|import) convscope\.\w+\.\w.*$", text, re.MULTILINE) == []


def test_no_name_is_unknown() -> None:
    """Shapes stand in strings that only look like names, so that ruff and mypy leave unknown names
    alone; here those outside of strings are told."""
    command = ["ruff", "check", "--isolated", "--select=F821", "--output-format=json"]
    found = subprocess.run(
        [sys.executable, "-m", *command, "--exit-zero", str(SOURCE)],
        capture_output=True,
        check=True,
    )
    unknown = []
    for fault in json.loads(found.stdout):
        path, place = Path(fault["filename"]), fault["location"]
        at = (place["row"], place["column"] - 1)
        with path.open("rb") as file:
            shapes = [
                token
                for token in tokenize.tokenize(file.readline)
                if token.type == tokenize.STRING and token.string[0] not in "fF"
            ]
        if not any(token.start <= at < token.end for token in shapes):
            unknown.append(f"{path.relative_to(SOURCE)}:{place['row']}: {fault['message']}")
    assert unknown == []
