"""What did the look at a network before the first picture find, and can it be used?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from convscope.core.record import Record

Verdict = Literal["ok", "warn", "bad"]
VERDICTS: tuple[Verdict, ...] = ("ok", "warn", "bad")


class Finding(NamedTuple):
    """One line of the table."""

    topic: str
    """Under which heading it stands: network, weights, input, …"""
    question: str
    finding: str
    verdict: Verdict
    """"bad": what a method says of this network cannot be trusted, or it says nothing."""
    advice: str = ""
    """Why it matters, and what to do; empty where there is nothing to do."""
    code: str = ""
    """Of the fault, where the verdict is "bad"."""


@dataclass(frozen=True, eq=False)
class Audit(Record):
    """All findings about one network, in the order of the table."""

    network: str
    """What was looked at, as it was named."""
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs: counts of calls, sizes, methods with their layers and refusals."""

    @property
    def usable(self) -> bool:
        """Whether nothing was found that forbids to trust any result."""
        return not self.of("bad")

    def of(self, verdict: Verdict) -> tuple[Finding, ...]:
        return tuple(result for result in self.findings if result.verdict == verdict)

    def plain(self) -> dict[str, Any]:
        """All of it as plain JSON types."""
        return {
            "network": self.network,
            "usable": self.usable,
            "findings": [result._asdict() for result in self.findings],
            "facts": dict(self.facts),
            "origin": dict(self.origin),
        }
