"""Does every rectifier, however it is spelled, send signals back by the rule, and only so?"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.core.errors import ConvscopeError, ModelError
from convscope.trace.backward_rule import RULES, BackwardRule
from tests.nets import RECTIFIERS, Fire, Residual, Spelled, pictures, sequential, state_of


def sent(
    rule: BackwardRule, net: Callable[[Tensor], Tensor], x: Tensor, start: Tensor | None = None
) -> Tensor:
    """What arrives at x when `start` is sent down from net(x)."""
    x = x.detach().clone().requires_grad_()
    with rule:
        y = net(x.clone())  # a copy, as the network may work in place
        signal = torch.ones_like(y) if start is None else start
        return torch.autograd.grad((y * signal).sum(), x)[0]


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ConvscopeError) as caught:
        call()
    return caught.value.code


X = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 7.0]] * 2)
S = torch.tensor([[3.0] * 5, [-3.0] * 5])
ANSWERS = {
    "gradient": [[0, 0, 0, 3, 3], [0, 0, 0, -3, -3]],
    "deconvnet": [[3, 3, 3, 3, 3], [0, 0, 0, 0, 0]],
    "guided": [[0, 0, 0, 3, 3], [0, 0, 0, 0, 0]],
}
CAPPED = ANSWERS | {
    "gradient": [[0, 0, 0, 3, 0], [0, 0, 0, -3, 0]],
    "guided": [[0, 0, 0, 3, 0], [0, 0, 0, 0, 0]],
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("inplace", [False, True])
def test_the_three_rules_are_those_of_the_papers(rule, inplace):
    assert sent(BackwardRule(rule), nn.ReLU(inplace), X, S).tolist() == ANSWERS[rule]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "capped", [nn.ReLU6(), F.relu6, lambda x: x.clamp(0, 6), lambda x: F.hardtanh_(x, 0, 6)]
)
def test_a_relu_with_a_ceiling_is_a_relu_whose_gate_closes_again_above(rule, capped):
    assert sent(BackwardRule(rule), capped, X, S).tolist() == CAPPED[rule]


@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_every_spelling_sends_back_the_same_bits(rule):
    x = pictures()
    expected = sent(BackwardRule(rule), Spelled(nn.ReLU()), x)
    plain = sent(BackwardRule("gradient"), Spelled(nn.ReLU()), x)
    assert (expected - plain).norm() > 0.1 * plain.norm() > 0
    for spelling, rectifier in RECTIFIERS.items():
        net, context = Spelled(rectifier), BackwardRule(rule)
        before = state_of(net)
        assert torch.equal(sent(context, net, x), expected), spelling
        assert (context.rewritten, context.rectifiers) == (3, 3), spelling
        assert context.plain == (), spelling
        assert state_of(net) == before, spelling


@pytest.mark.parametrize("rule", RULES)
def test_values_on_the_way_up_are_those_of_the_plain_network(rule):
    x = pictures().requires_grad_()
    for spelling, rectifier in RECTIFIERS.items():
        with BackwardRule(rule):
            ours = Spelled(rectifier)(x)
        assert torch.equal(ours, Spelled(rectifier)(x)), spelling


@pytest.mark.parametrize("make", [sequential, Residual, Fire, lambda: Spelled(torch.relu_)])
def test_the_gradient_rule_is_the_gradient(make):
    net, x = make().eval(), pictures().requires_grad_()
    (expected,) = torch.autograd.grad(net(x.clone()).sum(), x)
    assert torch.equal(sent(BackwardRule("gradient"), net, x), expected)
    assert expected.abs().max() > 0


def test_a_picture_shared_by_a_rectifier_and_a_skip_path_gets_both_signals():
    """relu(x) + 2x: the rule holds on the first branch only. (Hooks on modules get it wrong.)"""
    for spelling, rectifier in RECTIFIERS.items():
        if "_" in spelling.split("(")[0].removeprefix("torch.ops.aten.") or "in place" in spelling:
            continue  # what is done in place is done to both branches
        got = sent(BackwardRule("deconvnet"), lambda x, f=rectifier: 2 * x + f(x), X, S)
        assert got.tolist() == [[9.0] * 5, [-6.0] * 5], spelling


def test_a_rectifier_in_place_on_part_of_a_map_follows_the_rule_there():
    def half(x: Tensor) -> Tensor:
        F.relu_(x[:, :3])
        x[:, 3:].clamp_(min=0)
        return x

    rule = BackwardRule("deconvnet")
    assert sent(rule, half, X, S).tolist() == ANSWERS["deconvnet"]
    assert (rule.rewritten, rule.rectifiers) == (2, 2)
    assert sent(BackwardRule("guided"), half, X, S).tolist() == ANSWERS["guided"]


def test_a_residual_sum_in_place_after_a_rectifier_in_place_sends_to_both_branches():
    net, x = Residual().eval().double(), pictures(1).double()

    def linear(value: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        return value * (bn.weight / (bn.running_var + bn.eps).sqrt())[:, None, None]

    signal = net.fc.weight[3][:, None, None].expand(1, 8, 17, 15) / (17 * 15)
    top = signal.relu()
    third = F.conv_transpose2d(linear(top, net.bn3), net.conv3.weight, padding=1)
    second = F.conv_transpose2d(linear(third.relu(), net.bn2), net.conv2.weight, padding=1)
    first = linear((second + top).relu(), net.bn1)
    expected = F.conv_transpose2d(first, net.conv1.weight, stride=2, padding=1)
    rule = BackwardRule("deconvnet")
    got = sent(rule, lambda value: net(value)[:, 3], x)
    assert torch.allclose(got, expected.detach(), rtol=1e-12, atol=1e-15)
    assert (rule.rewritten, rule.rectifiers, rule.plain) == (3, 3, ())
    assert expected.abs().max() > 0


def test_contrast_normalisation_is_passed_by_under_deconvnet_alone():
    norm, x, s = nn.LocalResponseNorm(3, alpha=5.0), pictures(1), pictures(1, seed=2)
    deconvnet, guided = BackwardRule("deconvnet"), BackwardRule("guided")
    assert torch.equal(sent(deconvnet, norm, x, s), s)
    assert deconvnet.skipped == 1
    plain = sent(BackwardRule("gradient"), norm, x, s)
    assert torch.equal(sent(guided, norm, x, s), plain)
    assert "Pow" in guided.plain
    assert not torch.allclose(plain, s, atol=0.1)


def test_biases_never_enter():
    one, other = sequential().eval(), sequential().eval()
    with torch.no_grad():
        other.fc.bias += 5
        other.conv1.bias += 0  # the switches stay
    x = pictures()
    a, b = (sent(BackwardRule("deconvnet"), net, x) for net in (one, other))
    assert torch.equal(a, b)


def test_the_inner_of_two_rules_holds():
    x = X.clone().requires_grad_()
    for outer in RULES:
        for inner in RULES:
            with BackwardRule(outer):
                got = sent(BackwardRule(inner), torch.relu, X, S).tolist()
                after = torch.autograd.grad((x.relu() * S).sum(), x)[0].tolist()
            assert (got, after) == (ANSWERS[inner], ANSWERS[outer])


def test_a_rule_holds_for_its_own_thread_only():
    net, x = Residual().eval(), pictures(1)
    alone = {rule: sent(BackwardRule(rule), net, x) for rule in RULES}

    def ask(number: int) -> bool:
        rule = list(RULES)[number % 3]
        return torch.equal(sent(BackwardRule(rule), net, x), alone[rule])

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(96)))


def test_outside_the_block_nothing_has_changed():
    net, x = Fire().eval(), pictures().requires_grad_()
    (before,) = torch.autograd.grad(net(x).sum(), x)
    with pytest.raises(RuntimeError), BackwardRule("deconvnet"):
        net(x[:, :2])
    assert torch.equal(torch.autograd.grad(net(x).sum(), x)[0], before)


def test_a_signal_sent_after_the_block_still_follows_the_rule_of_the_block():
    x = X.clone().requires_grad_()
    with BackwardRule("deconvnet"):
        y = x.relu()
    (y * S).sum().backward()
    assert x.grad.tolist() == ANSWERS["deconvnet"]


OTHERS = {
    "GELU": nn.GELU(),
    "SiLU": nn.SiLU(inplace=True),
    "LeakyReLU": nn.LeakyReLU(),
    "PReLU": nn.PReLU(),
    "ELU": nn.ELU(),
    "SELU": nn.SELU(),
    "CELU": nn.CELU(),
    "Mish": nn.Mish(),
    "Hardswish": nn.Hardswish(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Hardtanh": nn.Hardtanh(),
    "Sigmoid": nn.Sigmoid(),
    "Tanh": nn.Tanh(),
    "Softplus": nn.Softplus(),
    "Softmax": nn.Softmax(1),
    "LogSigmoid": nn.LogSigmoid(),
    "Threshold": nn.Threshold(0.5, 0.0),
    "abs": torch.abs,
    "GLU": lambda x: F.glu(x[:, :4]),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("rule", ["deconvnet", "guided"])
def test_an_activation_without_a_rule_is_refused_by_name_unless_its_gradient_will_do(name, rule):
    def net(x: Tensor) -> Tensor:
        return OTHERS[name](x.relu() * 2)

    with pytest.raises(ModelError, match=f"{name}.*rectifiers only.*gradient") as caught:
        sent(BackwardRule(rule), net, X)
    assert caught.value.code == "M531"
    allowed = BackwardRule(rule, other="gradient")
    sent(allowed, net, X)
    assert (allowed.rewritten, allowed.rectifiers) == (1, 2)
    sent(BackwardRule("gradient"), net, X)


def test_an_activation_beside_the_way_is_nobodys_business():
    def net(x: Tensor) -> Tensor:
        F.gelu(x)  # leads nowhere
        return x.relu() * F.silu(torch.ones(5, requires_grad=True))  # from a weight

    rule = BackwardRule("deconvnet")
    sent(rule, net, X)
    assert (rule.rewritten, rule.rectifiers, rule.plain) == (1, 1, ())


class Hidden(torch.autograd.Function):
    """Somebody's own rectifier."""

    @staticmethod
    def forward(ctx, x):
        return x.relu()

    @staticmethod
    def backward(ctx, s):
        return s


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_rectifiers_out_of_sight_are_refused_and_never_passed_over():
    scripted = torch.jit.script(nn.Sequential(nn.Conv1d(2, 2, 1), nn.ReLU()))
    for _ in range(3):  # it is optimised on the way
        assert code_of(lambda: sent(BackwardRule("guided"), scripted, X)) == "M532"
    assert code_of(lambda: sent(BackwardRule("deconvnet"), Hidden.apply, X)) == "M532"
    with pytest.raises(ModelError, match=r"the function Hidden: out of sight .*\(1 of 2 follow it"):
        sent(BackwardRule("deconvnet"), lambda x: Hidden.apply(x.relu()), X)
    before = X.clone().requires_grad_()
    outside = before.relu()
    with pytest.raises(ModelError, match="ReLU: out of sight"), BackwardRule("deconvnet"):
        outside.sum().backward()
    assert before.grad is None


def test_operations_that_are_not_linear_are_named():
    class Gated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.group_norm(x.relu(), 1)
            return x * x.mean((2, 3), keepdim=True)

    rule = BackwardRule("deconvnet")
    sent(rule, Gated(), pictures())
    assert rule.plain == ("NativeGroupNorm", "Mul")
    batch = BackwardRule("deconvnet")
    sent(batch, lambda x: F.batch_norm(x, None, None, training=True), pictures())
    assert batch.plain == ("NativeBatchNorm",)


def test_a_hook_of_the_users_own_is_no_obstacle():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    met = []
    net[0].register_full_backward_hook(lambda *_: met.append(1))
    rule = BackwardRule("deconvnet")
    sent(rule, net, pictures())
    assert (met, rule.rewritten, rule.rectifiers) == ([1], 1, 1)


def test_what_is_no_rule_is_refused():
    assert code_of(lambda: BackwardRule("deconv")) == "U512"
    assert code_of(lambda: BackwardRule("guided", overlap="max")) == "U512"
    assert code_of(lambda: BackwardRule("guided", other="ignore")) == "U512"
    assert code_of(lambda: BackwardRule("gradient", overlap="overwrite")) == "U512"


def test_masks_are_believed_only_of_the_map_they_were_made_from():
    """x * (y > 0) and x * (old x > 0) are gates, not rectifiers."""

    def gate(x: Tensor) -> Tensor:
        return x * (x.flip(1) > 0)

    def late(x: Tensor) -> Tensor:
        mask = x > 0
        x += 1
        return x * mask

    for net in (gate, late, lambda x: x * (x > 1), lambda x: torch.where(x > 0, x, 1.0)):
        rule = BackwardRule("deconvnet")
        sent(rule, net, X)
        assert rule.rewritten == 0
    assert BackwardRule("deconvnet")._masks.of(X) is None


@pytest.mark.parametrize("rule", RULES)
def test_captum_says_the_same_where_captum_is_right(rule):
    """On rectifiers that are modules, each used once, not in place."""
    attr = pytest.importorskip("captum.attr")
    net, x = sequential(inplace=False).eval(), pictures()
    del net.norm1  # captum knows nothing of it
    method = {
        "gradient": lambda net: attr.Saliency(net),
        "deconvnet": attr.Deconvolution,
        "guided": attr.GuidedBackprop,
    }[rule](net)
    options = {"abs": False} if rule == "gradient" else {}
    with pytest.warns() if rule != "gradient" else pytest.MonkeyPatch.context():
        theirs = method.attribute(x.clone().requires_grad_(), target=3, **options)
    ours = sent(BackwardRule(rule), lambda value: net(value)[:, 3], x)
    assert torch.equal(ours, theirs)
    assert ours.abs().max() > 0
