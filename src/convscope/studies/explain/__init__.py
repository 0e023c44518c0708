"""Explain: which parts of a picture speak for a class, by several methods, each put to the test."""

from convscope.studies.base import Study

STUDY = Study(
    folder="explain",
    records=("Explanations",),
    title="Explanation",
    shows="Which parts of a picture speak for a class, by each method, and how far to believe it.",
    limits="A map says what the network uses, not whether it is right to.",
    summary="What speaks for a class, by any method, each map put to the test.",
    example="convscope explain torchvision:squeezenet1_0 photograph.jpg --method all",
    page="explain",
    needs=("network", "picture folder"),
    scores=True,
    function="explain_folder",
    by_hand=True,
)
