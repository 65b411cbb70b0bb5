"""How many channels groups keep in the rounds of strong pruning that a network is tried on.

A structure that depends on numbers of channels shows when these numbers change: when they fall
below a bound, become equal, or become unequal in either direction. Each course is a sequence of
rounds in which no group ever gains a channel, so that one network is pruned further and further.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

import numpy as np

__all__ = ["MAX_LEVELS", "Counts", "equal_rounds", "unequal_rounds"]

MAX_LEVELS = 10
"""Different common widths that a network is tried on; of more, evenly spaced ones are."""

Counts: TypeAlias = tuple[int, ...]
"""Channels that each group keeps, at least 1."""


def equal_rounds(sizes: Sequence[int], fixed: Collection[int]) -> list[Counts]:
    """Return a course in which all groups that can get the same width, round by round.

    First each group loses one channel. The widths after that, falling, are those of the unpruned
    network, so that each meets what has it for good, and 1.

    Args:
        sizes: Channels of each group.
        fixed: Widths of what stays as it is.
    """
    largest = max(sizes)
    levels = _thin(sorted(x for x in set(fixed) if 1 < x < largest), MAX_LEVELS)
    others = sorted(x for x in {*sizes} - {*levels} if 1 < x < largest)
    levels += _thin(others, MAX_LEVELS - len(levels))
    course = [tuple(max(1, n - 1) for n in sizes)]
    for level in (*sorted(levels, reverse=True), 1):
        course.append(tuple(min(n, level) for n in course[-1]))
    return list(dict.fromkeys(course))


def unequal_rounds(sizes: Sequence[int], seed: int = 0) -> list[Counts]:
    """Return a course of two rounds of random widths, ordered one way and then the other.

    Where one of two groups of a size keeps more channels than the other in the first round, it
    keeps fewer in the second one, unless they are too few to differ.

    Args:
        sizes: Channels of each group.
        seed: Of the order of the groups.
    """
    n = len(sizes)
    share = (np.random.default_rng(seed).permutation(n) + 0.5) / n
    first = [_between(size / 2, size, x) for size, x in zip(sizes, share, strict=True)]
    second = [_between(0, size / 2, 1 - x) for size, x in zip(sizes, share, strict=True)]
    return [tuple(first), tuple(second)]


def _between(low: float, high: float, share: float) -> int:
    return max(1, int(low + (high - low) * share))


def _thin(values: Sequence[int], most: int) -> list[int]:
    """Return at most so many of the values, evenly spaced."""
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).astype(int))
    return [values[i] for i in places]
