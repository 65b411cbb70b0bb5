"""How volatile a learner's reward is: pure functions of reward curves.

After Chan et al. 2020, "Measuring the Reliability of Reinforcement Learning Algorithms"
(arXiv 1912.05663): dispersion across runs, dispersion across time, and long-term risk across time,
each during training. Shape legend: S seeds, T episodes. All are in units of the reward, 0 or more,
and the lower the steadier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from experiments.common.intervals import Interval, bootstrap_interval

__all__ = [
    "SMOOTHING",
    "cvar",
    "dispersion_across",
    "dispersion_within",
    "drawdown",
    "episodes_to_reach",
    "smooth",
    "unpaired_interval",
]

SMOOTHING = 10
"""Episodes of the running mean under which seeds are compared."""
WINDOW = 20
"""Differences in a window of `dispersion_within`."""


def smooth(rewards: ArrayLike, window: int = SMOOTHING) -> NDArray[np.float64]:
    """Return the mean of each `window` episodes in a row, (..., T) -> (..., T - window + 1).

    Curves shorter than the window are averaged as a whole, to (..., 1).
    """
    curves = np.asarray(rewards, np.float64)
    width = min(window, curves.shape[-1])
    means: NDArray[np.float64] = np.lib.stride_tricks.sliding_window_view(
        curves, width, axis=-1
    ).mean(-1)
    return means


def dispersion_across(rewards: ArrayLike, window: int = SMOOTHING) -> Any:
    """Return the interquartile range across seeds, a mean over time.

    Source: Chan et al. 2020, section 4.2, "dispersion across runs": the curves are low-pass
    filtered before, here by a running mean, so that ups and downs within runs do not count.

    Args:
        rewards: (..., S, T).
        window: Episodes of the running mean.

    Returns:
        A number for each set of S curves, (...).
    """
    return stats.iqr(smooth(rewards, window), axis=-2).mean(-1)


def dispersion_within(rewards: ArrayLike, window: int = WINDOW) -> float:
    """Return the interquartile range of the detrended reward, a mean over sliding windows.

    Source: Chan et al. 2020, section 4.1, "dispersion across time": detrended by differences
    r_t - r_(t-1), so that steady improvement does not count.

    Args:
        rewards: (T,), two episodes at least.
        window: Differences in a window; all of them where there are fewer.
    """
    differences = np.diff(np.asarray(rewards, np.float64))
    width = min(window, len(differences))
    windows = np.lib.stride_tricks.sliding_window_view(differences, width)
    return float(stats.iqr(windows, axis=-1).mean())


def drawdown(rewards: ArrayLike) -> NDArray[np.float64]:
    """Return by how much each reward is below the best so far, (T,), 0 or more.

    Source: Chan et al. 2020, section 4.1, "long-term risk across time"; theirs is the negative.
    """
    curve = np.asarray(rewards, np.float64)
    below: NDArray[np.float64] = np.maximum.accumulate(curve) - curve
    return below


def cvar(losses: ArrayLike, alpha: float = 0.05) -> float:
    """Return the mean of the worst losses, conditional value at risk.

    Args:
        losses: (T,) the larger the worse.
        alpha: Fraction that is taken, in (0, 1]; one loss at least.
    """
    ordered = np.sort(np.asarray(losses, np.float64))
    n_worst = max(1, int(np.ceil(alpha * len(ordered))))
    return float(ordered[-n_worst:].mean())


def episodes_to_reach(rewards: ArrayLike, target: float) -> float:
    """Return how many episodes it takes until one has at least this reward; infinity if none."""
    reached = np.flatnonzero(np.asarray(rewards, np.float64) >= target)
    return float(reached[0] + 1) if len(reached) else float("inf")


def unpaired_interval(
    measure: Callable[[NDArray[np.float64]], Any], first: ArrayLike, second: ArrayLike
) -> Interval:
    """Compare what is measured over all seeds of two learners: first minus second.

    The interval is a bootstrap: seeds of each learner are resampled; NaN for a single seed.

    Args:
        measure: Maps curves (..., S, T) to numbers (...).
        first: (S, T) curves.
        second: (S', T) curves.
    """
    curves = [np.asarray(rewards, np.float64) for rewards in (first, second)]

    def statistic(*chosen: NDArray[np.int64], axis: int = -1) -> Any:
        # (..., S) -> (..., S, T)
        mine, other = (measure(c[places]) for c, places in zip(curves, chosen, strict=True))
        return mine - other

    places = [np.arange(len(c)) for c in curves]
    return bootstrap_interval(places, statistic, n_resamples=1000, batch=100)
