"""Does an audit find what is wrong with a network, and nothing else?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convscope.network.load import load
from convscope.studies.audit.record import Audit, Finding
from convscope.studies.audit.study import audit
from tests.nets import state_of
from tests.studies.audit_nets import (
    IMAGE,
    Small,
    finding,
    looked_at,
    noted,
)


def test_a_sound_network_in_eval_mode_is_usable_without_a_warning() -> None:
    found = looked_at(Small(nn.ReLU(inplace=True)).eval())
    warned = {line.question for line in found.of("warn")}
    # that a bare module comes without preprocessing is always said
    assert warned <= {"preprocessing", "opinion", "xgradcam"}
    assert found.usable
    assert len(found.findings) > 30


def test_a_network_in_train_mode_is_told_what_minds() -> None:
    model = Small()
    verdict, told = noted(looked_at(model), "mode")
    assert verdict == "warn"
    assert told == "train mode, which matters to 1 BatchNorm2d and 1 Dropout"
    assert model.training
    model.eval()
    assert noted(looked_at(model), "mode") == ("ok", "eval mode, every module")
    model.bn.train()
    told = noted(looked_at(model), "mode")[1]
    assert told == "1 of 6 modules in train mode (bn), which matters to 1 BatchNorm2d"


def test_the_rest_is_about_eval_mode_whatever_mode_the_network_is_in() -> None:
    found = looked_at(Small())
    assert finding(found, "same picture twice").verdict == "ok"
    assert finding(found, "neighbours in the batch").verdict == "ok"
    assert finding(found, "changed by looking").verdict == "ok"


def test_a_loaded_network_remembers_how_it_was_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "delivered_nets.py").write_text(
        "import torch\n"
        "from tests.studies.audit_nets import Small, Stubborn\n"
        "def plain(): return Small()\n"
        "def ready(): return Small().eval()\n"
        "def stubborn(): return Stubborn()\n"
        "def parallel(): return torch.nn.DataParallel(Small())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = {}
    for name in ("plain", "ready", "stubborn", "parallel"):
        network = load(f"delivered_nets:{name}")
        found = audit(network, IMAGE, seconds=0)
        lines[name] = (finding(found, "mode"), finding(found, "wrapped"))
    assert lines["plain"][0].verdict == "ok"
    assert "which matters to 1 BatchNorm2d and 1 Dropout" in lines["plain"][0].finding
    assert "model.eval() first" in lines["plain"][0].advice
    assert lines["ready"][0].finding == "eval mode, every module"
    assert lines["stubborn"][0].verdict == "warn"
    assert "a train() of its own overrides it" in lines["stubborn"][0].advice
    assert lines["parallel"][1].finding == "in DataParallel"


def test_weights_that_are_not_numbers_are_found_by_name() -> None:
    model = Small().eval()
    with torch.no_grad():
        model.conv2.weight[3, 0] = float("nan")
        model.bn.running_var[1] = float("inf")
    found = looked_at(model)
    assert found.facts["weights not finite"] == [
        "conv2.weight (9 of 432)",
        "bn.running_var (1 of 6)",
    ]
    assert [line.code for line in found.of("bad")] == ["M588", "M590"]
    assert finding(found, "finite weights").finding.startswith("10 numbers NaN or infinite")


def test_filters_of_zeros_are_counted() -> None:
    model = Small().eval()
    with torch.no_grad():
        model.conv2.weight[[1, 5]] = 0
        model.conv1.weight[:, 0] = 0  # one colour of each filter: none is dead
    found = looked_at(model)
    assert noted(found, "dead filters") == ("warn", "all zeros in conv2 (2 of 8)")
    assert found.facts["dead filters"] == ["conv2"]


def test_lazy_layers_are_refused_in_words() -> None:
    (line,) = looked_at(nn.Sequential(nn.LazyConv2d(3, 3))).of("bad")
    assert line.code == "M526"


def test_hooks_of_others_are_counted() -> None:
    model = Small().eval()
    for layer in (model.conv1, model.conv2):
        layer.register_forward_hook(forgotten)
    line = finding(looked_at(model), "hooks")
    assert line.verdict == "warn"
    assert line.finding == "2 hooks of others: 2 × forgotten"


def forgotten(*_: object) -> None:
    """A hook that somebody left."""


def test_compiled_quantised_and_checkpointed_parts_are_told() -> None:
    model = Small(nn.ReLU()).eval()
    model.conv2._compiled_call_impl = model.conv2.forward  # what conv2.compile() leaves
    model.spare = type("Linear", (nn.Identity,), {"__module__": "torch.ao.nn.quantized.modules"})()
    model.bn.memory_efficient = True
    found = looked_at(model)
    assert noted(found, "wrapped")[1] == "in torch.compile around conv2"
    assert noted(found, "quantised") == ("warn", "1 quantised layer: spare")
    assert finding(found, "checkpointed").finding.endswith("anew on the way down in bn")


def test_mixed_precision_and_shared_weights_are_told() -> None:
    model = Small().eval()
    model.twice = model.conv2
    model.spare = nn.Linear(2, 2).half()
    found = looked_at(model)
    assert noted(found, "precision")[0] == "warn"
    told = noted(found, "shared")[1]
    assert told.startswith("2 tensors under several names: conv2.weight = twice.weight")


def test_the_network_is_not_changed_and_threads_stay() -> None:
    model = Small()
    before, threads = state_of(model), torch.get_num_threads()
    looked_at(model)
    assert state_of(model) == before
    assert torch.get_num_threads() == threads


def test_a_record_is_what_was_saved(tmp_path: Path) -> None:
    found = looked_at(Small().eval())
    again = Audit.load(found.save(tmp_path / "audit"))
    assert again.findings == found.findings
    assert again.plain() == json.loads(json.dumps(found.plain()))
    assert isinstance(again.findings[0], Finding)


def test_without_a_picture_a_photograph_is_taken() -> None:
    network = load("zfnet:width=0.1,head=compact", classes=3)
    found = audit(network, seconds=0)
    assert found.origin["picture"] == "the built-in photograph cat"
    assert found.facts["input"] == [3, *network.preprocess.size]
    assert np.isfinite(found.facts["likeliest"]["probability"])
