"""Prediction and evaluation: what is a picture taken for, and how often is that right?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from convscope.core.errors import DataError, ModelError, UsageError, nearest
from convscope.core.run import PLAIN, Run
from convscope.lens.lens import Lens
from convscope.network.arguments import FolderLike, Given, is_one, pictures_of, several, taking
from convscope.network.network import Network, whole
from convscope.network.outputs import both_ways, meaning, understood
from convscope.network.preprocess import Preprocess
from convscope.network.provenance import recorded, versions
from convscope.network.tuning import Execution, Tuning, blank, require_tuning
from convscope.pictures.framing import Framing
from convscope.pictures.opening import opened, picture_of
from convscope.pictures.pictures import Picture, Pictures
from convscope.records.predictions import Evaluation, Prediction
from convscope.scale.engine import Job, merged
from convscope.scale.segments import Arrays

Cuts = Callable[[UInt8[np.ndarray, "H W 3"]], list[UInt8[np.ndarray, "h w 3"]]]
SQUARE = 256 / 224
"""Side of the square to that of a view, where the preprocessing stretches and names none."""


def plan(preprocess: Preprocess, count: int) -> tuple[Framing, Cuts]:
    """How to frame a picture, and how to cut `count` views (1 or 10) out of what that gives.

    Ten views: four corners and the centre of the centre square, and their mirror images.
    Raises UsageError U310 for another count, or a square smaller than a view.
    Source: Krizhevsky et al. 2012, section 4.1; Zeiler and Fergus 2014, section 3.
    """
    if count == 1:
        return preprocess.framing, lambda pixels: [pixels]
    if count != 10:
        raise UsageError("U310", f"views={count}", "there are 1 (centre) or 10 views")
    height, width = preprocess.size
    resize = preprocess.framing.resize
    side = round(max(height, width) * SQUARE)
    if resize is not None:
        side = resize if isinstance(resize, int) else min(resize)
    if side < max(height, width):
        raise UsageError("U310", "views=10", f"the square of {side} pixels is smaller than a view")
    framing = Framing(resize, (side, side), preprocess.framing.interpolation)
    return framing, lambda pixels: _ten(pixels, height, width)


def _ten(
    square: UInt8[np.ndarray, "side side 3"], height: int, width: int
) -> list[UInt8[np.ndarray, "h w 3"]]:
    below, right = square.shape[0] - height, square.shape[1] - width
    # Rounded as a centre crop rounds, so that the fifth view is the single one.
    middle = (round(below / 2), round(right / 2))
    corners = [(0, 0), (0, right), (below, 0), (below, right), middle]
    cut = [square[top : top + height, left : left + width] for top, left in corners]
    return [*cut, *(one[:, ::-1] for one in cut)]


WORDNET = re.compile(r"n\d{8}")
HINT = (
    "give --classes FILE with the network's own names, or --labels FILE.json with a class index "
    "for each picture or class folder"
)


def true_classes(
    network: Network, folder: Pictures, outputs: int, labels: Mapping[str, int] | None
) -> Int64[np.ndarray, "pictures"]:
    """The class index of every picture of the folder, -1 where it has none.

    With `labels`: what they give for the picture's name, its file name or its class folder.
    Without: the pictures' own class index (shards), or the class folder's, matched to the network's
    classes by name, or by place where the network has no names or the folders are ImageNet's
    (n01440764 and so on, all of them). Raises DataError D160, UsageError U311 (no class of that
    index).
    """
    if labels is None:
        of_class = _by_name(network, folder, outputs)
        result = [-1 if label is None else of_class[label] for label in folder.labels]
    else:
        result = [_looked_up(folder, number, labels) for number in range(len(folder))]
    for name, index in zip(folder.names, result, strict=True):
        if index >= outputs:
            raise UsageError("U311", name, f"class {index}: the network has 0 to {outputs - 1}")
    if max(result) < 0:
        raise DataError("D160", folder.place, "its pictures have no known class", next_step=HINT)
    return np.array(result, dtype=np.int64)


def order_assumed(network: Network, folder: Pictures, labels: Mapping[str, int] | None) -> str:
    """What was taken for the order of the classes where nobody told it; "" where it is known."""
    if labels is not None or folder.numbered or network.classes or not folder.classes:
        return ""
    few = ", ".join(f"{name} {index}" for index, name in enumerate(folder.classes[:3]))
    more = ", …" if len(folder.classes) > 3 else ""
    return f"assumed: the class folders in their order ({few}{more}), as the network has no names"


def class_names(network: Network, outputs: int) -> tuple[str, ...]:
    """The network's names for its classes, or their numbers."""
    known = both_ways(network.classes)
    return known if len(known) == outputs else tuple(str(index) for index in range(outputs))


def _by_name(network: Network, folder: Pictures, outputs: int) -> list[int]:
    """For each of the folder's classes the network's index."""
    if folder.numbered:
        return list(range(len(folder.classes)))
    by_place = not network.classes or _imagenet(folder.classes, network.classes)
    if by_place and len(folder.classes) == outputs:
        return list(range(outputs))
    known = both_ways(network.classes)
    for name in folder.classes:
        if name not in known:
            hint = nearest(name, known) if known else "it has no names"
            raise DataError("D160", name, f"is no class of the network; {hint}", next_step=HINT)
    return [known.index(name) for name in folder.classes]


def _imagenet(folders: Sequence[str], names: Sequence[str]) -> bool:
    """Whether folders are named by WordNet's numbers, whose order is that of ImageNet's classes,
    and the network's classes are not."""
    return all(map(WORDNET.fullmatch, folders)) and not set(folders) & set(names)


def _looked_up(folder: Pictures, number: int, labels: Mapping[str, int]) -> int:
    name, label = folder.names[number], folder.labels[number]
    keys = [name, name.rpartition("/")[2]] + ([] if label is None else [folder.classes[label]])
    return next((labels[key] for key in keys if key in labels), -1)


View = UInt8[np.ndarray, "h w 3"] | Float32[torch.Tensor, "c h w"]
"""Framed pixels, or what the network takes of them."""


class Answers(NamedTuple):
    """A network's answers for the usable pictures of a folder."""

    numbers: Int64[np.ndarray, "n"]
    """Of the pictures."""
    probability: Float32[np.ndarray, "n classes"]
    way: Execution


class AnswersJob(Job):
    """A network's probabilities for all pictures of a folder."""

    name = "answers"

    def __init__(
        self,
        network: Network,
        views: int = 1,
        *,
        tuning: Tuning | None = None,
        spared: bool = False,
    ) -> None:
        """spared: a fault of the network is kept in `why` and ends no pass. Raises UsageError U310,
        ModelError M520, M522."""
        self.framing, cut = plan(network.preprocess, views)
        self.network, self.views, self._spared = network, views, spared
        self.way = Execution(
            network.model, blank(network.model, network.preprocess.shape), tuning=tuning
        )
        self.batch, self.workers = max(1, self.way.batch // views), self.way.workers
        black = np.zeros((*_shape(self.framing, network.preprocess.size), 3), np.uint8)
        self.outputs = probability(network, self.way, [cut(black)]).shape[1]
        self._renew()

    def _renew(self) -> None:
        self._numbers, self._shares = list[int](), list[Float32[np.ndarray, "some classes"]]()
        self._why = ""

    @property
    def facts(self) -> dict[str, Any]:
        told = self.network.provenance()
        kept = ("model", "weights_sha256", "output", *versions())
        return {
            **{name: told[name] for name in kept if name in told},
            "preprocessing": self.network.preprocess.to_json(),
            "views": self.views,
            "batch": self.batch,
            **self.way.origin,
        }

    @contextmanager
    def looking(self) -> Iterator[Callable[[list[Picture]], object]]:
        _, cut = plan(self.network.preprocess, self.views)

        def look(pictures: list[Picture]) -> None:
            if self._why:
                return
            try:
                views = [cut(one.pixels) for one in pictures]
                share = probability(self.network, self.way, views)
                require_finite(share, [one.name for one in pictures])
            except ModelError as fault:
                if not self._spared:
                    raise
                self._why = fault.what
                return
            self._numbers += [picture.number for picture in pictures]
            self._shares.append(share)

        yield look

    @property
    def pending(self) -> int:
        return sum(share.nbytes for share in self._shares)

    def take(self) -> Arrays:
        arrays = {
            "number": np.array(self._numbers, np.int64),
            "share": np.concatenate([np.zeros((0, self.outputs), np.float32), *self._shares]),
            "why": np.frombuffer(self._why.encode(), np.uint8),
        }
        self._renew()
        return arrays

    def answers(self, folder: Pictures, arrays: Arrays) -> Answers:
        """Raises DataError D118 or D161 if there are none."""
        folder.require_usable(len(arrays["number"]))
        return Answers(arrays["number"], arrays["share"], self.way)


def _shape(framing: Framing, size: tuple[int, int]) -> tuple[int, int]:
    """Of a framed picture, where it is always the same."""
    return framing.crop or size


def probability(
    network: Network, way: Execution, cuts: Sequence[Sequence[View]]
) -> Float32[np.ndarray, "n classes"]:
    """Mean over each picture's views of each class's probability. way: of a network that is
    `understood`."""
    pixels = [view for views in cuts for view in views]
    images = way.laid(_prepared(network, pixels))
    with torch.inference_mode(), way.running():
        with Lens(way.model, ()) as lens:
            scores = lens(images)
        shares = meaning(network).probabilities(scores.float())
    shares = shares.reshape(len(cuts), -1, shares.shape[1]).mean(1)
    return np.asarray(shares.cpu().numpy(), dtype=np.float32)


def _prepared(network: Network, views: list[View]) -> Float32[torch.Tensor, "b c h w"]:
    """Pixels made ready; tensors are that already."""
    ready = [view for view in views if isinstance(view, torch.Tensor)]
    if ready:
        return torch.stack(ready)
    pixels = [view for view in views if isinstance(view, np.ndarray)]
    return network.preprocess.batch(pixels, channels_last=True)


def strongest(
    share: Float32[np.ndarray, "n classes"], top: int
) -> tuple[Float32[np.ndarray, "n top"], Int64[np.ndarray, "n top"]]:
    """Values and class indices, the largest first; of equals the lower index."""
    index = np.argsort(-share, axis=1, kind="stable")[:, :top].astype(np.int64)
    return np.take_along_axis(share, index, axis=1), index


def require_finite(share: Float32[np.ndarray, "n classes"], names: Sequence[str]) -> None:
    wrong = ~np.isfinite(share).all(1)
    if wrong.any():
        name = names[int(wrong.argmax())]
        raise ModelError("M560", name, "the network's scores for it are not finite")


TOP = 5


def predict(
    network: Network, pictures: Given, *, top: int = TOP, views: int = 1
) -> Prediction | list[Prediction]:
    """The likeliest classes of a picture, by the mean probability over its views; of labels that
    stand each for itself each one's own, which do not add up to 1.

    pictures: one, or a list or folder of them, of which a list of predictions is given. views: 1
    (the centre) or 10 (corners and centre and their mirror images, as the paper tests).

    Raises UsageError U310, U376 (a bare module), U377 (no picture), U379 (framed in another way),
    ModelError M520 (no scores), M522 (it takes no such picture), M560 (not finite), and as
    `open_pictures`.
    """
    if is_one(pictures):
        return predicted(network, pictures, top=top, views=views)
    if isinstance(pictures, Tensor):
        return [predicted(network, one, top=top, views=views) for one in several(network, pictures)]
    with opened(pictures_of(whole(network), pictures)) as folder:
        result = [predicted(network, one, top=top, views=views) for one in folder.read()]
        folder.check_bad()
    return result


@taking()
@recorded
def predicted(network: Network, picture: Given, *, top: int = TOP, views: int = 1) -> Prediction:
    """The same of one picture."""
    network = understood(whole(network))
    framing, cut = plan(network.preprocess, views)
    way = Execution(network.model, blank(network.model, network.preprocess.shape))
    if isinstance(picture, Tensor):
        if views != 1:
            raise UsageError("U310", f"views={views}", "a preprocessed tensor is one view")
        images, name = list(several(network, picture)), "picture"
    else:
        decoded = picture_of(picture)
        images, name = cut(decoded.within(framing).pixels), decoded.name
    share = probability(network, way, [images])
    require_finite(share, [name])
    value, index = strongest(share, top)
    names = class_names(network, share.shape[1])
    return Prediction(
        name,
        tuple(names[place] for place in index[0]),
        index[0],
        value[0],
        views,
        origin={"method": "predict"},
    )


@taking(folder=pictures_of)
@recorded
def evaluate(
    network: Network | Sequence[Network],
    folder: FolderLike,
    *,
    views: int = 1,
    labels: Mapping[str, int] | None = None,
    tuning: Tuning | None = None,
    run: Run = PLAIN,
) -> Evaluation:
    """How often the network is right on a folder's pictures.

    network: several are an ensemble, whose answer is the mean of their probabilities. labels:
    class index by picture name, file name or class folder; without, what shards say, or the class
    folders, matched to the network's classes by name (by place where the network has no names).
    Pictures that cannot be used, or have no class, are left out. tuning: what `tune` chose for this
    machine; without, `usual_batch` pictures are computed together, the same on every machine.
    run: its progress is over all networks.

    Raises DataError D160 (no classes), D161 (nothing usable), UsageError U310, U311, U376 (a bare
    module), U377 (no folder), U401 (no tuning), U406 (no ensemble), ModelError M520 (no scores),
    M522 (it takes no such picture), M525 (independent labels, of which none is the true one),
    M560 (scores that are not finite).
    Source: Zeiler and Fergus 2014, section 3 and table 2; Krizhevsky et al. 2012, section 4.1.
    """
    networks = [whole(one) for one in (network if isinstance(network, Sequence) else [network])]
    require_tuning(tuning)
    networks = [understood(one) for one in networks]
    for one in networks:
        meaning(one).require_exclusive("accuracy")
    _require_alike(networks, tuning)
    with opened(folder) as pictures:
        return _evaluate(networks, pictures, views, labels, tuning, run)


class Judge(AnswersJob):
    """`evaluate` on a folder that another pass reads, as that of `topk` (`also=judge`): it looks at
    the pictures of each batch, too, as they are framed for the network, and none is decoded twice.
    """

    name = "judge"

    def __init__(self, network: Network, folder: Pictures, *, tuning: Tuning | None = None) -> None:
        """Raises ModelError M520, M525, and DataError D160 as `evaluate`."""
        network = understood(whole(network))
        meaning(network).require_exclusive("accuracy")
        super().__init__(network, tuning=tuning, spared=True)
        self._truth = true_classes(network, folder, self.outputs, None)
        self._folder, self._arrays = folder, dict[str, np.ndarray]()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folder": None}

    def received(self, arrays: Arrays) -> None:
        self._arrays = dict(arrays)

    @property
    def why(self) -> str:
        """What kept it from an evaluation; empty if nothing did."""
        return self._arrays["why"].tobytes().decode()

    def provenance(self) -> dict[str, Any]:
        return self.network.provenance()

    @recorded
    def evaluation(self) -> Evaluation:
        """Raises DataError D118 or D161 if no picture has a class, ModelError M560."""
        if self.why:
            raise ModelError("M560", self.network.spec, self.why)
        result = self.answers(self._folder, self._arrays)
        return _evaluation([self.network], self._folder, [result], self._truth, 1)


def _require_alike(networks: Sequence[Network], tuning: Tuning | None) -> None:
    named = {network.classes: network.spec for network in networks if network.classes}
    if len(networks) == 1 or (networks and tuning is None and len(named) <= 1):
        return
    if len(named) > 1:
        what = "have other classes, or in another order, so their answers cannot be averaged"
        raise UsageError("U406", " and ".join(list(named.values())[:2]), what)
    what = "a tuning is of one network" if networks else "no network was given"
    raise UsageError("U406", "", what, next_step="leave it out" if networks else "give one")


def _evaluate(
    networks: Sequence[Network],
    folder: Pictures,
    views: int,
    labels: Mapping[str, int] | None,
    tuning: Tuning | None,
    run: Run,
) -> Evaluation:
    jobs = [AnswersJob(network, views, tuning=tuning) for network in networks]
    for job in jobs[1:]:  # what is wrong is told before the work is done
        if job.outputs != jobs[0].outputs:
            what = f"{job.outputs} classes, but {jobs[0].outputs} in the first network"
            raise UsageError("U406", job.network.spec, what)
    truth = [true_classes(network, folder, jobs[0].outputs, labels) for network in networks]
    answers = []
    for place, job in enumerate(jobs):
        one = run.part(place, len(jobs)).inside(str(place))
        answers.append(job.answers(folder, merged(job, folder, one)[0]))
    result = _evaluation(networks, folder, answers, truth[0], views)
    assumed = order_assumed(networks[0], folder, labels)
    told = {"class order": assumed} if assumed else {}
    return replace(result, origin={**result.origin, **told})


def _evaluation(
    networks: Sequence[Network],
    folder: Pictures,
    answers: Sequence[Answers],
    classes: Int64[np.ndarray, "pictures"],
    views: int,
) -> Evaluation:
    """Of the pictures that have a class. classes: of all of the folder, -1 for none."""
    numbers = answers[0].numbers[classes[answers[0].numbers] >= 0]
    truth = classes[numbers]
    shares = [one.probability[np.isin(one.numbers, numbers)] for one in answers]
    share = mean_of(shares)
    outputs = share.shape[1]
    value, index = strongest(share, TOP)
    confusion = np.zeros((outputs, outputs), np.int64)
    np.add.at(confusion, (truth, index[:, 0]), 1)
    top1, top5 = _right(index, truth)
    alone = [_right(strongest(one, TOP)[1], truth) for one in shares if len(shares) > 1]
    return Evaluation(
        top1=top1,
        top5=top5,
        names=class_names(networks[0], outputs),
        pictures=tuple(folder.names[number] for number in numbers),
        numbers=numbers,
        labels=truth,
        likeliest=index,
        probability=value,
        confusion=confusion,
        views=views,
        skipped=len(folder) - len(numbers),
        members=tuple(
            (network.spec, *each) for network, each in zip(networks, alone, strict=False)
        ),
        origin={"method": "evaluate", "pictures": folder.place, **answers[0].way.origin},
    )


def mean_of(shares: Sequence[Float32[np.ndarray, "n classes"]]) -> Float32[np.ndarray, "n classes"]:
    """The mean of several networks' probabilities; of equal ones, these to the last bit."""
    total = np.zeros(shares[0].shape)
    for share in shares:
        total += share
    return (total / len(shares)).astype(np.float32)


def _right(index: Int64[np.ndarray, "n top"], truth: Int64[np.ndarray, "n"]) -> tuple[float, float]:
    hits = index == truth[:, None]
    return float(hits[:, 0].mean()), float(hits.any(1).mean())
