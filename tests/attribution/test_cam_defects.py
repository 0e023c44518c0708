"""Do the maps avoid what the well-known libraries get wrong? One test for each known defect."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.attribution.formulas import METHODS, gradcam_plus_plus, gradcam_plus_plus_of_pgc
from convscope.core.errors import ModelError, UsageError
from convscope.core.run import Run
from convscope.records.maps import Attribution
from tests.attribution.cam_nets import (
    HEADS,
    by_hand,
    head_by_hand,
    net_of,
    pictures,
    scores_by_hand,
)
from tests.nets import RECTIFIERS, Spelled, Stumbling, state_of
from tests.nets import pictures as noise
from tests.oracles import cam as oracle

PGC = "pytorch-grad-cam"


class Seen:
    """What a formula is given, by hand."""

    def __init__(self, A: list[object], g: list[object]) -> None:
        self.A, self.g = (torch.tensor([[v]], dtype=torch.float64) for v in (A, g))

    def activation(self, _: str) -> Tensor:
        return self.A

    def gradient(self, _: str) -> Tensor:
        return self.g


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_a_map_without_positive_evidence_stays_empty_and_says_so() -> None:
    """One repository adds 1 to every map; display code stretches noise to full height."""
    net = net_of("average and linear, as ResNet")
    with torch.no_grad():
        net.head[3].weight.abs_().neg_()
    for name in ("gradcam", "layercam", "ablationcam"):
        (found,) = METHODS[name](net, pictures(1), target=1, layer="trunk")
        assert found.values.max() == 0
        assert found.peak == 0
        assert not found.positive


def test_grad_cam_plus_plus_in_whole_numbers() -> None:
    """A = (1, 3), g = (1, 2): ΣA = 4, α = 1/(2+4) and 4/(8+32), normalised 5/8 and 3/8, so
    w = 5/8·1 + 3/8·2 = 11/8. With Σ(A·g³) for (ΣA)·g³, as torch-cam has it, w differs."""
    found = gradcam_plus_plus(Seen([[1.0, 3.0]], [[1.0, 2.0]]), "")
    assert found.flatten().tolist() == [11 / 8, 33 / 8]


def test_grad_cam_plus_plus_keeps_alpha_when_gradients_are_small() -> None:
    """1e-6 in a denominator of 2e-7 makes α 0.09 where it is 0.5."""
    small = Seen([[1.0, 3.0]], [[3e-4, 1e-4]])
    one, other = gradcam_plus_plus(small, "").flatten().tolist()
    assert other == pytest.approx(3 * one)
    assert one == pytest.approx((3e-4 + 1e-4) / 2, rel=1e-3)  # α = 1/2 each, after normalising
    assert gradcam_plus_plus_of_pgc(small, "").flatten()[0] < 0.2 * 2 * one


def test_xgrad_cam_warns_where_a_map_adds_up_to_almost_nothing() -> None:
    net = net_of("norm first, as DenseNet", rectified=False)
    signed = METHODS["xgradcam"](net, pictures(1), target=1, layer="trunk")[0]
    assert "add up to almost 0 or less" in signed.origin["notes"][0]
    rectified = METHODS["xgradcam"](net, pictures(1), target=1, layer="trunk.2")[0]
    assert rectified.origin["notes"] == []


def test_ablation_means_zero_also_where_a_layer_has_negative_numbers() -> None:
    """The library puts −10⁷ times the position in the batch there."""
    net, image = net_of("linear layers, as VGG", rectified=False), pictures(1)
    alone = METHODS["ablationcam"](net, image, layer="trunk")[0]
    A, _ = by_hand(net, image[0], alone.target)
    assert A.min() < 0 < alone.peak
    expected = oracle.ablationcam(A, head_by_hand(net, alone.target))
    assert np.allclose(alone.raw, expected, atol=1e-9)
    third = METHODS["ablationcam"](net, image.repeat(3, 1, 1, 1), layer="trunk")[2]
    assert np.array_equal(third.raw, alone.raw)
    with pytest.raises(UsageError, match="not 0") as caught:
        METHODS["ablationcam"](net, image, layer="trunk", variant=PGC)
    assert caught.value.code == "U357"


def test_ablation_with_a_negative_score_is_not_turned_over() -> None:
    """Where a logit's zero lies means nothing, so adding a constant must not change the map."""
    net, image = net_of("linear layers, as VGG"), pictures(1)
    maps = {}
    for shift in (-100.0, 100.0):
        with torch.no_grad():
            net.head[4].bias += shift
        (found,) = METHODS["ablationcam"](net, image, target=1, layer="trunk")
        maps[shift] = found.raw * abs(found.score)
        assert bool(found.origin["notes"]) == (found.score <= 0)
        with torch.no_grad():
            net.head[4].bias -= shift
    assert maps[100.0].max() > 0
    assert np.allclose(maps[-100.0], maps[100.0], atol=1e-9)


def counting(net: nn.Module) -> tuple[nn.Module, list[int]]:
    """The network, and how many pictures each of its runs took."""
    sizes: list[int] = []

    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return self.net(x)

    return Counted(), sizes


class Reversed(torch.autograd.Function):
    """A gradient of the network's own making, as domain adaptation has it."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return -g


@pytest.mark.parametrize(
    ("head", "how"),
    [
        ("average and linear, as ResNet", "closed form"),
        ("maps of classes, as SqueezeNet", "from the first mixing of maps on"),
        ("linear layers, as VGG", "from the first mixing of maps on"),
        ("norm first, as DenseNet", "from the first mixing of maps on"),
        ("skip path", "what follows the layer"),
        ("smooth", "what follows the layer"),
    ],
)
def test_every_ablation_takes_the_shortest_way_that_is_exact(head: str, how: str) -> None:
    (found,) = METHODS["ablationcam"](net_of(head), pictures(1), layer="trunk")
    assert found.origin["ablation"] == how


def test_a_gradient_that_is_none_is_not_taken_for_the_ablations() -> None:
    plain, reverse = (net_of("average and linear, as ResNet") for _ in range(2))
    reverse.head[1].forward = lambda x: Reversed.apply(x.flatten(1))
    one, other = (
        METHODS["ablationcam"](net, pictures(1), layer="trunk")[0] for net in (plain, reverse)
    )
    assert other.origin["ablation"] == "what follows the layer"
    assert one.peak > 0
    assert np.allclose(one.raw, other.raw, atol=1e-9)


def test_ablations_run_the_whole_network_where_nothing_less_is_exact() -> None:
    class Overwrites(nn.Module):
        def __init__(self, *, inplace: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
            self.fc = nn.Linear(6, 4)
            self.inplace = inplace

        def forward(self, x: Tensor) -> Tensor:
            before = self.a(x)
            after = self.b(before).relu()
            joined = before.add_(after) if self.inplace else before + after
            return self.fc(joined.relu().amax((2, 3)))

    one, other = (
        METHODS["ablationcam"](Overwrites(inplace=inplace).double(), pictures(2), layer="b")
        for inplace in (False, True)
    )
    assert one[0].origin["ablation"] == "what follows the layer"
    assert "the whole network, as a tensor from before" in other[0].origin["ablation"]
    assert one[0].peak > 0
    for a, b in zip(one, other, strict=True):
        assert np.allclose(a.raw, b.raw, atol=1e-9)


class Again(nn.Module):
    """The map before the last in the place of the last."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, [0, 1, 2, 3, 3]]


def test_score_cam_tries_flat_maps_never_and_equal_maps_once() -> None:
    net = net_of("maps of classes, as SqueezeNet")
    with torch.no_grad():
        conv = net.trunk[4]
        conv.weight[1], conv.bias[1] = 0, -1  # silent after the rectifier
        conv.weight[2], conv.bias[2] = 0, 3  # flat
    net.trunk.append(Again())
    counted, sizes = counting(net)
    (found,) = METHODS["scorecam"](counted, pictures(1), target=1, layer="net.trunk")
    assert sizes == [
        1,
        1,
        1,
        2,
    ]  # reads the output, the maps, their size; two kinds
    A, _ = by_hand(net, pictures(1)[0], 1)
    expected = oracle.scorecam(
        A, pictures(1)[0].numpy(), lambda image: scores_by_hand(net, image), 1, paper=False
    )
    assert found.peak > 0
    assert np.allclose(found.raw, expected, atol=1e-9)


def test_score_cam_never_holds_all_masked_pictures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library makes them all beforehand: 1.2 GB for 2048 maps."""
    monkeypatch.setattr("convscope.lens.machine.LARGEST", 2 * 4 * 7 * 10 * 7)
    counted, sizes = counting(net_of("linear layers, as VGG"))
    told: list[tuple[int, int]] = []
    METHODS["scorecam"](
        counted, pictures(2), layer="net.trunk", run=Run(progress=lambda *now: told.append(now))
    )
    assert max(sizes[2:]) <= 2
    assert told[-1] == (10, 10)
    assert told == sorted(told)


def test_score_cam_does_not_take_probabilities_for_logits() -> None:
    net = net_of("linear layers, as VGG")
    plain = METHODS["scorecam"](net, pictures(1), target=1, layer="trunk")[0]
    sure = nn.Sequential()
    sure.add_module("net", net)
    sure.add_module("softmax", nn.Softmax(1))
    already = METHODS["scorecam"](sure, pictures(1), target=1, layer="net.trunk")[0]
    assert plain.peak > 0
    assert np.allclose(plain.raw, already.raw, atol=1e-9)
    assert plain.space == already.space == "probability"


@pytest.mark.parametrize("name", ["eigencam", "eigengradcam"])
def test_the_sign_of_an_eigenvector_is_never_left_to_chance(name: str) -> None:
    """The library's maps are inverted on 40 % of layers."""
    positive = 0
    for seed in range(12):
        net = net_of("smooth", rectified=bool(seed % 2), seed=seed)
        (found,) = METHODS[name](net, pictures(1, seed), target=1, layer="trunk")
        A, g = by_hand(net, pictures(1, seed)[0], 1)
        strength = np.sqrt((A**2).sum(0)) if name == "eigencam" else (A * g).sum(0)
        assert (found.raw * strength).sum() > 0
        positive += bool((found.raw >= -1e-12).all())
    assert name == "eigengradcam" or positive >= 6  # of a rectified layer all of it is positive


def test_fullgrad_minds_how_large_the_biases_are() -> None:
    """Each map scaled alone, as in the library, forgets it: correlation 0.99997."""
    maps: dict[str, list[np.ndarray]] = {"authors": [], PGC: []}
    for size in (0.01, 100.0):
        net = net_of("maps of classes, as SqueezeNet")
        net.eval()
        with torch.no_grad():
            net.trunk[1].running_mean.zero_()
            net.trunk[1].bias.zero_()
            net.trunk[4].bias.mul_(size)
            net.trunk[4].bias.abs_()
        for variant, found in maps.items():
            (one,) = METHODS["fullgrad"](net, pictures(1), target=1, variant=variant)
            found.append(one.raw)
    assert correlation(*maps["authors"]) < 0.9


def test_fullgrad_pairs_a_bias_with_its_own_gradient_whatever_the_order_of_modules() -> None:
    """The library pairs by position in two lists, which fails on inception_v3."""

    class Crossed(nn.Module):
        def __init__(self, order: list[str]) -> None:
            super().__init__()
            torch.manual_seed(0)
            layers = {name: nn.Conv2d(3 if name == "a" else 6, 6, 3) for name in "abc"}
            for name in order:
                self.add_module(name, layers[name])
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            for name in "abc":
                x = F.relu(self.get_submodule(name)(x))
            return self.fc(x.mean((2, 3)))

    one, other = (
        METHODS["fullgrad"](Crossed(order).double(), pictures(1), target=1)[0]
        for order in (["a", "b", "c"], ["c", "a", "b"])
    )
    assert np.array_equal(one.values, other.values)
    assert other.origin["completeness"]["relative gap"] < 1e-9


def test_fullgrad_says_where_it_is_not_complete() -> None:
    (found,) = METHODS["fullgrad"](net_of("smooth"), pictures(1), target=1)
    assert found.origin["completeness"]["relative gap"] > 1e-3
    assert "incomplete" in found.origin["notes"][0]


@pytest.mark.parametrize("layer", ["trunk.0", "trunk.1", "trunk.4"])
@pytest.mark.parametrize("name", ["gradcam", "layercam", "ablationcam", "eigencam"])
def test_an_activation_is_what_the_layer_put_out_not_what_was_written_over_it(
    name: str, layer: str
) -> None:
    """The next call is a rectifier in place, for batch norms and convolutions alike."""
    net, images = net_of("average and linear, as ResNet"), pictures(1)
    place = int(layer[-1])
    net.eval()
    A = net.trunk[: place + 1](images.clone()).detach().requires_grad_()
    head = lambda a: net.head(net.trunk[place + 1 :](a.clone()))  # noqa: E731
    (g,) = torch.autograd.grad(head(A)[0, 2], A)
    A, g = A.detach()[0].numpy(), g[0].numpy()

    def score(a: np.ndarray) -> float:
        with torch.no_grad():
            return float(head(torch.from_numpy(a)[None])[0, 2])

    expected = {
        "gradcam": lambda: oracle.gradcam(A, g),
        "layercam": lambda: oracle.layercam(A, g),
        "eigencam": lambda: oracle.eigencam(A),
        "ablationcam": lambda: oracle.ablationcam(A, score),
    }[name]()
    assert A.min() < 0
    assert np.allclose(
        METHODS[name](net, images, target=2, layer=layer)[0].raw, expected, atol=1e-9
    )


SPELLED = ("gradcam", "gradcam++", "layercam", "ablationcam", "scorecam", "eigencam", "fullgrad")


@pytest.mark.parametrize("spelling", RECTIFIERS)
def test_however_a_rectifier_is_spelled_the_map_is_the_same(spelling: str) -> None:
    images = noise(1)
    for name in SPELLED:
        maps = []
        for rectifier in (nn.ReLU(inplace=True), RECTIFIERS[spelling]):
            layer = {} if name == "fullgrad" else {"layer": "conv2"}
            (found,) = METHODS[name](Spelled(rectifier), images, target=3, **layer)
            maps.append(found.values)
        assert maps[0].max() > 0
        assert np.allclose(*maps, rtol=1e-4, atol=1e-6 * maps[0].max()), name


@pytest.mark.parametrize("name", METHODS)
def test_the_model_comes_back_as_it_was_found(name: str) -> None:
    for head in HEADS:
        net = net_of(head)
        for number, weight in enumerate(net.parameters()):
            weight.requires_grad_(number % 2 == 0)
        before = state_of(net)
        METHODS[name](net, pictures(2), target=1)
        assert state_of(net) == before
        assert net.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", METHODS)
def test_the_model_comes_back_as_it_was_found_after_an_error(name: str) -> None:
    net = Stumbling()
    before = state_of(net)
    layer = {} if name == "fullgrad" else {"layer": "relu"}
    with pytest.raises((RuntimeError, ModelError)):
        METHODS[name](net, noise(1), target=1, **layer)
    assert state_of(net) == before
    assert torch.is_grad_enabled()


def test_sixteen_threads_on_one_model_get_the_serial_answers() -> None:
    net, images = net_of("norm first, as DenseNet"), pictures(3)
    jobs: list[Callable[[], list[Attribution]]] = [
        lambda name=name, target=target: METHODS[name](net, images, target=target)
        for name in METHODS
        for target in (0, 1, 3)
    ]
    serial = [job() for job in jobs]
    answers: list[list[Attribution]] = [[] for _ in jobs]
    faults: list[Exception] = []

    def work(first: int) -> None:
        try:
            for number in [*range(first, len(jobs)), *range(first)][::2]:
                answers[number] = jobs[number]()
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    for one, other in zip(serial, answers, strict=True):
        assert all(np.array_equal(a.values, b.values) for a, b in zip(one, other, strict=True))
        assert [a.score for a in one] == [b.score for b in other]
