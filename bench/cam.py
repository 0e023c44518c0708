"""The CAM family against pytorch-grad-cam: the same maps, method by method, in one process.

    python bench/cam.py                                    all networks, all methods, minutes
    python bench/cam.py --networks squeezenet --methods gradcam ablationcam --rounds 3

Real SqueezeNet weights and a real picture from `../shared/data` where they are, else random ones.
For each line: both times, their ratio with its range, and the largest difference between the two
maps as a share of the maximum. Ours is `variant="pytorch-grad-cam"`, as only the same maps can be
compared; the authors' variants cost the same. What the library would take more than `--limit`
seconds for (Ablation- and Score-CAM run a network once a map) is run on that share of the maps
that fits, and its time scaled up: marked "est.".
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.models as zoo
from quiet import Samples, interleaved, ratio
from rows import Report, options, report, row
from torch import Tensor, nn

from convscope.attribution.formulas import METHODS

PGC = "pytorch-grad-cam"
DATA = Path(__file__).parents[2] / "shared" / "data"
PEERS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "fullgrad": "FullGrad",
    "ablationcam": "AblationCAM",
    "scorecam": "ScoreCAM",
}
GOALS = dict.fromkeys(PEERS, (2.5, 4.0)) | {"ablationcam": (200.0, 1000.0), "scorecam": (2.5, 4.0)}
ONCE_A_MAP = {"ablationcam", "scorecam"}
LAYERS = {"squeezenet": "features.12", "vgg16": "features.30", "resnet50": "layer4.2"}
MODELS = {"squeezenet": "squeezenet1_0", "vgg16": "vgg16", "resnet50": "resnet50"}


@dataclass(frozen=True)
class Work:
    net: nn.Module
    image: Tensor
    layer: str
    maps: int
    forward: float
    """Seconds for one picture."""


def network(name: str) -> nn.Module:
    """With He initialisation, as torchvision's own; SqueezeNet's real weights where they are."""
    torch.manual_seed(0)
    net = getattr(zoo, MODELS[name])(weights=None).eval()
    weights = DATA / "squeezenet1_0_imagenet.safetensors"
    if name == "squeezenet" and weights.exists():
        from safetensors.torch import load_file

        net.load_state_dict(load_file(weights))
    return net


def picture() -> Tensor:
    from skimage import data, transform

    cat = transform.resize(data.cat(), (224, 224), anti_aliasing=True)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy((cat - mean) / std).float().permute(2, 0, 1)[None].contiguous()


def work(name: str) -> Work:
    net, image = network(name), picture()
    seen: list[Tensor] = []
    layer = net.get_submodule(LAYERS[name])
    handle = layer.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        net(image)
        begin = time.perf_counter()
        net(image)
        seconds = time.perf_counter() - begin
    handle.remove()
    return Work(net, image, LAYERS[name], seen[0].shape[1], seconds)


def ours(job: Work, method: str) -> Callable[[], np.ndarray]:
    how = {} if method == "fullgrad" else {"layer": job.layer}
    return lambda: METHODS[method](job.net, job.image, variant=PGC, **how)[0].values


def theirs(job: Work, method: str) -> Callable[[], np.ndarray]:
    import pytorch_grad_cam

    kind = getattr(pytorch_grad_cam, PEERS[method])
    layers = [] if method == "fullgrad" else [job.net.get_submodule(job.layer)]

    def run() -> np.ndarray:
        with kind(job.net, layers) as cam:
            return np.asarray(cam(job.image.clone(), targets=None))[0]

    return run


def partly(job: Work, method: str, limit: float) -> tuple[Callable[[], Any], float]:
    """The library's inner loop (batches of 32 or 16 runs) for as many maps as the limit allows,
    and by how much the time is to be multiplied."""
    batch = 32 if method == "ablationcam" else 16
    batches = max(1, int(limit / (job.forward * batch)))
    images = job.image.repeat(batch, 1, 1, 1)

    def run() -> None:
        with torch.no_grad():
            for _ in range(batches):
                job.net(images)

    return run, job.maps / (batches * batch)


def measure(out: Report, name: str, method: str, limit: float) -> str:
    job = work(name)
    mine, peer, factor, difference = ours(job, method), theirs(job, method), 1.0, float("nan")
    if method in ONCE_A_MAP and job.forward * job.maps > limit:
        peer, factor = partly(job, method, limit)
    else:
        one, other = mine(), peer()
        # Where the library leaves a sign to chance, the inverted map is the same map.
        difference = float(np.abs(one - other).max() / np.abs(other).max())
    samples = interleaved({"ours": mine, "peer": peer}, out.rounds, patience=out.patience)
    scaled = Samples([s * factor for s in samples["peer"].seconds], samples["peer"].thrown)
    scaled.noisy = samples["peer"].noisy
    estimated = " est." if factor != 1 else ""
    note = (
        f"maps differ by {difference:.1e}" if factor == 1 else "the peer is estimated from a part"
    )
    floor, goal = GOALS[method]
    more = {"note": note, "floor": floor, "goal": goal}
    out.rows.append(row(f"{method}, {name}", PGC, samples["ours"], scaled, **more))
    return (
        f"{name:11}{method:13} ours {samples['ours']}  peer {scaled}{estimated}  "
        f"{ratio(samples['ours'], scaled)}  difference {difference:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for one peer's run")
    options(parser)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    out = report(chosen)
    for name in chosen.networks:
        for method in chosen.methods:
            print(measure(out, name, method, chosen.limit), flush=True)
    out.save()


if __name__ == "__main__":
    main()
