"""Does every fault code stand in docs/errors.md, once, under the letter of its exception?"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from convscope.core import errors

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "convscope"
DOCUMENT = ROOT / "docs" / "errors.md"
MODULES = sorted(SOURCE.rglob("*.py"))
CODE = re.compile(r"\b[CDMNORUX]\d{3}\b")
ROW = re.compile(r"^\| ([A-Z]\d{3}) \| ([^|]+) \| ([^|]+) \|$", re.M)
STATUS = re.compile(r"^\| (\d+) \| ([^|]+) \|([^|]*)\|$", re.M)
FAMILY = {
    "CheckpointError": "C",
    "DataError": "D",
    "EnvironmentFault": "R",
    "Fault": "D",
    "ModelError": "M",
    "OutputError": "O",
    "Stopped": "R",
    "UsageError": "U",
}
WITHOUT_EXCEPTION = {0, 70, 130}


def prose(tree: ast.AST) -> set[ast.Constant]:
    """Docstrings, also those below attributes: strings that stand alone."""
    alone = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    return {value for value in alone if isinstance(value, ast.Constant)}


def strings(tree: ast.AST, *, alone: bool) -> Iterator[str]:
    """All string literals that are prose, or all that are not; parts of f-strings too."""
    standing = prose(tree)
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and (node in standing) is alone:
            yield str(node.value)  # type: ignore[attr-defined]


def codes(text: str, *, alone: bool = False) -> set[str]:
    """The codes that a module gives out, or (alone) those that its docstrings name."""
    return {code for told in strings(ast.parse(text), alone=alone) for code in CODE.findall(told)}


def faults(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Every fault that is made: its class, and the expression of its code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in FAMILY:
                yield name, node.args[0]


def _is_text(given: ast.expr) -> bool:
    return isinstance(given, ast.Constant) and isinstance(given.value, str)


def misfits(text: str) -> list[str]:
    """Codes under the wrong class. Where a code is no literal, every code of the module counts,
    as each of them may be meant, but for those that are given out as another class's."""
    found = []
    told = [(name, str(g.value)) for name, g in faults(ast.parse(text)) if _is_text(g)]  # type: ignore[attr-defined]
    for name, given in faults(ast.parse(text)):
        is_literal = _is_text(given)
        others = {code for other, code in told if other != name}
        may_be = {str(given.value)} if is_literal else codes(text) - others  # type: ignore[attr-defined]
        wrong = [code for code in sorted(may_be) if code[:1] != FAMILY[name]]
        found += [f"{name} with {code}" for code in wrong if is_literal or code[0] != "N"]
    return found


def documented() -> list[str]:
    return [row[0] for row in ROW.findall(DOCUMENT.read_text(encoding="utf-8"))]


def test_the_tables_have_just_the_codes_that_are_given_out() -> None:
    given = {code for path in MODULES for code in codes(path.read_text(encoding="utf-8"))}
    assert len(given) > 100
    assert given == set(documented())


def test_each_code_has_one_row_in_order_under_its_letter() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        rows = [row[0] for row in ROW.findall(section)]
        assert rows == sorted(set(rows))
        assert {code[0] for code in rows} <= {section[0]}
    assert len(documented()) == len(set(documented()))
    assert len(ROW.findall(text)) == sum(bool(CODE.match(ln[2:])) for ln in text.splitlines())


def test_docstrings_and_documents_name_no_other_codes() -> None:
    named = {code for path in MODULES for code in codes(path.read_text("utf-8"), alone=True)}
    for document in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        named |= set(CODE.findall(document.read_text(encoding="utf-8")))
    assert named - set(documented()) == set()


def test_the_letter_of_a_code_is_that_of_its_exception() -> None:
    found = {path.name: misfits(path.read_text(encoding="utf-8")) for path in MODULES}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_every_kind_of_fault_has_a_letter() -> None:
    kinds = {name for name, kind in vars(errors).items() if is_fault(kind)}
    assert kinds | {"Fault"} == set(FAMILY)


def is_fault(kind: object) -> bool:
    base = errors.ConvscopeError
    return isinstance(kind, type) and issubclass(kind, base) and kind is not base


def test_the_exit_statuses_are_those_of_the_exceptions() -> None:
    rows = STATUS.findall(DOCUMENT.read_text(encoding="utf-8"))
    told = {
        name: int(status) for status, _, names in rows for name in re.findall(r"`(\w+)`", names)
    }
    kinds = {name: kind for name, kind in vars(errors).items() if is_fault(kind)}
    assert told == {name: kind.exit_status for name, kind in kinds.items()}
    statuses = [int(status) for status, _, _ in rows]
    assert statuses == sorted(set(statuses))
    assert set(statuses) - set(told.values()) == WITHOUT_EXCEPTION
    assert errors.ConvscopeError.exit_status in WITHOUT_EXCEPTION


def test_planted_codes_are_found() -> None:
    assert codes('raise DataError("D999", "a", "b")') == {"D999"}
    assert codes('answer(f"D998 took {seconds} s")') == {"D998"}
    assert codes('"""Raises D997."""\nx: int = 1\n"""D996."""') == set()
    assert codes('"""Raises D997."""', alone=True) == {"D997"}
    assert misfits('raise errors.UsageError("D999", "a", "b")') == ["UsageError with D999"]
    assert misfits('code = "D1" if x else "M999"\nraise CheckpointError(code, a, b)')
    assert not misfits('raise Stopped("R575", "a", "b")')
