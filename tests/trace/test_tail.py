"""Does what follows a layer give, done again alone, what the whole network would give?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.core.errors import ConvscopeError
from convscope.lens.lens import Lens
from convscope.trace.tail import Mixing, Tail, record
from tests.nets import Fire, Residual, Spelled, pictures, sequential, state_of


class Dense(nn.Module):
    """What comes before the layer is needed again after it, by `cat`, `+` and in place."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)
        self.join = [join]

    def forward(self, x: Tensor) -> Tensor:
        before = self.a(x)
        return self.c(self.join[0](before, F.relu(self.b(before))).amax((2, 3))[:, -6:])


def hidden(x: Tensor) -> Tensor:
    """A call that torch's function mode does not see."""
    with torch._C.DisableTorchFunction():
        return x * 2


TAILS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a chain with norm, pools and dropout": (sequential, "conv1"),
    "a chain that ends in a linear layer": (sequential, "relu3"),
    "out += identity": (Residual, "conv3"),
    "the second of three runs": (Residual, "relu#2"),
    "two branches": (Fire, "squeeze"),
    "one of two branches": (Fire, "expand1"),
    "a skip path": (lambda: Spelled(nn.ReLU(True)), "conv2"),
    "cat with what came before": (lambda: Dense(lambda a, b: torch.cat([a, b], 1)), "b"),
    "added to what came before": (lambda: Dense(lambda a, b: a + b), "b"),
    "view": (lambda: Dense(lambda a, b: b.view(len(b), 6, *b.shape[2:])), "b"),
    "attention": (
        lambda: Dense(lambda a, b: F.scaled_dot_product_attention(b, b, a)),
        "b",
    ),
}


def tail_of(net: nn.Module, layer: str, target: int = 2) -> Tail:
    image = pictures(1)
    return record(net, lambda network: network(image), layer, lambda output: output[:, target])


def changes(activation: Tensor, count: int = 5) -> Tensor:
    noise = torch.Generator().manual_seed(5)
    copies = activation.detach().repeat(count, *[1] * (activation.dim() - 1))
    return copies + torch.randn(copies.shape, generator=noise) * copies.std()


def whole(net: nn.Module, layer: str, outputs: Tensor, target: int = 2) -> Tensor:
    """The network run once for each output, in full."""
    scores = []
    for one in outputs:
        with torch.no_grad(), Lens(net, (), {layer: lambda _, one=one: one[None].clone()}) as lens:
            scores.append(lens(pictures(1))[:, target])
    return torch.cat(scores)


@pytest.mark.parametrize("name", TAILS)
def test_what_follows_a_layer_gives_what_the_whole_network_gives(name: str) -> None:
    make, layer = TAILS[name]
    net = make()
    before = state_of(net)
    tail = tail_of(net, layer)
    assert tail.obstacle == ""
    outputs = changes(tail.activation)
    expected = whole(net, layer, outputs)
    assert expected.std() > 1e-3
    assert torch.allclose(tail.again(outputs.clone()), expected, atol=1e-5)
    assert torch.allclose(tail.again(outputs[:1].clone()), expected[:1], atol=1e-5)
    assert state_of(net) == before


def test_the_part_before_the_layer_does_not_run_again() -> None:
    net = Fire()
    runs: list[int] = []
    net.conv1.register_forward_hook(lambda *_: runs.append(1))
    tail = tail_of(net, "squeeze")
    tail.again(changes(tail.activation))
    assert runs == [1]


def test_gradients_begin_at_the_layer() -> None:
    net = Fire()
    tail = tail_of(net, "expand3")
    (g,) = torch.autograd.grad(tail.score.sum(), tail.activation)
    assert g.abs().max() > 0
    assert all(weight.grad is None for weight in net.parameters())


OBSTACLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "overwritten": lambda a, b: a.add_(b),
    "reads the values": lambda a, b: b * float(b.detach().max()),
    "reads the values of": lambda a, b: b if b.sum() > 0 else a,
    "hidden": lambda a, b: hidden(b),
    "does not depend": lambda a, b: a,
}


@pytest.mark.parametrize("why", OBSTACLES)
def test_where_it_cannot_be_done_again_exactly_the_tail_says_why(why: str) -> None:
    assert why in tail_of(Dense(OBSTACLES[why]), "b").obstacle


def test_a_change_of_precision_on_the_way_is_an_obstacle() -> None:
    class Mixed(Dense):
        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.b(x)
            return self.c(x.float().mean((2, 3)))

    # The layer runs twice: its first run is followed by the change.
    assert "precision" in tail_of(Mixed(lambda a, b: b), "b#1").obstacle


def test_a_layer_that_runs_twice_or_never_is_refused() -> None:
    with pytest.raises(ConvscopeError, match="ran 3 times") as caught:
        tail_of(Residual(), "relu")
    assert caught.value.code == "M503"

    class Idle(Fire):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Conv2d(3, 3, 1)

    with pytest.raises(ConvscopeError, match="did not run") as caught:
        tail_of(Idle(), "idle")
    assert caught.value.code == "M502"


class Headed(nn.Module):
    def __init__(self, head: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 6, 5, 4)
        self.bn = nn.BatchNorm2d(6)
        nn.init.normal_(self.bn.running_mean)
        nn.init.normal_(self.bn.bias)
        self.conv = nn.Conv2d(6, 5, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2))
        self.grouped = nn.Conv2d(6, 6, 3, groups=2)
        self.small, self.large = nn.Linear(6, 4), nn.Linear(6 * 8 * 7, 4)
        self.last = nn.Linear(5, 4)
        self.head = [head]

    def forward(self, x: Tensor) -> Tensor:
        return self.head[0](self, self.body(x))


AFFINE_TAILS: dict[str, Callable[[Headed, Tensor], Tensor]] = {
    "average, linear": lambda net, x: net.small(F.adaptive_avg_pool2d(x, 1).flatten(1)),
    "mean, linear, scaled": lambda net, x: net.small(x.mean((2, 3))) / 2 - 1,
    "norm, convolution, mean": lambda net, x: net.last(net.conv(net.bn(x)).mean((2, 3))),
    "added to itself": lambda net, x: net.small((x + x.clone()).mean((2, 3))),
}
MIXED_TAILS: dict[str, Callable[[Headed, Tensor], Tensor]] = {
    "rectifier, average, linear": lambda net, x: net.small(F.relu_(x).mean((2, 3))),
    "norm, rectifier, flat, linear": lambda net, x: net.large(F.relu(net.bn(x)).flatten(1)),
    "view, linear": lambda net, x: net.large(F.gelu(x).view(x.size(0), -1)).sigmoid(),
    "convolution with stride and dilation": lambda net, x: net.last(
        F.relu_(net.conv(F.max_pool2d(x, 2, 1))).mean((2, 3))
    ),
    "maps of classes": lambda net, x: F.relu(net.conv(x), inplace=True).mean((2, 3)),
}
NEITHER: dict[str, Callable[[Headed, Tensor], Tensor]] = {
    "groups": lambda net, x: net.small(F.relu(net.grouped(x)).mean((2, 3))),
    "product of two": lambda net, x: net.small((x * x).mean((2, 3))),
    "softmax over maps": lambda net, x: net.small(x.softmax(1).mean((2, 3))),
    "gate from all maps": lambda net, x: net.small((x * x.mean((1, 2, 3), True)).mean((2, 3))),
    "used again behind": lambda net, x: net.small((F.relu(net.grouped(x)).sum() + x).mean((2, 3))),
    "maps turned": lambda net, x: net.large(F.relu(x).permute(0, 2, 3, 1).flatten(1)),
}


def ablated(tail: Tail) -> Tensor:
    maps = tail.activation.shape[1]
    copies = tail.activation.detach().repeat(maps, 1, 1, 1)
    for number in range(maps):
        copies[number, number] = 0
    return copies


@pytest.mark.parametrize("name", AFFINE_TAILS)
def test_behind_an_affine_tail_the_gradient_knows_every_ablation(name: str) -> None:
    net = Headed(AFFINE_TAILS[name]).double()
    image = pictures(1).double()
    tail = record(net, lambda network: network(image), "body", lambda output: output[:, 2])
    assert all(call.is_affine for call in tail.calls)
    (g,) = torch.autograd.grad(tail.score.sum(), tail.activation)
    drops = (g * tail.activation).sum((0, 2, 3)).detach()
    assert drops.abs().min() > 0
    again = tail.score.detach() - tail.again(ablated(tail))
    assert torch.allclose(drops, again, atol=1e-12)


@pytest.mark.parametrize("name", MIXED_TAILS)
def test_the_first_mixing_of_maps_knows_its_results_without_each(name: str) -> None:
    net = Headed(MIXED_TAILS[name]).double()
    image = pictures(1).double()
    tail = record(net, lambda network: network(image), "body", lambda output: output[:, 2])
    assert not all(call.is_affine for call in tail.calls)
    mixing = Mixing.of(tail)
    assert mixing is not None
    assert (mixing.row is None) == (name == "convolution with stride and dilation")
    expected = tail.again(ablated(tail))
    assert expected.std() > 1e-6
    assert torch.allclose(mixing.scores(torch.arange(6)), expected, atol=1e-12)
    assert torch.allclose(mixing.scores(torch.tensor([1, 4])), expected[[1, 4]], atol=1e-12)


@pytest.mark.parametrize("name", NEITHER)
def test_what_is_not_known_to_be_exact_is_not_cut_short(name: str) -> None:
    tail = tail_of(Headed(NEITHER[name]), "body")
    assert tail.obstacle == ""
    assert not all(call.is_affine for call in tail.calls)
    assert Mixing.of(tail) is None
