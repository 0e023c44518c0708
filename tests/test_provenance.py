"""Does every result say which weights and which pictures made it, and the same each time?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import convscope
from convscope import Pictures
from convscope.attribution import chosen
from convscope.core.record import Record
from convscope.core.units import Box
from convscope.network.checkpoint import open_checkpoint
from convscope.network.load import load
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import weights_sha256
from convscope.network.weights import snapshots
from convscope.pictures.annotations import read_lists
from convscope.pictures.framing import Framing
from convscope.records.topk import TopK
from convscope.studies.explain.study import QUICK
from convscope.studies.registry import studies

SIDE = 24


class Given:
    """A network, a picture as it takes it, and a folder of pictures in two classes.

    shift: of one weight that no map of conv1 and no score but the last depends on. seed: of the
    pictures.
    """

    def __init__(self, place: Path, *, shift: float = 0.0, seed: int = 0) -> None:
        torch.manual_seed(3)
        model = nn.Sequential()
        model.add_module("conv1", nn.Conv2d(3, 4, 3, padding=1))
        model.add_module("relu1", nn.ReLU())
        model.add_module("pool1", nn.MaxPool2d(2))
        model.add_module("conv2", nn.Conv2d(4, 5, 3, padding=1))
        model.add_module("relu2", nn.ReLU())
        model.add_module("pool", nn.AdaptiveAvgPool2d(1))
        model.add_module("flat", nn.Flatten())
        model.add_module("fc", nn.Linear(5, 2))
        model.fc.bias.data[1] += shift  # type: ignore[operator, index, union-attr]
        plain = Preprocess(Framing(None, (SIDE, SIDE)), (0.0,) * 3, (1.0,) * 3)
        self.net = load(model.eval(), preprocess=plain, classes=["a", "b"])
        self.place, draw = place, np.random.default_rng(seed)
        self.pics = place / "pics"
        for number in range(8):
            path = self.pics / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path, compress_level=0)  # files of equal length
        self.image = torch.from_numpy(draw.random((3, SIDE, SIDE), np.float32))
        self.images = self.image[None]

    @property
    def opened(self) -> Pictures:
        return Pictures(self.pics)

    @property
    def folder(self) -> Any:
        return self.opened

    def weights(self) -> Path:
        """Two epochs' weights of the network."""
        place = self.place / "epochs"
        place.mkdir(exist_ok=True)
        for epoch in (1, 2):
            torch.save(self.net.model.state_dict(), place / f"epoch{epoch}.pt")
        assert len(snapshots(place)) == 2
        assert open_checkpoint(place / "epoch1.pt").weights
        return place

    def parts(self) -> dict[str, dict[str, tuple[float, float]]]:
        return {name: {"one": (12, 12), "other": (7, 7)} for name in self.opened.names[:3]}

    def lists(self, names: slice) -> Any:
        path = self.place / f"list{names.start}.csv"
        path.write_text("".join(f"{name},{name[0]}\n" for name in self.opened.names[names]))
        return read_lists(str(path))

    def recorder(self) -> Any:
        seen = convscope.EvolutionRecorder(
            self.opened, self.net.preprocess, layers=["conv1"], epochs=None
        )
        seen(1, self.net.model)
        seen(2, self.net.model)
        return [seen.record(), seen.convergence()]


def cam(name: str) -> Callable[[Given], Any]:
    return lambda g: getattr(convscope, name)(g.net, g.images, target=0)


CAMS = "ablationcam eigencam eigengradcam fullgrad gradcam gradcam_plus_plus layercam scorecam"
GRADIENTS = "deconvnet_class gradient_x_input guided_backprop guided_gradcam integrated_gradients"
SHORT: dict[str, Any] = {"steps": 2}
CALLS: dict[str, Callable[[Given], Any]] = {
    **{name: cam(name) for name in f"{CAMS} {GRADIENTS} saliency smoothgrad xgradcam".split()},
    "activation_maximisation": lambda g: convscope.activation_maximisation(
        g.net, "conv1:1", **SHORT
    ),
    "agreement": lambda g: convscope.agreement(
        {n: cam(n)(g)[0] for n in ("gradcam", "saliency")}
    ),
    "attribute": lambda g: convscope.attribute(g.net, g.images, target=0),
    "visualise": lambda g: convscope.visualise(g.net, "conv1:1", **SHORT),
    "study": lambda g: convscope.study("filters", g.net, g.folder),
    "audit": lambda g: convscope.audit(g.net, g.image, seconds=0.0),
    "check": lambda g: convscope.check(g.net, g.image, seconds=0.0),
    "explain": lambda g: convscope.explain(
        g.net, g.pics / "a" / "0.png", "gradcam", checks=QUICK
    ).maps,
    "layers": lambda g: convscope.layers(g.net),
    "chosen_features": lambda g: convscope.chosen_features(g.net, g.folder, ["conv1"], k=1),
    "class_image": lambda g: convscope.class_image(g.net, 0, **SHORT),
    "correspondence": lambda g: convscope.correspondence(
        g.net, g.folder, g.parts(), draws=2, permutations=10, layers=["conv1"]
    ),
    "deconvnet": lambda g: convscope.deconvnet(g.net, g.images, ["conv1:0"]),
    "deep_dream": lambda g: convscope.deep_dream(g.net, g.image, "conv1", octaves=1, **SHORT),
    "duplicates": lambda g: convscope.duplicates(g.net, g.folder, layer="pool1"),
    "embedding": lambda g: convscope.embedding(g.net, g.folder, ["pool1"]),
    "evaluate": lambda g: convscope.evaluate(g.net, g.folder),
    "evolution": lambda g: convscope.evolution(g.weights(), g.folder, g.net, layers=["conv1"]),
    "EvolutionRecorder": Given.recorder,
    "faithfulness": lambda g: convscope.faithfulness(
        g.net, g.image, cam("gradcam")(g), steps=2, random=1
    ),
    "features": lambda g: convscope.features(g.net, g.folder, ["conv1"], k=1),
    "filters": lambda g: convscope.filters(g.net, g.folder),
    "invariance": lambda g: convscope.invariance(g.net, g.folder, changes={"rotation": (0.0, 9.0)}),
    "invert": lambda g: convscope.invert(g.net, g.image, "conv1", **SHORT),
    "occlusion": lambda g: convscope.occlusion(g.net, g.image, target=0, patch=12, stride=12),
    "occlusion_study": lambda g: convscope.occlusion_study(
        g.net, g.folder, layer="conv1", patch=12, stride=12
    ),
    "pointing_game": lambda g: convscope.study(
        "pointing", g.net, g.folder, {name: [Box(2, 2, 9, 9)] for name in g.opened.names[:3]},
        chosen(["gradcam"]),
    ),
    "explain_folder": lambda g: convscope.study(
        "explain", g.net, g.folder, chosen(["gradcam"]), checks=QUICK
    ),
    "predict": lambda g: convscope.predict(g.net, g.pics / "a" / "0.png"),
    "probes": lambda g: convscope.probes(
        g.net, g.folder, ["pool1"], per_class=2, folds=1, kinds=["softmax"]
    ),
    "randomisation": lambda g: convscope.randomisation(
        g.net, g.image, {"gradcam": convscope.gradcam}, target=0, steps=1
    ),
    "sensitivity": lambda g: convscope.sensitivity(g.net, g.image, convscope.gradcam),
    "silence": lambda g: convscope.silence(g.net, g.folder, ["relu1"]),
    "similar": lambda g: convscope.similar(g.net, g.folder, layer="pool1", k=1),
    "topk": lambda g: convscope.topk(g.net, g.folder, layers=["conv1"], k=1),
    "transfer": lambda g: convscope.transfer(
        g.net, g.folder, "pool1", per_class=(1, 2), folds=1, test=1
    ),
    "transfer_lists": lambda g: convscope.transfer_lists(
        g.net, g.folder, g.lists(slice(0, 8, 2)), g.lists(slice(1, 8, 2)), "pool1"
    ),
}  # fmt: skip
"""Every public function and study that gives records, called as briefly as can be."""
NO_RECORD = {
    *(
        "BackwardRule",
        "Box",
        "ConvscopeError",
        "Pictures",
        "Processes",
        "RayEngine",
        "Lens",
        "Neuron",
        "Unit",
        "open_pictures",
    ),
    *("energy_inside", "fields", "load", "one_picture", "pointing", "projections", "tune"),
    *("ablation", "train", "write_atlas", "atlas", "wrap"),
    *("Attribution", "Framing", "Network", "Preprocess", "Processes", "Run", "Folder", "open"),
}
"""Values, tensors, numbers; what trains networks of its own names recipe and pictures; an atlas
is written of records."""
NO_PICTURES = {"activation_maximisation", "class_image", "layers", "visualise"}


def test_every_public_function_and_every_study_is_tried() -> None:
    own = {study.function or study.folder for study in studies()}
    assert set(CALLS) | NO_RECORD == {*convscope.__all__, *convscope._BEFORE} | own
    assert not set(CALLS) & NO_RECORD


def origins(found: Any) -> list[dict[str, Any]]:
    """Of all records, but for the time that something took."""
    if isinstance(found, Record):
        return [{name: fact for name, fact in found.origin.items() if name != "seconds"}]
    inside = found.values() if isinstance(found, dict) else found
    assert isinstance(found, dict | list | tuple | Iterator), type(found)
    return [origin for one in inside for origin in origins(one)]


@pytest.mark.parametrize("name", CALLS)
def test_two_networks_leave_two_origins_and_so_do_two_pictures(name: str, tmp_path: Path) -> None:
    call = CALLS[name]
    first = origins(call(Given(tmp_path / "first")))
    again = origins(call(Given(tmp_path / "first")))
    weights = origins(call(Given(tmp_path / "first", shift=1e-4)))
    pictures = origins(call(Given(tmp_path / "other", seed=1)))
    assert first
    assert first == again
    json.dumps(first)
    for mine, theirs in zip(first, weights, strict=True):
        assert mine["weights_sha256"] != theirs["weights_sha256"]
        assert mine["convscope"]
        assert mine["torch"]
    for mine, theirs in zip(first, pictures, strict=True):
        assert mine["weights_sha256"] == theirs["weights_sha256"]
        assert (mine != theirs) or name in NO_PICTURES


class Named(Given):
    """The folder by its name."""

    @property
    def folder(self) -> Any:
        return str(self.pics)


@pytest.mark.parametrize("name", sorted(set(CALLS) - NO_PICTURES))
def test_a_folder_by_its_name_leaves_the_same_origin(name: str, tmp_path: Path) -> None:
    opened = origins(CALLS[name](Given(tmp_path / "pictures")))
    assert origins(CALLS[name](Named(tmp_path / "pictures"))) == opened


def test_the_weights_hash_is_that_of_names_shapes_and_numbers() -> None:
    model = nn.Linear(2, 1)
    digest = hashlib.sha256()
    for name in ("bias", "weight"):
        value = getattr(model, name).detach().numpy()
        digest.update(f"{name}\0torch.float32\0{value.shape}\n".encode() + value.tobytes())
    assert weights_sha256(model) == digest.hexdigest()


@pytest.mark.parametrize("change", ["add_", "data", "numpy", "swap", "buffer", "type"])
def test_a_change_of_a_weight_is_seen_however_it_was_made(change: str) -> None:
    model = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300))
    weight, before = model[0].weight, weights_sha256(model)
    assert weights_sha256(model) == before
    with torch.no_grad():
        if change == "add_":
            weight[7, 7].add_(1)
        elif change == "data":
            weight.data[299, 299] += 1e-6
        elif change == "numpy":
            weight.data.numpy()[0, 0] += 1e-6
        elif change == "swap":
            weight.data.copy_(weight.data.flip(0))
        elif change == "buffer":
            model[1].running_mean.data[3] = 2  # type: ignore[union-attr, index, operator]
        else:
            model.double()
    assert weights_sha256(model) != before


def test_weights_of_every_kind_have_a_hash() -> None:
    odd = nn.Module()
    odd.register_parameter("brief", nn.Parameter(torch.ones(3, dtype=torch.bfloat16)))
    odd.register_parameter("point", nn.Parameter(torch.tensor(1.0)))
    odd.register_buffer("conjugate", torch.ones(2, dtype=torch.complex64).conj())
    odd.register_buffer("truth", torch.tensor([True, False]))
    odd.register_buffer("sparse", torch.eye(3).to_sparse())
    odd.register_buffer("strided", torch.arange(6.0).reshape(2, 3).T)
    odd.register_buffer("none", None)
    odd.lazy = nn.LazyLinear(3)
    assert len(weights_sha256(odd)) == 64
    plain = nn.Module()
    plain.register_buffer("strided", torch.arange(6.0).reshape(2, 3).T.contiguous())
    also = nn.Module()
    also.register_buffer("strided", torch.arange(6.0).reshape(2, 3).T)
    assert weights_sha256(plain) == weights_sha256(also)


def test_a_network_says_what_it_is_and_whether_its_preprocessing_is_known() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 8, 8))
    plain = Preprocess(Framing(None, (8, 8)), (0.0,) * 3, (1.0,) * 3)
    assert load(model, preprocess=plain).provenance()["preprocessing is"] == "known"
    told = load(model).provenance()
    assert told["preprocessing is"] == "assumed"
    assert told["precision"] == "float32"
    assert told["weights_sha256"] == weights_sha256(model)
    assert told["device"].startswith("cpu, ")


def test_each_picture_of_a_batch_has_its_own_hash(tmp_path: Path) -> None:
    given = Given(tmp_path)
    images = torch.stack([given.image, given.image.flip(2)])
    together = convscope.gradcam(given.net.model, images)
    alone = convscope.gradcam(given.net.model, images[1:])
    hashes = [one.origin["pictures_sha256"] for one in together]
    assert hashes[0] != hashes[1] == alone[0].origin["pictures_sha256"]


def test_records_that_a_callback_gets_say_it_too(tmp_path: Path) -> None:
    from convscope.studies.explain.study import explain_folder

    given, seen = Given(tmp_path), list[Any]()
    explain_folder(
        given.net,
        given.folder,
        {"gradcam": convscope.gradcam},
        numbers=[0],
        each=lambda *a: seen.append(a[1]),
    )
    (one,) = seen
    assert one.origin["weights_sha256"] == one.maps[0].origin["weights_sha256"]
    assert one.maps[0].origin["model"] == given.net.spec


def test_parts_of_a_pass_on_two_machines_are_one_pass(tmp_path: Path) -> None:
    from dataclasses import replace

    given = Given(tmp_path)
    parts: list[TopK] = [
        convscope.topk(given.net, given.folder, layers=["conv1"], k=2, batch=2, part=(part, 2))
        for part in (0, 1)
    ]
    other = replace(parts[1], origin={**parts[1].origin, "device": "cpu, AVX2"})
    whole = convscope.topk(given.net, given.folder, layers=["conv1"], k=2, batch=2)
    merged = parts[0].merge(other)
    assert np.array_equal(merged.image, whole.image)
    assert "AVX2" in merged.origin["device"]
