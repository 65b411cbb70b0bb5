"""Means with intervals, as numbers and as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = [
    "Interval",
    "bootstrap_interval",
    "count_outcomes",
    "format_interval",
    "format_mean",
    "format_points",
    "improvement_interval",
    "iqm_interval",
    "mean_interval",
    "outcome",
    "paired_interval",
    "student_interval",
]

N_RESAMPLES = 2000
OUTCOMES = {"below": "better", "above": "worse", "equal": "equal", "undecided": "undecided"}
"""What a difference in errors says of the first of two methods, by its side of 0."""
TOLERANCE = 1e-12


class Interval(NamedTuple):
    """A statistic over seeds and its interval."""

    value: float
    low: float
    """Lower end; NaN for a single seed."""
    high: float
    """Upper end."""

    @property
    def side(self) -> Literal["below", "above", "undecided"]:
        """On which side of 0 it is; `undecided` where it holds 0 or is not known."""
        if self.high < 0.0:
            return "below"
        return "above" if self.low > 0.0 else "undecided"


NOTHING = Interval(math.nan, math.nan, math.nan)


def mean_interval(values: ArrayLike) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % interval (Student's t).

    Args:
        values: (n,) one number per seed. The half-width is NaN for a single one.
    """
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half)


def student_interval(values: ArrayLike) -> Interval:
    """Return the mean over seeds and Student's 95 % interval.

    Args:
        values: (n,) one number per seed.
    """
    mean, half = mean_interval(values)
    return Interval(mean, mean - half, mean + half)


def paired_interval(first: ArrayLike, second: ArrayLike) -> Interval:
    """Return the mean of first minus second, seed by seed, and Student's 95 % interval.

    Args:
        first: (n,) one number per seed.
        second: (n,), of the same seeds.
    """
    return student_interval(np.asarray(first, np.float64) - np.asarray(second, np.float64))


def format_mean(values: ArrayLike, n_digits: int = 2) -> str:
    """Format a mean over seeds and the half-width of its 95 % interval, as `1.00 ± 0.10`.

    Args:
        values: (n,) one number per seed; for a single one there is no interval.
        n_digits: Digits after the point.
    """
    mean, half = mean_interval(values)
    return f"{mean:.{n_digits}f}" + ("" if math.isnan(half) else f" ± {half:.{n_digits}f}")


def format_interval(interval: Interval, n_digits: int = 2, sign: str = "") -> str:
    """Format a statistic and its interval, as `1.00 [0.90, 1.10]`.

    Args:
        interval: For a single seed, the statistic alone is shown.
        n_digits: Digits after the point.
        sign: `+` shows the sign of positive numbers too.
    """
    value, low, high = (f"{number:{sign}.{n_digits}f}" for number in interval)
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def format_points(interval: Interval) -> str:
    """Format a difference and the half-width of its interval, as `+1.00 ± 0.10`."""
    half = (interval.high - interval.low) / 2
    return f"{interval.value:+.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def count_outcomes(differences: Mapping[Any, Interval]) -> str:
    """Format how often the first of two is better (below the other), worse, equal or undecided."""
    counts = Counter(map(outcome, differences.values()))
    return ", ".join(f"{name} {counts[name]}" for name in OUTCOMES.values() if counts[name])


def outcome(difference: Interval) -> str:
    """Return what a difference in errors says of the first of two, a value of `OUTCOMES`."""
    is_nothing = all(abs(end) < TOLERANCE for end in difference)
    return "equal" if is_nothing else OUTCOMES[difference.side]


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
        return NOTHING
    return bootstrap_interval(arrays, _iqm)


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
        return NOTHING
    return bootstrap_interval(arrays, _improvement)


def bootstrap_interval(
    samples: Sequence[NDArray[Any]],
    statistic: Callable[..., Any],
    *,
    n_resamples: int = N_RESAMPLES,
    batch: int | None = None,
) -> Interval:
    """Return a statistic of samples and its 95 % percentile-bootstrap interval, the same each time.

    Args:
        samples: (n,) each, resampled by itself; NaN for the ends where one has a single number.
        statistic: Maps samples (..., n), along `axis`, to numbers (...).
        n_resamples: Resamples of the bootstrap.
        batch: Resamples in memory at a time; all of them when None.
    """
    center = float(statistic(*samples))
    if min(map(len, samples)) < 2:
        return Interval(center, math.nan, math.nan)
    low, high = stats.bootstrap(
        samples,
        statistic,
        n_resamples=n_resamples,
        batch=batch,
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
