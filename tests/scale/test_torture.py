"""Is a result the same, byte for byte, wherever the pass was killed or its disk failed?

A small subset here; all of it by `make torture`.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convscope.core.publish import unfinished
from tests.scale.torture import MODES

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_shim = pytest.mark.skipif(
    COMPILER is None or not sys.platform.startswith("linux"), reason="no C compiler, or no Linux"
)


def pictures(place: Path, count: int) -> Path:
    """One of them damaged, one a copy."""
    numbers = np.random.default_rng(0)
    place.mkdir()
    for number in range(count):
        pixels = numbers.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02d}.png")
    (place / "03.png").write_bytes((place / "03.png").read_bytes()[:300])
    (place / "05.png").write_bytes((place / "04.png").read_bytes())
    return place


def tortured(preload: Path | None = None, **told: Any) -> dict[str, Any]:
    """What a process of `torture.py` found."""
    loaded = {} if preload is None else {"LD_PRELOAD": str(preload)}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.scale.torture", json.dumps(told, default=str)],
        env={**os.environ, **loaded},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    told = ["-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", made, source, "-ldl"]
    subprocess.run([str(COMPILER), *map(str, told)], check=True)
    return made


def crashed(shim: Path, tmp_path: Path, every: int) -> dict[str, Any]:
    """What came of it at each `every`-th call."""
    place = pictures(tmp_path / "pictures", 8)
    work = tmp_path / "work"
    told = {"work": work, "pictures": place, "every": every, "modes": list(MODES)}
    result = tortured(shim, shim=shim, **told)
    sys.stdout.write(f"{len(result['calls'])} calls; trials {result['trials']}\n")
    return result


@needs_shim
def test_a_crash_or_a_full_disk_at_some_calls_changes_no_result(shim: Path, tmp_path: Path) -> None:
    result = crashed(shim, tmp_path, 23)
    assert len(result["calls"]) > 100
    assert set(result["trials"]) == set(MODES)
    assert result["wrong"] == []
    require_durable(result["calls"])


@pytest.mark.slow
@needs_shim
def test_a_crash_or_a_full_disk_at_any_call_changes_no_result(shim: Path, tmp_path: Path) -> None:
    result = crashed(shim, tmp_path, 1)
    assert result["trials"]["killed before"] == len(result["calls"])
    assert result["wrong"] == []


def killed(tmp_path: Path, kills: int, *, forked: bool = True) -> None:
    place = pictures(tmp_path / "pictures", 24)
    told = {"work": tmp_path / "work", "pictures": place, "kills": kills, "seed": kills}
    result = tortured(**told, forked=forked)
    sys.stdout.write(f"{result['counts']}; the last process ended in {result['longest']:.1f} s\n")
    assert result["wrong"] == []
    counts = result["counts"]
    assert counts["workers killed"] + counts["commands killed"] >= kills


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")


@needs_proc
def test_kills_at_random_times_change_no_result(tmp_path: Path) -> None:
    killed(tmp_path, 8)


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("kills", "forked"), [(500, True), (30, False)])
def test_hundreds_of_kills_at_random_times_change_no_result(
    tmp_path: Path, kills: int, forked: bool
) -> None:
    killed(tmp_path, kills, forked=forked)


MADE = {
    *("mkdir", "open", "rename", "save", "savez", "dump", "symlink_to", "tofile", "touch"),
    *("write_bytes", "write_text", "copy", "copyfile", "move", "copytree", "replace"),
}


def test_whatever_is_kept_of_a_pass_goes_through_publish() -> None:
    """Of what could write a file, this room has its log, and a name for what is damaged."""
    met = set()
    for path in (ROOT / "src" / "convscope" / "scale").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in MADE:
                    met.add(f"{path.name}: {ast.unparse(node)}")
    assert met == {
        "folder.py: place.mkdir(exist_ok=True)",
        "folder.py: (place / 'events.jsonl').open('ab', buffering=0)",
        "folder.py: (self._root / name).replace(self._root / f'{name}.bad')",
        "engine.py: RunFolder.open(place, facts, folder, numbers, threads=threads)",
        "processes.py: torch.save(work, (written := BytesIO()))",
    }


def require_durable(calls: list[list[str]]) -> None:
    """As after a power cut, which may lose all that was not told to reach the disk, in any order:
    nothing is written under its own name, nothing has it before its content is safe, and nothing
    goes before what takes its place is. The log, the lock and what is unfinished need not be."""
    dirty, unsafe = set[str](), set[str]()
    for call, path, other in calls:
        if "/log" in path or path.endswith("-lock"):
            continue
        assert call != "create" or is_work(path), f"{path} can be seen while it is written"
        if call in ("create", "write"):
            dirty |= {path, above(path)} if call == "create" else {path}
        elif call == "mkdir":
            (dirty if is_work(path) else unsafe).add(above(path))
        elif call == "fsync":
            dirty.discard(path)
            unsafe.discard(path)
        elif call == "rename" and not is_work(other):
            parts = {one for one in dirty if one == path or one.startswith(f"{path}/")}
            assert parts == set(), f"{other} has its name before its content is safe"
            unsafe.add(above(other))
        elif call in ("rename", "unlink", "rmdir") and not is_work(path):
            assert unsafe == set(), f"{path} goes before what was put into {unsafe} is safe"
    assert {place for place in unsafe if not is_work(place)} == set()


def above(path: str) -> str:
    return path.rpartition("/")[0]


def is_work(path: str) -> bool:
    return any(unfinished(part) for part in Path(path).parts)
