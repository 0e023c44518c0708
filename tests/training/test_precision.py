"""Is a run trained in the numbers that are quick on its machine, and kept in them?"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from convscope.core.errors import DataError, Stopped
from convscope.lens import machine
from convscope.lens.machine import ROUNDS, fastest_runs
from convscope.network.checkpoint import read_weights
from convscope.pictures.pictures import Pictures
from convscope.training.recipe import Choice, Recipe, Times, choose, recipe
from convscope.training.state import Identity, RunFolder
from convscope.training.trainer import Progress, train
from tests.training.conftest import TINY

precision = import_module("convscope.training.recipe")  # the package has a function of that name
CPU = torch.device("cpu")
AUTO = dataclasses.replace(TINY, precision="auto")
NOBODY = Identity(1, {}, (), "", "")


def chosen(plan: Recipe, *, native: bool, half: float = 1.0) -> Choice:
    """half: what a step in bfloat16 takes where one in float32 takes 1."""

    def measure(model: nn.Module, plan: Recipe, device: torch.device) -> Times:
        assert native, "what is emulated is not tried"
        return {"float32": 1.0, "bfloat16": half}

    return choose(plan, nn.Identity(), CPU, native=lambda device: native, measure=measure)


@pytest.mark.parametrize(
    ("native", "half", "wanted"),
    [(True, 0.5, "bfloat16"), (True, 0.99, "float32"), (True, 4.0, "float32")],
)
def test_auto_is_bfloat16_only_where_it_is_native_and_quicker(
    native: bool, half: float, wanted: str
) -> None:
    assert chosen(AUTO, native=native, half=half).precision == wanted


def test_auto_is_float32_without_instructions_and_without_a_trial() -> None:
    found = chosen(AUTO, native=False)
    assert found.precision == "float32"
    assert "no instructions for bfloat16" in found.line(CPU)


def test_what_a_recipe_says_is_not_tried() -> None:
    for kind in ("float32", "bfloat16"):
        plan = dataclasses.replace(TINY, precision=kind)
        assert chosen(plan, native=False).precision == kind


def test_recipes_that_come_along_decide_for_each_machine() -> None:
    assert {name: recipe(name).precision for name in ("demo", "best")} == {
        "demo": "auto",
        "best": "auto",
    }


@pytest.mark.parametrize(
    ("widest", "flags", "held", "wanted"),
    [
        ("AVX512", {"avx512_bf16": True}, "", True),
        ("AVX512", {"amx_bf16": True}, "", True),
        ("AVX512", {"avx512_bf16": False}, "", False),
        ("AVX2", {"avx512_bf16": True}, "", False),
        ("AVX512", {"avx512_bf16": True}, "AVX2", False),
        ("AVX512", {"avx512_bf16": True}, "AVX512_CORE", False),
        ("AVX512", {"avx512_bf16": True}, "avx512_core_bf16", True),
        ("AVX512", {"avx512_bf16": True}, "ALL", True),
    ],
)
def test_a_processor_has_bfloat16_only_if_it_and_the_libraries_may_use_it(
    widest: str, flags: dict[str, bool], held: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: widest)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", held)
    assert machine.has_bfloat16(CPU) is wanted


def test_an_arm_processor_has_it_at_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    able = {"bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert machine.has_bfloat16(CPU)
    able["bf16"] = False
    assert not machine.has_bfloat16(CPU)


def test_a_graphics_card_that_emulates_it_has_it_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.random.fork_rng(devices=[]))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(True) or False
    )
    assert not machine.has_bfloat16(torch.device("cuda:0"))
    assert asked


def test_on_a_lesser_machine_auto_is_float32(painted: Path, tmp_path: Path) -> None:
    """In a process of its own, held to AVX2 as most laptops are; said, and kept in the folder."""
    plan = tmp_path / "plan.toml"
    plan.write_text(
        'model = "zfnet:width=0.1,head=compact"\nprecision = "auto"\nepochs = 1\nbatch = 12\n'
        "size = 48\ntest_size = 48\ntest_resize = 48\n"
    )
    arguments = ["train", str(painted), "--recipe", str(plan), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, str(Path(sys.executable).parent / "convscope"), *arguments],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "trains in float32: this machine has no instructions for bfloat16" in done.stderr
    kept = RunFolder(tmp_path / "run", AUTO, NOBODY).choice()
    assert kept is not None
    assert kept.precision == "float32"
    assert "AVX2" in kept.machine


def test_a_run_keeps_its_numbers_wherever_it_goes_on(
    training: Pictures, validation: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convscope.training.trainer.GRACE", 0.0)
    run, here = tmp_path / "run", Choice("bfloat16", "it was quicker", "a big machine")
    monkeypatch.setattr("convscope.training.trainer.choose", lambda *_: here)
    seen: list[int] = []
    with pytest.raises(Stopped):
        train(AUTO, training, validation, run, stop=lambda: seen.append(0) or len(seen) > 6)
    assert RunFolder(run, AUTO, NOBODY).choice() == here

    monkeypatch.setattr("convscope.training.trainer.choose", lambda *_: pytest.fail("chosen again"))
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    told: list[Progress] = []
    result = train(AUTO, training, validation, run, progress=told.append)
    assert result.resumed_from == 1
    remark = next(one.remark for one in told if one.stage == "remark")
    assert remark == (
        "trains in bfloat16: it was quicker; this machine only emulates it, which is slow"
    )
    assert result.series.origin["precision"] == "bfloat16"
    told_by = json.loads(read_weights(run / "last.safetensors")[1]["convscope"])
    assert told_by["precision"] == "bfloat16"

    monkeypatch.undo()
    whole = dataclasses.replace(TINY, precision="bfloat16")
    train(whole, training, validation, tmp_path / "whole")
    assert same(run, tmp_path / "whole")
    train(TINY, training, validation, tmp_path / "float32")
    assert not same(run, tmp_path / "float32")


def same(one: Path, other: Path) -> bool:
    """Have the two runs ended with the same weights?"""
    from safetensors.torch import load_file

    ours, theirs = (load_file(run / "last.safetensors") for run in (one, other))
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_trial_changes_nothing_of_the_run(
    training: Pictures, validation: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, statistics of normalisations and dropout are those of a run that tried nothing."""
    tried: list[Times] = []

    def really(recipe: Recipe, model: nn.Module, device: torch.device) -> Choice:
        tried.append(precision.step_times(model, recipe, device))
        return Choice("float32", "", "")

    monkeypatch.setattr("convscope.training.trainer.choose", really)
    train(AUTO, training, validation, tmp_path / "tried")
    assert [set(times) for times in tried] == [{"float32", "bfloat16"}]
    assert all(seconds > 0 for seconds in tried[0].values())
    monkeypatch.undo()
    train(TINY, training, validation, tmp_path / "plain")
    assert same(tmp_path / "tried", tmp_path / "plain")


@pytest.mark.parametrize("damage", ["", "{", '{"precision": "int8", "why": "", "machine": ""}'])
def test_a_damaged_choice_is_told(damage: str, tmp_path: Path) -> None:
    (tmp_path / "precision.json").write_text(damage)
    with pytest.raises(DataError) as caught:
        RunFolder(tmp_path, AUTO, NOBODY).choice()
    assert caught.value.code == "D140"


def test_a_trial_runs_the_ways_in_turn_and_takes_each_ones_best() -> None:
    now, order = [0.0], ""
    costs = {"a": iter([9.0, 3.0, 1.0, 2.0, 5.0]), "b": iter([9.0, 2.0, 4.0, 2.5, 3.0])}

    def way(name: str) -> None:
        nonlocal order
        order += name
        now[0] += next(costs[name])

    ways = {name: lambda name=name: way(name) for name in costs}
    assert fastest_runs(ways, seconds=1e9, clock=lambda: now[0]) == {"a": 1.0, "b": 2.0}
    assert order == "ab" * (1 + ROUNDS)
