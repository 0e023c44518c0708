"""Slow twins of the agreement of sign changes: loops, one pair and one unit at a time."""

from __future__ import annotations

from itertools import permutations, product
from statistics import mean

Signs = tuple[int, ...]


def hamming(one: Signs, other: Signs) -> float:
    return sum(a != b for a, b in zip(one, other, strict=True)) / len(one)


def shuffled(one: Signs, other: Signs) -> float:
    """Mean distance over all orders of one of the two."""
    return mean(hamming(order, other) for order in permutations(one))


def consistency(chosen: list[Signs]) -> float:
    """Sum over ordered pairs i ≠ j, as the formula has it, over their number."""
    pairs = [(i, j) for i, j in product(range(len(chosen)), repeat=2) if i != j]
    return mean(hamming(chosen[i], chosen[j]) for i, j in pairs)


def exact_p(masks: list[list[Signs]], part: int) -> float:
    """Of all ways to take one mask of each picture: the share as consistent as this part."""
    real = consistency([of_picture[part] for of_picture in masks])
    ways = [consistency(list(way)) for way in product(*masks)]
    return mean(way <= real + 1e-12 for way in ways)
