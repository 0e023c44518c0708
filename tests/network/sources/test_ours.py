"""Are ZFNet and AlexNet the networks of the papers, to the parameter?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convscope.core.errors import UsageError
from convscope.network.zfnet import alexnet, contrast, zfnet

MAPS = (96, 256, 512, 1024, 512)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def sizes(model: nn.Sequential, side: int) -> dict[str, int]:
    """Rows of every layer's output; the module is run one child after the other."""
    x = torch.zeros(1, 3, side, side)
    found = {}
    with torch.no_grad():
        for name, layer in model.eval().named_children():
            x = layer(x)
            found[name] = x.shape[2] if x.ndim == 4 else x.shape[1]
    return found


@pytest.mark.parametrize(
    ("maker", "options", "count"),
    [
        (zfnet, {}, 62_357_608),
        (zfnet, {"classes": 5}, 58_281_093),
        (zfnet, {"fc": 2048}, 28_848_232),
        (zfnet, {"fc": 8192}, 154_542_184),
        (zfnet, {"maps": MAPS}, 107_627_624),
        (zfnet, {"maps": MAPS, "fc": 8192}, 237_560_936),
        (zfnet, {"norm": "lrn"}, 62_357_608),
        (alexnet, {}, 62_378_344),
        (alexnet, {"without": (3, 4)}, 59_870_824),
        (alexnet, {"without": (7,)}, 45_597_032),
        (alexnet, {"without": (6, 7)}, 12_964_200),
        (alexnet, {"without": (3, 4, 6, 7)}, 10_456_680),
        (alexnet, {"fc": 2048}, 28_868_968),
        (alexnet, {"fc": 8192}, 154_562_920),
    ],
)
def test_the_parameters_are_as_many_as_the_papers_layers_make(
    maker: Any, options: dict[str, Any], count: int
) -> None:
    assert parameters(maker(init=None, **options)) == count


def test_each_zfnet_layer_has_the_parameters_that_the_drawing_makes() -> None:
    model = zfnet(init=None)
    counts = [parameters(m) for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    assert counts == [
        14_208, 614_656, 885_120, 1_327_488, 884_992, 37_752_832, 16_781_312, 4_097_000,
    ]  # fmt: skip


def test_a_compact_head_has_one_linear_layer_over_the_maps() -> None:
    convolutions = 14_208 + 614_656 + 885_120 + 1_327_488 + 884_992
    model = zfnet(12, head="compact", init=None)
    assert parameters(model) == convolutions + 256 * 12 + 12
    assert [name for name, _ in model.named_children()][-5:] == [
        "pool5", "avgpool", "flatten", "drop", "fc8",
    ]  # fmt: skip


def test_batch_norm_stands_before_each_rectifier_and_replaces_the_bias() -> None:
    model = zfnet(5, norm="batch", init=None)
    names = [name for name, _ in model.named_children()]
    for number in range(1, 6):
        at = names.index(f"conv{number}")
        assert names[at + 1 : at + 3] == [f"bn{number}", f"relu{number}"]
    maps = 96 + 256 + 384 + 384 + 256
    assert parameters(model) == 58_281_093 - maps + 2 * maps


def test_zfnets_maps_have_the_rows_that_the_paper_draws() -> None:
    found = sizes(zfnet(5, width=0.125, norm="lrn"), 224)
    drawn = {"conv1": 110, "pool1": 55, "norm1": 55, "conv2": 26, "pool2": 13, "norm2": 13}
    drawn |= {"conv3": 13, "conv4": 13, "conv5": 13, "pool5": 6, "fc6": 512, "fc7": 512, "fc8": 5}
    assert {name: found[name] for name in drawn} == drawn


def test_alexnets_maps_have_55_27_13_and_6_rows() -> None:
    found = sizes(alexnet(5, width=0.125, norm="lrn"), 227)
    drawn = {"conv1": 55, "norm1": 55, "pool1": 27, "conv2": 27, "norm2": 27, "pool2": 13}
    drawn |= {"conv3": 13, "conv4": 13, "conv5": 13, "pool5": 6}
    assert {name: found[name] for name in drawn} == drawn


def test_contrast_is_normalised_after_pooling_in_zfnet_and_before_it_in_alexnet() -> None:
    ours = [name for name, _ in zfnet(norm="lrn", init=None).named_children()]
    theirs = [name for name, _ in alexnet(norm="lrn", init=None).named_children()]
    assert ours[:8] == ["conv1", "relu1", "pool1", "norm1", "conv2", "relu2", "pool2", "norm2"]
    assert theirs[:8] == ["conv1", "relu1", "norm1", "pool1", "conv2", "relu2", "norm2", "pool2"]
    assert not any(name in ours + theirs for name in ("norm3", "norm4", "norm5"))


def test_contrast_normalisation_is_krizhevskys_formula_with_alpha_undivided() -> None:
    maps = np.random.default_rng(0).normal(size=(7, 2, 3)) * 100
    expected = np.empty_like(maps)
    for i in range(7):
        around = maps[max(0, i - 2) : min(7, i + 3)]
        expected[i] = maps[i] / (2 + 1e-4 * (around**2).sum(axis=0)) ** 0.75
    ours = contrast()(torch.from_numpy(maps)[None])[0].numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert np.abs(ours / maps - 2**-0.75).max() > 0.1  # it did something


def test_the_layers_of_the_whole_head_are_named_as_in_the_paper() -> None:
    assert [name for name, _ in zfnet(init=None).named_children()] == [
        "conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "conv3", "relu3", "conv4", "relu4",
        "conv5", "relu5", "pool5", "avgpool", "flatten",
        "fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8",
    ]  # fmt: skip


def test_the_average_before_fc6_changes_no_bit_at_the_native_size() -> None:
    model = zfnet(5, width=0.125).eval()
    pool5 = torch.randn(3, 32, 6, 6)
    assert torch.equal(model.avgpool(pool5), pool5)


@pytest.mark.parametrize("head", ["full", "compact"])
def test_other_input_sizes_are_taken_too(head: Any) -> None:
    model = zfnet(5, width=0.125, head=head).eval()
    assert model(torch.zeros(2, 3, 160, 193)).shape == (2, 5)
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 5)


def test_width_multiplies_maps_and_units() -> None:
    model = zfnet(5, width=0.5, init=None)
    assert [m.out_channels for m in model if isinstance(m, nn.Conv2d)] == [48, 128, 192, 192, 128]
    assert [m.out_features for m in model if isinstance(m, nn.Linear)] == [2048, 2048, 5]


def test_the_papers_weights_have_deviation_one_hundredth_and_no_bias() -> None:
    model = zfnet(5, width=0.25, init="paper")
    assert abs(model.fc6.weight.std().item() - 0.01) < 1e-4
    assert abs(model.fc6.weight.mean().item()) < 1e-4
    assert all(not m.bias.any() for m in model if isinstance(m, nn.Conv2d | nn.Linear))


def test_he_weights_keep_a_signals_size_through_the_rectified_layers() -> None:
    model = zfnet(5, width=0.25)
    fan_in = 64 * 36
    assert abs(model.fc6.weight.std().item() / math.sqrt(2 / fan_in) - 1) < 0.01
    assert abs(model.fc8.weight.std().item() / math.sqrt(1 / 1024) - 1) < 0.05


def test_a_seed_decides_the_weights_and_leaves_other_randomness_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (zfnet(5, width=0.1, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_option_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="did you mean width") as caught:
        zfnet(5, widht=0.5)  # type: ignore[call-arg]
    assert caught.value.code == "U230"


@pytest.mark.parametrize(
    "options",
    [
        {"width": 0},
        {"width": 1000},
        {"norm": "layer"},
        {"head": "big"},
        {"dropout": 1.0},
        {"fc": 0},
        {"maps": (96, 256)},
        {"without": (5,)},
        {"without": (6,), "head": "compact"},
        {"classes": 0},
        {"init": "zero"},
    ],
)
def test_an_impossible_value_is_refused_by_its_name(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        zfnet(**options)
    assert caught.value.code == "U231"
    assert next(iter(options)) in str(caught.value)
