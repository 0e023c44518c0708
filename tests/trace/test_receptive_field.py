"""Is the receptive field exactly what a neuron can see, no pixel more and none less?"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from convscope.core.errors import ModelError
from convscope.core.units import Box
from convscope.network.zfnet import alexnet, zfnet
from convscope.trace.receptive_field import fields
from tests.nets import Fire, Residual, sequential, state_of
from tests.oracles.geometry import reads


class Uneven(nn.Module):
    """Every window differs down and across; dilation, `same`, ceil pools, average pools."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, (7, 3), stride=(3, 1), padding=(0, 2), dilation=(1, 2))
        self.b = nn.MaxPool2d((2, 3), (1, 2), ceil_mode=True)
        self.c = nn.Conv2d(4, 4, (2, 5), padding="same", groups=2)
        self.d = nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)
        self.e = nn.Conv2d(4, 2, 3, padding=3, dilation=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.e(self.d(F.leaky_relu(self.c(self.b(self.a(x))), 0.1)))


class Shifting(nn.Module):
    """Operations that have no rule of their own: padding, shuffles, slices, growing, adaptive."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect", stride=2)
        self.b = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1)
        self.shuffle = nn.ChannelShuffle(2)
        self.unshuffle = nn.PixelUnshuffle(2)
        self.c = nn.Conv2d(32, 8, 3)
        self.adapt = nn.AdaptiveMaxPool2d((5, 3))
        self.d = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(self.b(self.a(x)))[:, :, 1:-2, 3:]
        x = F.pad(x, (1, 0, 2, 1))
        left, right = x[:, :, :16, :20].chunk(2, dim=1)
        x = self.c(self.unshuffle(torch.cat([left, right.roll(1, 1)], 1)))
        return self.d(self.adapt(F.interpolate(x, scale_factor=2.0)))


class Squeeze(nn.Module):
    """A gate made from the average of the whole picture (squeeze and excitation)."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 4, 3)
        self.gate = nn.Conv2d(4, 4, 1)
        self.after = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.before(x), inplace=True)
        return self.after(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "uneven": (Uneven, (43, 38)),
    "shifting": (Shifting, (21, 26)),
    "squeeze and excite": (Squeeze, (17, 13)),
    "in-place chain": (sequential, (33, 29)),
    "residual": (Residual, (19, 24)),
    "branches": (Fire, (37, 30)),
    "zfnet": (lambda: zfnet(head="compact", width=0.1), (100, 83)),
    "zfnet with contrast norm": (lambda: zfnet(head="compact", width=0.1, norm="lrn"), (91, 83)),
    "alexnet": (lambda: alexnet(head="compact", width=0.1), (95, 83)),
    "squeezenet": (lambda: torchvision.models.squeezenet1_0(weights=None), (45, 50)),
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), (33, 40)),
    "googlenet": (
        lambda: torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False),
        (32, 45),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_the_field_is_the_hull_of_what_a_nan_row_or_column_reaches(name: str) -> None:
    make, picture = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    found = fields(model, (3, *picture))
    tables = [reads(model, (3, *picture), axis) for axis in (0, 1)]
    checked = 0
    for layer in found.keys() & tables[0].keys():  # one that runs several times has no one table
        field = found[layer]
        seen = [[(min(p), max(p) + 1) if p else (0, 0) for p in table[layer]] for table in tables]
        claimed = [
            [(max(low, 0), min(high, extent)) for low, high in places]
            for places, extent in zip((field.rows, field.columns), picture, strict=True)
        ]
        if field.whole:  # but for a last row or two, which rounding leaves out of all windows
            seen = [
                [(low, extent if high > 0.95 * extent else high) for low, high in places]
                for places, extent in zip(seen, picture, strict=True)
            ]
        assert claimed == seen, layer
        checked += len(claimed[0]) + len(claimed[1])
    assert checked >= 40


@pytest.mark.parametrize("name", ["uneven", "in-place chain", "zfnet", "squeezenet", "residual"])
def test_noise_outside_the_field_changes_no_bit_and_inside_it_does(name: str) -> None:
    make, picture = NETS[name]
    torch.manual_seed(1)
    model = make().eval()
    found = {n: f for n, f in fields(model, (3, *picture)).items() if not f.whole}
    base, noise = torch.randn(2, 1, 3, *picture)
    seen: dict[str, Tensor] = {}
    for layer in found:
        module = model.get_submodule(layer.partition("#")[0])
        module.register_forward_hook(
            lambda m, i, out, layer=layer: seen.update({layer: out.clone()})
        )
    model(base)
    before = dict(seen)
    inside = 0
    for layer in [layer for layer in found if "#" not in layer]:
        field = found[layer]
        row, column = field.shape[1] // 2, field.shape[2] // 3
        box = field.box(row, column).clipped(*picture)
        hole = torch.zeros(picture, dtype=torch.bool)
        hole[box.top : box.bottom, box.left : box.right] = True
        model(torch.where(hole, base, noise))
        assert torch.equal(seen[layer][..., row, column], before[layer][..., row, column]), layer
        model(torch.where(hole, 9 * noise, base))
        inside += not torch.equal(seen[layer][..., row, column], before[layer][..., row, column])
    assert inside > 0.6 * len(before) > 2  # a dead neuron may stay dead


def test_zfnet_sees_what_the_paper_s_architecture_implies() -> None:
    found = fields(zfnet(head="compact"), (3, 224, 224))
    expected = {
        "conv1": (7, 2, -1),
        "pool1": (11, 4, -1),
        "conv2": (27, 8, -1),
        "pool2": (43, 16, -1),
        "conv3": (75, 16, -17),
        "conv4": (107, 16, -33),
        "conv5": (139, 16, -49),
        "pool5": (171, 32, -49),
    }
    for layer, (size, stride, start) in expected.items():
        field = found[layer]
        assert (field.size, field.stride, field.start) == ((size,) * 2, (stride,) * 2, (start,) * 2)
        assert not field.whole
    assert found["conv5"].box(0, 6) == Box(-49, 47, 90, 186)


def test_a_large_field_is_told_even_where_no_neuron_has_it_uncut() -> None:
    model = torchvision.models.resnet18(weights=None)
    field = fields(model, (3, 96, 128), ["layer4.1.conv2"])["layer4.1.conv2"]
    assert (field.size, field.stride, field.start) == ((435, 435), (32, 32), (-217, -217))


def test_a_gate_over_the_whole_picture_makes_the_field_whole() -> None:
    found = fields(Squeeze(), (3, 17, 13))
    assert not found["before"].whole
    assert found["after"].whole
    assert found["after"].box(3, 4) == Box(0, 0, 17, 13)


def test_fully_connected_layers_and_attention_see_the_whole_picture() -> None:
    model = torchvision.models.vit_b_16(weights=None)
    small = nn.Sequential(model.conv_proj, nn.Flatten(2), nn.TransformerEncoderLayer(4, 2, 8))
    found = fields(small, (3, 32, 32))
    assert not found["0"].whole
    assert found["2"].whole
    assert fields(sequential(), (3, 33, 29), ["fc"])["fc"].box(0, 0) == Box(0, 0, 33, 29)


class Hiding(nn.Module):
    """Mixes all columns where no account of tensors can see it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.out = nn.Conv2d(4, 4, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        with torch._C.DisableTorchFunction():
            hidden = x.flip(-1)
            if self.how == "changed behind its back":
                x.add_(hidden)
        if self.how == "joined":
            x.add_(hidden)
        return self.out(hidden if self.how == "alone" else x)


@pytest.mark.parametrize("how", ["joined", "alone", "changed behind its back"])
def test_what_is_mixed_in_secret_is_never_claimed_to_be_local(how: str) -> None:
    found = fields(Hiding(how), (3, 20, 30))
    assert found["out"].whole


def test_the_model_is_left_as_found_and_may_be_used_by_other_threads_meanwhile() -> None:
    model = Residual()
    before = state_of(model)
    wrong: list[str] = []
    stop = threading.Event()
    picture = torch.rand(1, 3, 19, 24)

    def use() -> None:
        with torch.no_grad():
            while not stop.is_set():
                if not torch.isfinite(model.conv1(picture)).all():
                    wrong.append("a NaN of ours reached another thread")

    other = threading.Thread(target=use)
    other.start()
    try:
        for _ in range(5):
            fields(model, (3, 19, 24))
    finally:
        stop.set()
        other.join()
    assert wrong == []
    assert state_of(model) == before


def test_a_module_that_runs_several_times_has_a_field_for_each_call() -> None:
    found = fields(Residual(), (3, 19, 24), ["relu#3", "relu#1"])
    assert list(found) == ["relu#1", "relu#3"]
    assert found["relu#1"].size == (3, 3)
    assert found["relu#3"].size == (11, 11)
    with pytest.raises(ModelError, match="relu#1 … relu#3"):
        fields(Residual(), (3, 19, 24), ["relu"])


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(ModelError, match="did you mean conv1"):
        fields(Residual(), (3, 19, 24), ["conv_1"])
    with pytest.raises(ModelError, match="does not take a picture of 4 × 19 × 24"):
        fields(Residual(), (4, 19, 24))
