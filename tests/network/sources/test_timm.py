"""Do timm's networks come with the right pictures, and is its absence said clearly?"""

from __future__ import annotations

import hashlib
import http.server
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from convscope.core.errors import EnvironmentFault, ModelError
from convscope.network.checkpoint import save_weights
from convscope.network.load import load
from convscope.network.pretrained import timm_preprocess as preprocess_of

CONFIG: dict[str, Any] = {
    "input_size": (3, 288, 288),
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "crop_pct": 0.9,
    "crop_mode": "center",
}


def test_without_timm_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'convscope\[timm\]'") as caught:
        load("timm:resnet18")
    assert caught.value.code == "R622"


def test_timms_data_config_becomes_our_preprocessing() -> None:
    preprocess, notes = preprocess_of(CONFIG)
    assert preprocess.describe() == (
        "shorter side to 320 (bicubic), centre 288 × 288; 0 to 1, "
        "minus (0.5, 0.5, 0.5), divided by (0.25, 0.25, 0.25)"
    )
    assert notes == ()


def test_squashed_pictures_are_stretched_whole() -> None:
    preprocess, _ = preprocess_of({**CONFIG, "crop_mode": "squash", "crop_pct": 1.0})
    assert preprocess.framing.resize is None


def test_what_we_cannot_do_as_timm_does_is_noted() -> None:
    preprocess, notes = preprocess_of({**CONFIG, "interpolation": "lanczos", "crop_mode": "border"})
    assert preprocess.framing.interpolation == "bicubic"
    assert notes == (
        "timm would resize by 'lanczos'; we resize by 'bicubic'",
        "timm would frame by 'border'; we cut the centre",
    )


class TestWithTimm:
    @pytest.fixture(autouse=True)
    def timm(self) -> Any:
        return pytest.importorskip("timm")

    def test_a_network_of_timms_takes_its_own_pictures(self) -> None:
        network = load("timm:resnet10t:weights=none", classes=3)
        assert network.preprocess.framing.interpolation == "bicubic"
        assert network.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
        assert network.weights == "random, seed 0"

    def test_a_checkpoint_fills_it_and_its_thousand_classes_have_names(
        self, tmp_path: Path, timm: Any
    ) -> None:
        torch.manual_seed(1)
        model = timm.create_model("resnet10t")
        torch.save(model.state_dict(), tmp_path / "a.pt")
        network = load("timm:resnet10t", tmp_path / "a.pt")
        assert torch.equal(network.model.fc.weight, model.fc.weight)
        assert network.classes[207].startswith("golden retriever")

    def test_an_unknown_name_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(ModelError, match="did you mean resnet") as caught:
            load("timm:resnet18000")
        assert caught.value.code == "M570"

    @pytest.fixture
    def offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """No cache, and a folder on this machine in the place of the hub."""
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *rest: object) -> None:
                pass

        handler = partial(Quiet, directory=tmp_path / "web")
        web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{web.server_port}")
        yield tmp_path / "web"
        web.shutdown()
        web.server_close()

    def test_its_own_weights_come_over_the_network_and_are_hashed(
        self, timm: Any, offline: Path
    ) -> None:
        torch.manual_seed(3)
        model = timm.create_model("resnet10t")
        file = offline / "timm" / "resnet10t.c3_in1k" / "resolve" / "main" / "model.safetensors"
        save_weights(file, model.state_dict())
        network = load("timm:resnet10t")
        expected = model.state_dict()
        assert all(torch.equal(v, expected[key]) for key, v in network.model.state_dict().items())
        assert network.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert network.weights == "timm resnet10t"
        assert "state_dict" not in network.model.pretrained_cfg
        other = load("timm:resnet10t", classes=3).model
        assert torch.equal(other.conv1[0].weight, model.conv1[0].weight)
        assert other.fc.out_features == 3

    def test_a_page_in_place_of_the_weights_is_not_kept(self, offline: Path) -> None:
        file = offline / "timm" / "resnet10t.c3_in1k" / "resolve" / "main" / "model.safetensors"
        file.parent.mkdir(parents=True)
        file.write_text("<html>please sign in</html>")
        with pytest.raises(EnvironmentFault, match="this is an HTML page"):
            load("timm:resnet10t")
        assert not list((offline.parent / "cache").rglob("*.safetensors"))

    @pytest.mark.usefixtures("offline")
    def test_weights_that_cannot_be_had_leave_choices(self) -> None:
        with pytest.raises(EnvironmentFault) as caught:
            load("timm:resnet10t")
        assert caught.value.code == "R620"
        assert "\n" not in caught.value.line()
        assert "or write timm:resnet10t:weights=none for random weights" in caught.value.line()

    def test_a_network_without_weights_says_so(self) -> None:
        with pytest.raises(EnvironmentFault, match="timm has no weights of this network"):
            load("timm:davit_huge")
