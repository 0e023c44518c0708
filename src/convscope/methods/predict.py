"""What does the network take a picture for, and how often is it right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from convscope.errors import UsageError
from convscope.methods.answers import (
    Answers,
    Asking,
    answers,
    probability,
    require_finite,
    strongest,
)
from convscope.methods.labels import class_names, order_assumed, true_classes
from convscope.methods.views import plan
from convscope.network.arguments import FolderLike, Given, is_one, pictures_of, several, taking
from convscope.network.network import Network, whole
from convscope.network.outputs import meaning, understood
from convscope.network.provenance import recorded
from convscope.network.tuning import Tuning, Way, blank, require_tuning
from convscope.pictures.opening import opened, picture_of
from convscope.pictures.pictures import Pictures
from convscope.records.predictions import Evaluation, Prediction
from convscope.run import PLAIN, Run

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
        found = [predicted(network, one, top=top, views=views) for one in folder.read()]
        folder.check_bad()
    return found


@taking()
@recorded
def predicted(network: Network, picture: Given, *, top: int = TOP, views: int = 1) -> Prediction:
    """The same of one picture."""
    network = understood(whole(network))
    framing, cut = plan(network.preprocess, views)
    way = Way(network.model, blank(network.model, network.preprocess.shape))
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


class Judge:
    """`evaluate` on a folder that another pass reads, as that of `topk`: told the pictures of each
    batch as they are framed for the network, it looks at them, too, and none is decoded twice."""

    def __init__(self, network: Network, folder: Pictures, *, tuning: Tuning | None = None) -> None:
        """Raises ModelError M520, M525; what else `evaluate` raises comes with the pictures."""
        self._network, self._folder = understood(whole(network)), folder
        meaning(self._network).require_exclusive("accuracy")
        self._truth = np.zeros(0, np.int64)
        self._asking = Asking(self._network, folder, tuning=tuning, first=self._first)

    def _first(self, outputs: int) -> None:
        self._truth = true_classes(self._network, self._folder, outputs, None)

    def __call__(self, pictures: Sequence[Picture]) -> None:
        self._asking(pictures)

    def provenance(self) -> dict[str, Any]:
        return self._network.provenance()

    @recorded
    def evaluation(self) -> Evaluation:
        """Of all pictures so far. Raises DataError D118 or D161 if none has a class."""
        found = self._asking.answers()
        known = self._truth[found.numbers] >= 0
        numbers = found.numbers[known]
        shares = [found.probability[known]]
        networks = [self._network]
        return _evaluation(
            networks, self._folder, found.way, numbers, self._truth[numbers], shares, 1
        )


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
    found: list[Answers] = []
    truth: list[Int64[np.ndarray, "pictures"]] = []

    def first(outputs: int) -> None:  # wrong labels are told before the work is done
        if found and outputs != found[0].probability.shape[1]:
            what = f"{outputs} classes, but {found[0].probability.shape[1]} in the first network"
            raise UsageError("U406", networks[len(found)].spec, what)
        truth.append(true_classes(networks[len(found)], folder, outputs, labels))

    for place, network in enumerate(networks):
        mine = run.part(place, len(networks))
        found.append(answers(network, folder, views, tuning=tuning, first=first, run=mine))
    used = found[0].numbers[truth[0][found[0].numbers] >= 0]
    shares = [one.probability[np.isin(one.numbers, used)] for one in found]
    result = _evaluation(networks, folder, found[0].way, used, truth[0][used], shares, views)
    assumed = order_assumed(networks[0], folder, labels)
    told = {"class order": assumed} if assumed else {}
    return replace(result, origin={**result.origin, **told})


def _evaluation(
    networks: Sequence[Network],
    folder: Pictures,
    way: Way,
    numbers: Int64[np.ndarray, "n"],
    truth: Int64[np.ndarray, "n"],
    shares: list[Float32[np.ndarray, "n classes"]],
    views: int,
) -> Evaluation:
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
        origin={
            "method": "evaluate",
            "pictures": str(folder.root),
            **way.origin,
        },
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
