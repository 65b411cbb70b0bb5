"""Means with intervals, as text."""

from __future__ import annotations

import math

from numpy.typing import ArrayLike

from experiments.tables import mean_interval

__all__ = ["format_mean"]


def format_mean(values: ArrayLike, n_digits: int = 2) -> str:
    """Format a mean over seeds and the half-width of its 95 % interval, as `1.00 ± 0.10`.

    Args:
        values: (n,) one number per seed; for a single one there is no interval.
        n_digits: Digits after the point.
    """
    mean, half = mean_interval(values)
    return f"{mean:.{n_digits}f}" + ("" if math.isnan(half) else f" ± {half:.{n_digits}f}")
