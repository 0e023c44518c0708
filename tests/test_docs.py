"""Does every code block of the README and the docs run as it stands?

The blocks of one document run in order in one empty folder that holds a few small pictures under
the names which the documents use. A block after `<!-- slow -->` runs only with `-m slow`. Two
thirds of the documents are in files of their own, since a file's tests run in one process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?P<slow><!-- slow -->\n+)?```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
DATA = ROOT.parent / "shared" / "data"
REAL = {
    "flower_photos": DATA / "flowers",
    "imagenet-samples": DATA / "imagenet-samples",
    "kangaroo": DATA / "kangaroo",
    "squeezenet1_0_imagenet.safetensors": DATA / "squeezenet1_0_imagenet.safetensors",
}
"""What slow blocks may use besides; absent on most machines."""
SET_UP = {
    *("make demo", "make test", "pip install ."),
    "pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu",
}
"""Run by .ci/run and by hand in a fresh clone; here they would call themselves, or the network."""


@dataclass(frozen=True)
class Block:
    document: Path
    line: int
    kind: str
    code: str
    slow: bool


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            document,
            text.count("\n", 0, found.start("kind")) + 1,
            found["kind"],
            found["code"],
            found["slow"] is not None,
        )
        for found in FENCE.finditer(text)
    ]


def run(block: Block, folder: Path) -> None:
    if block.kind == "python":
        command = [sys.executable, "-W", "error", "-c", block.code]
    else:
        lines = [line for line in block.code.splitlines() if line.strip() not in SET_UP]
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    where = f"{block.document.name}:{block.line}"
    assert done.returncode == 0, f"{where}\n{block.code}\n{done.stdout}\n{done.stderr}"


def prepare(folder: Path) -> None:
    """The names the documents use: real photographs that scikit-image carries."""
    from PIL import Image
    from skimage import data

    for name in ("cat", "coffee", "astronaut"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=90)
    pictures = folder / "pictures"
    pictures.mkdir()
    for name in ("rocket", "cat", "coffee", "astronaut"):
        Image.fromarray(getattr(data, name)()).save(pictures / f"{name}.jpg", quality=90)
    (folder / "classes.txt").write_text("cat\ncoffee\ncup\nperson\nrocket\n")
    for name, real in REAL.items():
        if real.exists():
            (folder / name).symlink_to(real)


def trained_elsewhere(place: Path) -> None:
    """A checkpoint as a script of somebody's leaves it: torchvision's ResNet for five classes."""
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), place)


def run_document(document: Path, folder: Path, *, slow: bool) -> int:
    prepare(folder)
    if "best.pt" in document.read_text(encoding="utf-8"):
        trained_elsewhere(folder / "best.pt")
    chosen = [block for block in blocks(document) if block.kind in ("python", "sh")]
    ran = 0
    for block in chosen:
        if slow or not block.slow:
            run(block, folder)
            ran += 1
    return ran


def run_all(document: Path, folder: Path) -> None:
    ran = run_document(document, folder, slow=False)
    assert ran == sum(b.kind in ("python", "sh") and not b.slow for b in blocks(document))


@pytest.mark.parametrize("document", DOCUMENTS[::3], ids=lambda path: path.name)
def test_every_code_block_runs_as_it_stands(document: Path, tmp_path: Path) -> None:
    run_all(document, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_slow_blocks_run_too(document: Path, tmp_path: Path) -> None:
    if not any(block.slow for block in blocks(document)):
        pytest.skip("no slow block here")
    assert run_document(document, tmp_path, slow=True) > 0


def test_code_blocks_say_their_language() -> None:
    unnamed = [f"{b.document.name}:{b.line}" for d in DOCUMENTS for b in blocks(d) if not b.kind]
    assert unnamed == []


def test_a_failing_block_is_reported_with_its_place(tmp_path: Path) -> None:
    document = tmp_path / "broken.md"
    document.write_text("# T\n\n```python\nraise SystemExit('planted')\n```\n")
    with pytest.raises(AssertionError, match=r"broken\.md:3"):
        run_document(document, tmp_path, slow=False)
