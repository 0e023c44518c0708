"""Is what was planted in a network's first layer and maps found, and is folding counted right?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from convscope.cli.app import run
from convscope.core.errors import ConvscopeError
from convscope.core.text import lines
from convscope.network.load import load
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing
from convscope.studies.filters.figure import (
    advice,
    clipped_filters,
    filter_sheet,
    filters_figure,
    filters_table,
)
from convscope.studies.filters.health import Tally
from convscope.studies.filters.record import Filters
from convscope.studies.filters.study import (
    apparent,
    bands,
    filters,
    folds_on_pictures,
    transfer,
)
from tests import nets

SIZE = (3, 64, 80)
GRID = [(i / 16, j / 16) for i in range(-8, 8) for j in range(-8, 8) if (i, j) != (0, 0)]


def conv(weights: Tensor, stride: int, padding: int = 0) -> nn.Conv2d:
    layer = nn.Conv2d(3, len(weights), tuple(weights.shape[2:]), stride, padding)
    with torch.no_grad():
        layer.weight.copy_(weights)
    return layer


def only(stride: int) -> nn.Sequential:
    """Hands on every `stride`-th pixel, with a bias that no grating may be taken for."""
    return nn.Sequential(conv(torch.ones(1, 3, 1, 1) / 3, stride))


def grating(down: float, across: float, size: tuple[int, int] = SIZE[1:]) -> Tensor:
    rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None]
    wave = torch.cos(2 * torch.pi * (down * rows + across * columns))
    return wave.expand(1, 3, *size)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_of_all_frequencies_a_stride_folds_those_outside_its_square(stride: int) -> None:
    found = transfer(only(stride).train(), "0", SIZE, (stride, stride), (1, 1))
    outside = [max(abs(v), abs(u)) > 1 / (2 * stride) for v, u in GRID]
    assert found.folded == pytest.approx(sum(outside) / len(GRID))
    assert found.energy.ravel()[1:] == pytest.approx(np.ones(255), abs=1e-4)


def test_a_layer_hears_gratings_as_its_kernels_fourier_transform_says() -> None:
    kernel = torch.randn(5, 3, 7, 4, generator=torch.Generator().manual_seed(0))
    found = transfer(nn.Sequential(conv(kernel, 3, 2)), "0", SIZE, (3, 3), (3, 3))
    grey = kernel.sum(1).double().numpy()
    for v, u in GRID[::17]:
        waves = np.exp(2j * np.pi * (v * np.arange(7)[:, None] + u * np.arange(4)[None]))
        expected = (np.abs((grey * waves).sum((1, 2))) ** 2).sum()
        place = round(v * 16) % 16, round(u * 16) % 16
        assert found.energy[place] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("cycles", "seen"), [(1, 1), (2, 2), (3, 1), (4, 0), (5, 1), (7, 1)])
def test_stride_4_takes_a_grating_for_a_slower_one(cycles: int, seen: int) -> None:
    assert apparent(cycles / 16, 4) == seen / 16
    net = only(4)
    fast, slow = (net(grating(n / 16, 0)) for n in (cycles, seen))
    assert torch.allclose(fast, slow, atol=1e-5)


@pytest.mark.parametrize(("cycles", "share"), [(1, 0.0), (3, 1.0), (6, 1.0)])
def test_on_pictures_too_only_what_is_too_fast_folds(cycles: int, share: float) -> None:
    model = nn.Sequential(only(4), nn.ReLU(inplace=True)).train()
    before = nets.state_of(model)
    (found,) = folds_on_pictures(model, [grating(0, cycles / 16)])
    assert (found.layer, found.kind, found.stride) == ("0.0", "Conv2d", (4, 4))
    assert found.share == pytest.approx([share], abs=1e-3)
    assert nets.state_of(model) == before


def test_half_the_energy_too_fast_is_half_folded() -> None:
    both = grating(1 / 16, 0) + grating(0, 6 / 16)
    (found,) = folds_on_pictures(only(4), [torch.cat([both, grating(1 / 16, 0)])])
    assert found.share == pytest.approx([0.5, 0], abs=1e-3)


def test_pools_and_thin_strides_are_measured_on_what_they_are_given() -> None:
    model = nn.Sequential(conv(torch.ones(2, 3, 1, 1), 1), nn.MaxPool2d(3, 2, ceil_mode=True))
    model.append(nn.AvgPool2d((1, 2)))
    model.append(nn.MaxPool2d(2, 1))
    images = nets.pictures(2, 40, 48)
    found = folds_on_pictures(model, [images])
    assert [(fold.layer, fold.stride) for fold in found] == [("1", (2, 2)), ("2", (1, 2))]
    with torch.no_grad():
        pooled = model[1](model[0](images))
        means = (pooled[..., 1:] + pooled[..., :-1]).double() / 2
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in means.shape[2:]))
    for one, share in zip(means.numpy(), found[1].share, strict=True):
        inside = outside = 0.0
        for plane in one:
            centred = (plane - (plane * window).sum() / window.sum()) * window
            energy = np.abs(np.fft.fft2(centred)) ** 2
            fast = np.abs(np.fft.fftfreq(plane.shape[1])) > 0.25
            inside += energy[:, ~fast].sum() - energy[0, 0]
            outside += energy[:, fast].sum()
        assert share == pytest.approx(outside / (inside + outside))


def test_maps_too_small_to_tell_are_left_out() -> None:
    small = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), nn.MaxPool2d(3, 2))
    found = folds_on_pictures(small, [torch.rand(2, 1, 13, 16)])  # 11 × 14, then 4 × 4 places
    assert [fold.layer for fold in found] == ["0"]


def test_a_pool_wider_than_its_map_is_left_out() -> None:
    """With ceil mode it has an output, but at stride 1 it would have none."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, 2, ceil_mode=True))
    found = folds_on_pictures(model, [torch.rand(1, 1, 4, 4)])
    assert found == []


def test_filters_of_one_frequency_are_in_its_band() -> None:
    places = np.arange(16)
    waves = [np.cos(2 * np.pi * f * places) for f in (1 / 16, 3 / 16, 7 / 16)]
    weights = np.stack([np.tile(wave, (3, 16, 1)) for wave in waves])
    found = bands(np.concatenate([weights, np.zeros((1, 3, 16, 16))]))
    assert found.peak[:3] == pytest.approx([1 / 16, 3 / 16, 7 / 16], abs=0.02)
    assert (found.share[:3].argmax(1) == [0, 1, 2]).all()
    assert (found.share[:3].max(1) > 0.8).all()
    assert np.isnan(found.peak[3])


class Planted(nn.Module):
    """Filter 4 repeats 1, 5 is 2 upside down in sign, 6 is next to zero, 7 drowns the others.
    Maps of the second layer: one never positive, one always, one constant, one a copy."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 5, 4)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 3)
        with torch.no_grad():
            weight = self.first.weight
            weight[4], weight[5] = 2 * weight[1], -weight[2]
            weight[6] *= 1e-3
            weight[7] *= 40
            self.second.bias[:4] = torch.tensor([-1e4, 1e4, 0.5, 0.0])
            self.second.weight[2] = 0
            self.second.weight[4] = 3 * self.second.weight[3]
            self.second.bias[4] = -7

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(self.relu(self.first(x))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def planted() -> Network:
    preprocess = Preprocess(Framing(None, SIZE[1:]), (0.5,) * 3, (0.25,) * 3)
    return load(Planted().train(), preprocess=preprocess)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for number in range(11):
        pixels = draw.integers(0, 256, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    return tmp_path


def test_planted_filters_and_maps_are_found(planted: Network, pictures: Path) -> None:
    before = nets.state_of(planted.model)
    found = filters(planted, pictures)
    assert nets.state_of(planted.model) == before
    assert found.twin.tolist() == [-1, -1, -1, -1, 1, 2, 1 if found.twin[6] == 1 else -1, -1]
    assert found.weak.tolist() == [False] * 6 + [True, False]
    assert found.dominance > 20
    second = found.of == found.layers.index("second")
    assert found.silent[second].tolist() == [True, False, False, False, False, False]
    assert found.saturated[second].tolist()[:3] == [False, True, True]
    assert found.still[second].tolist() == [False, False, True, False, False, False]
    assert found.copies[second].tolist() == [False, False, False, False, True, False]
    assert found.pictures == 11
    told = "\n".join(advice(found))
    assert "first filters are next to zero" in told
    assert "times the median: feature scale clipping" in told
    assert "second: 17% of the maps are never positive" in told
    assert "first: " in told
    assert "folded by stride 4" in told


def test_a_tally_counts_as_all_pictures_at_once_would() -> None:
    model = Planted()
    images = nets.pictures(5, 40, 44)
    with torch.no_grad():
        maps = model.first(images)
    whole = maps.transpose(0, 1).flatten(1).double().numpy()
    ends = whole[:, :99].min(1), whole[:, :99].max(1)
    parts, other, all_three = (Tally(*ends) for _ in range(3))
    for part in torch.split(maps, 2):
        parts.add(part)
    for part in torch.split(maps, 2)[::-1]:
        other.add(part)
    assert parts.spread == pytest.approx(whole.std(1))
    scale = np.outer(whole.std(1), whole.std(1))
    assert parts.covariance / scale == pytest.approx(np.corrcoef(whole), abs=1e-6)
    assert parts.sums["highest"] == pytest.approx(whole.max(1))
    all_three.join(other.clear())
    assert all((all_three.sums[name] == one).all() for name, one in parts.sums.items())


def test_clipping_scales_down_what_exceeds_the_radius_and_nothing_else(planted: Network) -> None:
    found = filters(planted, clip=0.05)
    rms = np.sqrt((clipped_filters(found).astype(np.float64) ** 2).mean((1, 2, 3)))
    assert rms == pytest.approx(np.minimum(found.rms, 0.05))
    assert (clipped_filters(filters(planted)) == found.weights).all()


def test_a_sheet_has_zero_at_grey_and_the_largest_weight_at_an_end() -> None:
    weights = np.zeros((12, 3, 2, 2), np.float32)
    weights[0, 0, 0, 0], weights[11, 2, 1, 1] = -4, 2
    sheet = filter_sheet(weights)
    assert sheet.shape == (5, 32, 3)
    assert sheet[0, 0].tolist() == [0, 128, 128]
    assert sheet[4, 1].tolist() == [128, 128, 191]
    assert sheet[2, 5].tolist() == [255] * 3


def test_a_figure_has_a_column_a_network(planted: Network) -> None:
    plain, clipped = filters(planted), filters(planted, clip=0.1)
    assert len(filters_figure([plain]).axes) == 3 + 1  # and a colour bar
    assert len(filters_figure([plain, clipped]).axes) == 2 * (4 + 1)
    assert lines(filters_table([plain, clipped]))[0].count("|") == 4


def test_grey_networks_have_filters_too() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 5, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 1, 40, 40))
    grey = Preprocess(Framing(None, (40, 40)), (0.5,), (0.25,))
    assert filters(load(model, preprocess=grey)).weights.shape == (4, 1, 5, 5)


@pytest.mark.parametrize(
    ("model", "how", "code"),
    [
        (Planted(), {"clip": -1.0}, "U413"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), {}, "M501"),
        (nn.Sequential(nn.Conv2d(3, 2, 40), nn.Flatten(), nn.LazyLinear(2)), {}, "M596"),
        (nn.Sequential(nn.AvgPool3d((3, 1, 1)), nn.Conv2d(1, 2, 3)), {}, "M596"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    model: nn.Module, how: dict[str, float], code: str
) -> None:
    model(torch.zeros(1, *SIZE))
    preprocess = Preprocess(Framing(None, SIZE[1:]), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ConvscopeError) as fault:
        filters(load(model, preprocess=preprocess), **how)
    assert fault.value.code == code


def test_the_command_compares_two_networks(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    nets_ = ["alexnet:width=0.125,head=compact", "--against", "zfnet:width=0.125,head=compact"]
    assert run(["filters", nets_[0], str(pictures), *nets_[1:], "--out", str(out)]) == 0
    first, second = (Filters.load(out / name) for name in ("network", "against"))
    assert (first.stride, second.stride) == ((4, 4), (2, 2))
    assert first.folded > second.folded
    table = (out / "table.md").read_text()
    assert capsys.readouterr().out == f"{table}{out / 'figure.pdf'}\n"
    assert table.splitlines() == lines(filters_table([first, second]))
    assert "rests on 11 pictures only" in table
