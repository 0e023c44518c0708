"""Are the right weights put into a network whole, and all others refused?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from convscope.core.errors import CheckpointError
from convscope.network.weights import fit
from convscope.network.zfnet import alexnet, zfnet

State = dict[str, Tensor]


def net(classes: int = 4, maps: int = 5) -> nn.Module:
    """Batch norm, an in-place rectifier, and an order of layers that no alphabet has."""
    torch.manual_seed(classes)
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(3, maps, 3))
    model.add_module("norm", nn.BatchNorm2d(maps))
    model.add_module("act", nn.ReLU(inplace=True))
    model.add_module("body", nn.Sequential(nn.Conv2d(maps, 7, 3), nn.AdaptiveAvgPool2d(1)))
    model.add_module("flat", nn.Flatten())
    model.add_module("answer", nn.Linear(7, classes))
    return model


def trained() -> State:
    model = net()
    model(torch.randn(12, 3, 9, 8))  # moves the statistics of batch norm
    return {key: value.clone() for key, value in model.state_dict().items()}


def fresh() -> nn.Module:
    torch.manual_seed(99)
    return net().eval()


def holds(model: nn.Module, state: State) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def test_weights_under_their_own_names_need_no_repair() -> None:
    model, state = fresh(), trained()
    assert fit(model, state) == ()
    assert holds(model, state)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "a.b.c."]
)
def test_a_wrappers_prefix_is_stripped_and_said(prefix: str) -> None:
    model, state = fresh(), trained()
    notes = fit(model, prefixed(state, prefix))
    assert holds(model, state)
    assert all("stripped" in note for note in notes)
    assert notes


def test_compiled_layers_inside_are_unwrapped() -> None:
    model, state = fresh(), trained()
    inside = {key.replace("body.0", "body._orig_mod.0"): value for key, value in state.items()}
    assert fit(model, inside) == ("stripped '_orig_mod.' (torch.compile) from the names",)
    assert holds(model, state)


def test_lightnings_other_tensors_are_left_out_and_named() -> None:
    model, state = fresh(), trained()
    notes = fit(model, {**prefixed(state, "model."), "loss.weight": torch.ones(4)})
    assert holds(model, state)
    assert notes == (
        "stripped 'model.' from the names",
        "left out what lies outside 'model.': loss.weight",
    )


@pytest.mark.parametrize("prefix", ["ema.", "ema_model.module.", "teacher."])
def test_a_second_copy_of_the_network_makes_it_ask(prefix: str) -> None:
    state = trained()
    both = {**prefixed(state, "model."), **prefixed(state, prefix)}
    with pytest.raises(CheckpointError, match="several copies of the network") as caught:
        fit(fresh(), both, name="a.ckpt")
    assert caught.value.code == "C411"
    assert "a.ckpt#" in caught.value.next_step


def test_the_count_of_batches_may_be_absent_or_too_many() -> None:
    state = trained()
    fewer = {key: value for key, value in state.items() if "num_batches" not in key}
    model = fresh()
    fit(model, fewer)
    assert torch.equal(model.state_dict()["norm.running_mean"], state["norm.running_mean"])
    untracked = net()
    untracked.norm = nn.GroupNorm(1, 5)
    theirs = {**untracked.state_dict(), "norm.num_batches_tracked": torch.tensor(3)}
    fit(untracked, theirs)


@pytest.mark.parametrize(
    ("kind", "said"), [(torch.float16, "float16"), (torch.bfloat16, "bfloat16")]
)
def test_half_precision_becomes_float32_and_is_said(kind: torch.dtype, said: str) -> None:
    model = fresh()
    notes = fit(model, {key: v.to(kind) if v.ndim else v for key, v in trained().items()})
    assert notes == (f"the weights were {said}, converted to float32",)
    assert model.get_parameter("stem.weight").dtype == torch.float32


def test_layers_that_ask_for_their_version_get_it() -> None:
    state = torchvision.models.mnasnet0_5(num_classes=3).state_dict()
    model = torchvision.models.mnasnet0_5(num_classes=3)
    fit(model, dict(state))  # safetensors keeps no versions
    assert holds(model, state)


def test_untouched_batch_norm_is_suspicious() -> None:
    assert "may be untrained" in fit(fresh(), net().state_dict())[0]


def test_another_number_of_classes_says_which_option_helps() -> None:
    model = fresh()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        fit(model, net(classes=9).state_dict(), name="a.pt")
    assert caught.value.code == "C412"
    assert str(caught.value) == (
        "a.pt: answer is 9 classes in the file, 4 in the model. Next: give load(…, classes=9)."
    )
    assert holds(model, before)


def test_a_wider_layer_in_the_middle_is_another_network() -> None:
    with pytest.raises(CheckpointError) as caught:
        fit(fresh(), net(maps=6).state_dict(), name="a.pt")
    assert caught.value.code == "C410"
    assert "first difference: stem.weight is 6×3×3×3 in the file, 5×3×3×3 in the model" in str(
        caught.value
    )


CHANGES: dict[str, Callable[[State], object]] = {
    "one missing": lambda state: state.pop("body.0.bias"),
    "one more": lambda state: state.update({"extra.weight": torch.ones(2, 2)}),
    "one renamed": lambda state: state.update({"stem.w": state.pop("stem.weight")}),
    "statistics missing": lambda state: state.pop("norm.running_var"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_less_and_nothing_more_than_the_whole_is_accepted(change: str) -> None:
    model, state = fresh(), trained()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    CHANGES[change](state)
    with pytest.raises(CheckpointError) as caught:
        fit(model, state)
    assert caught.value.code == "C410"
    assert holds(model, before)


def test_a_network_is_recognised_by_its_weights() -> None:
    weights = torchvision.models.resnet18(num_classes=7).state_dict()
    by_name = dict(sorted(weights.items()))  # safetensors keeps no order of layers
    with pytest.raises(CheckpointError) as caught:
        fit(torchvision.models.resnet34(), prefixed(by_name, "module."), name="a.pt")
    assert caught.value.code == "C410"
    said = str(caught.value)
    assert "the weights look like torchvision:resnet18" in said
    assert "the model is ResNet" in said
    assert "first difference: layer1.2.conv1.weight is not in the file" in said


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (lambda: zfnet(3, width=0.5, init=None), "zfnet:width=0.5 "),
        (lambda: zfnet(3, head="compact", norm="batch", init=None), "head=compact,norm=batch"),
        (lambda: alexnet(init=None), "alexnet "),
        (lambda: torchvision.models.squeezenet1_1(), "torchvision:squeezenet1_1"),
        (lambda: torchvision.models.mobilenet_v2(num_classes=3), "torchvision:mobilenet_v2"),
        (net, "no network we know, with stem, norm, body, answer"),
    ],
)
def test_other_networks_are_recognised_too(state: Callable[[], nn.Module], name: str) -> None:
    with pytest.raises(CheckpointError, match=r"look like") as caught:
        fit(torchvision.models.shufflenet_v2_x0_5(), state().state_dict())
    assert name in str(caught.value)


def test_a_network_on_the_meta_device_is_not_filled_in_silence() -> None:
    model = zfnet(3, width=0.1, init=None).to_empty(device="cpu")
    fit(model, zfnet(3, width=0.1, seed=5).state_dict())
    assert torch.equal(model.conv1.weight, zfnet(3, width=0.1, seed=5).conv1.weight)
