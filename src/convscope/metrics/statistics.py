"""Significance: the exact sign test of two networks on the same pictures."""

from __future__ import annotations

from math import exp, lgamma, log


def sign_test(lost: int, gained: int) -> float:
    """Two-sided p of the exact sign test: how often would equals differ at least so much?

    lost, gained: pictures that only the one, and only the other, gets right. Pictures on which
    both agree say nothing. 1 where there is no difference at all.
    Source: McNemar 1947, with the binomial distribution in the place of its approximation.
    """
    both, fewer = lost + gained, min(lost, gained)
    if 2 * fewer >= both - 1:
        return 1.0
    whole = both * log(2) - lgamma(both + 1)
    tail = sum(
        exp(-lgamma(count + 1) - lgamma(both - count + 1) - whole) for count in range(fewer + 1)
    )
    return min(1.0, 2 * tail)
