"""Does the page on networks name every option and every refusal there is?"""

from __future__ import annotations

import re
from pathlib import Path

from convscope.network.zfnet import TOWER_OPTIONS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")


def test_every_option_of_our_networks_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\|.*\|$", PAGE, re.MULTILINE)
    assert rows == list(TOWER_OPTIONS)


def test_every_refusal_of_a_checkpoint_has_a_row_and_no_other() -> None:
    modules = (ROOT / "src" / "convscope" / "network").rglob("*.py")
    raised = {code for path in modules for code in re.findall(r'"(C4\d\d)"', path.read_text())}
    rows = re.findall(r"^\| (C\d\d\d) \|", PAGE, re.MULTILINE)
    assert len(raised) > 10
    assert rows == sorted(raised)
