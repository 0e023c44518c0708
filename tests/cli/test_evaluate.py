"""What does `convscope evaluate` say of ensembles, of the paper's table and of shards?"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convscope.cli.app import run
from convscope.records.predictions import Evaluation

NET = "zfnet:width=0.05,head=compact,classes=3"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures of three classes in two shards, one without a class, one that is broken."""
    root = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(0)
    for half in range(2):
        with tarfile.open(root / f"val-{half}.tar", "w") as shard:
            for number in range(half * 5, 5 + half * 4):
                out = io.BytesIO()
                noise = draw.integers(0, 256, (40, 50, 3)).astype(np.uint8)
                Image.fromarray(noise).save(out, "PNG")
                data = b"nothing" if number == 3 else out.getvalue()
                sides = {"png": data} | ({} if number == 7 else {"cls": b"%d" % (number % 3)})
                for end, content in sides.items():
                    entry = tarfile.TarInfo(f"{number}.{end}")
                    entry.size = len(content)
                    shard.addfile(entry, io.BytesIO(content))
    return root


def test_an_ensemble_on_shards_is_told_beside_the_papers_table(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = str(place / "val-{0..1}.tar"), tmp_path / "out"
    command = ["evaluate", NET, shards, "--with", NET, "--views", "10", "--out", str(out)]
    assert run([*command, "--beside", "table2", "--max-bad", "0.2", "--workers", "2"]) == 0
    told = capsys.readouterr()
    found = Evaluation.load(out)
    assert len(found.labels) == 7
    assert found.views == 10
    lines = told.out.splitlines()
    assert lines[0] == f"alone  {found.members[0][1]:7.2%} and 100.00%  {NET}"
    right = round(7 * found.top1)
    assert lines[2].startswith(f"top-1  {found.top1:7.2%}  {right} of 7 pictures; error ")
    assert lines[3] == "top-3  100.00%  7 of 7 pictures; error 0.0 % (0.0 to 35.4)"
    assert lines[-2].startswith("| **ours, mean of 2 nets, 7 pictures, 10 views** |")
    assert (out / "table2.md").read_text().splitlines() == lines[4:-1]
    assert "1 picture without a class: val-1.tar/7.png (no .cls or .json)" in told.err
    assert "8 of 9 pictures used; 1 skipped (1 D101 not an image)" in told.err
    assert "val-0.tar/3.png" in (out / "skipped.csv").read_text()


def test_a_member_may_bring_its_weights(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    from convscope.network.load import load

    state = load(NET).model.state_dict()
    for value in state.values():
        value.zero_()
    state["fc8.bias"][:] = torch.tensor([0.0, 9, 0])
    save_file(state, tmp_path / "w.safetensors")
    command = ["evaluate", NET, str(place / "val-1.tar"), "--out", str(tmp_path / "out")]
    assert run([*command, "--with", f"{NET}@{tmp_path / 'w.safetensors'}"]) == 0
    found = Evaluation.load(tmp_path / "out")
    assert found.likeliest[:, 0].tolist() == [1, 1, 1]  # 9 is far more than random weights give
    assert found.origin["ensemble"][1]["weights"].endswith("w.safetensors")
    assert capsys.readouterr().out.count("alone") == 2


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        (("--beside", "table3"), 2, "error[U407]: table3: no such table; did you mean table2"),
        (("--device", "gpu"), 2, "error[U378]: gpu: no such device"),
        (("--device", "cuda:99"), 6, "error[R641]: cuda:99: this machine has none"),
        (("--with", "zfnet:width=0.05,head=compact,classes=4"), 2, "error[U406]"),
        (("--with", NET, "--tune"), 2, "a tuning is of one network"),
        (("--max-bad", "0.1"), 3, "error[D118]"),
    ],
)
def test_what_cannot_be_is_one_line(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    status: int,
    said: str,
) -> None:
    shards = str(place / "val-{0..1}.tar")
    out = ["--out", str(tmp_path / "out"), "--max-bad", "0.2"]
    assert run(["evaluate", NET, shards, *out, *more]) == status
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_labels_may_be_a_list_of_imagenets_classes(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    for number, name in enumerate(("n02", "n01", "n00")):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (number, 9, 9)).save(folder / name / "a.png")
    (tmp_path / "index.json").write_text(json.dumps({"0": ["n01", "a"], "2": ["n02", "b"]}))
    command = ["evaluate", NET, str(folder), "--labels", str(tmp_path / "index.json")]
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    found = Evaluation.load(tmp_path / "out")
    assert dict(zip(found.pictures, found.labels.tolist(), strict=True)) == {
        "n01/a.png": 0,
        "n02/a.png": 2,
    }
