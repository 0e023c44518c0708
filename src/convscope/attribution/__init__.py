"""Attribution maps: what in a picture speaks for a class. CAMs, gradients, occlusion, your own."""

from convscope.attribution.cam import default_layer
from convscope.attribution.formulas import CAMS
from convscope.attribution.formulas import table as cam_table
from convscope.attribution.gradients import METHODS as GRADIENTS
from convscope.attribution.occlusion import occlusion, occlusion_map, occlusions
from convscope.attribution.registry import METHODS, attribute, chosen

__all__ = [
    "CAMS",
    "GRADIENTS",
    "METHODS",
    "attribute",
    "cam_table",
    "chosen",
    "default_layer",
    "occlusion",
    "occlusion_map",
    "occlusions",
]
