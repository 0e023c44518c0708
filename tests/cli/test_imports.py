"""Does a command import only what it uses? What torch itself takes is wait enough."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from convscope.network.checkpoint import save_weights
from convscope.network.load import Card, load

FOREIGN = (
    *("torchvision", "timm", "torch._dynamo", "torch._inductor", "sympy", "lightning"),
    *("tensorboard", "sklearn", "scipy", "skimage", "matplotlib", "jinja2", "pandas"),
)
"""What a network is shown by, without."""
COMMANDS = [
    (["--help"], ("torch", "numpy", "PIL", "rich.console", *FOREIGN)),
    (["predict", "--help"], ("torch", "numpy", "PIL", "rich.console", *FOREIGN)),
    (["predict", "run", "cat.png"], ("rich.console", *FOREIGN)),
    (["predict", "mine:make", "cat.png"], ("rich.console", *FOREIGN)),
    (["layers", "run"], ("rich.console", *FOREIGN)),
    (["check", "run", "cat.png"], FOREIGN),
]
CODE = """
import json, sys
from convscope.cli.app import run
for arguments, without in json.loads(sys.stdin.read()):
    status = run(arguments)
    there = [name for name in without if name in sys.modules]
    print("MODULES", status, *there, file=sys.stderr)
"""


def test_importing_convscope_imports_nothing_else() -> None:
    code = "import sys, convscope; print(*[m for m in sys.argv[1:] if m in sys.modules])"
    slow = ("torch", "numpy", "PIL", "typer", *FOREIGN)
    told = subprocess.run([sys.executable, "-c", code, *slow], capture_output=True, check=True)
    assert told.stdout.split() == []


def test_commands_import_only_what_they_use(tmp_path: Path) -> None:
    """One after the other in one process: what an earlier one imported would be found later."""
    made = load("zfnet:width=0.1,norm=batch,head=compact", classes=3)
    card = Card(made.spec, ("a", "b", "c"), made.preprocess)
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / "best.safetensors", made.model.state_dict(), card.metadata())
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(4, 3))\n"
    )
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "cat.png")
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps(COMMANDS),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line for line in done.stderr.splitlines() if line.startswith("MODULES")]
    assert found == ["MODULES 0"] * len(COMMANDS), done.stderr


def test_a_network_is_looked_at_without_what_only_training_needs(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules.update(tensorboard=None)"
    commands = [
        (["layers", "zfnet:width=0.1"], ()),
        (["train", "builtin:photos"], ()),
        (["ablation", "builtin:photos"], ()),
    ]
    done = subprocess.run(
        [sys.executable, "-c", hidden + CODE],
        input=json.dumps(commands),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    missing = (
        "convscope: error[R623]: tensorboard: needed for training, and not installed. "
        "Next: run: pip install 'convscope[train]'."
    )
    said = done.stderr.splitlines()
    assert said[-4:] == [missing, "MODULES 6", missing, "MODULES 6"]
    assert said[-5] == "MODULES 0"


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_network_gets_memory_without_what_torch_traces_with(norm: str) -> None:
    from convscope.network.zfnet import give_memory, zfnet

    model = zfnet(3, init=None, norm=norm, width=0.1)
    assert next(model.parameters()).is_meta
    give_memory(model)
    whole = load(f"zfnet:width=0.1,norm={norm}", classes=3).model
    model.load_state_dict(whole.state_dict())
    x = torch.rand(1, 3, 224, 224)
    assert torch.equal(model.eval()(x), whole(x))
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_command_is_called_as_a_module_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "convscope", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("convscope ")
