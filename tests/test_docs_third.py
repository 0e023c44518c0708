"""Does every code block of the third third of the documents run as it stands?"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_docs import DOCUMENTS, run_all


@pytest.mark.parametrize("document", DOCUMENTS[2::3], ids=lambda path: path.name)
def test_every_code_block_runs_as_it_stands(document: Path, tmp_path: Path) -> None:
    run_all(document, tmp_path)
