"""Do torchvision's networks come with the right weights, pictures and names?"""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from convscope.core.errors import CheckpointError, EnvironmentFault, UsageError
from convscope.network import pretrained as of_torchvision
from convscope.network.load import load
from convscope.network.pretrained import preprocess_of

V1 = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1


def small(classes: int = 1000) -> nn.Module:
    torch.manual_seed(5)
    return torchvision.models.squeezenet1_1(num_classes=classes)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """A web server on this machine: its address, its folder, and what it was asked for."""
    asked: list[str] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    folder = tmp_path / "served"
    folder.mkdir()
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}", folder, asked
    web.shutdown()
    web.server_close()


@pytest.fixture
def published(
    server: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[str]]:
    """The server has weights of squeezenet1_1, named by their hash as torchvision does it."""
    address, folder, asked = server
    stream = io.BytesIO()
    torch.save(small().state_dict(), stream)
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    path = folder / f"squeezenet1_1-{digest[:8]}.pth"
    path.write_bytes(stream.getvalue())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(of_torchvision, "address", lambda entry: f"{address}/{path.name}")
    return path, asked


def test_the_weights_come_over_the_network_once(published: tuple[Path, list[str]]) -> None:
    path, asked = published
    counted: list[tuple[int, int]] = []
    network = load("torchvision:squeezenet1_1", progress=lambda *at: counted.append(at))
    expected = small().state_dict()
    assert all(torch.equal(v, expected[key]) for key, v in network.model.state_dict().items())
    assert network.weights == "torchvision IMAGENET1K_V1"
    assert network.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.classes[207] == "golden retriever"
    assert network.notes == ()
    assert counted[-1] == (path.stat().st_size, path.stat().st_size)
    load("torchvision:squeezenet1_1")
    assert len(asked) == 1


def test_a_damaged_copy_in_the_cache_is_fetched_again(
    published: tuple[Path, list[str]], tmp_path: Path
) -> None:
    path, asked = published
    load("torchvision:squeezenet1_1")
    cached = tmp_path / "cache" / "hub" / "checkpoints" / path.name
    cached.write_bytes(cached.read_bytes()[:-1])
    load("torchvision:squeezenet1_1")
    assert len(asked) == 2
    assert cached.read_bytes() == path.read_bytes()


def test_another_file_than_the_one_meant_is_not_kept(
    published: tuple[Path, list[str]], tmp_path: Path
) -> None:
    path, _ = published
    path.write_bytes(b"<html>come back later</html>")
    with pytest.raises(EnvironmentFault, match="the server sent another file") as caught:
        load("torchvision:squeezenet1_1")
    assert caught.value.code == "R621"
    assert not list((tmp_path / "cache").rglob("*.pth"))


def test_without_a_network_the_choices_are_named(published: tuple[Path, list[str]]) -> None:
    published[0].unlink()
    with pytest.raises(EnvironmentFault) as caught:
        load("torchvision:squeezenet1_1")
    assert caught.value.code == "R620"
    line = caught.value.line()
    assert "\n" not in line
    assert "pass a checkpoint, or write torchvision:squeezenet1_1:weights=none" in line


def test_random_weights_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked for the network")

    monkeypatch.setattr(of_torchvision, "fetched_weights", refuse)
    network = load("torchvision:squeezenet1_1:weights=none", classes=7, seed=5)
    expected = small(7).state_dict()
    assert all(torch.equal(v, expected[key]) for key, v in network.model.state_dict().items())
    assert network.weights == "random, seed 5"
    assert network.classes == ()


def test_torchvisions_weights_have_a_thousand_classes() -> None:
    with pytest.raises(UsageError, match="weights=none,classes=5, or add --checkpoint"):
        load("torchvision:squeezenet1_1", classes=5)


def test_a_checkpoint_of_a_thousand_classes_gets_their_names(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "a.pt")
    network = load("torchvision:squeezenet1_1", tmp_path / "a.pt")
    assert network.classes == tuple(V1.meta["categories"])
    assert network.preprocess == preprocess_of(V1)
    assert network.notes == (
        "class names taken from torchvision's IMAGENET1K_V1",
        network.preprocess.assumption(),
    )
    assert "was assumed" in network.notes[1]


def test_a_checkpoint_of_other_classes_needs_their_number(tmp_path: Path) -> None:
    torch.save(small(5).state_dict(), tmp_path / "a.pt")
    network = load("torchvision:squeezenet1_1", tmp_path / "a.pt", classes=5)
    assert network.model(torch.zeros(1, 3, 224, 224)).shape == (1, 5)
    assert network.classes == ()
    with pytest.raises(CheckpointError, match="give --classes 5, or"):
        load("torchvision:squeezenet1_1", tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (V1, "shorter side to 256 (bilinear), centre 224 × 224; 0 to 1, minus (0.485,"),
        (
            torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
            "shorter side to 232 (bilinear), centre 224 × 224; 0 to 1, minus (0.485,",
        ),
        (
            torchvision.models.EfficientNet_B4_Weights.IMAGENET1K_V1,
            "shorter side to 384 (bicubic), centre 380 × 380; 0 to 1, minus (0.485,",
        ),
        (
            torchvision.models.Inception_V3_Weights.IMAGENET1K_V1,
            "shorter side to 342 (bilinear), centre 299 × 299; 0 to 1, minus (0.485,",
        ),
        (
            torchvision.models.ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1,
            "shorter side to 518 (bicubic), centre 518 × 518; 0 to 1, minus (0.485,",
        ),
    ],
)
def test_the_pictures_are_those_the_weights_were_judged_on(entry: Any, line: str) -> None:
    assert preprocess_of(entry).describe().startswith(line)


def test_every_weight_of_torchvision_has_pictures_we_can_make() -> None:
    for name in of_torchvision.names():
        for entry in torchvision.models.get_model_weights(name):
            assert preprocess_of(entry).size[0] >= 224, name
            assert re.fullmatch(r"[0-9a-f]{8,}", of_torchvision.hash_of(entry)), name


@pytest.mark.parametrize(
    ("name", "helpers"), [("googlenet", ("aux1", "aux2")), ("inception_v3", ("AuxLogits",))]
)
@pytest.mark.parametrize("helped", [True, False])
def test_branches_that_only_training_uses_are_dropped(
    tmp_path: Path, name: str, helpers: tuple[str, ...], helped: bool
) -> None:
    build: Any = getattr(torchvision.models, name)
    model = build(init_weights=False, aux_logits=helped, transform_input=True).eval()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    network = load(f"torchvision:{name}", tmp_path / "a.pt")
    assert not any(part.startswith(helpers) for part, _ in network.model.named_modules())
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        assert torch.equal(network.model(x), model(x))
        assert isinstance(network.model.train()(torch.randn(2, 3, 96, 128)), torch.Tensor)
