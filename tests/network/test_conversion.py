"""Does a network get the numbers that the user's own pipeline gives it?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as v1
from torchvision.models import (
    EfficientNet_B0_Weights,
    MobileNet_V3_Small_Weights,
    ResNet18_Weights,
)
from torchvision.transforms import InterpolationMode, v2

from convscope import load, predict
from convscope.core.errors import UsageError
from convscope.network.conversion import converted
from convscope.network.preprocess import Preprocess
from convscope.pictures.framing import Framing

DATA = Path(__file__).parents[3] / "shared" / "data"
HALF = ([0.5] * 3, [0.25] * 3)


def pictures() -> list[Image.Image]:
    """Photographs where there are any, of several shapes; else smooth noise."""
    found = [
        Image.open(path).convert("RGB") for path in sorted(DATA.glob("flowers/**/*.jpg"))[::40]
    ]
    for place, size in enumerate(((131, 97), (60, 220), (300, 301))):
        rough = np.random.default_rng(place).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        found.append(Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC))
    return found[-8:]


def ours(given: object) -> Preprocess:
    return converted(given)(Preprocess.imagenet().guessed())


def require_same(transform: Callable[[Image.Image], torch.Tensor], found: Preprocess) -> None:
    """Within 2/255 of the range of pixels, but for one number in a thousand."""
    per_pixel = torch.tensor(found.std).reshape(-1, 1, 1) / (255 * found.scale)
    for picture in pictures():
        wanted, got = transform(picture), found.tensor(found.framing(picture))
        assert wanted.shape == got.shape
        off = (wanted - got).abs() * per_pixel
        assert (off > 2 / 255 + 1e-6).float().mean() <= 1e-3
        assert off.max() <= 4 / 255
    assert found.assumed == ()


COMPOSED = {
    "v1": v1.Compose([v1.Resize(56), v1.CenterCrop(48), v1.ToTensor(), v1.Normalize(*HALF)]),
    "no Normalize": v1.Compose([v1.Resize((50, 60)), v1.ToTensor()]),
    "stretched, then cut": v1.Compose(
        [v1.Resize((80, 72)), v1.CenterCrop((64, 48)), v1.ToTensor()]
    ),
    "a crop larger than the picture": v1.Compose(
        [v1.Resize(40), v1.CenterCrop(56), v1.ToTensor(), v1.Normalize(*HALF)]
    ),
    "bicubic": v1.Compose(
        [v1.Resize([70], InterpolationMode.BICUBIC), v1.CenterCrop([64]), v1.ToTensor()]
    ),
    "nearest": v1.Compose([v1.Resize((64, 64), InterpolationMode.NEAREST), v1.ToTensor()]),
    "lanczos": v1.Compose([v1.Resize((64, 64), InterpolationMode.LANCZOS), v1.ToTensor()]),
    "box": v1.Compose([v1.Resize((64, 40), InterpolationMode.BOX), v1.ToTensor()]),
    "hamming": v1.Compose(
        [v1.Resize(64, InterpolationMode.HAMMING), v1.CenterCrop(60), v1.ToTensor()]
    ),
    "PILToTensor": v1.Compose(
        [
            v1.Resize(56),
            v1.CenterCrop(48),
            v1.PILToTensor(),
            v1.ConvertImageDtype(torch.float32),
            v1.Normalize([0.4], [0.3]),
        ]
    ),
    "grey": v1.Compose(
        [v1.Grayscale(), v1.Resize((28, 28)), v1.ToTensor(), v1.Normalize((0.1307,), (0.3081,))]
    ),
    "grey in three channels": v1.Compose(
        [v1.Resize((48, 48)), v1.Grayscale(3), v1.ToTensor(), v1.Normalize(*HALF)]
    ),
    "inside each other": v1.Compose(
        [v1.Compose([v1.Resize(56), v1.CenterCrop(48)]), v1.ToTensor(), v1.Normalize(*HALF)]
    ),
    "twice normalised": v1.Compose(
        [v1.Resize((9, 9)), v1.ToTensor(), v1.Normalize(*HALF), v1.Normalize([0.2] * 3, [3.0] * 3)]
    ),
    "v2": v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(56, antialias=True),
            v2.CenterCrop(48),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*HALF),
        ]
    ),
    "v2 of a picture": v2.Compose(
        [v2.RGB(), v2.Resize((64, 64)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    ),
    "v2 of 0 to 255": v2.Compose(
        [
            v2.Resize((64, 64)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=False),
            v2.Normalize([123.7, 116.3, 103.5], [58.4, 57.1, 57.4]),
        ]
    ),
    "of tensors, by a sequence": nn.Sequential(
        v2.PILToTensor(), v2.Resize(56), v2.CenterCrop(48), v2.ToDtype(torch.float32, scale=True)
    ),
    "resnet18": ResNet18_Weights.DEFAULT.transforms(),
    "efficientnet_b0, bicubic": EfficientNet_B0_Weights.DEFAULT.transforms(),
    "mobilenet_v3": MobileNet_V3_Small_Weights.DEFAULT.transforms(),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_transform_gives_the_numbers_that_it_gives_by_itself(name: str) -> None:
    require_same(COMPOSED[name], ours(COMPOSED[name]))


TO_TENSOR = [v1.ToTensor(), v1.Normalize(*HALF)]
REFUSED = {
    "RandomHorizontalFlip": [v1.Resize((9, 9)), v1.RandomHorizontalFlip(), *TO_TENSOR],
    "RandomResizedCrop": [v2.RandomResizedCrop(9), *TO_TENSOR],
    "ColorJitter": [v1.Resize((9, 9)), v1.ColorJitter(0.1), *TO_TENSOR],
    "Lambda": [v1.Resize((9, 9)), v1.Lambda(lambda x: x), *TO_TENSOR],
    "Pad": [v1.Resize((9, 9)), v1.Pad(3), *TO_TENSOR],
    "FiveCrop": [v1.Resize((9, 9)), v1.FiveCrop(5), *TO_TENSOR],
    "CenterCrop": [v1.CenterCrop(9), *TO_TENSOR],
    "Resize(9)": [v1.Resize(9), *TO_TENSOR],
    "Resize": [v1.Resize((9, 9)), v1.Resize((8, 8)), *TO_TENSOR],
    "Normalize": [v1.Resize((9, 9)), v1.Normalize(*HALF)],
    "ToDtype": [v2.Resize((9, 9)), v2.ToDtype(torch.float32, scale=True)],
    "Compose": [v1.Resize((9, 9)), v1.CenterCrop(8)],
}


@pytest.mark.parametrize("step", REFUSED)
def test_a_step_that_cannot_be_converted_is_named_before_anything_is_built(step: str) -> None:
    with pytest.raises(UsageError) as caught:
        load("torchvision:no-such-network", preprocess=v1.Compose(REFUSED[step]))
    assert caught.value.code == "U234"
    assert caught.value.subject == step
    assert caught.value.next_step


MORE_REFUSED = {
    "max_size": v1.Compose([v1.Resize(9, max_size=12), v1.CenterCrop(9), *TO_TENSOR]),
    "antialias": v2.Compose(
        [v2.ToImage(), v2.Resize((9, 9), antialias=False), v2.ToDtype(torch.float32, scale=True)]
    ),
    "range": v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Resize((9, 9), interpolation=3)]
    ),
    "float16": v2.Compose([v2.Resize((9, 9)), v2.ToImage(), v2.ToDtype(torch.float16, scale=True)]),
    "colours": v1.Compose([v1.Resize((9, 9)), v1.Grayscale(), v1.ToTensor(), v1.Normalize(*HALF)]),
    "of builtins": v1.Compose([v1.Resize((9, 9)), min, v1.ToTensor()]),
}


@pytest.mark.parametrize("word", MORE_REFUSED)
def test_what_would_give_other_numbers_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        ours(MORE_REFUSED[word])
    assert caught.value.code == "U234"


def test_a_transform_that_does_something_else_than_its_name_says_is_found_out() -> None:
    resize = v1.Resize((16, 16))
    resize.forward = lambda picture: picture.resize((16, 16), 0)  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="other numbers than its steps say"):
        ours(v1.Compose([resize, v1.ToTensor()]))


def test_predict_says_what_the_users_own_code_says(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(8, 3)).eval()
    nn.init.normal_(model[-1].weight, std=20)
    transform, picture = COMPOSED["stretched, then cut"], pictures()[0]
    picture.save(tmp_path / "a.png")
    with torch.no_grad():
        wanted = model(transform(picture)[None]).softmax(1)[0]
    network = load(model, preprocess=transform, classes=["a", "b", "c"])
    got = predict(network, tmp_path / "a.png")
    assert dict(zip(got.names, got.probability.tolist(), strict=True)) == pytest.approx(
        dict(zip("abc", wanted.tolist(), strict=True)), abs=0.01
    )
    assert network.notes == ("preprocessing as it was given",)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_config_of_timm_is_as_the_transform_that_timm_makes_of_it(
    crop_mode: str, interpolation: str
) -> None:
    config = {
        "input_size": (3, 160, 160),
        "interpolation": interpolation,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "crop_pct": 0.9,
        "crop_mode": crop_mode,
    }
    made = timm.data.create_transform(**config)
    require_same(made, ours(config))
    require_same(made, ours(made))
    require_same(made, ours({"architecture": "x", "pretrained_cfg": config}))


def test_what_timm_says_of_a_model_is_taken() -> None:
    model = timm.create_model("resnet10t")
    config = timm.data.resolve_model_data_config(model)
    require_same(timm.data.create_transform(**config), ours(config))
    assert ours(model.pretrained_cfg).size == config["input_size"][1:]


def test_framings_of_timm_that_we_do_not_have_are_refused() -> None:
    config = {"input_size": (3, 96, 128), "mean": (0,) * 3, "std": (1,) * 3, "crop_pct": 1.0}
    with pytest.raises(UsageError, match="96 × 128"):
        ours(config)
    with pytest.raises(UsageError, match="'border'"):
        ours(config | {"input_size": (3, 96, 96), "crop_mode": "border"})


def processed(config: dict, picture: Image.Image) -> torch.Tensor:
    """What the documentation of Hugging Face's processors says they do, by Pillow and NumPy."""
    width, height = picture.size
    size, cut = config["size"], config.get("crop_size")
    if "shortest_edge" in size:
        short = size["shortest_edge"]
        wide = (short, int(short * height / width)) if width <= height else None
        picture = picture.resize(wide or (int(short * width / height), short), config["resample"])
    else:
        picture = picture.resize((size["width"], size["height"]), config["resample"])
    if config.get("do_center_crop"):
        left, top = (picture.width - cut["width"]) / 2, (picture.height - cut["height"]) / 2
        box = (round(left), round(top))
        picture = picture.crop((*box, box[0] + cut["width"], box[1] + cut["height"]))
    values = np.asarray(picture, np.float32) * config["rescale_factor"]
    if config["do_normalize"]:
        values = (values - config["image_mean"]) / config["image_std"]
    return torch.from_numpy(values.transpose(2, 0, 1).astype(np.float32))


VIT = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 64, "width": 80},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
CLIP = {
    **VIT,
    "image_processor_type": "CLIPImageProcessorFast",
    "size": {"shortest_edge": 70},
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "resample": 3,
    "do_convert_rgb": True,
}


@pytest.mark.parametrize("config", [VIT, CLIP, {**VIT, "do_normalize": False}])
def test_a_processor_of_hugging_face_is_converted(config: dict) -> None:
    require_same(lambda picture: processed(config, picture), ours(config))


def test_a_processor_itself_and_its_file_are_taken(tmp_path: Path) -> None:
    class Processor:
        def to_dict(self) -> dict:
            return CLIP

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP))
    assert ours(Processor()) == ours(CLIP) == ours(tmp_path / "preprocessor_config.json")


def test_convnexts_processor_cuts_by_its_share_and_stretches_from_384() -> None:
    config = {**VIT, "image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875}
    assert ours({**config, "size": {"shortest_edge": 224}}).framing == Framing(256, (224, 224))
    assert ours({**config, "size": {"shortest_edge": 384}}).framing == Framing(None, (384, 384))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"image_processor_type": "LevitImageProcessor"}, "Levit"),
        ({"size": {"shortest_edge": 64}}, "shortest_edge"),
        ({"size": 64, "do_center_crop": True}, "size 64"),
        ({"resample": 99}, "not understood"),
        ({"do_resize": False}, "do_resize"),
        ({"size": "big"}, "not understood"),
        ({"image_mean": None}, "not understood"),
    ],
)
def test_what_a_processor_does_beyond_that_is_refused(change: dict, word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        ours({**VIT, **change})
    assert caught.value.code == "U234"


def test_a_transform_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_transforms.py").write_text(
        "from torchvision import transforms as T\n"
        "ready = T.Compose([T.Resize((32, 48)), T.ToTensor()])\n"
        "def make():\n    return ready\n"
    )
    monkeypatch.chdir(tmp_path)
    assert ours("my_transforms:ready").size == (32, 48)
    assert ours("my_transforms:make") == ours("my_transforms:ready")


@pytest.mark.parametrize("name", ["nowhere.json", "transform", "damaged.json", "list.json"])
def test_a_name_of_nothing_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.json").write_text("{" * 10)
    Path("list.json").write_text("[1]")
    with pytest.raises(UsageError) as caught:
        load("zfnet", preprocess=name)
    assert caught.value.code == "U234"
