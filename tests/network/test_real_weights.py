"""Does a network with real weights recognise real photographs as often as it should?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image

from convscope.network.load import Network, load

DATA = Path(__file__).parents[3] / "shared" / "data"
SAMPLES = DATA / "imagenet-samples"
WEIGHTS = DATA / "squeezenet1_0_imagenet.safetensors"
BATCH = 26

pytestmark = pytest.mark.skipif(
    not WEIGHTS.exists() or not SAMPLES.exists(), reason=f"no real weights and pictures in {DATA}"
)


def network() -> Network:
    return load("torchvision:squeezenet1_0", checkpoint=WEIGHTS)


def samples() -> list[tuple[Path, int]]:
    index = json.loads((SAMPLES / "class_index.json").read_text())
    return [(SAMPLES / name, index[name]) for name in sorted(index)]


def picture(path: Path) -> Image.Image:
    with Image.open(path) as file:
        return file.convert("RGB")


def logits(found: Network, paths: list[Path]) -> torch.Tensor:
    pixels = [found.preprocess.framing(picture(path)) for path in paths]
    with torch.inference_mode():
        return found.model(found.preprocess.batch(pixels))


def test_it_comes_with_its_pictures_names_and_hash() -> None:
    found = network()
    described = found.preprocess.describe()
    assert described.startswith("assumed: shorter side to 256 (bilinear), centre 224")
    assert found.classes[104] == "wallaby"
    assert found.sha256.startswith("f5eb75720b5e57e7")
    told = "class names taken from torchvision's IMAGENET1K_V1"  # the file is none of its own
    assert found.notes == (told, found.preprocess.assumption())


def test_its_answers_are_torchvisions_own() -> None:
    peer = torchvision.models.squeezenet1_0().eval()
    peer.load_state_dict(safetensors.torch.load_file(WEIGHTS))
    ready = torchvision.models.SqueezeNet1_0_Weights.IMAGENET1K_V1.transforms()
    paths = [path for path, _ in samples()[:BATCH]]
    with torch.inference_mode():
        theirs = peer(torch.stack([ready(picture(path)) for path in paths]))
    ours = logits(network(), paths)
    assert torch.equal(ours.argmax(1), theirs.argmax(1))
    assert (ours - theirs).abs().max() < 0.01  # of logits up to 50


@pytest.mark.slow
def test_it_names_430_of_the_702_samples_first_and_579_among_five() -> None:
    found = network()
    pairs = samples()
    assert len(pairs) == 702
    first = among = 0
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        best = logits(found, [path for path, _ in some]).topk(5, dim=1).indices
        right = best == torch.tensor([label for _, label in some])[:, None]
        first += int(right[:, 0].sum())
        among += int(right.sum())
    assert (first, among) == (430, 579)  # 61.3 % and 82.5 %, as the data's own README says
