"""Does an audit tell which rectifiers there are, and which methods are defined?"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.studies.audit import network as audit_clock
from convscope.studies.audit.network import Clock, OutOfTime
from tests.nets import pictures, state_of
from tests.studies.audit_nets import (
    SPELLED,
    Six,
    Small,
    Tokens,
    Untracked,
    finding,
    looked_at,
    noted,
)


def test_rectifiers_are_counted_by_spelling() -> None:
    found = looked_at(Six().eval())
    assert found.facts["rectifiers"] == SPELLED
    verdict, told = noted(found, "seen")
    assert verdict == "ok"
    assert told.startswith(f"{sum(SPELLED.values())} in one pass: ")
    assert "1 of them with a ceiling" in told
    hidden = sum(count for name, count in SPELLED.items() if not name.startswith("nn."))
    assert f"miss {hidden} of them" in finding(found, "seen").advice
    assert noted(found, "reused")[1] == "4 calls of 3 modules"


def test_what_is_no_rectifier_is_named_and_counted() -> None:
    def act(x: Tensor) -> Tensor:
        return F.silu(F.gelu(F.gelu(x)), inplace=True) + F.leaky_relu(x).sigmoid()

    found = looked_at(Small(act).eval())
    assert found.facts["other activations"] == {
        "GELU": 2,
        "SiLU": 1,
        "LeakyReLU": 1,
        "Sigmoid": 1,
    }
    assert finding(found, "other activations").verdict == "warn"
    assert found.facts["rectifiers"] == {"F.relu": 1}


def test_methods_that_are_not_defined_are_refused_with_their_reason() -> None:
    methods = looked_at(Small(nn.GELU()).eval()).facts["methods"]
    refused = {name for name, facts in methods.items() if not facts["defined"]}
    assert refused == {"projection of units", "guided-backprop", "deconvnet", "guided-gradcam"}
    assert methods["deconvnet"]["why"].startswith("M531 GELU: ")
    assert methods["gradcam"]["layer"] == "conv2"
    assert methods["ablationcam"]["short cut"] == "from the first mixing of maps on"


def test_a_scripted_network_is_refused_and_a_scripted_part_named() -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        script = torch.jit.script(nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU()))
    (line,) = looked_at(script).of("bad")
    assert line.code == "M530"
    model = Small(nn.Identity()).eval()
    model.bn = script.eval()
    found = looked_at(model)
    assert noted(found, "scripted") == ("warn", "1 scripted or traced module: bn")
    methods = found.facts["methods"]
    assert not methods["deconvnet"]["defined"]
    assert methods["deconvnet"]["why"].startswith("M530 bn: ")
    assert methods["gradcam"]["defined"]


def test_no_grad_refuses_gradients_and_nothing_else() -> None:
    methods = looked_at(Untracked().eval()).facts["methods"]
    assert methods["gradcam"]["defined"]  # gradients are asked for from its layer on
    assert methods["saliency"]["why"].startswith("M540 ")
    assert methods["eigencam"]["defined"]
    assert methods["occlusion"]["defined"]


def test_a_transformer_of_tokens_is_looked_at() -> None:
    found = looked_at(Tokens().eval(), pictures(1, 40, 32)[0])
    assert found.usable
    assert found.facts["other activations"] == {"GELU": 1}
    methods = found.facts["methods"]
    assert methods["gradcam"]["layer"] == "norm1"  # after it only the class token counts
    assert not methods["deconvnet"]["defined"]
    assert "GELU" in methods["deconvnet"]["why"]
    assert "5 × 4" in finding(found, "gradcam").finding


def test_a_vision_transformer_of_torchvision_is_looked_at() -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=6).eval()
    nn.init.normal_(model.heads.head.weight)  # torchvision begins with zeros
    found = looked_at(model, pictures(1, 40, 32)[0])
    assert found.facts["input"] == [3, 32, 32]
    assert not found.facts["takes other sizes"]
    assert found.facts["other activations"] == {"GELU": 3}
    methods = found.facts["methods"]
    assert methods["gradcam"]["layer"] == "encoder.layers.encoder_layer_2.ln_1"
    assert "4 × 4" in finding(found, "gradcam").finding
    by_rule = {"guided-backprop", "deconvnet", "guided-gradcam"}
    assert not any(methods[name]["defined"] for name in by_rule)
    assert methods["projection of units"]["coverage"].startswith("no rectifier on the way")


def test_a_method_that_takes_too_long_is_stopped_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audit_clock, "LEAST", 0.0)
    monkeypatch.setattr(audit_clock, "PASSES", 0)
    model = Small()
    before = state_of(model)
    found = looked_at(model)
    methods = found.facts["methods"]
    assert {name for name, facts in methods.items() if not facts["defined"]} == set()
    assert "it takes more than 0 s" in finding(found, "gradcam").finding
    assert state_of(model) == before
    assert torch.is_grad_enabled()


def test_the_clock_rings_once_and_not_while_a_block_is_left() -> None:
    x, clock = torch.zeros(2), Clock(0, 0)
    with pytest.raises(OutOfTime), clock:  # noqa: PT012
        with torch.no_grad():
            clock.most = 0
        assert torch.is_grad_enabled()
        x.add_(1)
    assert not x.any()
    assert torch.is_grad_enabled()
    with clock:
        assert x.add(1).any()
    polite = Clock(0, 1)
    polite(4, 4)  # done is done
    with pytest.raises(OutOfTime):
        polite(1, 4)


def test_an_audit_under_no_grad_finds_the_same() -> None:
    model = Small().eval()
    with torch.no_grad():
        inside = looked_at(model)
    methods = looked_at(model).facts["methods"]
    assert [facts["why"] for facts in inside.facts["methods"].values()] == [
        facts["why"] for facts in methods.values()
    ]
