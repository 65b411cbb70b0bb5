"""Means with intervals, as numbers and as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from experiments.tables.tables import mean_interval

__all__ = ["Interval", "format_mean", "improvement_interval", "iqm_interval"]

N_RESAMPLES = 2000


class Interval(NamedTuple):
    """A statistic over seeds and its interval."""

    value: float
    low: float
    """Lower end; NaN for a single seed."""
    high: float
    """Upper end."""


def format_mean(values: ArrayLike, n_digits: int = 2) -> str:
    """Format a mean over seeds and the half-width of its 95 % interval, as `1.00 ± 0.10`.

    Args:
        values: (n,) one number per seed; for a single one there is no interval.
        n_digits: Digits after the point.
    """
    mean, half = mean_interval(values)
    return f"{mean:.{n_digits}f}" + ("" if math.isnan(half) else f" ± {half:.{n_digits}f}")


def iqm_interval(*samples: ArrayLike) -> Interval:
    """Return the interquartile mean of all values and its 95 % percentile-bootstrap interval.

    Source: Agarwal et al. 2021 (arXiv 2108.13264). Of five seeds the lowest and the highest are
    left out; the interval is the same each time.

    Args:
        samples: (n,) each, one number per seed; of several samples, one for each task, each is
            resampled by itself. NaN comes of none, and no interval where one has a single seed.
    """
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    if not arrays:
        return Interval(math.nan, math.nan, math.nan)
    center = float(_iqm(*arrays))
    return _bootstrap(arrays, _iqm, center)


def improvement_interval(samples: Sequence[ArrayLike], others: Sequence[ArrayLike]) -> Interval:
    """Return the probability that the first of two agents does better, and its 95 % interval.

    A task's probability is the share of pairs of seeds in which it does, ties counted as half; the
    mean over tasks is returned. Source: Agarwal et al. 2021 (arXiv 2108.13264), section 4.3. The
    interval is a percentile bootstrap that resamples each agent's seeds within each task.

    Args:
        samples: (n,) for each task, one number per seed of the first agent, higher is better.
        others: (m,) for each task, of the other agent. NaN comes of no task, and no interval where
            one has a single seed.
    """
    arrays = [np.asarray(sample, np.float64) for sample in (*samples, *others)]
    if not arrays:
        return Interval(math.nan, math.nan, math.nan)
    return _bootstrap(arrays, _improvement, float(_improvement(*arrays)))


def _bootstrap(
    arrays: list[NDArray[np.float64]], statistic: Callable[..., Any], center: float
) -> Interval:
    if min(len(array) for array in arrays) < 2:
        return Interval(center, math.nan, math.nan)
    low, high = stats.bootstrap(
        arrays,
        statistic,
        n_resamples=N_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    # Sums of equal numbers in another order may differ in their last digit.
    return Interval(center, min(float(low), center), max(float(high), center))


def _improvement(*samples: NDArray[np.float64], axis: int = -1) -> Any:
    n_tasks = len(samples) // 2
    shares = []
    for first, second in zip(samples[:n_tasks], samples[n_tasks:], strict=True):
        # (..., n) and (..., m) -> (..., n, m)
        x = np.expand_dims(np.moveaxis(first, axis, -1), -1)
        y = np.expand_dims(np.moveaxis(second, axis, -1), -2)
        shares.append(((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1)))
    return np.mean(shares, axis=0)


def _iqm(*samples: NDArray[np.float64], axis: int = -1) -> Any:
    return stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)
