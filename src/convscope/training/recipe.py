"""Training recipe, read from TOML and validated; its optimiser, schedule, averages, first weights.

A run folder that holds a recipe, and the pictures' hash, says all there is to say. A recipe
comes from a TOML file, one line a field.

bfloat16 halves the time of a step where it is multiplied by instructions of its own, and takes
several times as long where it is emulated. So it is tried only on machines that have them, and
taken only where it is quicker. The choice changes weights: it stands in the run's folder from the
first step, and a run that goes on keeps it, wherever it goes on.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from convscope.core.errors import UsageError, nearest
from convscope.core.text import as_toml
from convscope.lens.machine import fastest_runs, has_bfloat16, machine

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=0.0, le=1e6)]
Count = Annotated[int, Meta(ge=1, le=10**9)]
Pixels = Annotated[int, Meta(ge=8, le=4096)]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, from the first weight to the views at test time.

    `--set FIELD=VALUE` changes one field; a field left out of a TOML file has the value below,
    which is plain training with nothing special switched on.
    """

    model: str = "zfnet"
    """What `load` takes, e.g. `zfnet:width=0.5,norm=batch,head=compact,dropout=0.2`."""
    init: Literal["model", "kaiming", "normal"] = "model"
    """model: as the network does it; kaiming: He et al. in convolutions, N(0, 0.01) in fully
    connected layers; normal: N(0, 0.01) everywhere. Biases are 0 in the latter two."""
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0

    epochs: Count = 10
    batch: Count = 32
    """Pictures a step, over all processes together."""
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is not full."""

    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Amount = 0.01
    momentum: Share = 0.9
    """Of SGD."""
    nesterov: bool = False
    beta2: Share = 0.999
    """Of Adam and AdamW; their beta1 is 0.9."""
    weight_decay: Amount = 0.0
    decay_vectors: bool = True
    """Whether weight decay also acts on biases and normalisation (all that is one-dimensional)."""
    clip_gradient: Amount = 0.0
    """Largest norm of the whole gradient; 0 for no limit."""
    filter_rms: Amount = 0.0
    """Radius to which a convolution's filter is scaled back when its root mean square exceeds it,
    after every step; 0 for no limit. Source: Zeiler and Fergus 2014, section 3 (radius 0.1)."""

    schedule: Literal["constant", "onecycle", "plateau"] = "constant"
    """onecycle: linear warm-up, then half a cosine; plateau: lowered when nothing improves."""
    warmup: Share = 0.0
    """Of onecycle: part of all steps in which the learning rate rises."""
    final: Share = 0.0
    """Of onecycle: learning rate at the end, as a part of the highest."""
    patience: Count = 5
    """Of plateau: epochs without a lower validation loss before the rate is lowered."""
    factor: Share = 0.1
    """Of plateau: what the rate is then multiplied by."""

    label_smoothing: Share = 0.0
    ema: Share = 0.0
    """Decay a step of a running mean of the weights, which is then what is judged and kept; 0 for
    none. Early on the decay is (1 + step) / (10 + step) where that is less."""

    size: Pixels = 224
    """Side in pixels of the squares trained on."""
    size_start: Annotated[int, Meta(ge=0, le=4096)] = 0
    """Side in the first epoch, growing in steps of `size_step` up to `size`; 0 for no growth."""
    size_step: Count = 16
    grow: Share = 0.7
    """Part of the epochs after which the side has reached `size`."""
    test_size: Pixels = 224
    """Side of the square seen in validation and by users of the network."""
    test_resize: Annotated[int, Meta(ge=0, le=8192)] = 256
    """Shorter side before the centre is cut out; 0 stretches the whole picture to the square."""
    views: Literal[1, 10] = 1
    """Of the evaluation after training: the centre, or corners and centre and their flips."""
    cache: Pixels = 256
    """Larger pictures are shrunk to this shorter side once, when they are read."""

    crop: Literal["resized", "random", "centre"] = "resized"
    """resized: a box of random area and shape; random: a window of `size` from the centre square
    at `test_resize`; centre: always the middle of that square."""
    scale_min: Annotated[float, Meta(ge=0.01, le=1.0)] = 0.08
    """Of resized: smallest part of the picture's area."""
    ratio_max: Annotated[float, Meta(ge=1.0, le=10.0)] = 4 / 3
    """Of resized: largest ratio of the sides."""
    flip: Share = 0.5
    """Probability of a mirrored picture."""
    flip_vertical: Share = 0.0
    rotate: Annotated[float, Meta(ge=0.0, le=180.0)] = 0.0
    """Largest rotation in degrees, either way."""
    jitter: Share = 0.0
    """Brightness, contrast and saturation are multiplied by 1 - jitter … 1 + jitter."""
    hue: Annotated[float, Meta(ge=0.0, le=0.5)] = 0.0
    """Largest turn of the hue in whole turns, either way."""
    grey: Share = 0.0
    """Probability of a grey picture."""
    erase: Share = 0.0
    """Probability of a rectangle of 2 to 25 % of the picture in one random colour."""
    mix: Share = 0.0
    """Probability that a batch is mixed with itself in reverse order, by cutmix or mixup."""
    mix_cut: Share = 0.5
    """Part of the mixed batches that are mixed by cutmix."""
    mixup: Annotated[float, Meta(ge=0.01, le=100.0)] = 0.2
    """Alpha of mixup's Beta distribution."""
    cutmix: Annotated[float, Meta(ge=0.01, le=100.0)] = 1.0
    """Alpha of cutmix's Beta distribution."""
    mix_off: Share = 0.0
    """Part of the epochs, at the end, in which nothing is mixed."""

    mean: Colour = (0.5, 0.5, 0.5)
    std: Colour = (0.5, 0.5, 0.5)
    input_range: Literal[1, 255] = 1
    """White before mean and std are applied."""
    pixel_mean: bool = False
    """Subtract the training pictures' mean at every pixel in place of `mean`."""

    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """bfloat16: autocast in training; validation is always in float32. auto: bfloat16 where the
    machine multiplies it by instructions of its own and a short trial finds it quicker."""
    channels_last: bool = True

    def __post_init__(self) -> None:
        """Raises UsageError U302 (wrong kind of value), U303 (out of range, or against another)."""
        for field, kind in get_type_hints(Recipe, include_extras=True).items():
            object.__setattr__(self, field, _validated(field, kind, getattr(self, field)))
        framed = self.crop == "resized" or self.test_resize >= self.size
        for field, holds, need in (
            (
                "pixel_mean",
                not self.pixel_mean or self.size == self.test_size,
                "needs test_size equal to size: the mean is one picture",
            ),
            (
                "pixel_mean",
                not (self.pixel_mean and self.size_start),
                "does not go with size_start: the mean has one size",
            ),
            ("crop", framed, f'"{self.crop}" needs test_resize of at least size'),
            (
                "test_resize",
                not 0 < self.test_resize < self.test_size,
                "must be 0 or at least test_size",
            ),
            ("std", min(self.std) > 0, "must be above 0"),
        ):
            if not holds:
                raise UsageError("U303", field, need)

    def size_at(self, epoch: int) -> int:
        """Side in pixels of the training squares in an epoch, counted from 0."""
        if not self.size_start:
            return self.size
        done = min(1.0, epoch / max(1e-9, self.grow * self.epochs))
        side = self.size_start + done * (self.size - self.size_start)
        return min(self.size, int(side // self.size_step) * self.size_step)


FIELDS = tuple(field.name for field in dataclasses.fields(Recipe))
NEEDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    Colour: "three numbers",
}


def _validated(field: str, kind: Any, value: Any) -> Any:
    """The value, as the field's own type, if it is one that the field may have."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        plain, *limits = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if limits and (type(value) is int or type(value) is plain):
        need, code = f"{limits[0].ge:g} to {limits[0].le:g}, not {value}", "U303"
    elif get_origin(plain) is Literal:
        need, code = f"{' or '.join(map(as_toml, get_args(plain)))}, not {as_toml(value)}", "U302"
    else:
        need, code = f"{NEEDS[plain]}, not {as_toml(value)}", "U302"
    raise UsageError(code, field, f"must be {need}")


def recipe(source: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """The recipe of that name (`tutorial`, `paper`, `best`, `demo`) or in that TOML file.

    changes: `FIELD=VALUE` each, e.g. `epochs=3`. Raises UsageError U301 to U305.
    """
    return changed(from_toml(_text(source), str(source)), changes)


def names() -> tuple[str, ...]:
    """Recipes that come with convscope."""
    files = resources.files("convscope.training").joinpath("recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files))


def from_toml(text: str, name: str = "recipe") -> Recipe:
    """Read TOML, one line a field. Raises UsageError U301 (unknown), U302, U303 (value), U304."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise UsageError("U304", name, f"is not TOML: {fault}") from fault
    return _build(Recipe(), values)


def changed(old: Recipe, changes: Iterable[str]) -> Recipe:
    """The recipe with fields changed by `FIELD=VALUE`; text needs no quotes."""
    values = {}
    for change in changes:
        field, equals, value = change.partition("=")
        if not equals:
            raise UsageError("U304", change, "is not a change; write FIELD=VALUE, as in epochs=3")
        values[field.strip()] = _value(value.strip())
    return _build(old, values)


def to_toml(made: Recipe) -> str:
    """Every field and its value; `from_toml` gives the same recipe back."""
    return "".join(f"{field} = {as_toml(getattr(made, field))}\n" for field in FIELDS)


def to_json(made: Recipe) -> dict[str, Any]:
    """As `json` reads it back: lists in place of tuples."""
    values = dataclasses.asdict(made)
    return {field: list(v) if isinstance(v, tuple) else v for field, v in values.items()}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """`field theirs → ours` for every field that two recipes, as JSON, do not share."""
    keys = sorted(set(ours) | set(theirs))
    return [
        f"{key} {theirs.get(key)} → {ours.get(key)}"
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]


def _text(source: str | Path) -> str:
    if str(source) in names():
        file = resources.files("convscope.training").joinpath("recipes", f"{source}.toml")
        return file.read_text(encoding="utf-8")
    if Path(source).suffix != ".toml":
        hint = nearest(str(source), names()).replace("it has", "there are")
        raise UsageError(
            "U305", str(source), f"no such recipe; {hint}", next_step="or name a .toml file"
        )
    try:
        return Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        reason = (getattr(fault, "strerror", None) or "it is not UTF-8 text").lower()
        raise UsageError("U305", str(source), f"cannot be read: {reason}") from fault


def _build(old: Recipe, values: Mapping[str, Any]) -> Recipe:
    for key in values:
        if key not in FIELDS:
            raise UsageError("U301", key, f"no such field in a recipe; {nearest(key, FIELDS)}")
    return dataclasses.replace(old, **values)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def optimiser(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser over the model's weights, at the recipe's learning rate."""
    weights = [p for p in model.parameters() if p.requires_grad]
    vectors = recipe.weight_decay if recipe.decay_vectors else 0.0
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": vectors},
    ]
    groups = [group for group in groups if group["params"]]
    rate, betas = recipe.learning_rate, (0.9, recipe.beta2)
    if recipe.optimiser == "sgd":
        return SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.nesterov)
    return (Adam if recipe.optimiser == "adam" else AdamW)(groups, lr=rate, betas=betas)


def schedule(made: Optimizer, recipe: Recipe, total: int, done: int = 0) -> Schedule:
    """Sets the optimiser's rate: at every step, or of "plateau" after every epoch.

    total, done: steps of the whole run, and those that a resumed run has behind it.
    """
    if recipe.schedule == "plateau" and recipe.factor < 1:
        return ReduceLROnPlateau(
            made, factor=recipe.factor, patience=recipe.patience - 1, threshold=0.0, eps=0.0
        )
    for group in made.param_groups:
        group["initial_lr"] = recipe.learning_rate
    cycle = recipe.schedule == "onecycle"
    return LambdaLR(
        made, lambda step: _one_cycle(recipe, step, total) if cycle else 1.0, last_epoch=done - 1
    )


Schedule = LambdaLR | ReduceLROnPlateau


def _one_cycle(recipe: Recipe, step: int, total: int) -> float:
    rising = recipe.warmup * total
    if step < rising:
        return min(1.0, (step + 1) / rising)
    done = (step - rising) / max(1.0, total - rising)
    return recipe.final + (1 - recipe.final) * 0.5 * (1 + math.cos(math.pi * done))


def plateau_state(made: Schedule) -> dict[str, Any]:
    """What a plateau remembers, as JSON; nothing of other schedules, which only count steps."""
    if not isinstance(made, ReduceLROnPlateau):
        return {}
    best = None if math.isinf(made.best) else made.best
    return {
        "rate": made.optimizer.param_groups[0]["lr"],
        "best": best,
        "waited": made.num_bad_epochs,
    }


def restore_plateau(made: Schedule, recipe: Recipe, kept: Mapping[str, Any]) -> None:
    """Give it back what it remembered. Runs of convscope 0.1 kept a factor in place of the rate."""
    if isinstance(made, ReduceLROnPlateau):
        made.best = math.inf if kept["best"] is None else kept["best"]
        made.num_bad_epochs = kept["waited"]
        for group in made.optimizer.param_groups:
            group["lr"] = kept["rate"] if "rate" in kept else recipe.learning_rate * kept["scale"]


@torch.no_grad()
def clip_filters(model: nn.Module, radius: float) -> None:
    """Scale every filter of a convolution whose root mean square exceeds the radius back to it.

    Source: Zeiler and Fergus 2014, section 3. When it is done is not said; we do it after every
    step, over all weights of one output filter.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            size = layer.weight.square().mean((1, 2, 3), keepdim=True).sqrt()
            layer.weight.mul_((radius / size.clamp_min(1e-30)).clamp_max(1.0))


def running_mean(model: nn.Module, decay: float, updates: int = 0) -> AveragedModel:
    """A running mean of a model's weights and of normalisation's statistics; counters are copied.

    `.module` is the mean, in eval mode. updates: that there were before, in a resumed run.
    """

    def average(ours: Any, theirs: Any, count: Tensor | int) -> None:
        step = int(count)
        for mean, value in zip(ours, theirs, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - min(decay, (1 + step) / (10 + step)))
            else:
                mean.copy_(value)

    made = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    made.module.eval().requires_grad_(False)
    made.n_averaged.fill_(1 + updates)  # at 0 torch would forget the first weights
    return made


@torch.no_grad()
def initialise(model: nn.Module, how: str, seed: int) -> None:
    """Draw the first weights as `Recipe.init` says."""
    if how == "model":
        return
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.normal_(0.0, _spread(layer, how), generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()


def _spread(layer: nn.Conv2d | nn.Linear, how: str) -> float:
    """Source: He et al. 2015, eq. 14 (fan out), as the tutorials use it."""
    if how == "normal" or isinstance(layer, nn.Linear):
        return 0.01
    return math.sqrt(2 / math.prod((layer.out_channels // layer.groups, *layer.kernel_size)))


Kind = Literal["float32", "bfloat16"]
CLEARLY = 0.9
"""Part of float32's time below which bfloat16 is taken: it must be worth its rounding."""
STEP = 0.15
"""Seconds that a tried step may take; with a larger one, fewer pictures are tried."""
Times = Mapping[Kind, float]


@dataclass(frozen=True)
class Choice:
    """The numbers that a run is trained in, and why."""

    precision: Kind
    why: str
    machine: str
    """On which it was chosen."""

    def line(self, device: torch.device) -> str:
        """For people, on the machine where the run begins or goes on."""
        slow = self.precision == "bfloat16" and not has_bfloat16(device)
        note = "; this machine only emulates it, which is slow" if slow else ""
        return f"trains in {self.precision}: {self.why}{note}"


def choose(
    recipe: Recipe,
    model: nn.Module,
    device: torch.device,
    *,
    native: Callable[[torch.device], bool] = has_bfloat16,
    measure: Callable[[nn.Module, Recipe, torch.device], Times] | None = None,
) -> Choice:
    """What the recipe says, or with "auto" what is quickest here for its network and batch.

    native: whether a device computes bfloat16; measure: seconds of a step in each; both for tests.
    """
    here = machine(device)
    if recipe.precision != "auto":
        return Choice(recipe.precision, "as the recipe says", here)
    if not native(device):
        return Choice("float32", "this machine has no instructions for bfloat16", here)
    taken = (measure or step_times)(model, recipe, device)
    ratio = taken["bfloat16"] / taken["float32"]
    why = f"a step in bfloat16 takes {ratio:.2f} of one in float32, tried here"
    return Choice("bfloat16" if ratio < CLEARLY else "float32", why, here)


def step_times(model: nn.Module, recipe: Recipe, device: torch.device) -> Times:
    """Best seconds of a step forward and back in each, on a copy of the network, in turn."""
    model = copy.deepcopy(model).train()
    with torch.random.fork_rng():
        pixels = torch.rand(recipe.batch, 3, recipe.size, recipe.size).to(device)
        if recipe.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        # CPU time says what a step takes whatever else the machine does.
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        one = {"": lambda: _step(model, pixels, "float32")}
        first = fastest_runs(one, seconds=0.0, clock=clock)[""]
        few = pixels[: max(2, int(len(pixels) * min(1.0, STEP / first)))]
        kinds: tuple[Kind, ...] = ("float32", "bfloat16")
        ways = {kind: _stepping(model, few, kind) for kind in kinds}
        return fastest_runs(ways, clock=clock)


def _stepping(model: nn.Module, pixels: Tensor, kind: Kind) -> Callable[[], None]:
    return lambda: _step(model, pixels, kind)


def _step(model: nn.Module, pixels: Tensor, kind: Kind) -> None:
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=kind == "bfloat16"):
        scores = model(pixels)
    wanted = scores.new_zeros(len(scores), dtype=torch.long)
    torch.autograd.backward(F.cross_entropy(scores.float(), wanted))
    model.zero_grad(set_to_none=True)
    if pixels.device.type != "cpu":
        torch.accelerator.synchronize(pixels.device)
