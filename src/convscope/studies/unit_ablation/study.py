"""Which maps matter: how often is the network right when one map of a layer is silent?

The map's output is set to zero, or to its mean, at every place of every picture; nothing is
trained. Only what follows the layer is computed again, see `trace/tail.py`.
Source: the paper asks this of whole layers, retrained (Zeiler and Fergus 2014, §5.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from convscope.core.errors import ModelError, UsageError
from convscope.core.run import PLAIN, Run
from convscope.lens.lens import Lens
from convscope.metrics.faithfulness import sign_test
from convscope.network.arguments import FolderLike, Layers, pictures_of, taking
from convscope.network.network import Network, forward, prepared, whole
from convscope.network.outputs import Targets, meaning, understood
from convscope.network.provenance import recorded
from convscope.pictures.opening import opened
from convscope.pictures.pictures import Picture, Pictures
from convscope.representations.predict import class_names, true_classes
from convscope.scale.rows import RowJob, digest
from convscope.studies.explain.study import class_count
from convscope.studies.unit_ablation.record import Silence
from convscope.trace.layers import ends
from convscope.trace.tail import Mixing, Without, record


@dataclass(frozen=True)
class Answers:
    """One picture, one layer: ln p of the true class, with all maps and without each."""

    base: float
    right: bool
    """Whether the true class is the likeliest, with all maps."""
    maps: Int64[np.ndarray, "n"]
    """Those without which anything changes."""
    without: Float64[np.ndarray, "n"]
    still: Bool[np.ndarray, "n"]
    """Whether the true class is the likeliest, without each."""
    count: int
    """Maps of the layer."""


@dataclass
class Tally:
    """Sums over pictures, map by map."""

    pictures: int = 0
    right: int = 0
    loss: float = 0.0
    probability: float = 0.0
    sums: dict[str, Float64[np.ndarray, "maps"]] = field(default_factory=dict)
    by_class: dict[int, Float64[np.ndarray, "maps"]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, label: int, result: Answers) -> None:
        """label: the picture's true class."""
        if not self.sums:
            names = ("rise", "squares", "probability", "lost", "gained", "changed")
            self.sums = {name: np.zeros(result.count) for name in names}
        self.pictures += 1
        self.counts[label] = self.counts.get(label, 0) + 1
        base, without, still, right = result.base, result.without, result.still, result.right
        self.right += right
        self.loss -= base
        self.probability += np.exp(base)
        parts = {
            "rise": base - without,
            "squares": (base - without) ** 2,
            "probability": np.exp(without) - np.exp(base),
            "lost": ~still & right,
            "gained": still & (not right),
            "changed": np.ones(len(without)),
        }
        for name, values in parts.items():
            self.sums[name][result.maps] += values
        own = self.by_class.setdefault(label, np.zeros(result.count))
        own[result.maps] += parts["rise"]

    def numbers(self) -> dict[str, np.ndarray]:
        """The record's arrays over these maps. The standard error is that of a mean of paired
        differences."""
        many, sums = self.pictures, self.sums
        rise = sums["rise"] / many
        variance = np.maximum(sums["squares"] / many - rise**2, 0) * many / max(1, many - 1)
        lost, gained = (np.asarray(sums[name], np.int64) for name in ("lost", "gained"))
        pairs = zip(lost.tolist(), gained.tolist(), strict=True)
        return {
            "map": np.arange(len(rise)),
            "accuracy": (self.right + gained - lost) / many,
            "lost": lost,
            "gained": gained,
            "p": np.array([sign_test(*pair) for pair in pairs]),
            "rise": rise,
            "noise": np.sqrt(variance / many),
            "probability": (self.probability + sums["probability"]) / many,
            "by_class": np.stack(
                [self.by_class[k] / self.counts[k] for k in sorted(self.counts)], 1
            ),
            "changed": np.asarray(sums["changed"], np.int64),
        }


Fill = Literal["zero", "mean"]
ANY = Targets((None,))
"""Scores, whichever is the likeliest."""


@taking(folder=pictures_of)
@recorded
def silence(
    network: Network,
    folder: FolderLike,
    layers: Layers = None,
    *,
    fill: Fill = "zero",
    labels: Mapping[str, int] | None = None,
    run: Run = PLAIN,
) -> Silence:
    """Accuracy and loss on the folder's pictures without each map of the layers, one at a time.

    layers: convolutions, rectifiers or pools, or fully connected layers, of which every unit is a
    map; by default what the last convolution's layer puts out. Zero is silence for what comes out
    of a rectifier, or goes straight into one. fill: "mean" takes a map's mean over all places of
    all these pictures in its place, so that what it always says is kept. labels: as `evaluate`.
    run: its progress is over pictures; with "mean" twice.

    Raises DataError D160, D161, UsageError U311, U376, U377, U404 (fill), ModelError M500, M502,
    M503, M506 (the layer has no maps), M514 (scores not finite), M520, M522, and as `Lens`.
    """
    network = understood(whole(network))
    meaning(network).require_exclusive("accuracy")
    if fill not in get_args(Fill):
        raise UsageError("U404", f"fill={fill}", "is neither zero nor mean")
    layers = [layers] if isinstance(layers, str) else list(layers or [_last(network)])
    with opened(folder) as pictures:
        truth = true_classes(network, pictures, class_count(network), labels)
        levels = _levels(network, pictures, layers, fill, run)
        tallies = {layer: Tally() for layer in layers}
        for row in SilenceJob(network, levels, truth).rows(pictures, run):
            if row is not None:
                for layer, answers in row.of.items():
                    tallies[layer].add(row.label, answers)
        pictures.require_usable(tallies[layers[0]].pictures)
        return _record(pictures, fill, levels, tallies, class_names(network, class_count(network)))


@dataclass(frozen=True)
class _Row:
    label: int
    of: dict[str, Answers]
    """By layer."""


class SilenceJob(RowJob[_Row | None]):
    """Each picture without every map; None where its class is not known."""

    name, kind = "unit-ablation", _Row | None

    def __init__(
        self,
        network: Network,
        levels: Mapping[str, np.ndarray],
        truth: Int64[np.ndarray, "pictures"],
    ) -> None:
        facts = {
            "layers": {layer: digest(level.tolist()) for layer, level in levels.items()},
            "true classes": digest(truth.tolist()),
        }
        super().__init__({**network.facts, **facts})
        self.framing = network.preprocess.framing
        self.network, self.levels, self.truth = network, levels, truth

    def row(self, picture: Picture) -> _Row | None:
        label, network = int(self.truth[picture.number]), self.network
        if label < 0:
            return None
        image = prepared(network.model, network.preprocess.batch([picture.pixels]))
        levels = self.levels.items()
        of = {layer: _answers(network, image, layer, level) for layer, level in levels}
        for base, _, without, _ in of.values():
            if not (np.isfinite(base).all() and np.isfinite(without).all()):
                what = "the network's scores for it are not finite"
                raise ModelError("M514", picture.name, what)
        return _Row(label, {layer: _of_class(label, *one) for layer, one in of.items()})


def _of_class(
    label: int, base: np.ndarray, maps: np.ndarray, without: np.ndarray, count: int
) -> Answers:
    still, right = without.argmax(1) == label, int(base.argmax()) == label
    return Answers(float(base[label]), right, maps, without[:, label], still, count)


class MeansJob(RowJob[dict[str, Any]]):
    """Each map's mean over the places of each picture, by layer."""

    name = "unit-ablation-means"

    def __init__(self, network: Network, layers: Sequence[str]) -> None:
        super().__init__({**network.facts, "layers": list(layers)})
        self.framing = network.preprocess.framing
        self.network, self.layers = network, layers

    def row(self, picture: Picture) -> dict[str, Any]:
        network = self.network
        image = prepared(network.model, network.preprocess.batch([picture.pixels]))
        with torch.no_grad(), Lens(network.model, self.layers) as lens:
            forward(lens, image)
            maps = {layer: _require_maps(layer, lens[layer])[0].double() for layer in self.layers}
        return {x: one.reshape(len(one), -1).mean(1).cpu().numpy() for x, one in maps.items()}


def _record(
    folder: Pictures,
    fill: Fill,
    levels: Mapping[str, np.ndarray],
    tallies: Mapping[str, Tally],
    names: Sequence[str],
) -> Silence:
    one = next(iter(tallies.values()))
    count = [len(tally.sums["rise"]) for tally in tallies.values()]
    parts = [tally.numbers() for tally in tallies.values()]
    each = [np.broadcast_to(levels[layer], n) for layer, n in zip(tallies, count, strict=True)]
    return Silence(
        layers=tuple(tallies),
        of=np.repeat(np.arange(len(count)), count),
        fill=fill,
        level=np.concatenate(each),
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
        classes=tuple(names[label] for label in sorted(one.counts)),
        counts=np.array([one.counts[label] for label in sorted(one.counts)], np.int64),
        base_accuracy=one.right / one.pictures,
        base_loss=one.loss / one.pictures,
        base_probability=float(one.probability / one.pictures),
        origin={
            "method": "silence",
            "pictures": folder.place,
        },
    )


def _last(network: Network) -> str:
    return ends(network.model, network.preprocess.shape).middle


def _levels(
    network: Network, folder: Pictures, layers: list[str], fill: str, run: Run
) -> dict[str, Float64[np.ndarray, "..."]]:
    """What each layer's maps are set to: zero, or each map's mean over all places."""
    if fill == "zero":
        return dict.fromkeys(layers, np.zeros(()))
    sums: dict[str, Any] = dict.fromkeys(layers, 0.0)
    used = 0
    for row in MeansJob(network, layers).rows(folder, run):
        used += 1
        sums = {layer: total + row[layer] for layer, total in sums.items()}
    return {layer: np.asarray(total / max(1, used)) for layer, total in sums.items()}


def _answers(
    network: Network, image: Float[Tensor, "1 c h w"], layer: str, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Ln p of all classes for one picture, with all maps of the layer; the maps without which
    anything changes, ln p without each of these, and how many maps there are."""

    def scores(output: Any) -> Tensor:
        return ANY.answer(output)

    tail = record(network.model, partial(forward, images=image), layer, scores)
    output = _require_maps(layer, tail.activation.detach())
    rest = torch.as_tensor(level).to(output).expand(output.shape[1])
    rest = rest.reshape(1, -1, *[1] * (output.dim() - 2)).expand_as(output).contiguous()
    places = torch.arange(output.numel(), device=output.device).reshape(output.shape[1], -1)
    mixing = None if tail.obstacle else Mixing.of(tail, rest)

    def whole_network(outputs: Tensor) -> Tensor:
        many = image.expand(len(outputs), *image.shape[1:])
        with torch.no_grad(), Lens(network.model, (), {layer: lambda _: outputs}) as lens:
            return scores(forward(lens, many))

    without = Without(tail, places, rest, mixing, whole_network)
    maps = (output != rest).reshape(len(places), -1).any(1).nonzero()[:, 0]
    result = [_ln(network, without.scores(part)) for part in without.parts(maps)]
    base = _ln(network, tail.score)
    joined = np.concatenate(result) if result else np.zeros((0, base.shape[1]))
    return base[0], maps.cpu().numpy(), joined, output.shape[1]


def _ln(network: Network, scores: Float[Tensor, "n classes"]) -> Float64[np.ndarray, "n classes"]:
    shares = meaning(network).log_probabilities(scores.detach())
    return np.asarray(shares.cpu().numpy(), np.float64)


def _require_maps(layer: str, output: Tensor) -> Tensor:
    if output.dim() not in (2, 4):
        shape = " × ".join(map(str, output.shape[1:]))
        raise ModelError("M506", layer, f"puts out no feature maps ({shape} a picture)")
    return output
