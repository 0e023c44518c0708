"""Does an audit find what a network takes, and that its answers cannot be relied on?"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.nets import Telling
from tests.studies.audit_nets import (
    IMAGE,
    Counting,
    Demanding,
    OfTheBatch,
    OneByOne,
    Small,
    finding,
    looked_at,
    noted,
)


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


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        (lambda x: (x, x[:, :2]), "a tuple of 2 tensors; scores are 0"),
        (lambda x: [x], "a list of 1 tensor; scores are 0"),
        (lambda x: {"logits": x, "more": x * 2}, "a dict with logits, more; scores are logits"),
        (
            lambda x: SimpleNamespace(loss=None, logits=x),
            "a SimpleNamespace with logits; scores are logits",
        ),
    ],
)
def test_the_form_of_the_output_is_told(answer: Callable[[Tensor], object], form: str) -> None:
    found = looked_at(Telling(answer).eval())
    assert found.facts["output"] == form.partition(";")[0]
    assert noted(found, "form") == ("ok", f"{form} (1, 7)")
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
    verdict, told = noted(looked_at(soft), "scores are")
    assert verdict == "ok"
    assert told.startswith("the network ends in softmax: probabilities")
    verdict, told = noted(looked_at(Small(classes=1).eval()), "classes")
    assert told == "1 score: for class 1, and against it (class 0)"


def test_a_network_that_says_nothing_has_no_opinion() -> None:
    model = Small().eval()
    with torch.no_grad():
        model.fc.weight.mul_(1e-6)
        model.fc.bias.zero_()
    verdict, told = noted(looked_at(model), "opinion")
    assert verdict == "warn"
    assert "(25.0%), hardly more than any other class" in told


def test_a_grey_network_gets_a_grey_picture() -> None:
    model = Small(colours=1).eval()
    found = looked_at(model)
    assert found.facts["input"] == [1, 47, 39]
    assert noted(found, "size")[1].startswith("refuses 47 × 39 as prepared (")
    assert noted(found, "colours") == ("warn", "1: grey pictures")
    assert found.facts["methods"]["gradcam"]["defined"]
    assert noted(looked_at(model, IMAGE[:1]), "colours") == ("ok", "1: grey pictures")


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
