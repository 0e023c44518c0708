"""Does a module that was made in Python become a network that every method takes?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from convscope import load
from convscope.core.errors import ConvscopeError, ModelError, UsageError
from convscope.network.preprocess import PARTS, Preprocess
from convscope.pictures.framing import Framing

CODE = """
from torch import nn
from convscope import load
from convscope.pictures.framing import Framing
from convscope.network.preprocess import PARTS, Preprocess

def net(depth, width=3):
    return nn.Sequential(nn.Conv2d(depth, width, 3))

def told():
    ready = Preprocess(Framing(None, (9, 12)), (0.5,), (0.25,))
    return load(net(1), preprocess=ready, classes=["a", "b", "c"])
"""


def net(channels: int = 3) -> nn.Sequential:
    parts = (nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 7 * 10, 2))
    return nn.Sequential(*parts).train()


def test_a_module_is_taken_as_it_is_with_what_is_told_of_it() -> None:
    model = net()
    ready = Preprocess(Framing(None, (9, 12)), (0.5,) * 3, (0.25,) * 3)
    found = load(model, preprocess=ready, classes=("cat", "dog"))
    assert found.model is model
    assert model.training  # its mode is its owner's
    assert model[1].training
    assert (found.preprocess, found.classes, found.spec) == (ready, ("cat", "dog"), "Sequential")
    assert found.weights == "as the module had them"
    assert found.notes == ("preprocessing as it was given",)
    assert int(model[1].num_batches_tracked) == 0


def test_what_is_assumed_of_the_pictures_is_said() -> None:
    assert load(net()).preprocess == Preprocess.imagenet()
    assert load(net()).preprocess.assumed == PARTS
    assert load(net()).notes == (
        "preprocessing is not known for this network; ImageNet's was assumed: "
        "give its own, by --size, --resize, --mean, --std or load(…, preprocess=…)",
    )
    grey = load(net(1))
    assert grey.preprocess == Preprocess.imagenet().grey()
    assert "in grey, was assumed" in grey.notes[0]


@pytest.mark.parametrize("classes", [0, -1, True, "five", 2.0])
def test_what_is_no_number_of_classes_is_refused(classes: object) -> None:
    with pytest.raises(UsageError, match=r"^classes=") as caught:
        load("zfnet:width=0.05", classes=classes)  # type: ignore[arg-type]
    assert caught.value.code == "U231"


def test_names_of_classes_tell_their_number_too() -> None:
    found = load("zfnet:width=0.05,head=compact", classes=["a", "b", "c"])
    assert found.classes == ("a", "b", "c")
    assert found.model.fc8.out_features == 3
    assert load("zfnet:width=0.05,head=compact", classes=()).model.fc8.out_features == 1000


def test_what_cannot_be_a_network_is_told_in_a_line() -> None:
    for given, code in ((7, "U376"), (nn.Sequential(nn.LazyConv2d(3, 3)), "M526")):
        with pytest.raises(ConvscopeError) as caught:
            load(given)  # type: ignore[arg-type]
        assert caught.value.code == code
    with pytest.raises(ModelError, match="no convolution"):
        load(nn.Linear(3, 2))


def test_a_checkpoint_goes_into_the_module(tmp_path: Path) -> None:
    trained, model = net(), net()
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    found = load(model, tmp_path / "trained.pt")
    assert torch.equal(model[0].weight, trained[0].weight)
    assert found.weights == str(tmp_path / "trained.pt")


def test_a_factory_may_tell_the_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "telling_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    found = load("telling_nets:told")
    assert found.preprocess.shape == (1, 9, 12)
    assert found.classes == ("a", "b", "c")
    assert found.spec == "telling_nets:told"
    with pytest.raises(ModelError, match=r"needs arguments .*'depth'") as caught:
        load("telling_nets:net")
    assert caught.value.code == "M583"
