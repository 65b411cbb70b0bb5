"""Intervals over seeds as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from experiments.common.intervals import Interval, mean_interval

__all__ = [
    "count_outcomes",
    "format_ends",
    "format_interval",
    "format_mean",
    "format_points",
    "outcome",
]

OUTCOMES = {"below": "better", "above": "worse", "equal": "equal", "undecided": "undecided"}
"""What a difference in errors says of the first of two methods, by its side of 0."""
TOLERANCE = 1e-12


def format_mean(values: ArrayLike, n_digits: int = 2) -> str:
    """Format a mean over seeds and its interval: see `format_interval`.

    Args:
        values: (n,) one number per seed; for a single one there is no interval.
        n_digits: Digits after the point.
    """
    return format_interval(mean_interval(values), n_digits)


def format_points(difference: Interval) -> str:
    """Format a difference, with its sign, and its interval: see `format_interval`."""
    return format_interval(difference, sign="+")


def format_interval(interval: Interval, n_digits: int = 2, sign: str = "") -> str:
    """Format a statistic and its interval, as `1.00 ± 0.10` if that reaches as far on both sides.

    Args:
        interval: Written as by `format_ends` if it does not, as from ten seeds on.
        n_digits: Digits after the point.
        sign: `+` shows the sign of positive numbers too.
    """
    below, above = interval.reach
    if math.isnan(below) or not math.isclose(below, above, rel_tol=1e-6, abs_tol=TOLERANCE):
        return format_ends(interval, n_digits, sign)
    return f"{interval.value:{sign}.{n_digits}f} ± {above:.{n_digits}f}"


def format_ends(interval: Interval, n_digits: int = 2, sign: str = "") -> str:
    """Format a statistic and its interval, as `1.00 [0.90, 1.10]`.

    Args:
        interval: For a single seed, the statistic alone is shown.
        n_digits: Digits after the point.
        sign: `+` shows the sign of positive numbers too.
    """
    value, low, high = (f"{number:{sign}.{n_digits}f}" for number in interval)
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def count_outcomes(differences: Mapping[Any, Interval]) -> str:
    """Format how often the first of two is better (below the other), worse, equal or undecided."""
    counts = Counter(map(outcome, differences.values()))
    return ", ".join(f"{name} {counts[name]}" for name in OUTCOMES.values() if counts[name])


def outcome(difference: Interval) -> str:
    """Return what a difference in errors says of the first of two, a value of `OUTCOMES`."""
    is_nothing = all(abs(end) < TOLERANCE for end in difference)
    return "equal" if is_nothing else OUTCOMES[difference.side]
