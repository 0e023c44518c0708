"""Audit: can a network be looked at, by which methods, and what should one know beforehand."""

from convscope.studies.base import Study

STUDY = Study(
    folder="audit",
    records=("Audit",),
    title="Check",
    shows="What to know about a network before looking at it, and which methods it allows.",
    limits="All is tried on one picture.",
    summary="What to know about a network before looking at it, and which methods it allows.",
    example="convscope check torchvision:resnet18",
    page="check",
    needs=("network",),
    command="check",
    by_hand=True,
)
