"""What does each layer bring: what if it is left out, or larger, and all is trained again?

Source: Zeiler and Fergus 2014, §5.1 and table 3: layers of AlexNet and of their own network are
left out or resized, each variant is trained from scratch, training and validation error compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from convscope.core.errors import ModelError, UsageError, nearest
from convscope.metrics.faithfulness import sign_test
from convscope.network.layers import layer_table
from convscope.network.load import load
from convscope.network.provenance import recorded
from convscope.network.zfnet import OURS, TOWER_OPTIONS, options, split_classes
from convscope.pictures.pictures import Pictures
from convscope.records.predictions import Evaluation
from convscope.representations.predict import evaluate
from convscope.studies.ablation import Options
from convscope.studies.ablation.record import Ablation
from convscope.studies.base import Ask
from convscope.training.recipe import Recipe, to_json
from convscope.training.recipe import recipe as read_recipe
from convscope.training.trainer import Progress, require_extra, train

MAPS = "maps=96-256-512-1024-512"
VARIANTS: dict[str, str] = {
    "alexnet": "alexnet",
    "alexnet-without-3-4": "alexnet:without=3-4",
    "alexnet-without-7": "alexnet:without=7",
    "alexnet-without-6-7": "alexnet:without=6-7",
    "alexnet-without-3-4-6-7": "alexnet:without=3-4-6-7",
    "alexnet-fc-2048": "alexnet:fc=2048",
    "alexnet-fc-8192": "alexnet:fc=8192",
    "zfnet": "zfnet",
    "zfnet-fc-2048": "zfnet:fc=2048",
    "zfnet-fc-8192": "zfnet:fc=8192",
    "zfnet-maps": f"zfnet:{MAPS}",
    "zfnet-maps-fc-8192": f"zfnet:{MAPS},fc=8192",
}
"""Zeiler and Fergus 2014, table 3, in its order."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TAKEN = re.compile(r"result(-\d+)?|.*-seed\d+")
"""Folders that the study makes itself."""


@dataclass(frozen=True)
class Variant:
    """A network under the name that it has in the table."""

    name: str
    spec: str


def chosen(wanted: Iterable[str], common: str = "") -> tuple[Variant, ...]:
    """The variants of these names (see VARIANTS), or of your own as `name=spec`.

    common: options for all of ours that do not say otherwise, e.g. `width=0.25,norm=batch`.
    Raises UsageError U403 for a variant there is not, or named twice; U230, U231 for options.
    """
    result: dict[str, Variant] = {}
    for asked in wanted:
        name, own, spec = (side.strip() for side in asked.partition("="))
        if not own and name not in VARIANTS:
            hint = nearest(name, VARIANTS).replace("it has", "there are")
            step = "name one of these, or your own network as NAME=NETWORK"
            raise UsageError("U403", name, f"no such variant; {hint}", next_step=step)
        if not NAME.fullmatch(name) or TAKEN.fullmatch(name):
            what = "cannot be a variant's folder"
            step = "take letters, digits, dots and dashes; result and -seedN at the end are taken"
            raise UsageError("U403", name, what, next_step=step)
        if name in result:
            raise UsageError("U403", name, "names two variants", next_step="give one another name")
        result[name] = Variant(name, with_options(spec if own else VARIANTS[name], common))
    if not result:
        raise UsageError("U403", "", "no variant is named", next_step="name some of the table's")
    return tuple(result.values())


def with_options(spec: str, common: str) -> str:
    """The network with options added that it does not have yet; others' networks stay as they
    are."""
    head, _, rest = spec.partition(":")
    added = options(common, TOWER_OPTIONS)
    if head not in OURS:
        return spec
    given = options(split_classes(rest)[0], TOWER_OPTIONS)
    pieces = [rest] if rest else []
    for name, value in added.items():
        text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
        pieces += [] if name in given else [f"{name}={text}"]
    return f"{head}:{','.join(pieces)}" if pieces else head


def counted(spec: str, classes: int, size: tuple[int, int]) -> tuple[int, int]:
    """Parameters, and multiply-adds for one picture of that many rows and columns, counted on
    the network itself. Raises as `load`, and ModelError M522 if it takes no such picture."""
    model = load(spec, classes=classes).model
    table = layer_table(model, (3, *size))
    return sum(weight.numel() for weight in model.parameters()), int(table.multiply_adds.sum())


def base_of(variants: tuple[Variant, ...]) -> list[int]:
    """With which variant each is compared: the whole network of its kind, else the first of its
    kind."""
    kinds = [variant.spec.partition(":")[0] for variant in variants]
    names = [variant.name for variant in variants]
    return [names.index(kind) if kind in names else kinds.index(kind) for kind in kinds]


TOP5 = 5
Tell = Callable[[str], None]


@dataclass(frozen=True)
class _Trial:
    """One variant, trained once."""

    training: Evaluation
    validation: Evaluation


@recorded
def ablation(
    recipe: Recipe,
    training: Pictures,
    validation: Pictures,
    out: Path | str,
    variants: Sequence[str] = tuple(VARIANTS),
    *,
    common: str = "",
    seeds: int = 1,
    views: int = 1,
    progress: Callable[[Progress], None] | None = None,
    tell: Tell = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    **how: Any,
) -> Ablation:
    """Train every variant from scratch by the same recipe; training and validation error of each.

    variants, common: as `chosen`; the recipe's own model is not used. seeds: how many, from the
    recipe's on. Each run has its folder `out/NAME` (`out/NAME-seedN` for further seeds): the same
    call goes on where it was stopped. Errors are those of the last epoch, so that no picture of
    the validation chose it, in float32, without dropout and augmentation: one view or ten.

    progress: of each training; tell: a line whenever a variant begins, ends or fails. One that
    fails leaves the others alone. stop, and threads, accelerator, memory as keywords: see `train`.

    Raises UsageError U403 (variants), U404 (seeds), ModelError M593 (none could be trained), for a
    variant that cannot be built what `load` raises, before any is trained, and as `train`.
    """
    if not 1 <= seeds <= 100:
        raise UsageError("U404", f"seeds={seeds}", "lies between 1 and 100")
    require_extra()
    how |= {"stop": stop, "progress": progress}
    runs = _Runs(recipe, training, validation, Path(out), seeds, views, tell, how)
    plan = chosen(variants, common)
    costs = runs.costs(plan)
    runs.train_all(plan)
    return runs.record(plan, costs, common)


@dataclass
class _Runs:
    """All trainings of a study, and what came of them by variant and turn."""

    recipe: Recipe
    training: Pictures
    validation: Pictures
    out: Path
    seeds: int
    views: int
    tell: Tell
    how: Mapping[str, Any]
    """Further options of `train`."""
    trials: dict[tuple[int, int], _Trial] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a picture."""
        return self.recipe.test_size, self.recipe.test_size

    def costs(self, plan: Sequence[Variant]) -> Int64[np.ndarray, "variants 2"]:
        """Parameters and multiply-adds; what cannot be built is refused here, before training."""
        classes = len(self.training.classes)
        return np.array([counted(v.spec, classes, self.size) for v in plan], np.int64)

    def train_all(self, plan: Sequence[Variant]) -> None:
        """Every variant with every seed. Raises ModelError M593 if all of them fail."""
        for turn, number in product(range(self.seeds), range(len(plan))):
            place = turn * len(plan) + number + 1
            self.tell(f"{place} of {self.seeds * len(plan)}: {plan[number].name}")
            self.add(number, turn, plan[number])
        if not self.trials:
            what = f"no variant could be trained: {self.failed[0]}"
            raise ModelError("M593", plan[0].name, what)

    def record(
        self,
        plan: tuple[Variant, ...],
        costs: Int64[np.ndarray, "variants 2"],
        common: str,
    ) -> Ablation:
        recipe, classes = self.recipe, len(self.training.classes)
        return Ablation(
            variants=tuple(variant.name for variant in plan),
            specs=tuple(variant.spec for variant in plan),
            seeds=tuple(range(recipe.seed, recipe.seed + self.seeds)),
            parameters=costs[:, 0],
            multiply_adds=costs[:, 1],
            **_errors(self.trials, base_of(plan), self.seeds, classes),
            failed=tuple(self.failed.get(number, "") for number in range(len(plan))),
            classes=classes,
            pictures=_used(self.trials),
            size=self.size,
            views=self.views,
            epochs=recipe.epochs,
            origin={
                "method": "ablation",
                "recipe": to_json(recipe),
                "common": common,
                "training pictures": self.training.sha256,
                "validation pictures": self.validation.sha256,
            },
        )

    def add(self, number: int, turn: int, variant: Variant) -> None:
        """Train a variant, or find it trained, and measure it; a failure is noted."""
        own = replace(self.recipe, model=variant.spec, seed=self.recipe.seed + turn)
        run = self.out / (variant.name + (f"-seed{own.seed}" if turn else ""))
        try:
            train(own, self.training, self.validation, run, **self.how)
        except (ModelError, RuntimeError, MemoryError) as fault:
            said = (str(fault).strip().splitlines() or [type(fault).__name__])[0]
            self.failed.setdefault(number, said)
            self.tell(f"{run.name}: failed, the others go on: {said}")
            return
        trial = _measured(own.model, run, self.training, self.validation, self.views)
        self.trials[number, turn] = trial
        errors = [f"{1 - part.top1:.1%}" for part in (trial.training, trial.validation)]
        self.tell(f"{run.name}: training error {errors[0]}, validation error {errors[1]}")


def _measured(spec: str, run: Path, training: Pictures, validation: Pictures, views: int) -> _Trial:
    """Kept in the run's folder, so that a study that goes on need not look again."""
    result = []
    for name, folder in (("training", training), ("validation", validation)):
        place = run / f"last-{name}-{views}"
        if not place.exists():
            network = load(spec, run / "last.safetensors")
            evaluate(network, folder, views=views).save(place)
        result.append(Evaluation.load(place))
    return _Trial(*result)


def _errors(
    trials: dict[tuple[int, int], _Trial], base: list[int], seeds: int, classes: int
) -> dict[str, np.ndarray]:
    """Errors of all trials, and in which pictures each differs from its base."""
    many = len(base)
    errors = np.full((2, many, seeds, 2), np.nan)
    lost, gained = np.zeros((2, many, seeds), np.int64)
    p = np.full((many, seeds), np.nan)
    for (number, turn), trial in trials.items():
        for part, result in enumerate((trial.training, trial.validation)):
            errors[part, number, turn] = 1 - result.top1, 1 - result.top5
        other = trials.get((base[number], turn))
        if other is not None:
            mine, theirs = _right(trial.validation), _right(other.validation)
            lost[number, turn] = (theirs & ~mine).sum()
            gained[number, turn] = (mine & ~theirs).sum()
            p[number, turn] = sign_test(lost[number, turn], gained[number, turn])
    if classes <= TOP5:
        errors[..., 1] = np.nan
    return {
        "training": errors[0],
        "validation": errors[1],
        "base": np.array(base, np.int64),
        "lost": lost,
        "gained": gained,
        "p": p,
    }


def _right(result: Evaluation) -> Bool[np.ndarray, "pictures"]:
    return np.asarray(result.likeliest[:, 0] == result.labels, np.bool_)


def _used(trials: dict[tuple[int, int], _Trial]) -> tuple[int, int]:
    """Training and validation pictures that could be used."""
    one = next(iter(trials.values()))
    return len(one.training.labels), len(one.validation.labels)


def from_command(ask: Ask, options: Options) -> Ablation:
    plan = read_recipe(options.recipe, options.changes or ())
    training, validation = ask.split(options.validation)
    with ask.training() as how:
        return ablation(
            plan,
            training,
            validation,
            ask.out,
            split_names(options.variants or VARIANTS),
            common=options.common,
            seeds=options.seeds,
            views=options.views,
            **how,
            tell=ask.say,
            threads=options.threads,
            accelerator=options.accelerator,
        )


def split_names(given: Iterable[str]) -> list[str]:
    """`a,b` is two names, `a,b=network:x=1,y=2` as well: after the first `=` commas belong to
    the network."""
    result = []
    for text in given:
        names, equals, network = text.partition("=")
        *others, last = (name.strip() for name in names.split(","))
        result += [*others, last + equals + network]
    return [name for name in result if name]
