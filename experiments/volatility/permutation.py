"""Is one agent steadier than another, and could the comparison have come out otherwise?

Shape legend: S seeds of one agent, S' of another, T episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import comb
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from experiments.volatility.measures import dispersion_across, smooth

__all__ = ["LEVEL", "MIN_SEEDS", "Comparison", "compare_across", "compare_means"]

LEVEL = 0.05
"""Comparisons with a lower p-value count."""
MIN_SEEDS = 10
"""Fewer seeds say nothing of the dispersion across seeds."""
N_PERMUTATIONS = 1000
BATCH = 100
Values = NDArray[np.float64]


class Comparison(NamedTuple):
    """The ratio of a measure of two agents, and how often chance alone makes one so far from 1."""

    ratio: float
    """First to second; below 1 the first is steadier, NaN if there is none."""
    p: float
    """Two-sided p-value of a permutation test; NaN where it does not count."""
    why_not: str = ""
    """Why it could not have come out otherwise, if so."""

    @property
    def side(self) -> Literal["below", "above", "undecided", "not counted"]:
        """Which of the two is steadier: `below` says the first."""
        if self.why_not:
            return "not counted"
        if self.p >= LEVEL:
            return "undecided"
        return "below" if self.ratio < 1.0 else "above"


def compare_across(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Compare two agents in their dispersion across seeds.

    What is permuted are the curves less their agent's median at each episode, as agents need not
    earn the same; of that median dispersion does not depend.

    Args:
        first: (S, T) curves.
        second: (S', T) curves.
    """
    mine, other = (np.asarray(curves, np.float64) for curves in (first, second))
    fewest = min(len(mine), len(other))
    # A running mean of differences is the difference of running means: no need to repeat it.
    left, right = (smooth(curves - np.median(curves, axis=0)) for curves in (mine, other))
    why_not = _the_same(mine, other)
    if not why_not and fewest < MIN_SEEDS:
        why_not = f"{fewest} seeds, fewer than {MIN_SEEDS}"
    return _compare(partial(dispersion_across, window=1), left, right, why_not)


def compare_means(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Compare two agents in a measure that each seed has.

    Args:
        first: (S,) values, 0 or more.
        second: (S',) values.
    """
    mine, other = (np.asarray(values, np.float64) for values in (first, second))
    why_not = _the_same(mine, other)
    if not why_not and 2 / comb(len(mine) + len(other), len(mine)) >= LEVEL:
        why_not = f"{min(len(mine), len(other))} seeds, too few for any p below {LEVEL:g}"
    return _compare(lambda values: values.mean(-1), mine, other, why_not)


def _the_same(first: Values, second: Values) -> str:
    is_same = first.shape == second.shape and bool(np.allclose(first, second, rtol=1e-9, atol=0.0))
    return "the same by construction" if is_same else ""


def _compare(
    measure: Callable[[Values], Any], first: Values, second: Values, why_not: str
) -> Comparison:
    """Compare what a measure, of (..., S, ...) to (...), says of two sets of seeds."""
    mine, other = float(measure(first)), float(measure(second))
    if mine == other == 0.0:
        return Comparison(np.nan, np.nan, why_not or "neither varies")
    with np.errstate(divide="ignore"):
        ratio = float(np.float64(mine) / other)
        observed = abs(np.log(ratio))
    if why_not:
        return Comparison(ratio, np.nan, why_not)
    both, n_first = np.concatenate([first, second]), len(first)
    rng = np.random.default_rng(0)
    n_extreme = 0
    for _ in range(N_PERMUTATIONS // BATCH):
        # (BATCH, S + S')
        orders = rng.permuted(np.tile(np.arange(len(both)), (BATCH, 1)), axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = measure(both[orders[:, :n_first]]) / measure(both[orders[:, n_first:]])
            n_extreme += int((abs(np.log(ratios)) >= observed * (1.0 - 1e-9)).sum())
    return Comparison(ratio, (1 + n_extreme) / (1 + N_PERMUTATIONS))
