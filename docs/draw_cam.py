"""Where do the authors' definitions and pytorch-grad-cam's habits differ, seen on a picture?

    python docs/draw_cam.py WEIGHTS.safetensors docs/cam-differences.jpg

WEIGHTS: of torchvision's SqueezeNet 1.0. The picture is Stefan van der Walt's cat (CC0), which
scikit-image brings along.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from skimage import data

import convscope
from convscope.drawing import over

SHALLOW = ["features.3", "features.7", "features.12"]
SHOWN = (
    ("gradcam++", {"layer": "features.12"}, "Grad-CAM++"),
    ("eigencam", {"layer": "features.12"}, "Eigen-CAM"),
    ("layercam", {"layer": SHALLOW}, "LayerCAM of three layers"),
    ("fullgrad", {}, "FullGrad"),
    ("scorecam", {"layer": "features.12"}, "Score-CAM"),
)


def main(weights: str, out: str) -> None:
    network = convscope.load("torchvision:squeezenet1_0", Path(weights))
    pixels = network.preprocess.framing(Image.fromarray(data.cat()))
    image = network.preprocess.tensor(pixels)[None]
    figure = Figure(figsize=(2.3 * (1 + len(SHOWN)), 5.2), layout="constrained")
    panels = figure.subplots(2, 1 + len(SHOWN))
    for axes in panels.ravel():
        axes.set_axis_off()
    panels[0, 0].imshow(pixels)
    panels[0, 0].set_title("the picture", fontsize=9)
    for column, (name, how, title) in enumerate(SHOWN, start=1):
        maps = [
            convscope.attribute(network.model, image, name, variant=variant, **how)[0]
            for variant in ("authors", "pytorch-grad-cam")
        ]
        # Of two maps, how alike they are: 1 if one is the other in other units.
        alike = np.corrcoef(maps[0].values.ravel(), maps[1].values.ravel())[0, 1]
        for row, found in enumerate(maps):
            panels[row, column].imshow(over(pixels, found.values - min(0, found.values.min())))
            who = f"{title}\nthe authors" if row == 0 else f"pytorch-grad-cam\nr = {alike:.2f}"
            panels[row, column].set_title(who, fontsize=9)
    figure.savefig(out, dpi=90, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main(*sys.argv[1:])
