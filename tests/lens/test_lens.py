"""Does a Lens show what the layers put out, and leave no trace?"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from convscope.core.errors import ConvscopeError, ModelError, UsageError
from convscope.lens.lens import Lens, conv_layers, layers_in_order, only_scores
from tests.nets import (
    Fire,
    Residual,
    Spelled,
    Stumbling,
    Telling,
    pictures,
    sequential,
    state_of,
)


def code_of(call) -> str:
    with pytest.raises(ConvscopeError) as caught:
        call()
    return caught.value.code


def conv_of(net: nn.Module, name: str, x: Tensor) -> Tensor:
    conv = net.get_submodule(name)
    return F.conv2d(
        x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )


NETS = {
    "sequential": sequential,
    "residual": Residual,
    "fire": Fire,
    "functional": lambda: Spelled(torch.relu_),
}


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_tap_shows_a_layer_as_it_was_before_what_follows_in_place(make):
    net, x = make(), pictures()
    before = conv_of(net, "conv1", x)
    with Lens(net, ["conv1"]) as lens:
        lens(x)
        assert torch.equal(lens["conv1"], before)
    assert before.min() < 0 < before.max()


def test_a_sum_in_place_does_not_reach_back_into_what_a_tap_has_shown():
    net, x = Residual().eval(), pictures()
    with torch.no_grad(), Lens(net, ["relu#1", "bn3", "relu#3"]) as lens:
        lens(x)
        shown = F.relu(net.bn1(net.conv1(x)))
        assert torch.equal(lens["relu#1"], shown)
        bn3 = net.bn3(net.conv3(F.relu(net.bn2(net.conv2(shown)))))
        assert torch.equal(lens["bn3"], bn3)
        assert torch.equal(lens["relu#3"], F.relu(bn3 + shown))


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("grad", [True, False])
def test_the_model_is_bit_for_bit_as_it_was(make, grad):
    net = make().train()
    next(net.parameters()).requires_grad_(False)
    net.conv1.register_forward_hook(lambda *_: None)
    layers = [name for name, _ in net.named_modules() if name]
    before = state_of(net)
    with torch.set_grad_enabled(grad), Lens(net, layers, {"conv1": lambda a: a * 2}) as lens:
        lens(pictures())
        assert state_of(net) == before
    assert state_of(net) == before


def test_an_error_in_the_middle_of_the_pass_leaves_no_trace_either():
    net = Stumbling().train()
    before = state_of(net)
    lens = Lens(net, ["conv1", "relu"], {"conv1": lambda a: a.mul_(2)})
    with pytest.raises(ModelError, match="channels"), lens:
        lens(pictures())
    assert state_of(net) == before


def test_the_network_runs_in_eval_mode_whatever_mode_it_is_in():
    net, x = sequential(), pictures()
    assert net.training
    with Lens(net, []) as lens:
        once, twice = lens(x), lens(x)
    assert torch.equal(once, twice)
    assert torch.equal(once, net.eval()(x))


def test_batch_statistics_do_not_move_when_a_training_network_is_looked_at():
    net = Residual().train()
    before = net.bn1.running_mean.clone()
    with Lens(net, ["bn1"]) as lens:
        lens(pictures())
    assert torch.equal(net.bn1.running_mean, before)
    assert int(net.bn1.num_batches_tracked) == 0


def test_an_edit_replaces_what_the_following_layers_get_and_what_a_tap_shows():
    net, x = Fire().eval(), pictures()
    with torch.no_grad(), Lens(net, ["squeeze"], {"squeeze": lambda a: a * 0 + 1}) as lens:
        scores = lens(x)
        assert torch.equal(lens["squeeze"], torch.ones_like(lens["squeeze"]))
        wide = torch.ones(2, 4, 7, 6)
        joined = torch.cat([F.relu(net.expand1(wide)), F.relu(net.expand3(wide))], 1)
        assert torch.allclose(scores, F.relu(net.classify(joined)).mean((2, 3)), atol=1e-6)
    assert not torch.equal(scores, net(x))


def test_an_edit_may_name_one_of_several_calls():
    net, x = Residual().eval(), pictures()
    with torch.no_grad():
        stem = F.relu(net.bn1(net.conv1(x)))
        expected = net.fc(F.relu(net.bn3(net.conv3(stem * 0)) + stem).mean((2, 3)))
        with Lens(net, [], {"relu#2": lambda a: a * 0}) as lens:
            assert torch.equal(lens(x), expected)
        with Lens(net, [], {"relu": lambda a: a * 0}) as lens:
            assert torch.equal(lens(x), net.fc(torch.zeros(2, 8)))


def test_a_tap_lies_on_the_way_of_gradients_from_the_scores_and_to_the_pixels():
    net, x = sequential().eval(), pictures().requires_grad_()
    with Lens(net, ["conv3"]) as lens:
        score = lens(x)[0, 3]
        maps = lens["conv3"]
    (above,) = torch.autograd.grad(score, maps, retain_graph=True)
    (below,) = torch.autograd.grad((maps * above.detach()).sum(), x, retain_graph=True)
    (whole,) = torch.autograd.grad(net(x)[0, 3], x)
    assert torch.allclose(below, whole, rtol=1e-5, atol=1e-9)
    assert whole.abs().max() > 0
    assert all(weight.grad is None for weight in net.parameters())


def test_reach_runs_no_further_than_the_last_tapped_layer():
    with Lens(Stumbling(), ["conv1"]) as lens:
        lens.reach(pictures())  # conv2 would raise
        assert lens["conv1"].shape == (2, 4, 31, 27)
    with Lens(Stumbling(), ["relu#1"]) as lens:
        lens.reach(pictures())
        assert lens["relu#1"].min() == 0
    with Lens(Residual(), ["relu"]) as lens:
        lens.reach(pictures())  # to the end, to see that it runs again
        assert code_of(lambda: lens["relu"]) == "M503"


def test_a_pool_that_also_puts_out_indices_shows_its_values():
    net = nn.Sequential(nn.MaxPool2d(2, return_indices=True))
    with Lens(net, ["0"], {"0": lambda a: a + 1}) as lens:
        values, indices = lens(pictures())
        assert torch.equal(lens["0"], values)
    assert torch.equal(values, F.max_pool2d(pictures(), 2) + 1)
    assert indices.dtype == torch.int64


def test_layers_are_listed_in_the_order_in_which_the_input_meets_them():
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(4, 2, 1)
            self.unused = nn.Conv2d(3, 3, 1)
            self.twice = nn.ReLU()
            self.first = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.last(self.twice(self.first(x))))

    net = Shuffled()
    assert layers_in_order(net, pictures()) == ["first", "twice#1", "last", "twice#2"]
    assert conv_layers(net, pictures()) == ["first", "last"]
    assert conv_layers(net) == ["last", "unused", "first"]


def test_what_cannot_be_shown_is_refused_with_its_reason():
    net, x = Residual(), pictures()
    with pytest.raises(ModelError, match="conv_2: no such layer in the model; did you mean conv2"):
        Lens(net, ["conv_2"])
    with Lens(net, ["relu", "relu#4", "conv1"]) as lens:
        assert code_of(lambda: lens["conv1"]) == "U511"
        lens(x)
        assert code_of(lambda: lens["bn1"]) == "U511"
        assert code_of(lambda: lens["relu#4"]) == "M502"
        with pytest.raises(
            ModelError, match=r"ran 3 times in this pass\. Next: .* relu#1 … relu#3"
        ):
            lens["relu"]
        assert lens["conv1"].shape == (2, 8, 17, 15)
    with pytest.raises(UsageError):
        lens(x)
    assert code_of(lambda: Lens(nn.LazyConv2d(3, 3), [])) == "M526"
    assert code_of(lambda: Lens(torch.relu, [])) == "M530"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripted_and_traced_modules_are_refused_as_they_hide_their_calls():
    net, x = Fire().eval(), pictures()
    scripted, traced = torch.jit.script(net), torch.jit.trace(net, x)
    for module in (scripted, traced):
        with pytest.raises(ModelError, match="use the Python module") as caught:
            Lens(module, ["conv1"])
        assert caught.value.code == "M530"
    half = nn.Sequential(nn.Conv2d(3, 3, 1), scripted)
    assert code_of(lambda: Lens(half, ["1.conv1"])) == "M530"
    with Lens(half, ["0"]) as lens:  # the Python part can be seen
        assert torch.equal(lens(x), half(x))
        assert torch.equal(lens["0"], half[0](x))


def seen_through(wrapped: nn.Module, names: list[str], expected: Tensor) -> bool:
    with torch.no_grad(), Lens(wrapped, names) as lens:
        lens(pictures())
        return all(torch.equal(lens[name], expected) for name in names)


def test_wrapped_networks_are_seen_through():
    net = Fire()
    parallel = nn.DataParallel(net)
    assert seen_through(parallel, ["conv1", "module.conv1"], net.conv1(pictures()))
    assert conv_layers(parallel) == conv_layers(net)


@pytest.mark.slow  # the first use of torch.compile takes ten seconds
def test_compiled_networks_are_seen_through():
    net, x = Fire(), pictures()
    compiled = torch.compile(net, backend="eager")
    compiled(x)
    assert seen_through(compiled, ["conv1", "_orig_mod.conv1"], net.conv1(x))
    half = nn.Sequential(nn.Conv2d(3, 3, 1), compiled)
    assert seen_through(half, ["1.conv1", "1._orig_mod.conv1"], net.conv1(half[0](x)))
    net.compile(backend="eager")
    assert seen_through(net, ["conv1"], net.conv1(x))
    assert conv_layers(compiled) == conv_layers(net)


def test_networks_with_unusual_wiring_are_followed():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
            self.steps = [self.conv, {"then": self.inner}]  # known by a list, too
            self.forward = self.other  # bound to this very object
            self.count = 0
            self.notes: dict[str, Tensor] = {}
            self.conv.register_forward_hook(lambda *args: self.notes.update(seen=args[2]))

        def other(self, x: Tensor) -> Tensor:
            self.count += 1
            y = self.steps[0](x)
            assert self.notes["seen"] is not None
            return self.steps[1]["then"](y)

    net, x = Odd(), pictures()
    with Lens(net, ["conv", "inner.0"]) as lens:
        lens(x)
        assert torch.equal(lens["conv"], net.conv(x))
        assert torch.equal(lens["inner.0"], net.inner[0](net.conv(x)))
    assert net.count == 0
    graph = fx.symbolic_trace(Fire().eval())
    with Lens(graph, ["expand3"]) as lens:
        assert torch.equal(lens(x), graph(x))
        assert lens["expand3"].shape == (2, 6, 7, 6)


def test_parametrised_weights_are_seen_through():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    before = state_of(net)
    with Lens(net, ["0"]) as lens:
        lens(pictures())
        assert torch.equal(lens["0"], net[0](pictures()))
    assert state_of(net) == before


def test_scores_are_one_tensor_of_rows():
    x = pictures()
    with Lens(Telling(lambda s: s), []) as lens:
        assert only_scores(lens(x)).shape == (2, 7)
    for answer, said in ((lambda s: (s, s), "tuple"), (lambda s: s[..., None], r"\(2, 7, 1\)")):
        with Lens(Telling(answer), []) as lens, pytest.raises(ModelError, match=said):
            only_scores(lens(x))


def test_what_a_lens_has_seen_goes_with_it():
    """Without waiting for the garbage collector: maps of large networks would pile up."""
    net, x = sequential().eval(), pictures(1)

    def look() -> weakref.ref[Tensor]:
        with Lens(net, ["conv2"]) as lens:
            lens(x.clone().requires_grad_())
            return weakref.ref(lens["conv2"])

    gc.disable()
    try:
        assert look()() is None
    finally:
        gc.enable()
