"""Does what a message of `load` advises after "Next:" work, when it is done word for word?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from convscope import load
from convscope.cli.app import run
from convscope.core.errors import ConvscopeError
from convscope.network.checkpoint import save_weights
from convscope.network.network import Card
from convscope.network.preprocess import Preprocess

CODE = """
from torch import nn

class Counted(nn.Sequential):
    def __init__(self, num_classes=1000):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, num_classes),
        )

class Fixed(Counted):
    def __init__(self):
        super().__init__(7)

def five():
    return Counted(5)

def wide(depth):
    return Counted(depth)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A folder with a module of code; its name, another one for each test."""
    name = f"net_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return name


def weights(count: int, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    parts = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*parts, nn.Linear(4, count)).state_dict()


def begun(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def advice(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    """What `convscope layers` says after "Next:"."""
    assert run(["layers", *line]) in (2, 4)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told.partition("Next: ")[2].strip().removesuffix(".")


def works(capsys: pytest.CaptureFixture[str], *line: str) -> str:
    status = run(["layers", *line])
    told = capsys.readouterr()
    assert status == 0, told.err
    return told.out


def test_the_number_of_classes_that_is_advised_is_the_weights_own(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(weights(5), "five.pth")
    line = [f"{place}:Counted", "--checkpoint", "five.pth"]
    said = advice(capsys, *line)
    option = re.search(r"--classes \d+", said)
    assert option is not None
    assert works(capsys, *line, *option[0].split())
    assert works(capsys, f"{place}:Counted:classes=5", *line[1:])
    assert load(f"{place}:Counted", "five.pth", classes=5).model[4].out_features == 5


@pytest.mark.parametrize("options", ["", ":weights=none"])
def test_it_is_so_for_torchvisions_and_ours(
    options: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(squeezenet1_1(num_classes=5).state_dict(), "five.pth")
    line = [f"torchvision:squeezenet1_1{options}", "--checkpoint", "five.pth"]
    option = re.search(r"--classes \d+", advice(capsys, *line))
    assert option is not None
    assert works(capsys, *line, *option[0].split())


def test_a_wrong_number_in_the_name_is_told_to_go(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(weights(5), "five.pth")
    said = advice(capsys, f"{place}:Counted:classes=7", "--checkpoint", "five.pth")
    assert said == "give --classes 5, or load(…, classes=5), without :classes=7 in the name"
    assert works(capsys, f"{place}:Counted", "--checkpoint", "five.pth", "--classes", "5")


def test_code_without_such_a_parameter_needs_a_function(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(weights(5), "five.pth")
    said = advice(capsys, f"{place}:Fixed", "--checkpoint", "five.pth")
    assert said.startswith("name a function that makes the network with 5 classes")
    assert works(capsys, f"{place}:five", "--checkpoint", "five.pth")
    said = advice(capsys, f"{place}:wide")
    assert said == "name a function that calls it with them"


def test_a_module_of_ones_own_is_told_to_be_made_so(place: str) -> None:
    torch.save(weights(5), "five.pth")
    with pytest.raises(ConvscopeError, match="make the module with 5 classes"):
        load(nn.Sequential(nn.Conv2d(3, 4, 3), *[nn.Identity()] * 3, nn.Linear(4, 7)), "five.pth")


COPIES = {
    "of Lightning": {
        "state_dict": begun(weights(5, 1), "model.") | begun(weights(5, 2), "ema_model.module."),
        "epoch": 3,
        "hyper_parameters": {"num_classes": 5, "lr": 0.1},
    },
    "beside each other": begun(weights(5, 1), "model.") | begun(weights(5, 2), "ema."),
    "with the network's own names": {"model": weights(5, 1) | begun(weights(5, 2), "ema.")},
    "as two dicts": {"net": weights(5, 1), "state_dict_ema": weights(5, 2), "step": 4},
    "far inside": {"best": {"net": weights(5, 1), "ema": weights(5, 2), "score": 0.7}},
    "in both ways": {"a": begun(weights(5, 1), "m.") | begun(weights(5, 2), "e."), "b": weights(7)},
}


@pytest.mark.parametrize("form", COPIES)
def test_every_spelling_of_a_part_that_is_advised_gives_that_copy(
    form: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(COPIES[form], "run.ckpt")
    queue, found, codes = ["run.ckpt"], [], []
    while queue:
        name = queue.pop(0)
        try:
            state = load(f"{place}:five", name).model.state_dict()
        except ConvscopeError as fault:
            queue += re.findall(r"run\.ckpt#\S+", fault.next_step)
            codes.append(fault.code)
        else:
            found += [seed for seed in (1, 2) if same(state, weights(5, seed))]
    assert set(codes) <= {"C411", "C412"}  # C412: seven classes, which is no copy of this one
    assert sorted(found) == [1, 2]


def test_a_file_without_a_network_is_told_with_one(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(weights(5), "five.pth")
    said = advice(capsys, "five.pth")
    option = re.search(r"--checkpoint \S+", said)
    assert option is not None
    assert works(capsys, f"{place}:five", *option[0].split())


def test_a_file_that_names_code_is_told_with_that_code(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run").mkdir()
    card = Card(f"{place}:five", (), Preprocess.imagenet())
    save_weights(Path("run/best.safetensors"), weights(5), card.metadata())
    said = advice(capsys, "run")
    found = re.match(r"name (\S+) yourself, and add (--checkpoint \S+)", said)
    assert found is not None
    assert works(capsys, found[1], *found[2].split())


def test_ours_of_another_shape_is_told_by_its_name(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = load("zfnet:width=0.05,head=compact", classes=4)
    card = Card("zfnet:width=0.05,head=compact", tuple("abcd"), network.preprocess)
    save_weights(Path("w.safetensors"), network.model.state_dict(), card.metadata())
    said = advice(capsys, "alexnet", "--checkpoint", "w.safetensors")
    found = re.match(r"name (\S+), or load the file by itself", said)
    assert found is not None
    assert works(capsys, found[1], "--checkpoint", "w.safetensors")
    assert works(capsys, "w.safetensors")


def test_weights_of_a_thousand_classes_are_told_to_be_left_out(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = advice(capsys, "torchvision:squeezenet1_1:classes=5")
    found = re.match(r"write (\S+), or add --checkpoint FILE", said)
    assert found is not None
    assert load(found[1]).model.classifier[1].out_channels == 5


def test_options_parted_by_colons_are_told_with_commas(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = advice(capsys, "zfnet:width=0.05:head=compact")
    assert works(capsys, f"zfnet:{said.removeprefix('write ')}")


def test_a_point_for_the_colon_is_understood(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert works(capsys, f"{place}.five") == works(capsys, f"{place}:five")
    assert load(f"{place}.five").spec == f"{place}:five"


def test_a_file_of_code_may_be_named_as_it_lies(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("deep").mkdir()
    Path(f"{place}.py").rename(f"deep/{place}.py")
    assert works(capsys, f"deep/{place}.py:five") == works(capsys, f"deep.{place}:five")


@pytest.mark.parametrize("ending", ["", ".py"])
def test_code_without_a_name_in_it_is_told_to_have_one(
    ending: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.match(r"write (\S+):NAME", advice(capsys, place + ending))
    assert found is not None
    assert works(capsys, f"{found[1]}:five")


def test_a_whole_network_in_a_file_is_told_to_be_saved_as_its_weights(place: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity())
    torch.save(model, "whole.pt")
    with pytest.raises(ConvscopeError, match=r"save model\.state_dict\(\) instead") as caught:
        load(model, "whole.pt")
    assert caught.value.code == "C403"
    torch.save(model.state_dict(), "whole.pt")
    load(model, "whole.pt")


def test_a_network_without_weights_is_told_to_be_run(place: str) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    with pytest.raises(ConvscopeError, match="run it once on a picture"):
        load(model)
    model(torch.zeros(1, 3, 9, 9))
    load(model)


def test_a_scripted_network_is_told_to_be_given_as_python(place: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(ConvscopeError, match="give the Python module it was made from"):
        load(torch.jit.ScriptModule())
    load(model)


def test_a_resize_of_one_number_is_told_how_to_be_whole(place: str) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(ConvscopeError) as caught:
        load(model, preprocess=Compose([Resize(64), ToTensor()]))
    found = re.fullmatch(r"add (\S+), or write (.*)", caught.value.next_step)
    assert found is not None
    for steps in (f"[Resize(64), {found[1]}, ToTensor()]", f"[{found[2]}, ToTensor()]"):
        names = {"Resize": Resize, "CenterCrop": CenterCrop, "ToTensor": ToTensor}
        load(model, preprocess=Compose(eval(steps, names)))


def test_a_kept_part_of_another_name_is_answered_with_the_nearest(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(COPIES["of Lightning"], "run.ckpt")
    assert run(["layers", f"{place}:five", "--checkpoint", "run.ckpt#ema_mode"]) == 4
    assert "did you mean ema_model" in capsys.readouterr().err
    assert works(capsys, f"{place}:five", "--checkpoint", "run.ckpt#ema_model")
