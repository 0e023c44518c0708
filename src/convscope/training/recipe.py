"""Training recipe: every setting that decides the weights, read from TOML and validated.

A run folder that holds a recipe, and the pictures' hash, says all there is to say. A recipe
comes from a TOML file, one line a field.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from convscope.core.errors import UsageError, nearest
from convscope.core.text import as_toml

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
