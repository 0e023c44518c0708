"""Does `convscope check` show its table, keep it, and end with the right status?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convscope.cli.app import run
from convscope.cli.explain import _joined
from convscope.studies.audit.record import Audit, Finding

NETS = """
import torch
from tests.studies.audit_nets import Small
def sound(): return Small().eval()
def broken():
    model = Small()
    model.conv2.weight.data[0, 0, 0, 0] = float("nan")
    return model
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of networks, and a folder of pictures."""
    (tmp_path / "checked_nets.py").write_text(NETS)
    (tmp_path / "pictures").mkdir()
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 255, (300, 260, 3)).astype(np.uint8)
    for name in ("one.png", "pictures/b.png", "pictures/a.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_is_the_result_and_is_kept_where_asked(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "check checked_nets:sound one.png --seconds 0 --json found.json --out record"
    assert run(line.split()) == 0
    said = capsys.readouterr()
    assert "RECTIFIERS\nok    seen                     2 in one pass: 2 F.relu" in said.out
    assert "usable: " in said.out
    assert said.out.rstrip().endswith("record\nfound.json")
    assert "Traceback" not in said.err
    plain = json.loads((place / "found.json").read_text(encoding="utf-8"))
    assert plain["usable"]
    assert plain == json.loads(json.dumps(Audit.load(place / "record").plain()))
    assert plain["facts"]["rectifiers"] == {"F.relu": 2}


def test_a_network_that_cannot_be_used_ends_with_4_after_its_table(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(["check", "checked_nets:broken", "pictures", "--seconds", "0", "--json", "found.json"])
        == 4
    )
    said = capsys.readouterr()
    assert "BAD   finite weights           1 number NaN or infinite, in conv2.weight" in said.out
    assert "NOT usable: " in said.out
    assert said.err.startswith("convscope: error[M588]: checked_nets:broken: finite weights: ")
    assert said.err.count("\n") == 1
    assert not json.loads((place / "found.json").read_text(encoding="utf-8"))["usable"]


def test_nothing_is_overwritten_and_nothing_run_before_that_is_known(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "found.json").write_text("mine")
    assert run(["check", "checked_nets:sound", "one.png", "--json", "found.json"]) == 5
    assert (place / "found.json").read_text() == "mine"
    assert capsys.readouterr().out == ""


def test_the_same_words_about_several_methods_are_said_once() -> None:
    def line(question: str, finding: str) -> Finding:
        return Finding("methods", question, finding, "ok")

    given = [line("a", "defined"), line("b", "refused"), line("c", "defined")]
    assert [(one.question, one.finding) for one in _joined(given)] == [
        ("a, c", "defined"),
        ("b", "refused"),
    ]
