"""What does the network take this picture for: the picture beside its likeliest classes?"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from convscope.figures.plots import INK, SOFT, TRAINING, shortened
from convscope.records.predictions import Prediction


def prediction_figure(pixels: UInt8[np.ndarray, "h w 3"], prediction: Prediction) -> Figure:
    """pixels: what the network saw, or the whole picture."""
    height, width = pixels.shape[:2]
    wide = float(np.clip(3.4 * width / height, 2.0, 5.0))
    figure = Figure(figsize=(wide + 4.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(wide, 4.6))
    left.imshow(pixels)
    left.set_axis_off()
    places = np.arange(len(prediction.names))
    right.barh(places, prediction.probability, height=0.62, color=TRAINING)
    for place, probability in zip(places, prediction.probability, strict=True):
        right.annotate(
            f"{probability:.1%}",
            (float(probability), float(place)),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    right.set_yticks(places, [shortened(name) for name in prediction.names], parse_math=False)
    right.invert_yaxis()
    right.set_xlim(0, 1.14)
    right.set_xticks([])
    right.tick_params(length=0, labelsize=10, colors=INK)
    for edge in right.spines.values():
        edge.set_visible(False)
    right.spines["left"].set_visible(True)
    right.spines["left"].set_color(SOFT)
    return figure
