"""Mining against the bare forward pass, and against mining as usually written.

    python bench/topk.py                                   SqueezeNet and AlexNet, two minutes
    python bench/topk.py --networks squeezenet --pictures 128 --rounds 3
    python bench/topk.py --memory --many 10                memory of 700 pictures and of 7,000
    python bench/topk.py --kept --pictures 702             with a run folder, against decoding
                                                           and the bare forward pass

All convolutions of a network, the nine strongest pictures of each map. Pictures are decoded before
and lie in memory, so that passes are compared and not decoders; all sides make tensors of them
themselves. "bare forward" is the whole network, once, on the same batches in the same memory
format, with nothing looked at. "hooks" is mining as usually written: hooks that keep each
picture's maxima and their places as arrays, sorted at the end, batches of 16. "zennit-crp" is its
`FeatureVisualization`, which also propagates relevance (`pip install zennit-crp`; left out if it is
not there). "from files" decodes as well, in processes of its own beside the pass.

Real SqueezeNet weights and real pictures from `../shared/data` where they are, else random ones.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision.models as zoo
from cam import DATA, network
from rows import Report, Row, options, peak, report
from torch import Tensor, nn

from convscope.core.run import Run
from convscope.network.preprocess import Preprocess
from convscope.pictures.pictures import Picture, Pictures
from convscope.representations.topk import topk

GOALS = {"bare forward": (0.90, 0.95), "hooks": (2.0, 2.7), "zennit-crp": (12.0, 17.0)}
K = 9
AS_USUAL = 16
"""Pictures of a batch where nobody thought about it."""


class Held:
    """Pictures in memory that behave as Pictures."""

    root, sha256 = Path("held"), "0" * 64

    def __init__(self, pixels: Sequence[np.ndarray]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def digest(self, number: int) -> bytes:
        return (number + 1).to_bytes(8, "big") * 4

    def read(
        self, _: object, numbers: Sequence[int] | None = None, **_how: object
    ) -> Iterator[Picture]:
        for number in range(len(self)) if numbers is None else numbers:
            yield Picture(
                number, str(number), None, self.pixels[number], sha256=self.digest(number)
            )

    batches, require_usable = Pictures.batches, Pictures.require_usable

    def check_bad(self) -> None:
        pass

    def close(self) -> None:
        pass


def photographs(folder: Path) -> Path:
    """Where there are none, smooth noise in a folder of its own."""
    found = DATA / "imagenet-samples"
    if found.exists():
        return found
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(64):
        coarse = Image.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    return folder


def made(name: str) -> nn.Module:
    if name == "alexnet":
        torch.manual_seed(0)
        return zoo.alexnet(weights=None).eval()
    return network(name)


def convolutions(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]


def bare(net: nn.Module, pixels: Sequence[np.ndarray], ready: Preprocess, batch: int) -> None:
    with torch.inference_mode():
        for start in range(0, len(pixels), batch):
            net(ready.batch(pixels[start : start + batch], channels_last=True))


def hooks(net: nn.Module, pixels: Sequence[np.ndarray], ready: Preprocess) -> dict[str, np.ndarray]:
    """Mining as usually written; the numbers of each map's strongest pictures."""
    kept: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            value, place = output.flatten(2).max(2)
            kept.setdefault(name, []).append((value.numpy(), place.numpy()))

        return hook

    handles = [net.get_submodule(n).register_forward_hook(keep(n)) for n in convolutions(net)]
    with torch.no_grad():
        for start in range(0, len(pixels), AS_USUAL):
            net(ready.batch(pixels[start : start + AS_USUAL]))
    for handle in handles:
        handle.remove()
    values = {name: np.concatenate([value for value, _ in parts]) for name, parts in kept.items()}
    return {name: np.argsort(-value, axis=0)[:K] for name, value in values.items()}


def zennit_crp(
    net: nn.Module, pixels: Sequence[np.ndarray], ready: Preprocess
) -> Callable[[], object] | None:
    try:
        from crp.attribution import CondAttribution
        from crp.concepts import ChannelConcept
        from crp.helper import get_layer_names
        from crp.visualization import FeatureVisualization
        from zennit.composites import EpsilonPlusFlat
    except ImportError:
        print("    zennit-crp is not installed, and left out", flush=True)
        return None

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, number: int) -> tuple[Tensor, int]:
            return ready.tensor(pixels[number]), 0

    maps = dict.fromkeys(get_layer_names(net, [nn.Conv2d]), ChannelConcept())

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            attribution = CondAttribution(net)
            seen = FeatureVisualization(attribution, Pictures(), maps, path=folder)
            seen.run(EpsilonPlusFlat(), 0, len(pixels), batch_size=AS_USUAL)

    return run


def measure(out: Report, name: str, root: Path, pictures: int, crp: bool) -> None:
    ready = Preprocess.imagenet()
    with Pictures(root) as folder:
        numbers = [number % len(folder) for number in range(pictures)]
        pixels = [picture.pixels for picture in folder.read(ready.framing, numbers)]
    net, fast = made(name), made(name).to(memory_format=torch.channels_last)
    held, layers = Held(pixels), convolutions(net)
    found = topk(net, held, layers, preprocess=ready, k=K)  # type: ignore[arg-type]  # it behaves as one
    batch = int(found.origin["batch"])
    usual = hooks(net, pixels, ready)
    same = [
        set(found.image[found.rows(n)][c]) == set(usual[n][:, c])
        for n in layers
        for c in range(usual[n].shape[1])
    ]
    note = f"batches of {batch}; the same {K} pictures as hooks in {np.mean(same):.2%} of the maps"
    job = f"mining {name}, {len(layers)} convolutions"
    out.race(
        job,
        lambda: topk(fast, held, layers, preprocess=ready, k=K),  # type: ignore[arg-type]
        {
            "bare forward": lambda: bare(fast, pixels, ready, batch),
            "hooks": lambda: hooks(net, pixels, ready),
        },
        GOALS,
        note=f"{pictures} pictures, {note}",
    )
    with Pictures(root) as folder:
        some = folder.subset(numbers)
        out.race(
            f"{job}, from files",
            lambda: topk(fast, some, layers, preprocess=ready, k=K),
            {"bare forward": lambda: bare(fast, pixels, ready, batch)},
            {},
            note="ours decodes as well, the peer does not",
        )
    few = pixels[: max(AS_USUAL, pictures // 8)]
    theirs = zennit_crp(net, few, ready) if crp else None
    if theirs is not None:
        out.race(
            job,
            lambda: topk(fast, Held(few), layers, preprocess=ready, k=K),  # type: ignore[arg-type]
            {"zennit-crp": theirs},
            GOALS,
            note=f"{len(few)} pictures; the peer also propagates relevance",
            rounds=min(out.rounds, 2),
        )


def kept(out: Report, name: str, root: Path, pictures: int) -> None:
    """All that the engine does beside decoding and the forward pass."""
    ready, fast = Preprocess.imagenet(), made(name).to(memory_format=torch.channels_last)
    with Pictures(root) as whole, tempfile.TemporaryDirectory() as spare:
        folder = whole.subset([number % len(whole) for number in range(pictures)])
        batch = int(topk(fast, folder.subset(range(16)), preprocess=ready, k=K).origin["batch"])
        places = (Path(spare) / str(number) for number in itertools.count())

        def plain() -> None:
            with torch.inference_mode():
                for some in folder.batches(batch, ready.framing, aligned=True):
                    fast(ready.aligned(some, batch).contiguous(memory_format=torch.channels_last))

        out.race(
            f"mining {name}, all convolutions, from files, kept in a run folder",
            lambda: topk(fast, folder, preprocess=ready, k=K, run=Run(folder=next(places))),
            {"decoding and bare forward": plain},
            {"decoding and bare forward": (1 / 1.1, 1.0)},
            note=f"{pictures} pictures, batches of {batch}",
        )


def memory(out: Report, root: Path, many: int) -> None:
    """The same pictures under many names; a small input, as only memory is of interest."""
    ready = Preprocess.imagenet(resize=72, crop=64)
    net = network("squeezenet")
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as spare:
        places = (Path(spare) / str(number) for number in itertools.count())
        for copy in range(many):
            for picture in sorted(root.glob("*.jpg")):
                (Path(name) / f"{copy:04d}-{picture.name}").symlink_to(picture)
        with Pictures(name) as folder:
            once = folder.subset(range(len(folder) // many))
            topk(net, once.subset(range(64)), preprocess=ready, k=K)
            few, more = (
                peak(lambda f=f: topk(net, f, preprocess=ready, k=K, run=Run(folder=next(places))))
                for f in (once, folder)
            )
            job = f"memory of mining {len(folder):,} pictures"
            out.rows.append(
                Row(
                    job,
                    f"{len(once):,} pictures",
                    few / more,
                    few / more,
                    few / more,
                    (more,),
                    (few,),
                    unit="MB",
                    note="one run each; squeezenet at 64 px, the same pictures under many names",
                )
            )
    print(f"{job}: +{more:.1f} MB; of {len(once):,}: +{few:.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=["squeezenet", "alexnet"])
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--without-crp", action="store_true", help="leave zennit-crp out")
    parser.add_argument("--memory", action="store_true", help="only memory, few pictures and many")
    parser.add_argument("--kept", action="store_true", help="only with a run folder, from files")
    parser.add_argument("--many", type=int, default=10, help="times as many pictures")
    options(parser, rounds=3)
    chosen = parser.parse_args()
    out = report(chosen)
    with tempfile.TemporaryDirectory() as spare:
        root = photographs(Path(spare))
        if chosen.memory:
            memory(out, root, chosen.many)
        for name in chosen.networks if chosen.kept else ():
            kept(out, name, root, chosen.pictures)
        for name in () if chosen.memory or chosen.kept else chosen.networks:
            measure(out, name, root, chosen.pictures, not chosen.without_crp)
    out.save()


if __name__ == "__main__":
    main()
