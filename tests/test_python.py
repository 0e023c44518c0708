"""Does every public function take what people have at hand, and refuse the rest in one line?"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import convscope
from convscope.core.errors import ConvscopeError, UsageError, shown
from convscope.core.units import Unit
from convscope.network.network import Network
from convscope.network.preprocess import Preprocess
from convscope.pictures.opening import picture_of
from convscope.studies.explain.study import QUICK
from convscope.studies.registry import studies as all_studies

SIDE = 32


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 4, 5, stride=2)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        return self.fc(maps.mean((2, 3)))


CLASSES = ["Daisy", "Rose", "Tulip"]


@pytest.fixture(scope="module")
def network() -> Network:
    preprocess = Preprocess.imagenet(40, SIDE)
    return convscope.load(Small().eval(), preprocess=preprocess, classes=CLASSES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(1)
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (50, 70, 3), np.uint8)).save(folder / name)
    return folder


METHODS = [
    *("ablationcam", "eigencam", "eigengradcam", "fullgrad", "gradcam", "gradcam_plus_plus"),
    *("layercam", "scorecam", "xgradcam", "deconvnet_class", "gradient_x_input"),
    *("guided_backprop", "guided_gradcam", "integrated_gradients", "saliency", "smoothgrad"),
]
CALLS: dict[str, Callable[..., Any]] = {
    **{name: getattr(convscope, name) for name in METHODS},
    "deconvnet": lambda n, p, **how: convscope.deconvnet(n, p, "conv2:1", **how),
    "occlusion": lambda n, p, **how: convscope.occlusion(n, p, **{"patch": 16, "stride": 8} | how),
    "predict": convscope.predict,
    "explain": lambda n, p, **how: convscope.explain(n, p, "gradcam", **{"checks": QUICK} | how),
    "check": lambda n, p, **how: convscope.check(n, p, **{"seconds": 0.0} | how),
    "invert": lambda n, p, **how: convscope.invert(n, p, **{"layer": "conv2", "steps": 2} | how),
    "deep_dream": lambda n, p, **how: convscope.deep_dream(
        n, p, **{"layer": "conv1", "steps": 1, "octaves": 1} | how
    ),
    "topk": lambda n, p, **how: convscope.topk(n, p, ["conv2"], **{"k": 1} | how),
    "embedding": lambda n, p, **how: convscope.embedding(n, p, ["conv2"], **how),
    "features": lambda n, p, **how: convscope.features(n, p, ["conv2"], **{"k": 1} | how)[0],
    "filters": convscope.filters,
    "chosen_features": lambda n, p, **how: convscope.chosen_features(
        n, p, ["conv2"], **{"k": 1, "count": 1} | how
    ),
    "occlusion_study": lambda n, p, **how: convscope.occlusion_study(
        n, p, **{"layer": "conv2", "patch": 16, "stride": 16} | how
    ),
    "similar": lambda n, p, **how: convscope.similar(n, p, p, "conv2", **{"k": 1} | how),
    "faithfulness": lambda n, p, **how: convscope.faithfulness(
        n, p, convscope.gradcam(n, p), **{"steps": 2, "random": 1} | how
    ),
    "randomisation": lambda n, p, **how: convscope.randomisation(
        n, p, {"gradcam": convscope.gradcam}, **{"steps": 1} | how
    ),
    "sensitivity": lambda n, p, **how: convscope.sensitivity(n, p, convscope.gradcam, **how),
}
FOLDERS = {
    "topk",
    "embedding",
    "features",
    "filters",
    "chosen_features",
    "occlusion_study",
    "similar",
}


def numbers(found: Any) -> list[np.ndarray]:
    """All that a result says, without where it came from."""
    if isinstance(found, np.ndarray):
        return [] if found.dtype == np.uint8 else [found]  # these may be hashes of files
    if isinstance(found, float):
        return [np.array(found)]
    if isinstance(found, list | tuple):
        return [array for one in found for array in numbers(one)]
    if isinstance(found, dict):
        return [array for one in found.values() for array in numbers(one)]
    values = vars(found) if hasattr(found, "__dict__") else {}
    plain = {k: v for k, v in values.items() if k not in ("origin", "content", "facts", "findings")}
    return [array for one in plain.values() for array in numbers(one)]


def loaded(path: Path) -> Image.Image:
    image = Image.open(path)
    image.load()
    return image


def forms(network: Network, path: Path) -> dict[str, Any]:
    """The same picture as people have it."""
    pixels = np.asarray(loaded(path))
    framed = convscope.one_picture(path, network.preprocess.framing)
    return {
        "path": path,
        "text": str(path),
        "Pillow": loaded(path),
        "array": pixels,
        "share": pixels.astype(np.float64) / 255,
        "Picture": convscope.one_picture(path),
        "framed": framed,
        "tensor": network.preprocess.tensor(framed.pixels),
        "list": [loaded(path)],
    }


@pytest.mark.parametrize("name", CALLS)
def test_a_picture_is_the_same_in_every_form(name: str, network: Network, place: Path) -> None:
    told = {}
    for form, given in forms(network, place / "a" / "0.png").items():
        if name == "explain" and form == "list":
            continue  # of a list it gives findings over pictures
        told[form] = numbers(CALLS[name](network, given))
    wanted = told.pop("path")
    assert wanted or name == "check"
    for form, found in told.items():
        assert len(found) == len(wanted), form
        for one, other in zip(found, wanted, strict=True):
            if one.dtype.kind in "fiu" and one.shape == other.shape:
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=form)


def test_of_several_there_are_several(network: Network, place: Path) -> None:
    for given in (
        place,
        [place / "a" / "0.png", loaded(place / "a" / "1.png"), place / "b" / "2.png"],
    ):
        maps = convscope.gradcam(network, given)
        assert len(maps) == 3
        assert [one.names for one in convscope.predict(network, given)] == [
            convscope.predict(network, path).names for path in sorted(place.glob("*/*"))
        ]
        assert convscope.topk(network, given, "conv1", k=3).seen == 3


def test_a_layer_may_be_the_module_or_a_list(network: Network, place: Path) -> None:
    path, conv = place / "a" / "0.png", network.model.conv2
    for one in (conv, "conv2"):
        (found,) = convscope.gradcam(network, path, one)
        assert found.layer == "conv2"
    both = convscope.gradcam(network, path, [network.model.conv1, "conv2"])[0]
    assert both.layer == "conv1 + conv2"
    assert convscope.topk(network, place, [conv]).layers == ("conv2",)
    assert list(convscope.embedding(network, place, conv)) == ["conv2"]
    with convscope.Lens(network, [conv]) as lens:
        lens(torch.zeros(1, 3, SIDE, SIDE))
        assert lens[conv].shape[1] == 6
    for wrong in (Small().conv1, network.model):
        with pytest.raises(ConvscopeError, match=r"no layer of this|the network itself"):
            convscope.gradcam(network, path, wrong)


def test_where_one_layer_is_wanted_the_module_and_a_list_of_one_will_do(
    network: Network, place: Path
) -> None:
    path, conv = place / "a" / "0.png", network.model.conv2
    for one in (conv, [conv], ["conv2"], ("conv2",)):
        assert CALLS["occlusion"](network, path, layer=one).layer == "conv2"
        assert CALLS["invert"](network, path, layer=one).subject == "conv2"
        assert CALLS["deep_dream"](network, path, layer=one).subject == "conv2"
        assert convscope.similar(network, place, layer=one, k=1).layer == "conv2"
        assert list(convscope.fields(network.model, (3, SIDE, SIDE), one)) == ["conv2"]
    for name in ("occlusion", "invert", "deep_dream"):
        with pytest.raises(UsageError, match="2 layers, where one is taken"):
            CALLS[name](network, path, layer=["conv1", "conv2"])
    for name in ("invert", "deep_dream"):
        with pytest.raises(UsageError, match="None is no layer"):
            CALLS[name](network, path, layer=None)
    for layers, size in ((5, (3, 32, 32)), ([None], (3, 32, 32)), (None, 32), (None, None)):
        with pytest.raises(UsageError):
            convscope.fields(network.model, size, layers)  # type: ignore[arg-type]


def test_a_unit_may_name_the_module(network: Network, place: Path, tmp_path: Path) -> None:
    path, conv = place / "a" / "0.png", network.model.conv1
    (found,) = convscope.deconvnet(network, path, Unit(conv, 1))
    (named,) = convscope.deconvnet(network, path, "conv1:1")
    assert found.unit == named.unit
    assert np.array_equal(found.pixels, named.pixels)
    found.save(tmp_path / "record")
    made = convscope.activation_maximisation(network, Unit(conv, 1), steps=1)
    assert made.subject == "conv1:1"
    with pytest.raises(ConvscopeError, match="no layer of this network"):
        convscope.deconvnet(network, path, Unit(Small().conv1, 1))


@pytest.mark.parametrize(
    "wrong",
    [(3, 1), (None, 1), ("c", "1"), ("c", None), ("c", True), ("c", 1, 5), ("c", 1, (1,))],
)
def test_what_is_no_unit_is_one_line(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        Unit(*wrong)
    assert caught.value.code == "U201"
    assert "\n" not in str(caught.value)


def test_in_the_place_of_a_unit(network: Network, place: Path) -> None:
    conv = network.model.conv2
    for wrong in (None, [None], 3, conv, [conv], torch.zeros(3, 50, 50), {"conv1": 1}, "conv1"):
        with pytest.raises(UsageError, match=r"unit") as caught:
            convscope.deconvnet(network, place / "a" / "0.png", wrong)
        assert len(str(caught.value)) < 200
        with pytest.raises(UsageError, match=r"unit"):
            convscope.activation_maximisation(network, wrong)


def test_messages_show_no_whole_tensor_and_no_long_text() -> None:
    assert shown("conv5") == "'conv5'"
    assert shown(torch.zeros(50, 50)) == "a Tensor"
    assert len(shown("y" * 300)) < 60
    assert len(str(UsageError("U201", "y" * 3000, "is no unit"))) < 200


def test_methods_are_names_or_functions(network: Network, place: Path) -> None:
    path = place / "a" / "0.png"

    def mine(model: Any, images: Tensor, target: int | None = None) -> Tensor:
        return images.sum(1)

    cases: list[tuple[Any, tuple[str, ...]]] = [
        ("guided_backprop", ("guided-backprop",)),
        (["grad-cam", "GradCAM", convscope.gradcam], ("gradcam",)),
        (["gradcam_plus_plus", "Grad-CAM++"], ("gradcam++",)),
        (
            [mine, convscope.saliency, lambda m, x: x.sum(1), lambda m, x: x.sum(1)],
            ("mine", "saliency", "<lambda>", "<lambda>'"),
        ),
        (mine, ("mine",)),
        ({"a": "saliency"}, ("a",)),
    ]
    for given, wanted in cases:
        assert convscope.explain(network, path, given, checks=QUICK).methods == wanted
    both: Any = ["saliency", convscope.gradcam]
    assert list(convscope.randomisation(network, path, both, steps=1)) == ["saliency", "gradcam"]
    named = convscope.sensitivity(network, path, "saliency")  # type: ignore[arg-type]
    assert named.spearman == convscope.sensitivity(network, path, convscope.saliency).spearman


def test_boxes_are_boxes_or_a_file_of_them(network: Network, place: Path, tmp_path: Path) -> None:
    path, file, box = place / "a" / "0.png", tmp_path / "b.json", convscope.Box(9, 8, 30, 40)
    file.write_text('{"0.png": [[8, 9, 40, 30]]}')
    found = [
        convscope.explain(network, path, "gradcam", boxes=given, checks=QUICK).boxes
        for given in ([box], file, str(file), {"0.png": [box]}, box)
    ]
    assert len(found[0]) == 1
    assert set(found) == {found[0]}


def wrong_calls(n: Network, path: Path, place: Path, out: Path) -> dict[str, Any]:
    """What a newcomer writes that cannot be meant."""
    c: Any = convscope
    a, map_, tensor = np.random.rand(32, 32), c.gradcam(n, path)[0], torch.rand(99, 99)
    calls: dict[str, Any] = {
        "array": lambda: c.one_picture(np.zeros((9, 9, 3), np.uint8)),
        "Pillow": lambda: c.one_picture(loaded(path)),
        "boxes of another": lambda: c.explain(n, path, "gradcam", boxes={"other.png": []}),
        "boxes by no name": lambda: c.explain(n, place, "gradcam", boxes=[c.Box(1, 1, 5, 5)]),
        "method": lambda: c.sensitivity(n, path, "nope"),
        "function": lambda: CALLS["occlusion"](n, path, target=lambda s: s[:, 1]),
        "list of maps": lambda: c.agreement([map_]),
        "cells": lambda: c.agreement({"a": map_}, cells="3"),
        "margin": lambda: c.pointing(a, [c.Box(0, 0, 9, 9)], margin="1"),
        "neurons as numbers": lambda: list(c.projections(n, path, {"conv1": [5]})),
        "studies": lambda: c.atlas(n, place, ["conv1"], out=out, studies=5),
        "checkpoint": lambda: c.load("zfnet", checkpoint="\0bad"),
        "network": lambda: c.load("x" * 300),
        "classes": lambda: c.load("zfnet", classes="x" * 300),
        "pair": lambda: c.sensitivity(n, path, c.saliency, pair=tensor),
        "checks": lambda: c.explain(n, path, checks=tensor),
        "patch": lambda: c.occlusion(n, path, patch=tensor),
        "size": lambda: c.layers(n, tensor),
        "names": lambda: c.load(Small(), classes=tensor),
    }
    of: dict[str, Any] = {
        "folder": c.Pictures,
        "one picture": c.one_picture,
        "methods": lambda w: c.explain(n, path, 5 if w is None else w),
        "table of methods": lambda w: c.explain(n, path, {"mine": w}),
        "sensitivity": lambda w: c.sensitivity(n, path, w),
        "randomisation": lambda w: c.randomisation(n, path, w, steps=1),
        "neurons": lambda w: list(c.projections(n, path, w)),
        "maps": lambda w: c.faithfulness(n, path, w),
        "parts": lambda w: c.correspondence(n, place, w),
        "agreement": c.agreement,
    }
    boxed = {
        "boxes": lambda w: c.explain(n, path, "gradcam", boxes=w),
        "energy": lambda w: c.energy_inside(a, w),
    }
    paths: dict[str, Any] = {
        "record": c.Attribution.load,
        "save": map_.save,
        "out": lambda w: c.atlas(n, place, ["conv1"], out=w),
    }
    named = {
        **{f: partial(getattr(c, f), n) for f in ("gradcam", "predict", "explain", "topk")},
        **{f: getattr(c, f) for f in ("Pictures", "one_picture", "open_pictures")},
        "list": lambda w: c.gradcam(n, [w]),
    }
    for kind, wrongs, table in (
        ("type", (None, 5, [5], tensor), {**of, **paths}),
        ("box", (5, [5], (1, 2, 3, 4), [(1, 2, 3, 4)]), boxed),
        ("name", ("x" * 300, "a\0b"), {**named, **paths}),
    ):
        for number, wrong in enumerate(wrongs):
            calls |= {f"{kind} {number} {f}": partial(one, wrong) for f, one in table.items()}
    return calls


def test_wrong_calls_are_refused_in_one_line(network: Network, place: Path, tmp_path: Path) -> None:
    calls = wrong_calls(network, place / "a" / "0.png", place, tmp_path / "atlas")
    assert len(calls) > 90
    for name, call in calls.items():
        with pytest.raises(ConvscopeError) as caught:
            pytest.fail(f"{name} gave {type(call())}")
        assert "\n" not in str(caught.value), name
        assert len(str(caught.value)) < 450, name
    assert list(tmp_path.iterdir()) == []


class Two(Small):
    """Takes a picture and what is known of it."""

    def forward(self, image: Tensor, meta: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(image) + meta


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, ::2, ::2]


def test_wrappers_refuse_in_one_line() -> None:
    wrap: Any = convscope.wrap
    two, dense, meta, image = Two(), Dense(), torch.ones(1, 3), torch.rand(1, 3, SIDE, SIDE)
    wrong: dict[str, Any] = {
        "did you mean meta": lambda: wrap.inputs(two, {"mta": meta}),
        "did you mean image": lambda: wrap.inputs(two, {"meta": meta}, picture="imge"),
        "needs this input": lambda: wrap.inputs(two, {}),
        "first input": lambda: wrap.inputs(two, {"image": image}),
        "no table of inputs": lambda: wrap.inputs(two, 5),
        "is no network": lambda: wrap.inputs(5, {}),
        "5: is no box": lambda: wrap.detection(dense, 5, 1),
        "'cat' is not a whole": lambda: wrap.detection(dense, (1, 2, 3, 4), "cat"),
        "no preprocessed picture": lambda: wrap.region(dense, 5, 1),
        "is of 20 × 30": lambda: wrap.segmentation(dense, np.ones((20, 30), bool))(image),
    }
    for told, call in wrong.items():
        with pytest.raises(UsageError, match=told) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert wrap.inputs(two, {"meta": meta})(image).shape == (1, 3)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:8] = True
    found = wrap.segmentation(dense, mask)(image)
    torch.testing.assert_close(found, dense(image)[:, :, :4].mean((2, 3)))


def test_names_of_classes_are_targets_and_stand_in_results(network: Network, place: Path) -> None:
    path = place / "a" / "0.png"
    for name in ("gradcam", "saliency", "occlusion", "deconvnet", "faithfulness"):
        one, other = (numbers(CALLS[name](network, path, target=t)) for t in ("Rose", 1))
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    (found,) = convscope.gradcam(network, path, target=1)
    assert found.origin["target"] == "Rose"
    assert "Rose" in convscope.class_image(network, "Rose", steps=1).subject
    with pytest.raises(UsageError, match="did you mean Rose"):
        convscope.occlusion(network, path, target="Ros")


def tensors() -> dict[str, Any]:
    image = torch.rand(3, SIDE, SIDE)
    return {
        "uint8": (image * 255).to(torch.uint8),
        "one channel": image[:1],
        "too small": image[:, :2, :2],
        "flat": image[0],
        "five dimensions": image[None, None],
        "empty batch": torch.zeros(0, 3, SIDE, SIDE),
        "NaN": image * float("nan"),
        "infinite": image / 0,
    }


WRONG: dict[str, Any] = {
    **tensors(),
    "None": None,
    "int": 3,
    "float": 1.5,
    "True": True,
    "bytes": b"picture",
    "dict": {},
    "list of None": [None],
    "list of int": [3, 4],
    "empty list": [],
    "no such file": "nowhere/at/all.png",
    "empty text": "",
    "colours first": np.zeros((3, 20, 20), np.uint8),
    "float array": np.full((20, 20, 3), 7.0),
    "complex": np.zeros((20, 20, 3), complex),
    "flat array": np.zeros(20, np.uint8),
    "object": object(),
    "function": len,
}
MAY_BE_NONE = {"filters", "check"}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_picture_is_refused_in_one_line(name: str, network: Network) -> None:
    for kind, given in WRONG.items():
        if (kind == "None" and name in MAY_BE_NONE) or (
            kind in ("one channel", "too small") and name == "check"
        ):
            continue  # check finds out what a network takes
        with pytest.raises(ConvscopeError) as caught:
            CALLS[name](network, given)
        assert "\n" not in str(caught.value), kind
    found = (
        numbers(CALLS[name](network, torch.rand(1, 3, SIDE, SIDE, dtype=torch.float64)))
        if (name not in FOLDERS | {"explain"})
        else [np.zeros(1)]
    )
    assert all(np.isfinite(one).all() for one in found if one.dtype.kind == "f" and one.ndim > 1)


NOT_NETWORKS: dict[str, Any] = {"None": None, "text": "zfnet", "int": 3, "class": Small, "dict": {}}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_network_is_refused_in_one_line(name: str, place: Path) -> None:
    for given in NOT_NETWORKS.values():
        with pytest.raises(ConvscopeError):
            CALLS[name](given, place / "a" / "0.png")
    with pytest.raises(UsageError, match=r"give load\("):
        CALLS[name](Small(), place / "a" / "0.png")


OPTIONS: dict[str, list[Any]] = {
    "target": [1.5, True, 99, -1, "Rsoe", [0, 1, 2, 0], [1.5], {}, b"Rose"],
    "layer": [3, "nowhere", [], [None], 1.5],
    "layers": [3, "nowhere", [None], 1.5],
    "k": ["1", 1.5, None, 0, True],
    "fill": [None, "black", {}, [1.0, 2.0]],
    "patch": ["8", 0, 1.5, None, (1, 2, 3)],
    "stride": ["8", 0, 1.5, None],
    "run": [3, "bar", None],
    "steps": ["2", 0, 1.5, None],
    "samples": ["2", 0, 1.5, None],
    "random": ["2", 0, None],
    "noise": ["2", -1, None],
    "variant": ["mine", 3, None],
    "rule": ["mine", 3, None],
    "overlap": ["mine", 3, None],
    "other": ["mine", 3, None],
    "vector": ["mine", 3, None],
    "views": ["1", 3, None],
    "top": ["1", None, 1.5],
    "classes": [3, [1, 2], "Rose"],
    "every_class": ["yes", None, 3],
    "whole_map": ["yes", None],
    "road": ["yes", 3],
    "seconds": ["1", None],
    "checks": [3, "quick"],
    "clip": ["1", None, -1.0],
    "side": ["1", 1.5, None],
    "quadrature": ["mine", 3],
    "tuning": [3, "fast"],
    "pair": [3, (1.5, 2), ("a", "b"), (0, 99)],
}


def options(function: Any) -> set[str]:
    """What may be said by name, those of a TypedDict too."""
    parameters = inspect.signature(function).parameters.values()
    names = {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        names |= {"target", "variant", "classes", "run"} if function.__name__ in METHODS else set()
    return names


@pytest.mark.parametrize("name", CALLS)
def test_options_of_wrong_types_are_refused_in_one_line(
    name: str, network: Network, place: Path
) -> None:
    known = options(getattr(convscope, name)) & OPTIONS.keys()
    for option in known - {"layers"} if name not in METHODS else known:
        if (
            name in ("topk", "embedding", "features", "chosen_features", "similar")
            and option == "layer"
        ):
            continue
        for value in OPTIONS[option]:
            with contextlib.suppress(ConvscopeError):
                CALLS[name](network, place / "a" / "0.png", **{option: value})


def test_floats_of_0_to_1_are_pixels_and_others_are_not() -> None:
    values = np.array([[[0.0, 0.5, 1.0]]], np.float32).repeat(9, 0).repeat(9, 1)
    assert picture_of(values).pixels[0, 0].tolist() == [0, 128, 255]
    with pytest.raises(UsageError, match="in floating point from 0 to 1"):
        picture_of(values * 2)


def test_a_picture_framed_in_another_way_is_refused(network: Network, place: Path) -> None:
    other = convscope.one_picture(place / "a" / "0.png", convscope.Framing(None, (20, 20)))
    for name in ("predict", "gradcam", "explain", "topk"):
        with pytest.raises(UsageError, match="was framed already") as caught:
            CALLS[name](network, other)
        assert caught.value.code == "U379"


def test_a_network_is_told_in_at_most_ten_lines(network: Network) -> None:
    lines = repr(network).splitlines()
    assert len(lines) <= 10
    for word in (
        "Small",
        "weights",
        "preprocessing",
        "classes: 3 (Daisy, Rose, Tulip)",
        "2 Conv2d",
    ):
        assert word in repr(network)


def test_one_call_makes_an_atlas(network: Network, place: Path, tmp_path: Path) -> None:
    page = convscope.atlas(network, place, ["conv1"], out=tmp_path / "atlas", k=2)
    assert page == tmp_path / "atlas" / "index.html"
    assert page.is_file()
    table = convscope.layers(network)
    assert table.name[0] == "conv1"
    assert table.input == (3, SIDE, SIDE)
    assert convscope.layers(Small(), 48).input == (3, 48, 48)
    with pytest.raises(ConvscopeError):
        convscope.layers(Small())


def test_an_atlas_decodes_each_picture_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[int] = Counter()
    use = convscope.Pictures._use

    def counted(folder: convscope.Pictures, number: int, *more: Any) -> None:
        decoded[number] += 1
        use(folder, number, *more)

    monkeypatch.setattr(convscope.Pictures, "_use", counted)
    preprocess = Preprocess.imagenet(40, SIDE)
    net = convscope.load(Small().eval(), preprocess=preprocess, classes=["a", "b", "c"])
    with convscope.Pictures(place) as folder:
        page = convscope.atlas(net, folder, out=tmp_path / "atlas", k=2, rule="both")
        assert decoded == dict.fromkeys(range(len(folder)), 1)
    assert '"top1": -1' not in (page.parent / "data" / "atlas.js").read_text()  # judged, too


class FallsLate(Small):
    """Its maps are fine; its scores of pictures are infinite."""

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        scores = self.fc(maps.mean((2, 3)))
        return scores / (x.abs().sum() == 0)  # finite of blank pictures alone


def test_an_accuracy_that_cannot_be_measured_does_not_cost_the_atlas(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocess = Preprocess.imagenet(40, SIDE)
    net = convscope.load(FallsLate().eval(), preprocess=preprocess, classes=["a", "b", "c"])
    page = convscope.atlas(net, place, "conv1", out=tmp_path / "atlas", k=1)
    assert page.is_file()
    assert "accuracy left out: the network's scores" in capsys.readouterr().err


def test_an_option_that_is_not_there_is_refused_with_the_nearest(
    network: Network, place: Path
) -> None:
    picture = place / "a/0.png"
    for name in convscope.attribution.METHODS:
        with pytest.raises(UsageError, match="has no option 'targt'; did you mean target") as told:
            convscope.attribute(network, picture, name, targt=1)
        assert told.value.code == "U381"
    with pytest.raises(UsageError, match=r"^gradcam: has no option 'layr'; did you mean layer"):
        convscope.attribute(network, picture, "gradcam", layr="conv2")
    for inner in ("notes", "spaces", "facts", "scores"):
        with pytest.raises(UsageError, match=f"gradcam: has no option '{inner}'"):
            convscope.attribute(network, picture, "gradcam", **{inner: {0: ["made up"]}})

    def own(model: nn.Module, images: Tensor, *, sharpness: float = 1.0) -> Tensor:
        return images * sharpness

    assert convscope.attribute(network, picture, own, sharpness=2.0, target=1)
    with pytest.raises(UsageError, match=r"^own: has no option 'sharpnes'; did you mean sharpness"):
        convscope.attribute(network, picture, own, sharpnes=2.0)
    with pytest.raises(
        UsageError, match=r"^invariance: has no option 'bordr'; did you mean border"
    ):
        convscope.study("invariance", network, place, bordr="edge")
    with pytest.raises(UsageError, match="has no option 'step'; did you mean steps"):
        convscope.visualise(network, "conv2:1", step=2)


@pytest.mark.parametrize("name", [one for one in convscope.__all__ if one.islower()])
def test_every_function_of_the_front_door_refuses_a_made_up_option(
    network: Network, place: Path, name: str
) -> None:
    function = getattr(convscope, name)
    if inspect.isfunction(function) and name not in ("open", "one_picture"):
        given = ("invariance", network, place) if name == "study" else (network, place)
        plain = rf"{function.__name__}\(\) got an unexpected keyword argument 'made_up'"
        with pytest.raises((UsageError, TypeError), match=f"has no option 'made_up'|{plain}"):
            function(*given[: 1 if name == "load" else 3], made_up=1)


@pytest.mark.parametrize("name", [one.folder for one in all_studies() if one.folder != "ablation"])
def test_every_study_refuses_a_made_up_option(network: Network, place: Path, name: str) -> None:
    with pytest.raises(UsageError, match="has no option 'made_up'") as told:
        convscope.study(name, network, place, made_up=1)
    assert told.value.code == "U381"


def test_visualise_says_what_it_cannot_draw(network: Network, place: Path) -> None:
    picture = place / "a/0.png"
    cases: list[tuple[Any, dict[str, Any], str, str]] = [
        ("conv2:1", {"method": "dreem"}, "U365", "dreem: no such method; did you mean dream"),
        ("conv2:1", {"method": "dream"}, "U365", "dream: starts from a photograph.* image="),
        ("conv2", {"method": 3, "image": picture}, "U365", "3: no such method"),
        (None, {}, "U380", "None is no unit and no class"),
        ("conv2", {}, "U201", "conv2: is a whole layer.*write conv2:0"),
        (network.model.conv2, {}, "U201", "conv2: is a whole layer.*write conv2:0"),
        ("Tulp", {}, "U352", "did you mean Tulip"),
    ]
    for subject, how, code, words in cases:
        with pytest.raises(UsageError, match=words) as told:
            convscope.visualise(network, subject, **how)
        assert told.value.code == code
    assert convscope.visualise(network, "Tulip", steps=1, size=(SIDE, SIDE)).subject == "Tulip"


def test_names_of_methods_and_studies(network: Network, place: Path) -> None:
    picture = place / "a/0.png"
    with pytest.raises(UsageError, match=r"all: is no single method.*explain"):
        convscope.attribute(network, picture, "all")
    with pytest.raises(UsageError, match="3 is no study's name"):
        convscope.study(3, network, place)  # type: ignore[arg-type]
    result = convscope.explain(network, picture, "gradcam, layercam", checks=QUICK)
    assert result.methods == ("gradcam", "layercam")
    assert "array(" not in repr(result)
    assert len(repr(result)) < 800
