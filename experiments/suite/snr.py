"""Measure how far the allocations of a task are apart, against the luck of a minibatch order.

The SNR of a task is the standard deviation of final validation accuracy over allocations of a
random policy around the uniform prior, divided by that over minibatch orders for one allocation.

Shapes: A allocations, K orders of each.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.files import replacing
from experiments.common.intervals import jackknife_interval
from experiments.common.stored import parse, read_table

__all__ = ["SNR", "better_half", "measure_allocations", "read_or_measure", "snr_of", "snr_row"]

ACTION_STD = 0.3
"""Standard deviation of the random policy's actions around 0, the prior."""
KINDS = {"allocation": int, "order": int, "accuracy": float, "used": float, "seconds": float}
"""Columns of an episode that are numbers."""
COLUMNS = ("task", "SNR", "SNR of the better half", "signal", "noise", "best", "used", "s")


class SNR(NamedTuple):
    """Signal and noise of some allocations, fractions of validation accuracy."""

    signal: float
    """Standard deviation over allocations, without the noise of their means."""
    noise: float
    """Standard deviation over orders, pooled over allocations."""
    ratio: float
    """The one by the other."""
    low: float
    """Lower end of the ratio's 95 % interval."""
    high: float
    """Upper end of it."""


def measure_allocations(
    task: str, n_allocations: int, n_orders: int, seed: int = 0, **options: Any
) -> pd.DataFrame:
    """Play random allocations of a task, each under orders of its own.

    Args:
        task: Its Gymnasium id; its prior and its orders are set as the measure needs them.
        n_allocations: A, at least 2.
        n_orders: K, at least 2.
        seed: Seed of the allocations; that of the orders is fixed.
        options: Other keyword arguments of `gymnasium.make`.

    Returns:
        One row per episode: `task`, `allocation`, `order`, `accuracy` (validation, at its end; 0 if
        it failed), `used` (share of the budget) and `seconds` (CPU, of one thread).
    """
    needed: dict[str, Any] = {"transition_noise": True, "prior": "uniform", "device": "cpu"}
    env = gym.make(task, **needed | options).unwrapped
    assert isinstance(env, LayerwiseCompressionEnv)
    rng = np.random.default_rng(seed)
    drawn = rng.normal(0.0, ACTION_STD, (n_allocations, len(env.walk))).clip(-1.0, 1.0)
    rows = [
        {"task": task, "allocation": allocation, "order": order}
        | _play(env, actions, allocation * n_orders + order)
        for allocation, actions in enumerate(drawn.astype(np.float32))
        for order in range(n_orders)
    ]
    return pd.DataFrame(rows)


def _play(
    env: LayerwiseCompressionEnv, actions: NDArray[np.float32], order: int
) -> dict[str, float]:
    start = process_time()
    env.reset(seed=order)
    for action in actions:
        *_, ended, _, info = env.step(action[None])
        if ended:
            break
    seconds = process_time() - start
    if "error" in info:
        return {"accuracy": 0.0, "used": 0.0, "seconds": seconds}
    terms = info["reward_terms"]
    used = terms["cost"] / (terms["cost_high"] * _budget(env))
    return {"accuracy": info["accuracy"], "used": used, "seconds": seconds}


def _budget(env: LayerwiseCompressionEnv) -> float:
    """Return the fraction of the cost that is allowed."""
    assert env.spec is not None
    kwargs = env.spec.kwargs
    return float(kwargs["flops_budget" if "flops_budget" in kwargs else "size_budget"])


def read_or_measure(
    path: Path | None, task: str, n_allocations: int, n_orders: int
) -> pd.DataFrame:
    """Return the episodes of a task: from a CSV file, or measured and added to it.

    Raises:
        ValueError: If the file holds no such episodes, or others of the task.
        FileNotFoundError: If there is something else in its place.
    """
    if path is None:
        return measure_allocations(task, n_allocations, n_orders)
    known = read_table(path, ("task", *KINDS)) if path.exists() else pd.DataFrame()
    found = parse(path, known[known["task"] == task], KINDS) if len(known) else known
    if len(found):
        _check_grid(path, task, found, n_allocations, n_orders)
        return found
    episodes = measure_allocations(task, n_allocations, n_orders)
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = episodes.round({"accuracy": 6, "used": 4, "seconds": 3})
    with replacing(path) as temporary:
        pd.concat([known, rounded]).to_csv(temporary, index=False)
    return episodes


def _check_grid(
    path: Path, task: str, episodes: pd.DataFrame, n_allocations: int, n_orders: int
) -> None:
    """Check that each allocation has been played once under each order.

    Raises:
        ValueError: If not.
    """
    played = sorted(zip(episodes["allocation"], episodes["order"], strict=True))
    if played != list(product(range(n_allocations), range(n_orders))):
        raise ValueError(
            f"expected {n_allocations} x {n_orders} episodes of {task} in {str(path)!r}, one for "
            f"each allocation and order, got {len(episodes)}: give another file"
        )


def snr_row(episodes: pd.DataFrame) -> tuple[str, ...]:
    """Return a task's cells of the table, as in `COLUMNS`, of its episodes."""
    accuracy = episodes.pivot(index="allocation", columns="order", values="accuracy").to_numpy()
    whole, half = snr_of(accuracy), snr_of(better_half(accuracy))
    return (
        str(episodes["task"].iloc[0]).partition("/")[2],
        f"{whole.ratio:.1f} ({whole.low:.1f} to {whole.high:.1f})",
        f"{half.ratio:.1f} ({half.low:.1f} to {half.high:.1f})",
        f"{100 * whole.signal:.1f} / {100 * half.signal:.1f}",
        f"{100 * whole.noise:.1f} / {100 * half.noise:.1f}",
        f"{100 * np.median(accuracy.mean(1)):.1f} / {100 * accuracy.mean(1).max():.1f}",
        f"{100 * episodes['used'].mean():.0f}",
        f"{episodes['seconds'].median():.2f}",
    )


def snr_of(accuracy: NDArray[np.float64]) -> SNR:
    """Return the SNR of allocations.

    The noise is the variance over orders (K - 1 degrees of freedom), the mean over allocations.
    The mean of K orders still varies by the noise's variance divided by K, as each allocation has
    its own orders: as much is subtracted from the variance of the means over allocations (A - 1
    degrees of freedom), down to 0. The interval leaves out allocations, each with all its orders.

    Args:
        accuracy: (A, K), A and K at least 2.

    Returns:
        The SNR; the ratio is infinite where there is a signal and no noise, and 0 without a signal.
    """
    signal, noise = _deviations(accuracy)
    found = jackknife_interval(accuracy, lambda chosen: _ratio(*_deviations(chosen)))
    return SNR(signal, noise, *found)


def better_half(accuracy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rows with the highest means, half of them rounded up, (ceil(A / 2), K).

    The luck of those chosen is less spread than that of all: their signal is, if anything,
    understated by the same correction.
    """
    best = np.argsort(-accuracy.mean(1), kind="stable")[: (len(accuracy) + 1) // 2]
    return accuracy[np.sort(best)]


def _deviations(accuracy: NDArray[np.float64]) -> tuple[float, float]:
    noise = float(accuracy.var(axis=1, ddof=1).mean())
    signal = float(accuracy.mean(axis=1).var(ddof=1)) - noise / accuracy.shape[1]
    return max(signal, 0.0) ** 0.5, noise**0.5


def _ratio(signal: float, noise: float) -> float:
    if signal == 0.0:
        return 0.0
    return signal / noise if noise > 0.0 else float("inf")
