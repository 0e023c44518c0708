"""Does the network say the same, whatever was spared?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convscope.core.errors import UsageError
from convscope.trace.forward.engine import Incremental
from convscope.trace.forward.plan import Patches
from convscope.trace.forward.run import Windowed
from convscope.trace.graph import convolution
from convscope.trace.winograd import Tiled
from tests.nets import RECTIFIERS, Fire, Residual, Spelled, sequential, state_of
from tests.oracles.incremental import asked, settled

SIZE = (33, 29)


def picture(height: int = 33, width: int = 29, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, height, width, generator=generator, dtype=torch.float64)


def patches(image: Tensor, size: tuple[int, int] = (9, 6), step: int = 7) -> Patches:
    """At all four borders, in steps that do not divide."""
    ends = [
        [*range(0, extent - side, step), extent - side]
        for extent, side in zip(image.shape[1:], size, strict=True)
    ]
    fill = torch.randn(3, *size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return Patches(ends[0], ends[1], size, fill.to(image))


def difference(net: nn.Module, image: Tensor, where: Patches) -> tuple[float, str]:
    """From one pass a position, as a share of the largest score; and how the engine went on."""
    engine = Incremental(net, image, where)
    engine.begin(image, where)
    found = engine.follow({}).scores
    expected = asked(net.eval(), image, where)
    change = expected - net(image[None]).detach()
    assert float(change.abs().max()) > 1e-6 * float(expected.abs().max())
    return float((found - expected).abs().max() / expected.abs().max()), engine.how


class Pointwise(nn.Module):
    """A convolution, a function of each place, another convolution."""

    def __init__(self, change: Callable[[Tensor], Tensor], channels: int = 6) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.two = nn.Conv2d(channels, 5, 3, padding=1)
        self.change = [change]

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.change[0](self.one(x))).mean((2, 3))


class Pooled(nn.Module):
    """One pool between two convolutions; the signal is mostly negative there."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3, padding=1)
        self.pool = pool
        self.two = nn.Conv2d(6, 5, 3)
        self.one.bias.data -= 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.two(self.pool(self.one(x))).amax((2, 3)), 1)


class Shuffled(nn.Module):
    """Channels split, shuffled, sliced and gated, in the manner of ShuffleNet and others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.wise = nn.Conv2d(4, 4, (3, 5), padding=(1, 2), groups=4)
        self.fc = nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, 0:1] * 2, torch.unsqueeze(x[:, 1], 1) - 0.3, x[:, 2:]], 1)
        x = self.conv(x) * self.scale
        kept, changed = x.chunk(2, dim=1)
        x = torch.cat((kept, self.wise(changed)), dim=1)
        b, c, h, w = x.size()
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
        return self.fc(F.hardswish(x, inplace=True).mean([2, 3]))


class Gated(nn.Module):
    """Squeeze and excitation after the second convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3, stride=2)
        self.two = nn.Conv2d(6, 6, 3, padding=1)
        self.gate = nn.Conv2d(6, 6, 1)
        self.three = nn.Conv2d(6, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.two(F.relu(self.one(x))), inplace=True)
        x = x * self.gate(F.adaptive_avg_pool2d(x, 1)).sigmoid()
        return self.three(x).mean((2, 3))


POOLS = {
    "max": nn.MaxPool2d(3, 2),
    "max with padding, of negative numbers": nn.MaxPool2d(3, 2, padding=1),
    "max, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max, uneven, dilated": nn.MaxPool2d((3, 2), (2, 3), padding=(1, 0), dilation=(1, 2)),
    "average": nn.AvgPool2d(2),
    "average with padding": nn.AvgPool2d(3, 2, padding=1),
    "average with padding not counted": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average, ceil, padding": nn.AvgPool2d(3, 2, padding=1, ceil_mode=True),
    "average, ceil": nn.AvgPool2d(4, 3, ceil_mode=True, count_include_pad=False),
    "average by another divisor": nn.AvgPool2d(3, 2, divisor_override=4),
    "adaptive to several": nn.AdaptiveAvgPool2d((7, 5)),
    "fractional padding by hand": nn.ZeroPad2d((1, 0, 2, 3)),
    "mirrored padding": nn.ReflectionPad2d(2),
    "upsampling": nn.Upsample(scale_factor=2),
}


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_counts_its_borders_as_it_does_alone(pool: str) -> None:
    net, image = settled(Pooled(POOLS[pool])), picture()
    error, how = difference(net, image, patches(image))
    assert error < 1e-12
    windows = pool.startswith(("max", "average", "fractional")) and "divisor" not in pool
    assert how.startswith("windows, whole") != windows


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 1),
        nn.Conv2d(3, 4, (5, 2), stride=(3, 2), padding=(4, 1)),
        nn.Conv2d(3, 6, 3, dilation=(2, 3), padding=3, groups=3),
        nn.Conv2d(3, 4, (4, 3), padding="same", dilation=2),
        nn.Conv2d(3, 4, 3, padding="valid", bias=False),
        nn.Conv2d(3, 4, 2, stride=5),
        nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
    ],
    ids=str,
)
def test_every_convolution_sees_what_the_patch_changes(conv: nn.Conv2d) -> None:
    net = settled(nn.Sequential(conv, nn.ReLU(), nn.Conv2d(conv.out_channels, 5, 3), nn.Flatten()))
    image = picture()
    assert difference(net, image, patches(image))[0] < 1e-12


@pytest.mark.parametrize("spelling", RECTIFIERS)
def test_every_spelling_of_a_rectifier_is_kept_as_a_window(spelling: str) -> None:
    net, image = settled(Pointwise(RECTIFIERS[spelling])), picture()
    error, how = difference(net, image, patches(image))
    assert error < 1e-12
    assert how == "windows" or spelling in (
        *("x.relu_() without its result", "torch.max", "torch.ops.aten.relu_"),
    )


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda x: F.local_response_norm(x, 3), "windows"),
        (lambda x: F.leaky_relu_(x, 0.2), "windows"),
        (lambda x: x.mul_(2).sub(1).abs() ** 0.5, "windows"),
        (lambda x: torch.where(x > 0, x, x * 0.1), "windows"),
        (lambda x: x * x.sigmoid() + x, "windows"),
        (lambda x: 3 - x, "windows"),
        (lambda x: F.group_norm(x, 2), "windows, whole maps from group_norm on"),
        (lambda x: F.instance_norm(x), "windows, whole maps from instance_norm on"),
        (lambda x: F.softmax(x.flatten(2), 2).view_as(x), "windows, whole maps from flatten on"),
        (lambda x: x + torch.linspace(0, 1, x.shape[-1]), "windows, whole maps from add on"),
        (lambda x: x.flip(3), "windows, whole maps from flip on"),
        (lambda x: x - x.mean(), "windows, whole maps from sub on"),
        (lambda x: x * 2 if x.mean() > 50 else x, "whole pictures: __bool__"),
        (lambda x: F.dropout(x, 0.0, True), "whole pictures: dropout"),
        (lambda x: x.detach().numpy() is None or x, "whole pictures: "),
    ],
)
def test_what_works_place_by_place_is_kept_and_what_does_not_is_done_in_full(
    change: Callable[[Tensor], Tensor], how: str
) -> None:
    net, image = settled(Pointwise(change)), picture()
    error, found = difference(net, image, patches(image))
    assert error < 1e-12
    assert found.startswith(how)


@pytest.mark.parametrize(
    "net", [sequential(), Fire(), Residual(), Spelled(F.relu), Shuffled(), Gated()], ids=type
)
@pytest.mark.parametrize("size", [(9, 6), (1, 1), (33, 29), (2, 29), (33, 1)])
def test_small_networks_of_every_kind_say_the_same(net: nn.Module, size: tuple[int, int]) -> None:
    image = picture()
    where = patches(image, size, 7 if min(size) > 1 else 13)
    assert difference(settled(net), image, where)[0] < 1e-12


def test_one_stride_and_all_starts_at_the_borders_say_the_same() -> None:
    image = picture(19, 23)
    net = settled(Fire())
    every = Patches(range(16), range(20), (4, 4), torch.zeros(3, 4, 4, dtype=torch.float64))
    assert difference(net, image, every)[0] < 1e-12


def test_little_memory_only_makes_portions_smaller() -> None:
    net, image = settled(Residual()), picture()
    where = patches(image)
    wide = Incremental(net, image, where)
    narrow = Incremental(net, image, where, memory=wide._run.needs + 1)  # type: ignore[union-attr]
    for engine in (wide, narrow):
        engine.begin(image, where)
    assert {len(p) for plan in narrow._run.plans for p in plan.portions} == {1}  # type: ignore[union-attr]
    torch.testing.assert_close(narrow.follow({}).scores, wide.follow({}).scores)
    with pytest.raises(UsageError, match="one position needs"):
        Incremental(net, image, where, memory=10)


def test_what_is_seen_through_the_patch_may_be_another_picture() -> None:
    net, image, other = settled(Fire()), picture(), picture(seed=5)
    where = patches(image)
    through = Patches(where.tops, where.lefts, where.size, other)
    assert difference(net, image, through)[0] < 1e-12


def test_several_pictures_share_one_engine() -> None:
    net, image = settled(Fire()), picture()
    where = patches(image)
    engine = Incremental(net, image, where)
    for seed in (1, 2, 3):
        other = picture(seed=seed)
        base = engine.begin(other, where)
        torch.testing.assert_close(base.scores, net(other[None]).detach())
        torch.testing.assert_close(engine.follow({}).scores, asked(net, other, where))


def test_activity_of_any_layer_is_the_sum_of_what_is_positive() -> None:
    net, image = settled(Gated()), picture()
    where = patches(image)
    layers = ["one", "two", "three"]
    engine = Incremental(net, image, where, layers)
    base = engine.begin(image, where)
    maps = {"one": 2, "two": 5, "three": 0}
    found = engine.follow(maps).activity

    def seen(x: Tensor) -> Tensor:
        one = net.one(x)
        two = net.two(one.relu())
        gated = F.silu(two)
        gated = gated * net.gate(gated.mean((2, 3), keepdim=True)).sigmoid()
        outputs = (one, two, net.three(gated))
        return torch.stack(
            [o[:, c].relu().sum((1, 2)) for o, c in zip(outputs, maps.values(), strict=True)], 1
        )

    expected = asked(seen, image, where)
    for number, layer in enumerate(layers):
        torch.testing.assert_close(found[layer], expected[:, number])
        torch.testing.assert_close(
            base.activity[layer][0, maps[layer]], seen(image[None])[0, number]
        )


def test_a_network_is_left_as_it_was() -> None:
    net, image = sequential().double(), picture()
    where = patches(image)
    before = state_of(net)
    engine = Incremental(net, image, where, ["conv2"])
    engine.begin(image, where)
    engine.follow({"conv2": 1})
    assert state_of(net) == before
    assert net.training


def test_threads_may_look_at_one_network_at_once() -> None:
    net, image = settled(Residual()), picture()
    where = patches(image)
    expected = asked(net, image, where)

    def ask(_: int) -> Tensor:
        engine = Incremental(net, image, where)
        engine.begin(image, where)
        return engine.follow({}).scores

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(ask, range(8)):
            torch.testing.assert_close(found, expected)


def test_batch_statistics_are_taken_of_each_picture_alone() -> None:
    bare = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()
    )
    net, image = settled(bare), picture()
    error, how = difference(net, image, patches(image))
    assert error < 1e-12
    assert how == "whole pictures: normalisation by the statistics of the batch"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_are_those_of_the_network(dtype: torch.dtype) -> None:
    net, image = settled(Residual()).to(dtype), picture().to(dtype)
    where = patches(image)
    engine = Incremental(net, image, where)
    engine.begin(image, where)
    found = engine.follow({}).scores
    assert found.dtype == dtype
    expected = asked(net.double(), image.double(), patches(image.double()))
    room = 2e-5 if dtype == torch.float32 else 3e-2
    assert float((found - expected).abs().max() / expected.abs().max()) < room


def test_progress_counts_every_position_once() -> None:
    net, image = settled(Fire()), picture()
    where = patches(image)
    engine = Incremental(net, image, where)
    engine.begin(image, where)
    told: list[tuple[int, int]] = []
    engine.follow({}, lambda done, of: told.append((done, of)))
    assert told[-1] == (len(where), len(where))
    assert told == sorted(told)


@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize(("padding", "size"), [((0, 0), (9, 8)), ((1, 1), (11, 10))])
def test_a_convolution_in_tiles_is_the_convolution(
    m: int, padding: tuple[int, int], size: tuple[int, int]
) -> None:
    conv = settled(nn.Conv2d(5, 7, 3, padding=padding))
    x = torch.randn(3, 5, 11, 10, dtype=torch.float64)
    node = convolution(conv.weight, conv.bias, 1, padding, 1, 1)
    with torch.no_grad():
        found = Tiled(node, m)(x, padding, size)
        torch.testing.assert_close(found, conv(x))
        assert found.abs().max() > 0


def test_wide_convolutions_are_computed_in_tiles_and_round_little() -> None:
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()) for _ in range(3)]
    bare = nn.Sequential(nn.Conv2d(3, 256, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net, image = settled(bare).float(), picture(24, 21).float()
    where = Patches(range(20), range(17), (5, 5), torch.zeros(3, 5, 5))
    engine = Incremental(net, image, where)
    engine.begin(image, where)
    assert isinstance(engine._run, Windowed)
    assert any(plan.tiles for plan in engine._run.plans)
    some = range(0, len(where), 23)
    found = engine.follow({}).scores[list(some)]
    with torch.no_grad():
        expected = net.double()(where.paint(image, some).double())
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


class Counted(nn.Module):
    """A forward pass that counts itself, in the usual memory format only if `plain`."""

    def __init__(self, plain: bool = False, *, overwrites: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.scores = nn.Linear(12, 5)
        self.plain, self.overwrites, self.passes = plain, overwrites, 0
        self.shift = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += len(x)
        x = self.one(x).relu()
        if self.overwrites:
            y = self.two(x)
            x.mul_(0)
        else:
            y = self.two(x)
        y = y.relu() + self.shift
        y = y.view(len(y), 12, -1).mean(-1) if self.plain else y.mean((2, 3))
        return self.scores(y)


@pytest.mark.parametrize("classes", [None, [3], [4, 0, 1, 2, 3]])
@pytest.mark.parametrize(
    "make", [Counted, lambda: Counted(plain=True), lambda: Counted(overwrites=True)]
)
def test_the_pass_that_is_recorded_is_not_made_again(
    make: Callable[[], Counted], classes: list[int] | None
) -> None:
    net, image = settled(make()), picture()
    where = patches(image)
    net.passes = 0
    engine = Incremental(net, image, where, ["one"], classes=classes)
    base = engine.begin(image, where)
    found = engine.follow({"one": 2})
    assert net.passes <= 2
    assert isinstance(engine._run, Windowed)
    chosen = slice(None) if classes is None else classes
    with torch.no_grad():
        expected = net(where.paint(image, range(len(where))))[:, chosen]
        torch.testing.assert_close(base.scores, net(image[None])[:, chosen])
        torch.testing.assert_close(found.scores, expected)
        maps = net.one(where.paint(image, range(len(where)))).relu().sum((2, 3))[:, 2]
        torch.testing.assert_close(found.activity["one"], maps)


def test_windows_that_say_something_else_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    net, image = settled(Counted()), picture()
    where = patches(image)
    engine = Incremental(net, image, where)
    assert isinstance(engine._run, Windowed)
    node = next(node for node in engine._run.graph.nodes.values() if node.weight is not None)
    monkeypatch.setitem(
        engine._run.graph.nodes,
        next(slot for slot, one in engine._run.graph.nodes.items() if one is node),
        dataclasses.replace(node, bare=lambda x: node.bare(x) + 1, run=lambda x: node.run(x) + 1),
    )
    engine.begin(image, where)
    found = engine.follow({}).scores
    assert engine.how.startswith("whole pictures: ")
    with torch.no_grad():
        torch.testing.assert_close(found, net(where.paint(image, range(len(where)))))


class Mixing(nn.Module):
    """Scores that depend on values, or on all pictures that come together."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.conv, self.scores, self.way = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), way

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        match self.way:
            case "branch":
                y = y * 2 if x.mean() > 0.02 else y
            case "largest":
                y = y / y.abs().max()
            case "mean":
                y = (y - y.mean()).relu()
            case "nonzero":
                y = y * len(torch.nonzero(y > 0.3))
            case "mask":
                y = y * y[y > 0.3].numel()
            case "repeats":
                y = y[:, :, :1].repeat_interleave((y[0, 0, 0].abs() * 9).long(), dim=3)
            case "unique":
                y = y * torch.unique((y * 3).round()).shape[0]
        return self.scores(y.mean((2, 3)))


@pytest.mark.parametrize(
    "way", ["branch", "largest", "mean", "nonzero", "mask", "repeats", "unique"]
)
def test_what_depends_on_values_or_on_other_pictures_is_asked_one_by_one(way: str) -> None:
    net, image = settled(Mixing(way)), picture()
    where = patches(image)
    engine = Incremental(net, image, where)
    engine.begin(image, where)
    found = engine.follow({}).scores
    assert engine.how.startswith("whole pictures: ") or way in ("largest", "mean")
    with torch.no_grad():
        painted = where.paint(image, range(len(where)))
        expected = torch.cat([net(one[None]) for one in painted])
    assert (expected - expected[0]).abs().max() > 0
    torch.testing.assert_close(found, expected)


def test_classes_that_are_places_of_a_map_are_no_channels() -> None:
    net = settled(nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 4, 2), nn.Flatten()))
    image = picture()
    where = patches(image)
    engine = Incremental(net, image, where, classes=[11, 2])
    engine.begin(image, where)
    found = engine.follow({}).scores
    with torch.no_grad():
        expected = net(where.paint(image, range(len(where))))[:, [11, 2]]
    torch.testing.assert_close(found, expected)
    assert engine.how == "windows"


class Fixed(nn.Module):
    """Masks and repeats that are the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scores = nn.Conv2d(3, 6, 3), nn.Linear(3, 4)
        self.register_buffer("mask", torch.arange(6) % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).repeat_interleave(2, dim=3)
        return self.scores(y[:, self.mask].mean((2, 3)))


def test_masks_and_repeats_of_the_network_itself_are_no_obstacle() -> None:
    net, image = settled(Fixed()), picture()
    worst, how = difference(net, image, patches(image))
    assert worst < 1e-10
    assert how.startswith("windows")


def test_a_picture_that_is_overwritten_before_it_is_asked_about_is_another() -> None:
    net, image = settled(Counted()), picture()
    where = patches(image)
    engine = Incremental(net, image, where)
    image[:, -3:, -3:] += 1
    base = engine.begin(image, where)
    with torch.no_grad():
        torch.testing.assert_close(base.scores, net(image[None]))
        painted = where.paint(image, range(len(where)))
        torch.testing.assert_close(engine.follow({}).scores, net(painted))
    assert engine.how == "windows"
