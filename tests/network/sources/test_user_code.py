"""Does a network of the user's own come in, and do its faults come out in one line?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from convscope.core.errors import ModelError
from convscope.network.load import load

CODE = """
import torch
from torch import nn

def small(classes=4):
    conv, relu = nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True)
    return nn.Sequential(conv, relu, nn.Flatten(), nn.LazyLinear(classes))

class Net(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.conv = nn.Conv2d(3, num_classes, 3)
    def forward(self, x):
        return self.conv(x).mean((2, 3))

ready = Net(6)
number = 5
def broken(): raise RuntimeError("no such file\\nsecond line")
def leaves(): raise SystemExit(3)
def nothing(): return None
def linear(): return nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
def parallel(): return nn.DataParallel(Net())
def compiled(): return torch.compile(nn.DataParallel(Net()))
class Compiled(nn.Module):
    # as torch.compile wraps; the real one takes seconds to import
    def __init__(self):
        super().__init__()
        self._orig_mod = nn.DataParallel(Net())
def scripted(): return torch.jit.script(Net())
def traced(): return torch.jit.trace(Net(), torch.zeros(1, 3, 8, 8))
def fussy(): return nn.Sequential(nn.Conv2d(7, 5, 3), nn.LazyLinear(3))
"""


@pytest.fixture(autouse=True)
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_nets.py").write_text(CODE)
    (tmp_path / "own_broken.py").write_text("import a_package_that_is_absent\n")
    (tmp_path / "own_syntax.py").write_text("def (:\n")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("own_nets", "own_broken", "own_syntax"):
        sys.modules.pop(name, None)


def fault(name: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(name)
    assert "\n" not in caught.value.line()
    return caught.value


def test_a_factory_of_the_working_folder_is_called() -> None:
    network = load("own_nets:small", classes=7)
    assert network.model(torch.zeros(1, 3, 224, 224)).shape == (1, 7)
    assert not network.model.training
    assert network.spec == "own_nets:small"
    assert "preprocessing is not known" in network.notes[0]
    assert network.preprocess.size == (224, 224)


def test_a_class_and_a_ready_module_will_do() -> None:
    assert load("own_nets:Net", classes=3).model.conv.out_channels == 3
    assert load("own_nets:ready").model.conv.out_channels == 6


def test_lazy_layers_have_their_shapes_before_weights_come(tmp_path: Path) -> None:
    first = load("own_nets:small", seed=1)
    torch.save(first.model.state_dict(), tmp_path / "a.pt")
    second = load("own_nets:small", tmp_path / "a.pt", seed=2)
    assert torch.equal(first.model[3].weight, second.model[3].weight)


@pytest.mark.parametrize(
    "name", ["parallel", "Compiled", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_wrappers_around_the_module_are_taken_off(name: str) -> None:
    assert type(load(f"own_nets:{name}").model).__name__ == "Net"


def test_the_seed_decides_a_factorys_random_weights() -> None:
    one, same, other = (load("own_nets:Net", seed=seed).model.conv.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_search_path_is_left_as_it_was() -> None:
    before = list(sys.path)
    load("own_nets:Net")
    fault("own_nets:broken")
    assert sys.path == before


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("own_nets:smal", "M570", "the module has no 'smal'; did you mean small?"),
        ("own_net:small", "M570", "no module named 'own_net'; did you mean own_nets"),
        ("zfnt:width=0.5", "M570", "did you mean zfnet?"),
        (":make", "M570", "write package.module:factory"),
        ("own_nets:", "M570", "write package.module:factory"),
        ("own_broken:make", "M571", "ModuleNotFoundError: No module named 'a_package_that_is_abs"),
        ("own_syntax:make", "M571", "SyntaxError"),
        ("own_nets:broken", "M571", "RuntimeError: no such file (own_nets.py, line"),
        ("own_nets:leaves", "M571", "SystemExit: 3"),
        ("own_nets:nothing", "M572", "gave a NoneType, not an nn.Module"),
        ("own_nets:number", "M572", "is a int, not a network"),
        ("own_nets:linear", "M501", "has no convolution"),
        ("own_nets:scripted", "M530", "is scripted or traced"),
        ("own_nets:traced", "M530", "is scripted or traced"),
        ("own_nets:fussy", "M522", "does not take a picture of 3 × 224 × 224"),
    ],
)
def test_what_is_wrong_with_the_code_is_said_in_one_line(name: str, code: str, said: str) -> None:
    found = fault(name)
    assert found.code == code
    assert said in str(found)
