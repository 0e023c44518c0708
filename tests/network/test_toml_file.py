"""Does a small file beside the weights bring the same network back, and choose no foreign code?"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from convscope import load
from convscope.cli.app import run
from convscope.core.errors import CheckpointError, ConvscopeError, ModelError
from convscope.network.checkpoint import save_weights
from convscope.network.load import Remembered, remember, remembered
from convscope.network.network import Card
from convscope.pictures.framing import Framing

CODE = """
from torch import nn
from torchvision import transforms as T

validation = T.Compose([T.Resize((50, 60)), T.CenterCrop(48), T.ToTensor()])

def net(num_classes=1000):
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(4, num_classes))
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a module in a folder `project`, with weights of three classes beside it; one
    stands in the folder above."""
    name = f"kept_{abs(hash(request.node.name))}"
    place = tmp_path / "project"
    place.mkdir()
    (place / f"{name}.py").write_text(CODE)
    torch.manual_seed(4)
    parts = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.save({"model": nn.Sequential(*parts, nn.Linear(4, 3)).state_dict()}, place / "w.pt")
    (place / "names.txt").write_text("daisy\nrose\ntulip\n")
    monkeypatch.chdir(tmp_path)
    return name


def written(code: str, more: str = "", name: str = "project/net.toml") -> str:
    text = f'network = "{code}:net"\ncheckpoint = "w.pt"\nclasses = "names.txt"\n{more}'
    Path(name).write_text(text)
    return name


def test_all_of_it_comes_back_from_wherever_one_stands(
    code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(code, 'size = "32x48"\nmean = [0.5, 0.4, 0.3]\nstd = 0.25\n')
    far = load("project/net.toml")
    monkeypatch.chdir("project")
    near = load(Path("net.toml"))
    for found in (far, near):
        assert found.classes == ("daisy", "rose", "tulip")
        assert found.preprocess.framing == Framing(37, (32, 48))
        assert (found.preprocess.mean, found.preprocess.std) == ((0.5, 0.4, 0.3), (0.25,) * 3)
        assert found.preprocess.assumed == ("resize", "interpolation")
    assert far.sha256 == near.sha256 != ""
    assert str(Path.cwd()) not in sys.path


def test_what_is_told_besides_is_taken_instead(code: str) -> None:
    name = written(code, "size = 32\nresize = 40\n")
    found = load(name, classes=["a", "b", "c"], preprocess={"size": 24, "mean": 0.5})
    assert found.classes == ("a", "b", "c")
    assert found.preprocess.framing == Framing(30, (24, 24))
    torch.save(load(f"project/{code}.py:net", classes=3).model.state_dict(), "other.pt")
    assert load(name, "other.pt").sha256 != load(name).sha256


def test_what_the_output_means_is_remembered(code: str) -> None:
    found = load(written(code, 'output = "logits"\nscores = "sigmoid"\n'))
    assert (found.output, found.scores) == ("logits", "sigmoid")
    again = load("project/net.toml", scores="logits", output=0)
    assert (again.output, again.scores) == ("0", "logits")


def test_a_transform_in_its_code_is_taken(code: str) -> None:
    found = load(written(code, f'preprocess = "{code}:validation"\n'))
    assert found.preprocess.framing == Framing((50, 60), (48, 48))
    assert found.preprocess.assumed == ()


def test_a_command_remembers_what_it_was_told(
    code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["layers", f"project/{code}.py:net", "--checkpoint", "project/w.pt#model"]
    line += ["--classes", "project/names.txt", "--size", "40", "--mean", "0.5,0.4,0.3"]
    assert run([*line, "--remember", "project/kept.toml"]) == 0
    told = capsys.readouterr()
    assert "remembered in project/kept.toml" in told.err
    assert run(["layers", "project/kept.toml"]) == 0
    assert capsys.readouterr().out == told.out
    found = load("project/kept.toml")
    assert found.classes == ("daisy", "rose", "tulip")
    assert found.preprocess.assumed == ("resize", "interpolation", "std")  # was not told
    assert Path("project/kept.toml").read_text().splitlines()[:2] == [
        f'network = "{code}.py:net"',
        'checkpoint = "w.pt#model"',
    ]
    assert run([*line, "--remember", "project/kept.toml"]) == 5  # nothing is overwritten


def test_a_remembered_network_is_remembered_anew_with_a_change(
    code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = written(code, "size = 40\n")
    assert run(["layers", name, "--mean", "0.5", "--remember", "project/more.toml"]) == 0
    kept = remembered("project/more.toml")
    assert (kept.size, kept.mean, kept.checkpoint) == (40, "0.5", "project/w.pt")
    assert load("project/more.toml").preprocess.assumed == ("resize", "interpolation", "std")
    line = ["layers", "project/more.toml", "--preprocess", f"project/{code}.py:validation"]
    assert run([*line, "--remember", "project/last.toml"]) == 0
    assert load("project/last.toml").preprocess.assumed == ()


def test_names_of_any_letters_come_back(tmp_path: Path) -> None:
    names = ['a "b"', "back\\slash", "new\nline", "Gänse", "猫", "\x7f", "🐈", "[x]", "#"]
    remember(tmp_path / "a.toml", Remembered("zfnet", classes=names))
    assert remembered(tmp_path / "a.toml").classes == names


def test_a_run_is_named_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "run").mkdir(parents=True)
    network = load("zfnet:width=0.05,head=compact", classes=2)
    card = Card(network.spec, ("a", "b"), network.preprocess)
    weights = network.model.state_dict()
    save_weights(tmp_path / "deep" / "run" / "best.safetensors", weights, card.metadata())
    remember(tmp_path / "deep" / "run.toml", Remembered("deep/run", size=64))
    assert 'network = "run"' in (tmp_path / "deep" / "run.toml").read_text()
    assert load("deep/run.toml").classes == ("a", "b")
    assert load("deep/run.toml").preprocess.size == (64, 64)


def mark(folder: Path, name: str) -> Path:
    """Code that leaves a mark when it is run."""
    folder.mkdir(parents=True, exist_ok=True)
    ran = folder / "ran"
    (folder / f"{name}.py").write_text(
        f"open({str(ran)!r}, 'w').close()\ndef net():\n    raise ValueError\n"
    )
    return ran


def refused(path: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        load(path)
    return caught.value.code


def test_code_elsewhere_is_not_run_by_a_file(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies on the path of modules, below an environment, or in Python itself."""
    other, installed = tmp_path / "other", tmp_path / "project" / ".venv" / "site-packages"
    monkeypatch.syspath_prepend(str(other))
    monkeypatch.syspath_prepend(str(installed))
    marks = [mark(other, f"{code}_o"), mark(installed, f"{code}_i"), mark(tmp_path, f"{code}_w")]
    Path("project/away").mkdir()
    monkeypatch.chdir("project")
    for name in (f"{code}_o", f"{code}_i", "antigravity", "os", "sys", "__main__", "torch"):
        Path("bad.toml").write_text(f'network = "{name}:net"\n')
        assert refused("bad.toml") == "M573", name
        Path("bad.toml").write_text(f'network = "zfnet"\npreprocess = "{name}:net"\n')
        assert refused("bad.toml") == "M573", name
    assert not any(ran.exists() for ran in marks)
    assert "antigravity" not in sys.modules


def test_code_of_the_working_folder_is_not_run_by_a_file_from_elsewhere(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "a.toml").write_text(f'network = "{code}_w:net"\n')
    ran = mark(tmp_path / "work", f"{code}_w")
    monkeypatch.chdir(tmp_path / "work")
    assert refused("../downloads/a.toml") == "M573"
    Path("configs").mkdir()
    (tmp_path / "downloads" / "a.toml").rename("configs/a.toml")
    assert not ran.exists()
    assert refused("configs/a.toml") == "M571"  # it is one's own now, and raises
    assert ran.exists()


def test_links_lead_to_no_other_code(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = mark(tmp_path / "other", f"{code}_l")
    (tmp_path / "project" / f"{code}_l.py").symlink_to(tmp_path / "other" / f"{code}_l.py")
    monkeypatch.chdir("project")
    Path("a.toml").write_text(f'network = "{code}_l:net"\n')
    assert refused("a.toml") == "M573"
    assert not ran.exists()


DAMAGED = {
    "not TOML": "network = ",
    "no network": "size = 3\n",
    "an empty one": 'network = ""\n',
    "itself": 'network = "a.toml"\n',
    "unknown key": 'network = "zfnet"\nsise = 3\n',
    "a list": 'network = ["zfnet"]\n',
    "a table": '[network]\nname = "zfnet"\n',
    "a number": 'network = "zfnet"\ncheckpoint = 3\n',
    "a date": 'network = "zfnet"\nsize = 2020-01-01\n',
    "both": 'network = "zfnet"\nsize = 3\npreprocess = "a:b"\n',
    "deep": 'network = "zfnet"\nsize = ' + "[" * 100_000,
    "lists in lists": 'network = "zfnet"\nmean = [[1, 2], [3]]\n',
    "bytes": "\x00\x01\x02",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_one_line(kind: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "a.toml"
    path.write_text(DAMAGED[kind])
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert caught.value.code == "C417"
    assert run(["layers", str(path)]) == 4
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert len(told) < 500


@pytest.mark.parametrize("value", ["0", "9999", "true", "-3", '"big"'])
def test_a_size_in_it_that_cannot_be_is_one_line(value: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f'network = "zfnet"\nsize = {value}\n')
    with pytest.raises(ConvscopeError) as caught:
        load(path)
    assert caught.value.code == "U320"


def test_a_file_that_is_not_there_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "nowhere.toml")
    assert caught.value.code == "C417"


def test_a_file_beside_other_code_is_said_to_work_from_here_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "from torch import nn\nnet = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())\n"
    (tmp_path / "alone_here.py").write_text(text)
    (tmp_path / "sub").mkdir()
    line = ["layers", "alone_here:net", "--size", "16", "--remember"]
    assert run([*line, "sub/x.toml"]) == 0
    assert "it works from this folder" in capsys.readouterr().err
    assert run([*line, "y.toml"]) == 0
    assert "it works from this folder" not in capsys.readouterr().err
