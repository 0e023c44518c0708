"""Feature visualisation by optimisation: pictures that excite a unit or a class most."""

from convscope.visualisation.optimise import (
    activation_maximisation,
    class_image,
    class_values,
    deep_dream,
    invert,
    unit_values,
    visualise,
)

__all__ = [
    "activation_maximisation",
    "class_image",
    "class_values",
    "deep_dream",
    "invert",
    "unit_values",
    "visualise",
]
