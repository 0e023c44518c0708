"""Is a result whole or not there, wherever its command is killed, and complete after the same one?

    python bench/kills.py [--studies features,atlas] [--kills 60] [--seed 0] [--full]

Each command runs once undisturbed; then again and again in a new folder, killed by SIGKILL right
before it opens a file to write, makes, renames or removes something there (as Python's audit hooks
tell), every other time with a half-written file; then the same command is given once more. What is
there must be the undisturbed run's, byte for byte: nothing missing, nothing left behind. If there
was a result after the kill, it must have been whole already. With `--full` the disk is full
instead, at each of these moments: the command must end with R602 and leave nothing.

The process that does this has torch in memory and forks for every run, so that one takes a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path

import numpy as np
from PIL import Image

NET = "zfnet:width=0.0625,head=compact"
SMALL = ["epochs=2", "batch=8", "size=64", "test_size=64", "test_resize=64"]
STUDIES = {
    "features": ["features", NET, "pics", "--layers", "conv1", "--maps", "random:2", "--top", "2"],
    "atlas": ["atlas", NET, "pics", "--layers", "conv1,conv2", "--top", "2"],
    "explain": ["explain", NET, "pics", "--method", "gradcam", "--limit", "2"],
    "transfer": ["transfer", NET, "classes", "--per-class", "1,2", "--test", "1", "--folds", "2"],
    "occlusion": ["occlusion", NET, "pics", "--patch", "112", "--stride", "112"],
    "ablation": [
        *("ablation", "classes", "--recipe", "tutorial", "--variants", "zfnet"),
        *("--with", "width=0.0625,head=compact"),
        *(word for change in SMALL for word in ("--set", change)),
    ],
}
OUT = "o"
APART = ("tensorboard", ".lock")
"""TensorBoard's files have the time in their names; a lock has nothing in it."""
SPEEDS = 2
"""The last columns of a training's rows: seconds and pictures a second, which are measured anew."""
PATIENCE = 300


@dataclass
class Ended:
    """A run: how it ended, what it said, and how many moments it came through."""

    status: int
    said: str
    moments: int


class Hook:
    """Counts the moments at which something is about to change below a folder."""

    def __init__(self, folder: Path, at: int, strike: Callable[[str], None]) -> None:
        self.folder, self.at, self.strike = folder, at, strike
        self.count, self.busy = 0, False

    def __call__(self, event: str, told: tuple[object, ...]) -> None:
        if self.busy or not self._changes(event, told):
            return
        self.count += 1
        if self.count == self.at or (self.at < 0 and self.count >= -self.at):
            self.busy = True
            try:
                self.strike(os.fsdecode(told[0]) if event == "open" else "")
            finally:
                self.busy = False

    def _changes(self, event: str, told: tuple[object, ...]) -> bool:
        if event == "open":
            mode, flags = str(told[1] or ""), int(told[2] or 0)  # type: ignore[call-overload]
            if not (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode) & set("wxa+")):
                return False
        elif event not in ("os.rename", "os.mkdir", "os.rmdir", "os.remove"):
            return False
        path = told[0]
        if not isinstance(path, str | bytes):
            return False
        return self.folder in Path(os.fsdecode(path)).absolute().parents


def kill(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_half(path: str) -> None:
    """With half a file at the place, as if it had been in the middle."""
    if path:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(descriptor, b"half of it")
        os.close(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)


def full(path: str) -> None:
    raise OSError(ENOSPC, "No space left on device", path or None)


def run(
    command: list[str], folder: Path, at: int = 0, strike: Callable[[str], None] = kill
) -> Ended:
    """The command in a fork of this process.

    at: the moment at which `strike` comes; if negative, at that one and all later ones.
    """
    read, write = os.pipe()
    log = folder.parent / "log"
    pid = os.fork()
    if not pid:
        _child(command, folder, at, strike, write, log)
    os.close(write)
    signal.alarm(PATIENCE)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    _, ended = os.waitpid(pid, 0)
    signal.alarm(0)
    status = os.waitstatus_to_exitcode(ended)
    return Ended(status, log.read_text(errors="replace"), int(told or b"0"))


def _child(
    command: list[str],
    folder: Path,
    at: int,
    strike: Callable[[str], None],
    pipe: int,
    log: Path,
) -> None:
    from convscope.cli.app import run as convscope

    status = 99
    try:
        os.chdir(folder)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(target, 1)
        os.dup2(target, 2)
        hook = Hook(folder, at, strike)
        sys.addaudithook(hook)
        status = convscope([*command, "--out", OUT])
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(pipe, str(hook.count).encode())
    finally:
        os._exit(status)


def pictures(folder: Path) -> None:
    chance = np.random.default_rng(0)
    names = [f"pics/{n}.png" for n in range(3)]
    names += [f"classes/{kind}/{n}.png" for kind in "ab" for n in range(12)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rough = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        rough.resize((64, 64), Image.Resampling.BICUBIC).save(folder / name)


def tree(folder: Path) -> dict[str, bytes]:
    """All that is there but the pictures, by name; folders as names with a slash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.relative_to(folder).parts[0] in ("pics", "classes"):
            continue
        if not any(part in APART for part in Path(name).parts):
            found[name + "/" * path.is_dir()] = b"" if path.is_dir() else timeless(path)
    return found


def timeless(path: Path) -> bytes:
    """The file; of a training's story all but its speeds."""
    data = path.read_bytes()
    if path.name == "metrics.csv":
        return b"\n".join(line.rsplit(b",", SPEEDS)[0] for line in data.split(b"\n"))
    if path.name == "done.json":
        return json.dumps([row[:-SPEEDS] for row in json.loads(data)["rows"]]).encode()
    if path.parent.name == "series" and path.name == "values.npy":
        return np.load(path)[:, :-SPEEDS].tobytes()
    if path.parent.name == "series" and path.name == "record.json":
        return json.dumps(json.loads(data)["plain"]).encode()
    return data


def different(one: dict[str, bytes], other: dict[str, bytes]) -> str:
    """In words; empty where all is the same."""
    lost, more = sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys())
    changed = sorted(name for name in one.keys() & other.keys() if one[name] != other[name])
    told = {"missing": lost, "left behind": more, "other bytes": changed}
    return "; ".join(f"{word}: {', '.join(names[:4])}" for word, names in told.items() if names)


def fresh(home: Path) -> Iterator[Path]:
    """New folders of one and the same path, with the pictures: a path may be in a result."""
    place = home / "work"
    while True:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        pictures(place)
        yield place


def visible(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in found.items() if name.split("/")[0] == OUT}


def judged(command: list[str], folder: Path, whole: dict[str, bytes], goes_on: bool) -> str:
    """What is wrong after a kill, and after the same command again; empty where nothing is."""
    shown = {
        name: data
        for name, data in visible(tree(folder)).items()
        if not goes_on or name.startswith(f"{OUT}/result")
    }
    should = {name: whole[name] for name in whole if name in shown or not goes_on}
    if goes_on and shown:
        should = {name: whole[name] for name in whole if name.startswith(f"{OUT}/result")}
    if shown and (wrong := different(visible(should), shown)):
        return f"half a result is visible: {wrong}"
    again = run(command, folder)
    if again.status == 5 and shown and not goes_on:  # it was whole already: nothing is overwritten
        again.status = 0
    if again.status:
        return f"the same command again: status {again.status}: {again.said.strip()[-200:]}"
    return different(whole, tree(folder))


def kills(
    name: str, folders: Iterator[Path], many: int, chance: random.Random
) -> dict[str, object]:
    """Kill one study's command at `many` moments, or at all that there are."""
    command, goes_on = STUDIES[name], name == "ablation"
    folder = next(folders)
    ended = run(command, folder)
    assert not ended.status, ended.said
    whole, wrong = tree(folder), []
    second = next(folders)
    assert not run(command, second).status
    assert not (odd := different(whole, tree(second))), f"two runs differ: {odd}"
    moments = list(range(1, ended.moments + 1))
    for at in sorted(chance.sample(moments, min(many, len(moments)))):
        folder = next(folders)
        killed = run(command, folder, at, kill_half if at % 2 else kill)
        assert killed.status == -signal.SIGKILL, killed
        if said := judged(command, folder, whole, goes_on):
            wrong.append(f"moment {at} of {ended.moments}: {said}")
    return {
        "study": name,
        "moments": ended.moments,
        "tried": min(many, len(moments)),
        "wrong": wrong,
    }


def fills(
    name: str, folders: Iterator[Path], many: int, chance: random.Random
) -> dict[str, object]:
    """A disk that is full from one of `many` moments on, or at one alone; then the same command."""
    command, goes_on = STUDIES[name], name == "ablation"
    folder = next(folders)
    ended = run(command, folder)
    assert not ended.status, ended.said
    whole, wrong = tree(folder), []
    moments = list(range(1, ended.moments + 1))
    for at in sorted(chance.sample(moments, min(many, len(moments)))):
        folder = next(folders)
        failed = run(command, folder, -at if at % 2 else at, full)
        lines = [line for line in failed.said.splitlines() if line.startswith("convscope: ")]
        if failed.status == 0 and not different(visible(whole), visible(tree(folder))):
            continue  # it is the removal of something that failed: the result was there
        if failed.status != 6 or len(lines) != 1 or "error[R602]" not in lines[0]:
            wrong.append(f"moment {at}: status {failed.status}: {failed.said.strip()[-200:]}")
        elif (left := different({}, visible(tree(folder)))) and not goes_on:
            wrong.append(f"moment {at}: after a full disk: {left}")
        elif said := judged(command, folder, whole, goes_on):
            wrong.append(f"moment {at}: {said}")
    return {
        "study": name,
        "moments": ended.moments,
        "tried": min(many, len(moments)),
        "wrong": wrong,
    }


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    asked.add_argument("--studies", default=",".join(STUDIES))
    asked.add_argument("--kills", type=int, default=60, help="over all studies together")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--full", action="store_true")
    told = asked.parse_args()
    import torch

    import convscope.cli.app
    import convscope.network.load
    import convscope.studies.ablation.study  # noqa: F401

    torch.set_num_threads(1)
    names, began, found = told.studies.split(","), time.monotonic(), []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="kills-") as home:
            each = (fills if told.full else kills)(
                name, fresh(Path(home)), -(-told.kills // len(names)), random.Random(told.seed)
            )
        found.append(each)
        print(json.dumps(each), flush=True)
    bad = sum(len(each["wrong"]) for each in found)  # type: ignore[arg-type]
    tried = sum(each["tried"] for each in found)  # type: ignore[misc]
    print(f"{tried} tried, {bad} wrong, {time.monotonic() - began:.0f} s")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
