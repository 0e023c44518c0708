"""Is the network that cannot see found to be worse, and is nothing trained twice or lost?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convscope.core.errors import ConvscopeError, ModelError, Stopped, UsageError
from convscope.core.text import lines
from convscope.pictures.pictures import Pictures
from convscope.studies.ablation.figure import ablation_figure, ablation_table
from convscope.studies.ablation.record import PAPER, Ablation
from convscope.studies.ablation.study import (
    VARIANTS,
    Variant,
    ablation,
    base_of,
    chosen,
    counted,
    split_names,
)
from convscope.training.recipe import Recipe
from tests.training.conftest import paint

NETS = """
from torch import nn

class Mean(nn.Module):
    def __init__(self, classes, gain):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1)
        self.drop = nn.Dropout(0.9)
        self.gain = gain
    def forward(self, x):
        return self.drop(self.conv(x * self.gain).mean((2, 3)))

def sees(classes): return Mean(classes, 1.0)
def blind(classes): return Mean(classes, 0.0)
def broken(classes): return Mean(classes, float("nan"))
"""
PLAN = Recipe(
    epochs=6, batch=10, optimiser="adamw", learning_rate=0.05, size=24, test_size=20,
    test_resize=24, crop="random", cache=24,
)  # fmt: skip
SEES, BLIND, BROKEN = (f"{name}=ablation_nets:{name}" for name in ("sees", "blind", "broken"))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Pictures, Pictures]]:
    """Pictures of three colours, 3 × 13 and 3 × 5, and `ablation_nets` in the working folder."""
    paint(tmp_path / "train", 13, 0)
    paint(tmp_path / "val", 5, 1)
    (tmp_path / "ablation_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    with Pictures(tmp_path / "train") as training, Pictures(tmp_path / "val") as validation:
        yield training, validation


def test_the_variant_that_cannot_see_is_as_bad_as_guessing_and_the_other_never_wrong(
    folders: tuple[Pictures, Pictures], tmp_path: Path
) -> None:
    told: list[str] = []
    found = ablation(PLAN, *folders, tmp_path / "out", [SEES, BROKEN, BLIND], tell=told.append)
    assert found.training[[0, 2], 0, 0] == pytest.approx([0, 2 / 3])  # with dropout 0.9 left on,
    assert found.validation[[0, 2], 0, 0] == pytest.approx([0, 2 / 3])  # it would not be 0
    assert np.isnan(found.training[1]).all()
    assert "not finite" in found.failed[1] or "NaN" in found.failed[1]
    assert (found.failed[0], found.failed[2]) == ("", "")
    assert any("others go on" in line for line in told)
    assert np.isnan(found.validation[:, 0, 1]).all()  # of three classes five are no choice
    assert (found.base.tolist(), found.pictures, found.classes) == ([0, 0, 0], (39, 15), 3)
    assert (found.lost[2, 0], found.gained[2, 0]) == (10, 0)
    assert found.p[2, 0] == pytest.approx(2 / 2**10)
    assert found.parameters.tolist() == [12, 12, 12]
    assert found.multiply_adds.tolist() == [3 * 3 * 20 * 20] * 3
    found.save(tmp_path / "record")
    again = Ablation.load(tmp_path / "record")
    table = "\n".join(lines(ablation_table(again)))
    assert "66.7 ± 12.2" in table  # √(2/3 · 1/3 / 15)
    assert "−10 +0, p = 0.002" in table
    assert "failed" in table
    assert "paper" not in table
    assert len(ablation_figure(again).axes) == 1


def test_a_stopped_study_goes_on_and_trains_no_variant_twice(
    folders: tuple[Pictures, Pictures], tmp_path: Path
) -> None:
    told: list[str] = []
    plan = replace(PLAN, epochs=2)
    halfway = lambda: any("2 of 2" in line for line in told)  # noqa: E731
    with pytest.raises(Stopped):
        ablation(plan, *folders, tmp_path / "out", [SEES, BLIND], tell=told.append, stop=halfway)
    first = tmp_path / "out" / "sees" / "last.safetensors"
    before = first.read_bytes(), first.stat().st_mtime_ns
    epochs: list[int] = []
    found = ablation(
        plan, *folders, tmp_path / "out", [SEES, BLIND], seeds=2,
        progress=lambda now: epochs.append(now.epoch) if now.stage == "judged" else None,
    )  # fmt: skip
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert epochs == [1, 2, 1, 2, 1, 2]  # blind, and both with the second seed
    assert found.seeds == (0, 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "blind", "blind-seed1", "sees", "sees-seed1",
    ]  # fmt: skip
    errors = found.validation[0, :, 0]
    assert found.spread("validation")[0] == pytest.approx(abs(errors[0] - errors[1]) / np.sqrt(2))
    fresh = [Pictures(folder.root) for folder in folders]  # of which nothing is read any more
    again = ablation(plan, *fresh, tmp_path / "out", [SEES, BLIND], seeds=2)
    assert again.origin == found.origin
    with pytest.raises(ConvscopeError) as caught:
        ablation(replace(plan, batch=9), *folders, tmp_path / "out", [SEES])
    assert caught.value.code == "O511"


def test_if_none_can_be_trained_the_first_fault_is_told(
    folders: tuple[Pictures, Pictures], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no variant could be trained") as caught:
        ablation(PLAN, *folders, tmp_path / "out", [BROKEN])
    assert caught.value.code == "M593"
    with pytest.raises(UsageError) as usage:
        ablation(PLAN, *folders, tmp_path / "out", [SEES], seeds=0)
    assert usage.value.code == "U404"


def test_the_paper_has_a_row_for_every_variant_of_its_table_and_only_these() -> None:
    assert list(VARIANTS) == list(PAPER)
    assert PAPER["alexnet-without-3-4-6-7"] == (71.1, 71.3, 50.1)
    assert PAPER["zfnet-maps-fc-8192"] == (10.0, 38.3, 16.9)


def test_parameters_and_multiply_adds_are_those_of_the_drawing() -> None:
    convolutions = 110**2 * 96 * 147 + 26**2 * 256 * 96 * 25
    convolutions += 13**2 * 9 * (384 * 256 + 384 * 384 + 256 * 384)
    whole = convolutions + 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    assert counted("zfnet", 1000, (224, 224)) == (62_357_608, whole)
    assert round(whole / 1e9, 3) == 1.168


def test_without_layers_3_and_4_layer_5_takes_the_maps_of_layer_2() -> None:
    (variant,) = chosen(["alexnet-without-3-4-6-7"], "width=0.25,norm=batch")
    assert variant.spec == "alexnet:without=3-4-6-7,width=0.25,norm=batch"
    weights = 24 * 363 + 64 * 24 * 25 + 64 * 64 * 9
    norms = 2 * (24 + 64 + 64)
    fields = 55**2 * 24 * 363 + 27**2 * 64 * 24 * 25 + 13**2 * 64 * 64 * 9 + 2304 * 5
    assert counted(variant.spec, 5, (227, 227)) == (weights + norms + 2304 * 5 + 5, fields)


def test_common_options_yield_to_a_variants_own_and_leave_other_networks_alone() -> None:
    found = chosen(
        ["mine=zfnet:fc=128,width=0.5", "zfnet", "other=timm:resnet18"], "width=0.25,norm=batch"
    )
    assert [variant.spec for variant in found] == [
        "zfnet:fc=128,width=0.5,norm=batch",
        "zfnet:width=0.25,norm=batch",
        "timm:resnet18",
    ]
    assert base_of(found) == [1, 1, 2]
    assert base_of((Variant("a", "alexnet:fc=9"), Variant("b", "alexnet"))) == [0, 0]


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["zfnet-fc2048"], "U403"),
        (["zfnet", "zfnet"], "U403"),
        (["../x=zfnet"], "U403"),
        (["result=zfnet"], "U403"),
        (["zfnet-seed1=zfnet"], "U403"),
        ([], "U403"),
    ],
)
def test_a_variant_that_cannot_be_is_refused_before_anything_is_trained(
    names: list[str], code: str
) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(names)
    assert caught.value.code == code


def test_commas_part_names_but_not_the_options_of_ones_own_network() -> None:
    given = ["alexnet, zfnet", "mine=zfnet:fc=8,width=0.5", "alexnet-fc-2048,b=zfnet:fc=9"]
    assert split_names(given) == [
        "alexnet", "zfnet", "mine=zfnet:fc=8,width=0.5", "alexnet-fc-2048", "b=zfnet:fc=9",
    ]  # fmt: skip
