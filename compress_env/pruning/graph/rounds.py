"""How many channels groups keep in the rounds of strong pruning that a network is tried on.

A structure that depends on numbers of channels shows when these numbers change: when they fall
below a bound, become equal, or become unequal in either direction. Each course is a sequence of
rounds in which no group ever gains a channel, so that one network is pruned further and further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

__all__ = ["Counts", "equal_rounds", "unequal_rounds"]

Counts: TypeAlias = tuple[int, ...]
"""Channels that each group keeps, at least 1."""


def equal_rounds(sizes: Sequence[int], widths: Sequence[Sequence[int]]) -> list[Counts]:
    """Return a course in which groups get the same widths as others, and as what stays.

    First each group loses one channel. Then it takes on its widths, falling, the smallest ones of
    all groups in the same round, so that those with common widths have them together. At the end
    one channel of each is left.

    Args:
        sizes: Channels of each group.
        widths: For each group those that it should take on; only smaller ones than its size count.
    """
    falling = [
        sorted({x for x in own if 1 < x < n}, reverse=True)
        for n, own in zip(sizes, widths, strict=True)
    ]
    n_rounds = max(map(len, falling))
    course = [tuple(max(1, n - 1) for n in sizes)]
    for round_ in range(n_rounds):
        late = (round_ - n_rounds + len(own) for own in falling)
        course.append(
            tuple(
                own[place] if place >= 0 else before
                for own, place, before in zip(falling, late, course[-1], strict=True)
            )
        )
    return list(dict.fromkeys([*course, (1,) * len(sizes)]))


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
