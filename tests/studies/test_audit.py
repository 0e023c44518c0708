"""Does an audit find what is wrong with a network, and nothing else?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.models.load import load
from convscope.records.audit import Audit, Finding
from convscope.studies import audit_clock
from convscope.studies.audit import audit
from convscope.studies.audit_clock import Clock, OutOfTime
from tests.nets import Telling, pictures, state_of
from tests.studies.audit_nets import (
    SPELLED,
    Counting,
    Demanding,
    OfTheBatch,
    OneByOne,
    Six,
    Small,
    Tokens,
    Untracked,
)

IMAGE = pictures(1, 47, 39)[0]


def looked_at(model: nn.Module, image: Tensor = IMAGE) -> Audit:
    return audit(model, image, seconds=0)


def finding(found: Audit, question: str) -> Finding:
    (line,) = (line for line in found.findings if line.question == question)
    return line


def noted(found: Audit, question: str) -> tuple[str, str]:
    line = finding(found, question)
    return line.verdict, line.finding


def test_a_sound_network_in_eval_mode_is_usable_without_a_warning() -> None:
    found = looked_at(Small(nn.ReLU(inplace=True)).eval())
    warned = {line.question for line in found.of("warn")}
    # that a bare module comes without preprocessing is always said
    assert warned <= {"preprocessing", "opinion", "xgradcam"}
    assert found.usable
    assert len(found.findings) > 30


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


def test_a_network_in_train_mode_is_told_what_minds() -> None:
    model = Small()
    verdict, told = noted(looked_at(model), "mode")
    assert verdict == "warn"
    assert told == "train mode, which 1 BatchNorm2d and 1 Dropout mind"
    assert model.training
    model.eval()
    assert noted(looked_at(model), "mode") == ("ok", "eval mode, every module")
    model.bn.train()
    told = noted(looked_at(model), "mode")[1]
    assert told == "1 of 6 modules in train mode (bn), which 1 BatchNorm2d mind"


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
    assert "which 1 BatchNorm2d and 1 Dropout mind" in lines["plain"][0].finding
    assert "model.eval() first" in lines["plain"][0].advice
    assert lines["ready"][0].finding == "eval mode, every module"
    assert lines["stubborn"][0].verdict == "warn"
    assert "model.eval() does not change that" in lines["stubborn"][0].finding
    assert lines["parallel"][1].finding == "in DataParallel"


def test_a_batch_dependent_network_cannot_be_trusted() -> None:
    found = looked_at(OfTheBatch())
    assert [line.code for line in found.of("bad")] == ["M592"]
    assert found.facts["neighbours"] > 1e-3
    assert not found.usable


def test_what_moves_when_looked_at_is_named_and_not_moved_by_us() -> None:
    model = OfTheBatch(moving=True).eval()
    assert "mean, var" in noted(looked_at(model), "changed by looking")[1]
    assert bool((model.mean == 0).all())
    counting = Counting().eval()
    found = looked_at(counting)
    assert noted(found, "changed by looking") == ("warn", "yes: runs")
    assert found.usable
    assert float(counting.runs) == 0


def test_functional_dropout_that_is_always_on_cannot_be_trusted() -> None:
    found = looked_at(Small(F.dropout).eval())
    (bad,) = found.of("bad")
    assert bad.code == "M591"
    assert "it draws random numbers in eval mode" in bad.finding
    assert "self.training" in bad.advice
    told = [line.question for line in found.findings]
    assert "neighbours in the batch" not in told  # which could not be told apart from chance


def test_randomness_that_does_not_reach_the_answer_is_only_a_warning() -> None:
    def idle(x: Tensor) -> Tensor:
        torch.rand(3)
        return x.relu()

    line = finding(looked_at(Small(idle).eval()), "same picture twice")
    assert line.verdict == "warn"
    assert line.finding.startswith("the same answer, though it draws random numbers")


def test_the_random_state_of_the_caller_stays() -> None:
    model = Small(F.dropout).eval()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    looked_at(model)
    assert torch.equal(torch.random.get_rng_state(), before)


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


def test_lazy_layers_are_refused_in_words() -> None:
    (line,) = looked_at(nn.Sequential(nn.LazyConv2d(3, 3))).of("bad")
    assert line.code == "M526"


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        (lambda x: (x, x[:, :2]), "a tuple of 2 tensors"),
        (lambda x: [x], "a list of 1 tensor"),
        (lambda x: {"logits": x, "more": x * 2}, "a dict with logits, more"),
    ],
)
def test_the_form_of_the_output_is_told(answer: Callable[[Tensor], object], form: str) -> None:
    found = looked_at(Telling(answer).eval())
    assert found.facts["output"] == form
    assert noted(found, "form") == ("ok", f"{form}; its scores are taken (1, 7)")
    assert found.facts["methods"]["gradcam"]["defined"]


def test_a_network_without_scores_keeps_what_is_about_layers() -> None:
    found = looked_at(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval())
    assert finding(found, "form").verdict == "warn"
    methods = found.facts["methods"]
    assert methods["gradcam"]["why"].startswith("M520 ")
    assert methods["projection of units"]["defined"]
    assert found.usable


def test_probabilities_and_single_scores_are_told() -> None:
    soft = Telling(lambda scores: scores.softmax(1)).eval()
    assert noted(looked_at(soft), "scores are") == ("warn", "probabilities already")
    assert noted(looked_at(Small(classes=1).eval()), "classes") == ("warn", "1 score")


def test_a_network_that_says_nothing_has_no_opinion() -> None:
    model = Small().eval()
    with torch.no_grad():
        model.fc.weight.mul_(1e-6)
        model.fc.bias.zero_()
    verdict, told = noted(looked_at(model), "opinion")
    assert verdict == "warn"
    assert "(25.0%), hardly more than any other class" in told


def test_a_grey_network_gets_a_grey_picture() -> None:
    found = looked_at(Small(colours=1).eval())
    assert found.facts["input"] == [1, 47, 39]
    assert (
        "to have 3 channels" in noted(found, "size")[1] or "1 channels" in noted(found, "size")[1]
    )
    assert noted(found, "colours")[1] == "1: grey pictures"
    assert found.facts["methods"]["gradcam"]["defined"]


def test_a_network_of_one_size_is_given_that_size() -> None:
    model = Small().eval()
    model.drop = nn.Sequential(nn.Flatten(), nn.Dropout())
    model.fc = nn.Linear(8, 4)
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 3))
    found = looked_at(fixed.eval())
    assert found.facts["input"] == [3, 32, 32]
    verdict, told = noted(found, "size")
    assert verdict == "warn"
    assert told.startswith("refuses 47 × 39 as prepared (")
    assert told.endswith("takes 32 × 32, and no other size")
    assert not found.facts["takes other sizes"]


def test_the_smallest_side_is_found() -> None:
    # 5 pixels at stride 2, then a pool of 3: (n - 5) // 2 + 1 >= 3 from n = 9 on
    assert looked_at(Small().eval()).facts["smallest side"] == 9


def test_what_takes_no_picture_is_unusable() -> None:
    (bad,) = looked_at(Demanding().eval()).of("bad")
    assert bad.code == "M589"
    assert "forward(x: Tensor, mask: Tensor)" in bad.finding.replace("'", "").replace("torch.", "")
    (bad,) = looked_at(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(7, 3)).eval()).of("bad")
    assert bad.code == "M589"
    assert "47 × 39: " in bad.finding


def test_a_network_for_one_picture_at_a_time_is_told() -> None:
    verdict, told = noted(looked_at(OneByOne().eval()), "neighbours in the batch")
    assert verdict == "warn"
    assert told == "two pictures give 1 rows of 8 numbers"


def test_no_grad_refuses_gradients_and_nothing_else() -> None:
    methods = looked_at(Untracked().eval()).facts["methods"]
    assert methods["gradcam"]["defined"]  # gradients are asked for from its layer on
    assert methods["saliency"]["why"].startswith("M540 ")
    assert methods["eigencam"]["defined"]
    assert methods["occlusion"]["defined"]


def test_hooks_of_others_are_counted() -> None:
    model = Small().eval()
    for layer in (model.conv1, model.conv2):
        layer.register_forward_hook(forgotten)
    line = finding(looked_at(model), "hooks")
    assert line.verdict == "warn"
    assert line.finding == "2 hooks of others: 2 × forgotten"


def forgotten(*_: object) -> None:
    """A hook that somebody left."""


def test_mixed_precision_and_shared_weights_are_told() -> None:
    model = Small().eval()
    model.twice = model.conv2
    model.spare = nn.Linear(2, 2).half()
    found = looked_at(model)
    assert noted(found, "precision")[0] == "warn"
    told = noted(found, "shared")[1]
    assert told.startswith("2 tensors under several names: conv2.weight = twice.weight")


def test_a_transformer_of_tokens_is_looked_at() -> None:
    found = looked_at(Tokens().eval(), pictures(1, 40, 32)[0])
    assert found.usable
    assert found.facts["other activations"] == {"GELU": 1}
    methods = found.facts["methods"]
    assert methods["gradcam"]["layer"] == "norm1"  # after it only the class token counts
    assert not methods["deconvnet"]["defined"]
    assert "GELU" in methods["deconvnet"]["why"]
    assert "5 × 4" in finding(found, "gradcam").finding


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


def test_pictures_of_another_scale_than_in_training_are_noticed() -> None:
    model = Small().eval()
    with torch.no_grad():  # as if trained on pictures like IMAGE
        seen = model.conv1(IMAGE[None])
        model.bn.running_mean.copy_(seen.mean((0, 2, 3)))
        model.bn.running_var.copy_(seen.var((0, 2, 3), unbiased=False))
    found = looked_at(model)
    assert found.facts["scale against training"] == pytest.approx(1)
    assert finding(found, "scale").verdict == "ok"
    line = finding(looked_at(model, IMAGE * 255), "scale")
    assert line.verdict == "warn"
    assert "times wider" in line.finding
    assert "times narrower" in finding(looked_at(model, IMAGE / 255), "scale").finding


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
    x = torch.zeros(2)
    with pytest.raises(OutOfTime), Clock(0, 0) as clock:  # noqa: PT012
        clock.most = 0
        with torch.no_grad():
            x.add(1)
    assert torch.is_grad_enabled()
    assert not x.any()
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
