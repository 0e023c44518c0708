"""What decides a training run?

Everything that can change the weights is a field here, so a run folder that holds a recipe, and
the pictures' hash, says all there is to say. A recipe comes from a TOML file, one line a field.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from convscope.training.recipe_check import Between, check

Share = Annotated[float, Between(0.0, 1.0)]
Amount = Annotated[float, Between(0.0, 1e6)]
Count = Annotated[int, Between(1, 10**9)]
Pixels = Annotated[int, Between(8, 4096)]
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
    seed: Annotated[int, Between(0, 2**31 - 1)] = 0

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
    size_start: Annotated[int, Between(0, 4096)] = 0
    """Side in the first epoch, growing in steps of `size_step` up to `size`; 0 for no growth."""
    size_step: Count = 16
    grow: Share = 0.7
    """Part of the epochs after which the side has reached `size`."""
    test_size: Pixels = 224
    """Side of the square seen in validation and by users of the network."""
    test_resize: Annotated[int, Between(0, 8192)] = 256
    """Shorter side before the centre is cut out; 0 stretches the whole picture to the square."""
    views: Literal[1, 10] = 1
    """Of the evaluation after training: the centre, or corners and centre and their flips."""
    cache: Pixels = 256
    """Larger pictures are shrunk to this shorter side once, when they are read."""

    crop: Literal["resized", "random", "centre"] = "resized"
    """resized: a box of random area and shape; random: a window of `size` from the centre square
    at `test_resize`; centre: always the middle of that square."""
    scale_min: Annotated[float, Between(0.01, 1.0)] = 0.08
    """Of resized: smallest part of the picture's area."""
    ratio_max: Annotated[float, Between(1.0, 10.0)] = 4 / 3
    """Of resized: largest ratio of the sides."""
    flip: Share = 0.5
    """Probability of a mirrored picture."""
    flip_vertical: Share = 0.0
    rotate: Annotated[float, Between(0.0, 180.0)] = 0.0
    """Largest rotation in degrees, either way."""
    jitter: Share = 0.0
    """Brightness, contrast and saturation are multiplied by 1 - jitter … 1 + jitter."""
    hue: Annotated[float, Between(0.0, 0.5)] = 0.0
    """Largest turn of the hue in whole turns, either way."""
    grey: Share = 0.0
    """Probability of a grey picture."""
    erase: Share = 0.0
    """Probability of a rectangle of 2 to 25 % of the picture in one random colour."""
    mix: Share = 0.0
    """Probability that a batch is mixed with itself in reverse order, by cutmix or mixup."""
    mix_cut: Share = 0.5
    """Part of the mixed batches that are mixed by cutmix."""
    mixup: Annotated[float, Between(0.01, 100.0)] = 0.2
    """Alpha of mixup's Beta distribution."""
    cutmix: Annotated[float, Between(0.01, 100.0)] = 1.0
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
        check(self)

    def size_at(self, epoch: int) -> int:
        """Side in pixels of the training squares in an epoch, counted from 0."""
        if not self.size_start:
            return self.size
        done = min(1.0, epoch / max(1e-9, self.grow * self.epochs))
        side = self.size_start + done * (self.size - self.size_start)
        return min(self.size, int(side // self.size_step) * self.size_step)


FIELDS = tuple(field.name for field in dataclasses.fields(Recipe))
