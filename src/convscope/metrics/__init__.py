"""Metrics of attribution maps: faithfulness, sanity checks, localisation, agreement."""

from convscope.metrics.faithfulness import faithfulness
from convscope.metrics.localisation import coverage, energy_inside, pointing, share_inside
from convscope.metrics.randomisation import agreement, randomisation, sensitivity

__all__ = [
    "agreement",
    "coverage",
    "energy_inside",
    "faithfulness",
    "pointing",
    "randomisation",
    "sensitivity",
    "share_inside",
]
