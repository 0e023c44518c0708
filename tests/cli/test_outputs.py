"""Do commands say what an output was taken for, and take the user's word for it?"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convscope.cli.app import run
from convscope.network.load import load

CODE = """
import torch
from torch import nn


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.a, self.b = nn.Conv2d(3, 6, 5), nn.Linear(6, 3), nn.Linear(6, 4)
        with torch.no_grad():
            self.b.weight.mul_(30)

    def forward(self, x):
        inner = self.conv(x).relu().mean((2, 3))
        return {"kind": self.a(inner), "labels": self.b(inner)}


class Soft(Two):
    def forward(self, x):
        return super().forward(x)["labels"].softmax(1)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two_heads.py").write_text(CODE)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path


def test_the_command_line_says_which_part_and_what_it_is(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--size", "32", "--resize", "32", "--mean", "0.5", "--std", "0.5"]
    assert run(["predict", "two_heads:Two", "a.png", *told, "--out", "x"]) == 4
    refused = capsys.readouterr().err
    assert "kind (3 numbers) or labels (4 numbers)" in refused
    advice = re.search(r"or (--output \w+)", refused)
    assert advice
    named = ["--output", "labels", "--scores", "sigmoid"]
    assert run(["predict", "two_heads:Two", "a.png", *told, *named, "--out", "y"]) == 0
    said = capsys.readouterr()
    assert "its scores are labels (4 numbers a picture)" in said.err
    assert "each one's sigmoid is its probability" in said.err
    pixels = torch.from_numpy(np.array(Image.open("a.png"))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        model = load("two_heads:Two").model
        want = model((pixels - 0.5) / 0.5)["labels"].sigmoid()[0].sort(descending=True).values
    shown = [float(number) for number in re.findall(r"([\d.]+)%", said.out)]
    assert shown == pytest.approx((100 * want).tolist(), abs=0.06)
    assert run(["predict", "two_heads:Two", "a.png", *told, *advice[1].split(), "--out", "z"]) == 0


def test_what_an_output_was_taken_for_stands_on_the_page(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--method", "gradcam,guided-backprop", "--size", "32", "--out", "page"]
    assert run(["explain", "two_heads:Soft", "a.png", *asked]) == 0
    assert "the network ends in softmax: probabilities" in capsys.readouterr().err
    words = re.sub(r"<[^>]*>", " ", (place / "page" / "index.html").read_text("utf-8"))
    assert "the network ends in softmax: probabilities, which are taken as they are" in words
    assert "the score from before that is explained" in words
